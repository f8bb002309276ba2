"""Training a classifier of noisy images: what is measured of it against other formulas, and the script through its command line."""

import importlib
import json
import logging
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, log_loss

from configs import from_run
from libs import backbones, data, diffusion, engine, evaluation, pipeline, report
from libs.evaluation import noisy
from tests.conftest import ROOT
import train_classifier

CONFIGS = {path.stem: importlib.import_module(f"configs.{path.stem}").get_config()
           for path in sorted((ROOT / "configs").glob("*_adm_classifier.py"))}
# parameters, depth, learning rate, weight decay, batch size, steps: Dhariwal and Nichol, tables 11 and 12; MGDM's own for 128
PUBLISHED = {"imagenet64_adm_classifier": (65_438_568, 4, 6e-4, 0.2, 1024, 300_000),
             "imagenet128_adm_classifier": (42_568_040, 2, 3e-4, 0.05, 256, 300_000),
             "imagenet256_adm_classifier": (54_096_360, 2, 3e-4, 0.05, 256, 500_000),
             "imagenet512_adm_classifier": (54_448_360, 2, 3e-4, 0.05, 256, 500_000),
             "folder128_adm_classifier": (42_056_066, 2, 3e-4, 1e-5, 64, 200_000)}
HELD_OUT, LEVELS = 22, ("t0", "t0.25", "t1")  # not divisible by the batch size
TINY = ("--config=configs/phantom32_adm_classifier.py", "--config.nnet.channel_mult=(1,2)",
        "--config.nnet.attention_resolutions=(2,)", "--config.dataset.resolution=16", "--config.nnet.image_size=16",
        f"--config.dataset.size={HELD_OUT}", "--config.train.batch_size=8", "--config.train.n_steps=4",
        "--config.lr_scheduler.warmup_steps=1",
        "--config.train.log_interval=1", "--config.train.save_interval=2", "--config.train.eval_interval=2",
        "--config.train.mixed_precision=no", "--config.metrics.levels=(0.0,0.25,1.0)", "--config.metrics.bootstrap=200")
BY_TWO = ("--config.train.n_steps=2", "--config.train.balanced=True", "--config.train.respacing=ddim250",
          "--config.schedule.name=cosine", "--config.train.accumulation=2")


class Alone:
    """As much of a run as judging needs: one process, or one of two that a test plays in turn."""

    rank, world, seed, device, is_main = 0, 1, 5, torch.device("cpu"), True

    def __init__(self):
        self.accelerator = self

    def autocast(self):
        return torch.autocast("cpu", enabled=False)

    def gather_rows(self, rows):
        return rows


class Means(torch.nn.Module):
    """Logits that depend on the image and on the time, so that every mistake in either shows."""

    def __init__(self, classes=4):
        super().__init__()
        self.head = torch.nn.Linear(3 * 16 * 16 + 1, classes)

    def forward(self, x, t):
        return 5 * self.head(torch.cat([x.flatten(1), t[:, None] / 1000], dim=1))


@pytest.fixture(scope="module")
def phantoms():
    return data.get(name="phantoms", resolution=16, size=HELD_OUT, split="test", random_flip=True)


@pytest.fixture(scope="module")
def classifier(phantoms):
    torch.manual_seed(0)
    return pipeline.NoisyClassifier(Means(), diffusion.schedule("linear"), classes=phantoms.classes, shape=phantoms.shape)


@pytest.fixture(scope="module")
def times():
    return noisy.noise_times((0.0, 0.25, 1.0), diffusion.schedule("linear"))


@pytest.fixture(scope="module")
def found(classifier, phantoms, times):
    return noisy.judge(Alone(), classifier, phantoms, times, batch_size=8)


def test_noise_times_are_those_of_training():
    linear = diffusion.schedule("linear")
    assert noisy.noise_times((0.0, 0.2504, 1.0), linear) == {"t0": 0.0, "t0.2504": 0.25, "t1": 1.0}
    grid = linear.times("ddim250")
    respaced = noisy.noise_times((0.0, 0.0001, 0.25, 1.0), linear, grid)
    assert list(respaced.values()) == [0.0, 0.001, 0.249, 0.997]
    assert noisy.noise_times((0.3,), diffusion.schedule("vpsde")) == {"t0.3": 0.3}
    for wrong in ((), (0.1, 0.1), (-0.1,), (1.5,)):
        with pytest.raises(ValueError, match="config.metrics.levels"):
            noisy.noise_times(wrong, linear)


def test_noise_is_a_function_of_seed_image_and_level():
    whole = noisy.noise(3, [4, 7, 9], 2, (3, 8, 8))
    assert torch.equal(noisy.noise(3, [7], 2, (3, 8, 8))[0], whole[1])
    others = [noisy.noise(*arguments, (3, 8, 8))[0] for arguments in ((2, [7], 2), (3, [8], 2), (3, [7], 1))]
    assert all((other - whole[1]).abs().max() > 0.5 for other in others)
    assert whole.mean().abs() < 0.15 and whole.std() == pytest.approx(1, abs=0.1)


def test_scores_against_another_library(found, classifier, phantoms, times):
    """Every level from its own pass over the images, one at a time, through scikit-learn."""
    values, schedule = noisy.numbers(found), classifier.schedule
    means = {}
    for level, (name, t) in enumerate(times.items()):
        rows = []
        for i in range(HELD_OUT):
            x = phantoms[i]["image"][None]
            if level:
                x = schedule.alpha(t) * x + schedule.sigma(t) * noisy.noise(5, [i], level, x.shape[1:])
            told = 999.0 if t == 1 else 249.0 if t == 0.25 else 0.0
            rows.append(classifier.net(x, torch.tensor([told]))[0])
        p, labels = torch.stack(rows).double().softmax(1).detach().numpy(), phantoms.labels.numpy()
        said = p.argmax(1)
        expected = {"accuracy": accuracy_score(labels, said), "balanced_accuracy": balanced_accuracy_score(labels, said),
                    "nll": log_loss(labels, p, labels=range(4)), "ece": ece_by_hand(p.max(1), said == labels),
                    "brier": brier_score_loss(labels, p, labels=range(4), scale_by_half=False)}
        for measure, value in expected.items():
            assert values[f"{measure}_{name}"] == pytest.approx(value, abs=2e-5), (measure, name)
            means.setdefault(measure, []).append(value)
    for measure, each in means.items():
        assert values[measure] == pytest.approx(np.mean(each), abs=2e-5)
    assert values["n"] == HELD_OUT and 0 < values["accuracy"] < 1
    of_class = {name: (found.said == found.labels[:, None])[found.labels == label].double().mean().item()
                for label, name in enumerate(phantoms.classes)}
    assert {name: values[f"accuracy_of_{name}"] for name in phantoms.classes} == pytest.approx(of_class)


def ece_by_hand(confidence, right, bins=15):
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            total += abs(confidence[inside].mean() - right[inside].mean()) * inside.sum()
    return total / len(confidence)


@pytest.mark.parametrize("batch_size", [1, 5, 22])
def test_batch_size_changes_nothing(found, classifier, phantoms, times, batch_size):
    again = noisy.numbers(noisy.judge(Alone(), classifier, phantoms, times, batch_size=batch_size))
    assert again == pytest.approx(noisy.numbers(found), abs=1e-5)


def test_images_are_looked_at_as_they_are(found, classifier, times):
    """No flip, although training has it."""
    still = data.get(name="phantoms", resolution=16, size=HELD_OUT, split="test", random_flip=False)
    assert noisy.numbers(noisy.judge(Alone(), classifier, still, times, batch_size=8)) == noisy.numbers(found)


def test_a_classifier_of_clean_images_is_told_the_lowest_time(classifier, phantoms, times):
    clean = pipeline.NoisyClassifier(classifier.net, classifier.schedule, classes=phantoms.classes, shape=phantoms.shape,
                                     noised=False)
    values = noisy.numbers(noisy.judge(Alone(), clean, phantoms, {"t0": 0.0}, batch_size=8))
    assert values["nll"] == values["nll_t0"] == pytest.approx(
        noisy.numbers(noisy.judge(Alone(), classifier, phantoms, times, batch_size=8))["nll_t0"])


def test_calibration_error_of_known_cases():
    draw = torch.Generator().manual_seed(0)
    assert noisy.calibration_error(torch.full((10,), 0.8, dtype=torch.float64),
                                   torch.tensor([1.0] * 8 + [0.0] * 2, dtype=torch.float64)) == pytest.approx(0, abs=1e-12)
    assert noisy.calibration_error(torch.ones(100, dtype=torch.float64),
                                   (torch.arange(100) < 60).double()) == pytest.approx(0.4)
    sure = torch.rand(200_000, generator=draw, dtype=torch.float64)
    right = (torch.rand(200_000, generator=draw, dtype=torch.float64) < sure).double()
    assert noisy.calibration_error(sure, right) < 0.005
    # Over-confident by the square root: the mean of sqrt(p) - p over p in U[0, 1] is 2/3 - 1/2.
    assert noisy.calibration_error(sure.sqrt(), right) == pytest.approx(1 / 6, abs=0.005)
    curve = noisy.reliability(torch.tensor([0.0, 1 / 15, 0.5, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert curve.count.nonzero().flatten().tolist() == [0, 7, 14] and curve.count[0] == 2 and curve.accuracy[0] == 0.5


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_temperature_is_the_factor_on_calibrated_logits(factor):
    draw = torch.Generator().manual_seed(1)
    true = 2 * torch.randn(40_000, 1, 3, generator=draw)
    labels = torch.multinomial(true[:, 0].softmax(1), 1, generator=draw)[:, 0]
    found = noisy.judged(factor * true, labels, torch.arange(len(labels)), {"t0.5": 0.5}, ["a", "b", "c"])
    assert found.temperature == pytest.approx(factor, rel=0.03)
    values = noisy.numbers(found)
    assert values["ece_tempered"] < 0.01 and values["nll_tempered"] <= values["nll"]
    assert values["nll_tempered"] == pytest.approx(
        torch.nn.functional.cross_entropy(factor * true[:, 0] / found.temperature, labels).item(), rel=1e-5)
    if factor != 1:
        assert values["ece"] > 0.05


def test_parts_of_two_processes_are_put_in_order(found, classifier, phantoms, times):
    """What each process holds of its images, joined as `run.gather_rows` joins it, in order of rank."""
    draw = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(9, 2, 3, generator=draw), torch.randint(3, (9,), generator=draw)
    whole = noisy.judged(logits, labels, torch.arange(9), {"t0": 0.0, "t1": 1.0}, list("abc"))
    order = torch.tensor([0, 2, 4, 6, 8, 1, 3, 5, 7])
    again = noisy.judged(logits[order], labels[order], order, {"t0": 0.0, "t1": 1.0}, list("abc"))
    assert torch.equal(whole.labels, again.labels) and torch.equal(whole.said, again.said)
    assert noisy.numbers(whole) == pytest.approx(noisy.numbers(again), rel=1e-6)


def test_scores_have_intervals_and_say_what_is_unknown():
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(2, (400,), generator=draw)
    logits = torch.nn.functional.one_hot(labels, 3).float()[:, None] * 2 + torch.randn(400, 1, 3, generator=draw)
    found = noisy.judged(logits, labels, torch.arange(400), {"t0": 0.0}, ["rare", "common", "never"])
    result = noisy.record(found, resamples=200, seed=0)
    for name, score in result["scores"].items():
        if name != "temperature":
            assert score["low"] <= score["value"] + 1e-12 and score["value"] <= score["high"] + 1e-12, name
            assert score["high"] - score["low"] < 0.25 and score["n"] == 400
    right = found.right[:, 0]
    half = 1.96 * right.std().item() / math.sqrt(400)  # of a normal approximation
    assert result["scores"]["accuracy"]["high"] - result["scores"]["accuracy"]["low"] == pytest.approx(2 * half, rel=0.25)
    assert list(result["per_class"]) == ["rare", "common"] and result["per_class"]["rare"]["accuracy_t0"]["n"] == int(
        (labels == 0).sum())
    assert any("no held-out image of never" in text for text in result["warnings"])
    assert noisy.record(found)["scores"]["accuracy"]["low"] is None
    sure = noisy.judged(50 * torch.eye(3)[labels][:, None], labels, torch.arange(400), {"t0": 0.0}, list("abc"))
    assert any("temperature" in text for text in noisy.record(sure)["warnings"])


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_as_published(name):
    config = CONFIGS[name]
    assert list(config) == sorted(config) and config.train.ema_rate == 0.0 and config.metrics.levels[0] == 0.0
    assert noisy.noise_times(config.metrics.levels, diffusion.schedule(**config.schedule))
    assert config.train.best_metric == "nll" and config.nnet.image_size == config.dataset.resolution
    if name in PUBLISHED:
        with torch.device("meta"):
            net = backbones.get(**{**config.nnet, "out_channels": config.nnet.out_channels or 2})
        assert PUBLISHED[name] == (sum(p.numel() for p in net.parameters()), config.nnet.num_res_blocks, config.optimizer.lr,
                                   config.optimizer.weight_decay, config.train.batch_size, config.train.n_steps)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_step_of_each_config_at_tiny_width(name):
    config = CONFIGS[name]
    torch.manual_seed(0)
    small = {"model_channels": 64 if 0.5 in config.nnet.channel_mult else 32, "num_res_blocks": 1, "out_channels": 3,
             "num_head_channels": 32, "image_size": 32 if config.nnet.image_size < 128 else 64}
    factor = config.nnet.image_size // small["image_size"]
    small["attention_resolutions"] = tuple(max(1, ds // factor) for ds in config.nnet.attention_resolutions)
    net = backbones.get(**{**config.nnet, **small})
    schedule = diffusion.schedule(**config.schedule)
    x = schedule.add_noise(torch.randn(2, 3, small["image_size"], small["image_size"]),
                           torch.randn(2, 3, small["image_size"], small["image_size"]), torch.tensor([0.3, 0.9]))
    logits = net(x, schedule.network_time(torch.tensor([0.3, 0.9])))
    assert logits.shape == (2, 3)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """Four steps by one process, judged at the second and the fourth."""
    folder = tmp_path_factory.mktemp("classifier")
    return folder, script("train_classifier.py", *TINY, f"--workdir={folder}")


def scores(folder):
    path, = folder.glob("eval/classifier_*/scores.json")
    return json.loads(path.read_text())


def test_a_run_writes_what_it_promises(trained):
    folder, done = trained
    assert {"config.json", "run.json", "classes.json", "metrics.jsonl", "ckpts", "eval"} <= set(os.listdir(folder))
    lines = engine.read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 and 0 <= line["accuracy"] <= 1 for line in lines if line["kind"] == "train")
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [2, 4]
    for name in LEVELS:
        assert {f"{measure}_{name}" for measure in ("accuracy", "balanced_accuracy", "nll", "ece", "brier")} <= set(evaluations[0])
    best = min(evaluations, key=lambda line: line["nll"])
    result = scores(folder)
    assert result["step"] == best["step"] and result["n"] == HELD_OUT == best["n"]
    assert "these images also chose this checkpoint, the best of 2 by nll" in " ".join(result["warnings"])
    assert result["levels"] == {"t0": 0.0, "t0.25": 0.25, "t1": 1.0}
    for name, score in result["scores"].items():
        assert score["value"] == pytest.approx(best[name], rel=1e-6), name
        assert score["n"] == HELD_OUT and score["meaning"]
    assert sum(row["accuracy_t1"]["n"] for row in result["per_class"].values()) == HELD_OUT
    with Image.open(next(folder.glob("eval/*/reliability.png"))) as figure:
        assert figure.size[0] > 800 and len(np.unique(np.asarray(figure.convert("L")))) > 20
    assert "temperature" in done.stdout and "t0.25" in done.stdout
    page = report.write(folder).read_text()
    assert "also chose this checkpoint" in page and "also chose this checkpoint" in done.stdout
    assert "ece_t0.25" in page and "Share of held-out images whose most probable class is theirs" in page


def test_guidance_opens_what_was_trained(trained):
    """The classifier that guidance asks says of an image what the evaluation heard."""
    opened = evaluation.open_classifier(trained[0])
    held_out = data.get(name="phantoms", resolution=16, size=HELD_OUT, split="val")
    assert opened.classes == held_out.classes and opened.shape == (3, 16, 16) and opened.noised
    x = torch.stack([held_out[i]["image"] for i in range(HELD_OUT)])
    loss = torch.nn.functional.cross_entropy(opened.logits(x, 0.0, opened.schedule), held_out.labels)
    assert loss.item() == pytest.approx(scores(trained[0])["scores"]["nll_t0"]["value"], abs=1e-5)


def test_the_averaged_network_is_the_network(trained):
    folder = max((trained[0] / "ckpts").glob("*.ckpt"))
    average, raw = (engine.load_weights(folder, averaged=choice)[0] for choice in (True, False))
    assert all(torch.equal(average[name], raw[name]) for name in raw)


@pytest.fixture(scope="module")
def trained_by_two(script, tmp_path_factory):
    """Two processes, classes drawn alike often, on a respaced grid, in parts."""
    folder = tmp_path_factory.mktemp("two")
    script("train_classifier.py", *TINY, *BY_TWO, f"--workdir={folder}", processes=2)
    return folder


def test_two_processes_train_on_a_respaced_grid(trained_by_two):
    result = scores(trained_by_two)
    assert result["levels"] == {"t0": 0.0, "t0.25": 0.249, "t1": 0.997}
    assert "also chose" not in " ".join(result["warnings"]), "the only checkpoint that was judged"
    assert json.loads((trained_by_two / "run.json").read_text())["sessions"][0]["processes"] == 2


def test_a_finished_run_writes_its_evaluation_again_and_one_process_agrees_with_two(trained_by_two, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(trained_by_two, again)
    before = (again / "metrics.jsonl").read_text()
    shutil.rmtree(again / "eval")
    train_classifier.train(from_run.get_config(again / "config.json"), again)
    assert (again / "metrics.jsonl").read_text() == before
    mine, its = scores(again), scores(trained_by_two)
    assert mine["n"] == its["n"] == HELD_OUT and mine["scores"].keys() == its["scores"].keys()
    for name, score in its["scores"].items():
        for key in ("value", "low", "high"):
            assert mine["scores"][name][key] == pytest.approx(score[key], abs=1e-4), (name, key)
    assert mine["per_class"] == its["per_class"]


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(inside, trained, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(trained[0], again)
    shutil.rmtree(again / "ckpts" / "4.ckpt")
    shutil.rmtree(again / "eval")
    inside("train_classifier.py", *TINY, f"--workdir={again}")
    mine, its = ([line | {"images_per_second": 0} for line in engine.read_metrics(folder / "metrics.jsonl")]
                 for folder in (again, trained[0]))
    assert mine == its and scores(again)["scores"] == scores(trained[0])["scores"]


def test_start_weights_and_clean_images(trained, tmp_path):
    """After one step of a tiny rate the classifier says of clean images what the one did that it started from, which it needs
    no more then."""
    shutil.copytree(trained[0], tmp_path / "start")
    changes = {"train.n_steps": 1, "optimizer.lr": 1e-12, "train.noised": False, "train.init": str(tmp_path / "start")}
    train_classifier.train(tiny(**changes), tmp_path / "run")
    shutil.rmtree(tmp_path / "start")
    shutil.rmtree(tmp_path / "run/eval")
    train_classifier.train(tiny(**changes), tmp_path / "run")
    result, its = scores(tmp_path / "run"), scores(trained[0])["scores"]
    assert result["levels"] == {"t0": 0.0}
    for name in ("accuracy", "nll", "brier"):
        assert result["scores"][name]["value"] == pytest.approx(its[f"{name}_t0"]["value"], abs=1e-4)
        assert result["scores"][name]["value"] == result["scores"][f"{name}_t0"]["value"]


def test_grey_images_of_a_folder_without_held_out_ones(tmp_path, caplog):
    """Random crops, one channel; nothing is judged, and that is said."""
    folder_of_images(tmp_path / "images", classes=3)
    config = own_images(tmp_path / "images", channels=1, crop="random")
    config.nnet.in_channels = 1
    with caplog.at_level(logging.WARNING):
        train_classifier.train(config, tmp_path / "run")
    assert caplog.text.count("is not evaluated") == 1 and not (tmp_path / "run" / "eval").exists()
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["c2", "c10", "c11"]
    assert engine.load_weights(tmp_path / "run")[0]["input_blocks.0.0.weight"].shape[1] == 1


@pytest.mark.parametrize("others", [("c2", "c10", "c12"), ("c2", "c10"), ("c2", "c10", "c11", "c12")])
def test_a_run_that_goes_on_with_other_classes_is_refused_and_loses_nothing(others, tmp_path):
    folder_of_images(tmp_path / "images", classes=3)
    train_classifier.train(own_images(tmp_path / "images"), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    folder_of_images(tmp_path / "others", names=others)
    config = own_images(tmp_path / "others")
    config.train.n_steps = 2
    with pytest.raises(ValueError, match="choose another --workdir") as caught:
        train_classifier.train(config, tmp_path / "run")
    assert f"classes.json says ['c2', 'c10', 'c11'], now it would be {list(others)}" in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def own_images(path, *, validation_split="", **options):
    config = tiny(**{"train.n_steps": 1, "train.validation_split": validation_split})
    with config.unlocked():
        config.dataset = {"name": "folder", "path": str(path), "resolution": 16, "split": "", **options}
    return config


def folder_of_images(path, *, classes=0, labelled=True, names=("c2", "c10", "c11")):
    draw, names = np.random.default_rng(0), names[:classes or len(names)]
    for k in range(6 * len(names)):
        place = path / names[k % len(names)] if labelled else path
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 20), dtype=np.uint8)).save(place / f"{k}.png")


WRONG = {
    "classes": ({"nnet.out_channels": 7}, ("out_channels is 7", "4 classes", "or to 0")),
    "channels": ({"nnet.in_channels": 1}, ("in_channels is 1", "the images have 3", "--config.nnet.in_channels=3")),
    "size": ({"nnet.image_size": 32}, ("image_size is 32", "16 pixels", "--config.dataset.resolution=32")),
    "split": ({"train.validation_split": "tset"}, ("'tset'", "did you mean 'test'")),
    "respacing": ({"train.respacing": "ddim240"}, ("ddim240", "ddim250")),
    "levels": ({"metrics.levels": (0.0, 2.0)}, ("config.metrics.levels=(0.0, 2.0)",)),
    "start": ({"train.init": "nowhere"}, ("no weights at nowhere",)),
    "batch": ({"train.batch_size": 23}, ("batch_size=23", "22 images")),
    "setting": ({"train.noize": True}, ("config.train.noize", "did you mean noised")),
}


def tiny(**others):
    config = CONFIGS["phantom32_adm_classifier"].copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({
            "nnet.image_size": 16, "nnet.channel_mult": (1, 2), "nnet.attention_resolutions": (2,), "train.batch_size": 8,
            "train.mixed_precision": "no", "dataset.resolution": 16, "dataset.size": HELD_OUT, "lr_scheduler.warmup_steps": 0}
            | others)
    return config


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_before_anything_is_written(name, tmp_path):
    changes, said = WRONG[name]
    with pytest.raises((ValueError, OSError)) as caught:
        train_classifier.train(tiny(**changes), tmp_path / "run")
    assert all(part in str(caught.value) for part in said), caught.value
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("options, said", [(dict(classes=1), "one class"), (dict(classes=2, labelled=False), "no labels")])
def test_images_without_classes_to_tell_apart(options, said, tmp_path):
    folder_of_images(tmp_path / "images", **options)
    config = own_images(tmp_path / "images", split="train", holdout=0.2, validation_split="val")
    with pytest.raises(ValueError, match=f"{said}: a classifier needs at least two classes"):
        train_classifier.train(config, tmp_path / "run")


def test_start_weights_of_other_classes(trained, tmp_path):
    """What differs is named, with the way out; and the way out works."""
    folder_of_images(tmp_path / "images", classes=3)
    config = own_images(tmp_path / "images")
    config.train.init = str(trained[0])
    with pytest.raises(ValueError, match="tells 4 classes apart, the data have 3.*init_without"):
        train_classifier.train(config, tmp_path / "run")
    config.train.init_without = ("out.",)
    train_classifier.train(config, tmp_path / "other")
    assert json.loads((tmp_path / "other" / "classes.json").read_text()) == ["c2", "c10", "c11"]


def test_a_mistake_on_the_command_line_ends_in_one_line(inside, tmp_path):
    done = inside("train_classifier.py", *TINY, "--config.nnet.out_channels=7", f"--workdir={tmp_path}", fails=True)
    assert done.stderr.strip().splitlines()[-1].startswith("error: config.nnet.out_channels is 7, the data have 4 classes")
