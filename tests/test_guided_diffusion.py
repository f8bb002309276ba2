"""train_guided_diffusion.py through its command line: its options, resume, several processes, and sample.py on what it made."""

import ast
import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import train_guided_diffusion
from configs import phantom32_adm
from libs import data, engine, evaluation, pipeline
from libs.engine import checkpoint

TINY = ["--config=configs/phantom32_adm.py", "--config.nnet.channel_mult=(1,1)", "--config.nnet.attention_resolutions=(2,)",
        "--config.nnet.image_size=16", "--config.dataset.resolution=16", "--config.dataset.size=64", "--config.train.batch_size=8",
        "--config.train.n_steps=4", "--config.train.log_interval=1", "--config.train.preview_interval=4",
        "--config.train.eval_interval=0", "--config.train.validation_interval=4", "--config.train.validation_size=16",
        "--config.metrics.sample_steps=2",
        "--config.lr_scheduler.warmup_steps=0", "--config.sample.sample_steps=4", "--config.train.mixed_precision="]

LEARNED = [*TINY, "--config.train.time_sampler=loss_second_moment", "--config.train.respacing=ddim10",
           "--config.train.weighting=mgdm", "--config.train.more_ema_rates=(0.1,)", "--config.lr_scheduler.name=customized"]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["vb"]) for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adm") / "run"
    script("train_guided_diffusion.py", *LEARNED, f"--workdir={folder}")
    return folder


def test_a_run_keeps_what_it_promises(trained):
    assert len(losses(trained)) == 4 and (trained / "samples" / "4.png").is_file()
    tensors, record = checkpoint.read(trained / "ckpts" / "4.ckpt")
    assert {"nnet", "nnet_ema", "nnet_ema_0.1", "optimizer", "time_sampler"} == set(tensors) and record["step"] == 4
    assert tensors["time_sampler"]["counts"].sum() == 32 and tensors["time_sampler"]["history"].shape == (10, 10)
    assert tensors["nnet"]["label_emb.weight"].shape[0] == 4 and tensors["nnet"]["out.2.weight"].shape[0] == 6


def test_resume_is_exact_and_two_processes_share_what_the_time_sampler_learns(script, inside, trained, tmp_path):
    for steps in (2, 4):
        inside("train_guided_diffusion.py", *LEARNED, f"--config.train.n_steps={steps}", f"--workdir={tmp_path}/parts")
    assert losses(tmp_path / "parts") == losses(trained)
    one, other = (checkpoint.read(folder / "ckpts" / "4.ckpt")[0] for folder in (tmp_path / "parts", trained))
    for group in one:
        for name, value in one[group].items():
            assert torch.equal(value, other[group][name]), f"{group} {name}"
    script("train_guided_diffusion.py", *LEARNED, "--config.train.balanced=True", "--config.train.n_steps=2",
           "--config.train.accumulation=2", f"--workdir={tmp_path}/two", processes=2)
    learned = checkpoint.read(tmp_path / "two" / "ckpts" / "2.ckpt")[0]["time_sampler"]
    assert learned["counts"].sum() == 16, "the losses of both processes and of both parts of a step"
    assert (learned["history"] > 0).sum() == learned["counts"].clamp(max=10).sum()


def test_stage_one_makes_exactly_what_is_asked_on_any_number_of_processes(script, inside, trained, tmp_path):
    ask = ("sample.py", f"--workdir={trained}", "--counts=melanoma=3,angioma=2", "--layout=classes", "--seed=5")
    inside(*ask, f"--config.sample.path={tmp_path}/1")
    script(*ask, f"--config.sample.path={tmp_path}/2", processes=2)
    found = {}
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        assert sorted(os.listdir(folder)) == ["angioma", "grid.png", "melanoma", "metadata.csv"]
        with open(folder / "metadata.csv") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["label"] for row in rows] == ["melanoma"] * 3 + ["angioma"] * 2
        found[processes] = [np.asarray(Image.open(folder / row["file_name"])) for row in rows]
    np.testing.assert_array_equal(found[1], found[2])


def test_sampling_goes_on_where_it_was_stopped_and_the_folder_is_a_data_set(inside, trained, tmp_path):
    ask = ("sample.py", f"--workdir={trained}", "--label=all", "--n_samples=2", "--layout=classes",
           f"--config.sample.path={tmp_path}")
    inside(*ask)
    files = sorted(tmp_path.glob("*/*.png"))
    kept, torn = files[0], files[1]
    before, stamp = torn.read_bytes(), kept.stat().st_mtime_ns
    torn.write_bytes(before[:50])
    files[2].unlink()
    inside(*ask)
    assert torn.read_bytes() == before and files[2].is_file() and kept.stat().st_mtime_ns == stamp
    inside(*ask, "--config.sample.ema_rate=0.1")
    assert kept.read_bytes() != files[4].read_bytes() and kept.stat().st_mtime_ns > stamp, "other weights are another request"
    inside(*ask, "--config.sample.gradient.clip_norm=1.", "--n_samples=1")
    assert sorted(path.name for path in tmp_path.glob("*/*.png")) == ["000000.png", "000001.png", "000002.png", "000003.png"]
    inside(*ask)
    found = data.get("folder", path=tmp_path, resolution=16)
    assert len(found) == 8 and found.classes == ["angioma", "dermatofibroma", "melanoma", "nevus"]
    assert not list(tmp_path.rglob(".staging*"))


@pytest.mark.parametrize("own, message", [
    ({"nnet.in_channels": 1}, r"the data give images \(3, 16, 16\)"),
    ({"nnet.image_size": 32}, r"config.nnet is built for \(3, 32, 32\)"),
    ({"nnet.out_channels": 3}, "need 6; 0 takes what is needed"),
    ({"train.time_sampler": "loss-second-moment"}, "Did you mean 'loss_second_moment'"),
    ({"train.respacing": "ddim240"}, "no whole stride keeps 240"),
    ({"train.batch_size": 100}, "has 64 images"),
    ({"nnet.num_classes": 3}, "4 classes"),
    ({"train.init": "nowhere.pt"}, "no weights at nowhere.pt"),
    ({"train.fp16_scale_growth": 2.0}, "must lie between 0"),
])
def test_bad_input(tmp_path, own, message):
    """In this process, to be quick: what the script raises, cli.main prints without a traceback (tests/test_cli.py)."""
    config = phantom32_adm.get_config()
    tiny = [option.removeprefix("--config.").split("=", 1) for option in TINY[1:]]
    config.update_from_flattened_dict({key: ast.literal_eval(value or "''") for key, value in tiny} | own)
    with pytest.raises((ValueError, OSError), match=message):
        train_guided_diffusion.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "ckpts").exists()


def test_counts_are_checked():
    classes = ["melanoma", "nevus"]
    assert pipeline.count_labels("nevus=2, melanoma=1", classes) == [1, 1, 0]
    for text, message in (("melanom=3", "'melanom|melanom is no class"), ("nevus=0", "whole number of at least 1"),
                          ("nevus=x", "whole number"), ("nevus=1,nevus=2", "there twice"), ("nevus", "no class")):
        with pytest.raises(ValueError, match=message):
            pipeline.count_labels(text, classes)


def test_the_grid_shows_every_class():
    assert list(evaluation.first_of_each([0] * 100 + [1] * 100 + [2] * 5, 12)) == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203]
    assert list(evaluation.first_of_each([1, 0, 1], 64)) == [0, 1, 2]


def test_bad_requests(inside, trained):
    for own, message in (["--layout=class", "known are flat, classes"], ["--config.sample.ema_rate=0.7", "no average of rate 0.7"]):
        done = inside("sample.py", f"--workdir={trained}", own, fails=True)
        assert message in done.stderr and "Traceback" not in done.stderr, own


def test_starting_from_other_weights_with_other_classes(inside, trained, tmp_path):
    """Weights of four classes into a network of two: refused by name, and taken without the class embedding."""
    weights, _, _ = engine.load_weights(trained)
    torch.save(weights, tmp_path / "published.pt")
    folder = tmp_path / "data"
    for k, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i + 8 * k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    own = ["--config=configs/folder128_adm.py", *(option for option in TINY[1:] if "dataset" not in option),
           f"--config.dataset.path={folder}", "--config.dataset.resolution=16", "--config.nnet.model_channels=32",
           "--config.nnet.num_res_blocks=1", "--config.nnet.num_head_channels=32", "--config.train.workers=0",
           "--config.train.respacing=", f"--config.train.init={tmp_path}/published.pt", f"--workdir={tmp_path}/run"]
    done = inside("train_guided_diffusion.py", *own, fails=True)
    assert "label_emb.weight" in done.stderr
    inside("train_guided_diffusion.py", *own, "--config.train.init_without=('label_emb',)", "--config.train.n_steps=1",
           "--config.optimizer.lr=1e-9")
    mine, _, _ = engine.load_weights(tmp_path / "run")
    torch.testing.assert_close(mine["input_blocks.0.0.weight"], weights["input_blocks.0.0.weight"], atol=1e-6, rtol=0)
    assert mine["label_emb.weight"].shape[0] == 2


def test_grey_images_are_grey_all_the_way(inside, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir()
        for i in range(4):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(
                tmp_path / "data" / name / f"{i}.png")
    own = ["--config=configs/folder128_adm.py", *(option for option in TINY[1:] if "dataset" not in option),
           f"--config.dataset.path={tmp_path}/data", "--config.dataset.resolution=16", "--config.dataset.channels=1",
           "--config.dataset.holdout=0.25", "--config.nnet.in_channels=1", "--config.nnet.model_channels=32",
           "--config.nnet.num_res_blocks=1", "--config.nnet.num_head_channels=32", "--config.train.workers=0",
           "--config.train.batch_size=6", "--config.train.respacing=ddim10", f"--workdir={tmp_path}/run"]
    inside("train_guided_diffusion.py", *own)
    weights, _, _ = engine.load_weights(tmp_path / "run")
    assert weights["input_blocks.0.0.weight"].shape[1] == 1 and weights["out.2.weight"].shape[0] == 2
    inside("sample.py", f"--workdir={tmp_path}/run", "--n_samples=2", f"--config.sample.path={tmp_path}/out",
           "--config.sample.sample_steps=10")
    assert Image.open(next((tmp_path / "out").glob("0*.png"))).mode == "L"
