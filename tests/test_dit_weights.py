"""DiT with weights of others: images without any real ones, and trainings that begin with weights of other classes or sizes."""

import argparse
import json
import logging

import numpy as np
import pytest
import torch

import eval_dit
from configs.common import adamw, d, metrics
from libs import backbones, engine, evaluation, pipeline
from libs.evaluation.generation import Sink

SMALL = dict(patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, mlp_ratio=2.0, class_dropout_prob=0.1)


def config_of(*, classes=4, size=8, **sample):
    """A DiT of a few thousand weights on pixels; no real image is anywhere."""
    config = d(seed=0)
    config.train = d(mode="cond", workers=0, p_uncond=0.1, mixed_precision="no", validation_split="")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    config.nnet = d(name="dit", **SMALL, input_size=size, num_classes=classes)
    config.schedule, config.codec = d(name="linear", steps=1000), d(name="pixels")
    config.denoiser, config.features = d(predicts="eps", learned_var=True), d(path="", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=size)
    config.sample = d(**dict(dict(algorithm="dpmpp_2m", sample_steps=2, n_samples=11, mini_batch_size=4, guidance=1.5,
                                  labels="data", path="", npz=""), **sample))
    config.metrics = metrics(features=("classifier",))
    return config


def weights_of(seed=0, **sizes):
    """Random weights under the published names."""
    torch.manual_seed(seed)
    net = backbones.get("dit", **(SMALL | dict(input_size=8, num_classes=4) | sizes))
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(weights_of(), "DiT-S-2-8x8.pt")
    return tmp_path / "DiT-S-2-8x8.pt"


def test_images_for_the_adm_suite_without_any_real_one(file, tmp_path, capsys, caplog):
    eval_dit.evaluate(config_of(), str(tmp_path / "run"), str(file), 1, "", "deep/samples.npz")
    said = capsys.readouterr().out
    assert "11 images, dpmpp_2m, 2 steps, guidance 1.5\nwarning: not scored by features: no images at" in said
    assert "11 images in deep/samples.npz" in said and "images are made for deep/samples.npz and not scored" in caplog.text
    with np.load("deep/samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"] and archive["arr_0"].dtype == np.uint8 and archive["arr_0"].shape == (11, 8, 8, 3)
        images = archive["arr_0"]
    assert not list((tmp_path / "deep").glob(".staging*")) and len(np.unique(images.reshape(11, -1), axis=0)) == 11
    result = json.loads((tmp_path / "run/eval/DiT-S-2-8x8_11/scores.json").read_text())
    assert result["n"] == 11 and result["scores"] == {}
    with np.load(tmp_path / "run/eval/DiT-S-2-8x8_11/shown.npz") as shown:
        assert shown["arr_0"].shape == (11, 8, 8, 3) and (images[:, None] == shown["arr_0"]).all((2, 3, 4)).any(1).all()
    # rows are images in order, whatever the batches, and config.sample.npz means the same
    eval_dit.evaluate(config_of(mini_batch_size=11, npz="again.npz"), str(tmp_path / "run"), str(file), 1, "other", "")
    with np.load("again.npz") as again:
        assert np.abs(again["arr_0"].astype(int) - images).max() <= 1
    config = config_of()
    config.dataset.path = "nowhere"
    with pytest.raises(FileNotFoundError, match="no images at config.dataset.path.*To keep images without scores.*--npz=FILE"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "")


def test_an_archive_that_cannot_be_written_is_said_before_the_first_image(file, tmp_path, monkeypatch):
    config = config_of()
    with pytest.raises(ValueError, match="is a folder: --npz .* such as .*/samples.npz"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", str(tmp_path))
    config = config_of(n_samples=10 ** 15)
    monkeypatch.setattr(evaluation, "asked", lambda *_, **__: {"label": torch.zeros(1)})
    with pytest.raises(OSError, match=r"samples.npz: 1000000000000000 images of 192 bytes.*need 384000000.* GB, and .* are free"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "samples.npz")
    assert not (tmp_path / "samples.npz").exists() and not list(tmp_path.glob(".staging*"))


def test_an_archive_of_a_failed_evaluation_leaves_nothing(tmp_path):
    run = engine.Run(tmp_path / "run")
    with pytest.raises(RuntimeError, match="half-way"):
        with Sink(run, npz=tmp_path / "a.npz", shape=(2, 3, 4, 4)) as sink:
            sink.add([1], torch.ones(1, 3, 4, 4, dtype=torch.uint8))
            raise RuntimeError("half-way")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run.finish()
