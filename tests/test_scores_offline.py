"""Unlabelled images and no network for features at hand: what needs none is scored all the same, and the
message says what to set."""

import json

import pytest
from ml_collections import ConfigDict

from libs import data, engine, evaluation
from libs.evaluation import references
from tests.test_class_ldm import controlnet, ldm, place  # noqa: F401 (fixtures)

TINY = ("--config=configs/phantom32_unet_label.py", "--config.dataset.size=24", "--config.train.n_steps=2", "--config.train.batch_size=4",
        "--config.nnet.block_out_channels=(8,8)", "--config.nnet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
        "--config.nnet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')", "--config.nnet.cross_attention_dim=8",
        "--config.nnet.attention_head_dim=2", "--config.nnet.norm_num_groups=4", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.train.validation_interval=0", "--config.lr_scheduler.warmup_steps=0",
        "--config.sample.sample_steps=2", "--config.metrics.bootstrap=0")


def offline(monkeypatch, tmp_path):
    """No feature network can be had, and none is cached."""
    monkeypatch.setattr(references, "NETWORKS", tmp_path / "networks")
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")

    def extractor(name, **how):
        if name == "colour":
            return before(name, **how)
        raise FileNotFoundError(f"the weights of {name} are missing and could not be fetched")
    before = references.metrics.extractor
    monkeypatch.setattr(references.metrics, "extractor", extractor)


def test_a_class_ldm_is_scored_by_colours_with_pictures_and_nearest_images(inside, tmp_path, monkeypatch):
    inside("train_class_ldm.py", *TINY, f"--workdir={tmp_path}/run")
    offline(monkeypatch, tmp_path)
    done = inside("eval_class_ldm.py", f"--workdir={tmp_path}/run", "--config.sample.n_samples=8", "--name=x",
                  "--config.metrics.features=('inception','dinov2')")
    assert "inception: the weights of inception are missing" in done.stderr
    assert "--config.metrics.features=\"('colour',)\"" in done.stderr
    scores = json.loads((tmp_path / "run" / "eval" / "x" / "scores.json").read_text())
    assert scores["features"] == "colour" and "fd_colour" in scores["scores"] and not any("fid" in name for name in scores["scores"])
    assert any("say nothing of shapes" in text for text in scores["warnings"])
    import numpy as np
    with np.load(tmp_path / "run" / "eval" / "x" / "shown.npz", allow_pickle=False) as shown:
        assert len(shown["arr_0"]) == 8 and len(shown["arr_2"]) == 8, "the images and the nearest real ones"
    inside("eval_class_ldm.py", f"--workdir={tmp_path}/run", "--config.sample.n_samples=8", "--name=typed",
           "--config.metrics.features=('colour',)")
    typed = json.loads((tmp_path / "run" / "eval" / "typed" / "scores.json").read_text())
    assert typed["scores"] == scores["scores"], "what the message says, typed"


def test_dice_needs_no_feature_network(tmp_path, monkeypatch):
    """evaluate_run's choice for masks: the sides are colours, so that `evaluate` goes on to Dice."""
    offline(monkeypatch, tmp_path)
    pairs = data.get("phantoms", resolution=16, size=12, masks=True)
    config = ConfigDict(dict(seed=0, train=dict(workers=0), dataset={}, sample=dict(npz=""),
                             metrics=dict(features=("inception",), fid_stat="nowhere.npz", names=("fd",))))
    run = engine.Run(tmp_path / "run")
    sides, unscored, warning = evaluation._sides(run, config, pairs)
    assert [extractor.name for extractor, _ in sides] == ["colour"] and not unscored and "no Fréchet distance" in warning
    assert config.metrics.features == ("inception",), "the config stays as it was"
    config.sample.npz = "all.npz"
    sides, unscored, _ = evaluation._sides(run, config, pairs)
    assert sides == () and "no feature network" in unscored, "an archive is for other scores"
    config.sample.npz = ""
    with pytest.raises(FileNotFoundError, match="no images at"):
        evaluation._sides(run, config, None)
    run.finish()


def test_a_controlnet_has_its_dice(inside, controlnet, tmp_path, monkeypatch):  # noqa: F811
    offline(monkeypatch, tmp_path)
    inside("eval_controlnet.py", f"--workdir={controlnet}", "--config.sample.n_samples=4", "--name=offline", "--config.metrics.bootstrap=0",
           "--config.metrics.features=('inception',)")
    scores = json.loads((controlnet / "eval" / "offline" / "scores.json").read_text())
    assert {"dice", "dice_lesion", "fd_colour"} <= scores["scores"].keys() and scores["following_of_real"]


def test_a_training_does_not_choose_its_best_weights_by_colours(tmp_path, monkeypatch, caplog):
    offline(monkeypatch, tmp_path)
    config = ConfigDict(dict(seed=0, train=dict(workers=0, eval_interval=1), dataset={},
                             metrics=dict(features=("inception",), fid_stat="", names=("fd",))))
    run = engine.Run(tmp_path / "run")
    assert evaluation.evaluator(run, None, config, data.get("phantoms", resolution=16, size=12)) is None
    assert "training goes on without scores" in caplog.text and "('colour',)" in caplog.text
    run.finish()
