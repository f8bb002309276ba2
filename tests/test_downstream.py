"""The downstream study: closed forms of its scores and intervals, what each training sees, leaks, resuming, real effects."""

import csv
import importlib
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from absl import flags
from ml_collections import config_flags
from PIL import Image
from sklearn import metrics as sklearn_metrics

from libs.downstream import images, networks, plan, scores, summary, training
from tests.conftest import ROOT

CONFIG = f"--config={ROOT / 'configs' / 'folder64_downstream.py'}"
TRAIN = dict(n_steps=3, batch_size=16, balanced=True, mixed_precision="", label_smoothing=0.0, random_flip=True,
             random_vflip=False, random_shift=1, threads=1)
ADAM, RATE, SMALL = dict(name="adamw", lr=3e-3, weight_decay=0.01), dict(name="cosine", warmup_steps=1), dict(width=8)


def drawn(n, classes=3, *, seed=0, groups=None, counts=()):
    """Random labelled images 8x8 without any meaning, `counts` of each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((k,), c) for c, k in enumerate(counts)]) if counts else torch.arange(n) % classes
    pixels = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=generator, dtype=torch.uint8)
    names = [f"{seed}/{i}.png" for i in range(len(labels))]
    return images.of_tensors(pixels, labels, [f"class {k}" for k in range(classes)], names=names, groups=groups)


def blobs(n, seed, *, noise=60, classes=3):
    """Images 12x12 whose class is the place of a bright spot, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pixels = 110 + noise * torch.randn(n, 1, 12, 12, generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = 1 + 3 * label, int(torch.randint(1, 8, (), generator=generator))
        pixels[i, 0, row:row + 3, column:column + 3] += 90
    names = [f"{seed}/{i}.png" for i in range(n)]
    return images.of_tensors(pixels.clamp(0, 255).to(torch.uint8), labels, ["top", "middle", "bottom"], names=names)


# scores

def logits_of(n, classes, *, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, classes)) + signal * np.eye(classes)[labels], labels


def points(logits, labels, weights=None):
    values = scores.scores(logits, labels, np.ones((1, len(labels))) if weights is None else weights)[0]
    return dict(zip(scores.names([str(k) for k in range(logits.shape[1])]), values, strict=True))


def test_perfect_and_constant_predictions():
    labels = np.repeat(np.arange(4), 5)
    assert set(points(10 * np.eye(4)[labels], labels).values()) == {1.0}
    constant = points(np.tile([1.0, 0, 0, 0], (20, 1)), labels)
    assert constant["auc", ""] == 0.5 and constant["balanced_accuracy", ""] == constant["accuracy", ""] == 0.25
    assert constant["f1", "0"] == pytest.approx(2 * 5 / 25) and constant["f1", "1"] == 0 and constant["recall", "0"] == 1
    assert points(-10 * np.eye(2)[labels % 2], labels % 2)["auc", ""] == 0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_are_those_of_scikit_learn_whole_and_resampled(classes):
    logits, labels = logits_of(90, classes)
    rng = np.random.default_rng(1)
    for rows in (np.arange(90), rng.integers(90, size=200)):
        weights = np.bincount(rows, minlength=90)[None]
        found, y, z = points(logits, labels, weights), labels[rows], logits[rows]
        p, said = torch.tensor(z).softmax(1).numpy(), z.argmax(1)
        areas = [sklearn_metrics.roc_auc_score(y == k, p[:, k]) for k in range(classes)]
        expected = {("auc", ""): np.mean(areas), ("f1", ""): sklearn_metrics.f1_score(y, said, average="macro"),
                    ("balanced_accuracy", ""): sklearn_metrics.balanced_accuracy_score(y, said),
                    ("accuracy", ""): sklearn_metrics.accuracy_score(y, said)}
        for k, (f1, recall) in enumerate(zip(sklearn_metrics.f1_score(y, said, average=None),
                                             sklearn_metrics.recall_score(y, said, average=None), strict=True)):
            expected |= {("auc", str(k)): areas[k], ("f1", str(k)): f1, ("recall", str(k)): recall}
        assert found == pytest.approx(expected, abs=1e-12)
    if classes == 2:
        assert found["auc", "0"] == found["auc", "1"] == pytest.approx(sklearn_metrics.roc_auc_score(y, p[:, 1]))
    else:
        assert found["auc", ""] == pytest.approx(sklearn_metrics.roc_auc_score(y, p, multi_class="ovr"))


def test_area_counts_ties_half_and_sees_through_saturation():
    values, positive = np.array([0.0, 1, 1, 2, 2, 2]), np.array([False, True, False, True, False, True])
    expected = sklearn_metrics.roc_auc_score(positive, values)
    assert scores.auc(values, positive, np.ones((1, 6)))[0] == pytest.approx(expected)
    logits = np.array([[0, 800.0], [0, 900.0], [0, 850.0], [0, 860.0]])  # softmax is 1 for all
    assert points(logits, np.array([0, 1, 0, 1]))["auc", ""] == 1


def test_a_draw_without_a_class_leaves_its_scores_and_the_means_undefined():
    logits, labels = logits_of(9, 3)
    found = points(logits, labels, (labels != 2).astype(float)[None])
    undefined = {("auc", "2"), ("f1", "2"), ("recall", "2"), ("auc", ""), ("f1", ""), ("balanced_accuracy", "")}
    assert {name for name, value in found.items() if np.isnan(value)} == undefined
    here = labels != 2  # of no image at all: the mean is over the others
    found = points(logits[here], labels[here])
    assert found["balanced_accuracy", ""] == pytest.approx((found["recall", "0"] + found["recall", "1"]) / 2)
    assert found["f1", ""] == pytest.approx((found["f1", "0"] + found["f1", "1"]) / 2)


def test_no_interval_where_too_many_draws_are_undefined():
    values = np.linspace(0, 1, 101)
    values[[10, 20, 30, 40, 50]] = np.nan  # 4.95 %
    assert scores.interval(values, 0, 1) == pytest.approx((0.025, 0.975), abs=0.01)
    values[60] = np.nan
    assert np.isnan(scores.interval(values, 0, 1)).all() and np.isnan(scores.interval(np.full(100, np.nan), 0, 1)).all()


def test_resamples_keep_class_sizes_and_groups_and_repeat_themselves():
    labels = np.repeat([0, 1, 2], [4, 10, 30])
    draws = scores.Resamples(labels, None, 3, count=200, seed=5)
    weights = np.concatenate(list(draws.weights()))
    assert weights.shape == (200, 44)
    for label, count in enumerate((4, 10, 30)):
        assert (weights[:, labels == label].sum(1) == count).all()
    assert np.array_equal(weights, np.concatenate(list(draws.weights())))
    assert not np.array_equal(weights[0], weights[1])
    groups = [f"patient {i // 4}" for i in range(44)]
    weights = np.concatenate(list(scores.Resamples(labels, groups, 3, count=100).weights()))
    assert (weights.reshape(100, 11, 4) == weights.reshape(100, 11, 4)[:, :, :1]).all()


@pytest.mark.parametrize("seeds", [3, 10])
def test_intervals_cover_the_truth(seeds):
    """Scores of trainings that scatter by 0.1 around 0.5, on images that add noise of their own: 95 % hold 0.5."""
    rng, held = np.random.default_rng(0), 0
    for trial in range(300):
        draws = scores.Resamples(np.zeros(50, int), None, seeds, count=200, seed=trial)
        of_seed, of_image = rng.normal(0.5, 0.1, seeds), rng.normal(0, 0.3, 50)
        values = of_seed[:, None] + (np.concatenate(list(draws.weights())) @ of_image / 50)[None]
        low, high = scores.interval(draws.mean(values), -1, 2)
        held += low <= 0.5 <= high
    assert 0.90 < held / 300 < 0.99


def test_widening_is_none_for_many_seeds_and_for_one():
    assert scores.widening(1) == 1 and scores.widening(1000) == pytest.approx(1, abs=0.003) and scores.widening(3) > 2.5
    with pytest.raises(ValueError, match="bootstrap=10: expected at least 100"):
        scores.Resamples(np.zeros(4, int), None, 1, count=10)


# what each training sees

def made(real, synthetic, test, **changes):
    options = dict(fractions=(0.1, 1.0), ratios=(0.5, 2.0), seeds=(0, 1), with_all=True, settings={"a": 1}) | changes
    return plan.trainings(real, synthetic, test, **options)


def test_fractions_are_nested_stratified_and_repeat_themselves():
    real = drawn(0, 3, counts=(5, 40, 155))
    found = plan.fractions_of(real.labels, None, real.names, (1.0, 0.01, 0.1), 0)
    assert set(found[0.01]) < set(found[0.1]) < set(found[1.0]) == set(range(200))
    assert real.counts(found[0.01]) == {"class 0": 1, "class 1": 1, "class 2": 2}
    assert real.counts(found[0.1]) == {"class 0": 1, "class 1": 4, "class 2": 15}  # 15.5, the nearer below
    assert found == plan.fractions_of(real.labels, None, real.names, (0.01, 0.1, 1.0), 0)
    assert found[0.1] != plan.fractions_of(real.labels, None, real.names, (0.1,), 1)[0.1]
    back = list(range(199, -1, -1))  # another order of the same files draws the same files
    turned = plan.fractions_of(real.labels[back], None, [real.names[i] for i in back], (0.1,), 0)[0.1]
    assert {back[i] for i in turned} == set(found[0.1])


def test_fractions_take_whole_patients_and_miss_no_class():
    labels = [0, 0, 1, 0, 0, 0] * 20  # class 1 has no patient that begins with it
    groups = [f"patient {i // 6}" for i in range(120)]
    names = [str(i) for i in range(120)]
    for fraction, chosen in plan.fractions_of(labels, groups, names, (0.02, 0.3), 3).items():
        taken = [groups[i] for i in chosen]
        assert all(taken.count(group) == 6 for group in set(taken)) and 1 in {labels[i] for i in chosen}
        assert len(chosen) == {0.02: 6, 0.3: 36}[fraction]
    own = [0] * 10 + [1] * 2 + [0] * 10 + [1] * 2
    groups = ["a"] * 5 + ["b"] * 7 + ["c"] * 5 + ["d"] * 7  # class 1 only beside class 0
    for seed in range(5):
        chosen = plan.fractions_of(own, groups, [str(i) for i in range(24)], (0.05,), seed)[0.05]
        assert {own[i] for i in chosen} == {0, 1}


def test_synthetic_images_are_drawn_in_proportion_and_nested():
    synthetic = drawn(0, 3, counts=(10, 20, 70))
    order = plan.in_proportion(synthetic.labels, synthetic.names, 0)
    assert sorted(order) == list(range(100))
    for n in (10, 30, 50):
        counts = np.array(list(synthetic.counts(order[:n]).values()))
        assert (abs(counts - np.array([0.1, 0.2, 0.7]) * n) <= 1).all()
    assert order != plan.in_proportion(synthetic.labels, synthetic.names, 1)


def test_counts_of_each_arm_and_the_shortfall():
    real, synthetic, test = drawn(60), drawn(75, seed=1), drawn(30, seed=2)
    found = made(real, synthetic, test, fractions=(0.05, 0.5, 1.0), ratios=(0.1, 1.0, 2.0), seeds=(0,))
    counts = {(t.arm.name, t.fraction): (len(t.real), len(t.synthetic)) for t in found}
    assert counts == {
        ("real", 0.05): (3, 0), ("real", 0.5): (30, 0), ("real", 1.0): (60, 0), ("synthetic", 0.0): (0, 75),
        ("real + 0.1 synthetic", 0.05): (3, 1), ("real + 0.1 synthetic", 0.5): (30, 3), ("real + 0.1 synthetic", 1.0): (60, 6),
        ("real + 1 synthetic", 0.05): (3, 3), ("real + 1 synthetic", 0.5): (30, 30), ("real + 1 synthetic", 1.0): (60, 60),
        ("real + 2 synthetic", 0.05): (3, 6), ("real + 2 synthetic", 0.5): (30, 60), ("real + 2 synthetic", 1.0): (60, 75),
        ("real + all synthetic", 0.05): (3, 75), ("real + all synthetic", 0.5): (30, 75),
        ("real + all synthetic", 1.0): (60, 75)}
    assert plan.shortfalls(found) == ["real + 2 synthetic at 100 % of the real images: 120 synthetic images are asked for, 75 "
                                      "are there and are used; 45 are missing"]
    by_arm = {(t.arm.name, t.fraction): t for t in found}
    assert by_arm["real + 2 synthetic", 1.0].key == by_arm["real + all synthetic", 1.0].key  # one training, done once
    assert set(by_arm["real + 1 synthetic", 0.5].synthetic) < set(by_arm["real + 2 synthetic", 0.5].synthetic)
    assert len({t.key for t in found}) == len(found) - 1


def test_keys_change_with_all_that_decides_a_training_and_with_nothing_else():
    real, synthetic, test = drawn(12), drawn(12, seed=1), drawn(6, seed=2)
    keys = [t.key for t in made(real, synthetic, test)]
    moved = images.of_tensors(real.pixels, real.labels, real.classes, names=real.names)
    assert keys == [t.key for t in made(moved, synthetic, test)]
    for other in (made(real, synthetic, drawn(6, seed=3)), made(real, synthetic, test, settings={"a": 2}),
                  made(real, synthetic, test, seeds=(2, 3))):
        assert not set(keys) & {t.key for t in other}
    for changed, same in ((made(drawn(12, seed=3), synthetic, test), "synthetic"), (made(real, drawn(12, seed=3), test), "real")):
        for before, after in zip(keys, changed, strict=True):
            assert (before == after.key) == (after.arm.name == same)
    with pytest.raises(ValueError, match=r"fractions=\(0.0,\): expected shares"):
        made(real, synthetic, test, fractions=(0.0,))
    with pytest.raises(ValueError, match=r"seeds=\(1, 1\): one occurs twice"):
        made(real, synthetic, test, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"ratios=\(-1.0,\): expected numbers"):
        made(real, synthetic, test, ratios=(-1.0,))


# leaks

def joined(one, other, indices):
    """Images of `one` and copies of some of `other`, mirrored."""
    pixels = torch.cat([one.pixels, other.pixels[indices].flip(-1)])
    names = [*one.names, *(f"copy of {i}" for i in indices)]
    return images.of_tensors(pixels, torch.cat([one.labels, other.labels[indices]]), one.classes, names=names)


def test_copies_of_test_images_are_found_even_mirrored():
    real, synthetic, test = drawn(20), drawn(20, seed=1), drawn(12, seed=2)
    assert images.without_leaks(real, test, synthetic) == (real, synthetic, [])
    leaky, copied = joined(real, test, [3]), joined(synthetic, test, [4, 5])
    with pytest.raises(ValueError, match=r"(?s)1 real training images have the pixels of a test image .*copy of 3 is 2/3.png"
                                         r".*2 synthetic images .*copy of 4 is 2/4.png, copy of 5 is 2/5.png.*shared=drop"):
        images.without_leaks(leaky, test, copied)
    left, kept, said = images.without_leaks(leaky, test, copied, shared="drop")
    assert (left.names, kept.names, len(said)) == (real.names, synthetic.names, 2)
    memory = images.without_leaks(real, test, joined(synthetic, real, [7]))[2]
    assert "1 of 21 synthetic images have the pixels of a real training image" in memory[0] and "copy of 7 is 0/7.png" in memory[0]


def test_shared_patients_are_found():
    real = drawn(6, groups=["anna", "anna", "bert", "bert", "carl", "0/5.png"])
    test, synthetic = drawn(3, seed=2, groups=["dora", "bert", "0/5.png"]), drawn(6, seed=1)
    with pytest.raises(ValueError, match="2 groups are in the training and the test images: 0/5.png, bert"):
        images.without_leaks(real, test, synthetic)
    assert images.without_leaks(real, test, synthetic, shared="drop")[0].names == ["0/0.png", "0/1.png", "0/4.png"]
    left, _, said = images.without_leaks(real, test, synthetic, one_source=False)  # two hospitals may both have a Bert
    assert left is real and "bert" in said[0]


def test_what_a_study_cannot_be_made_of():
    real, test, none = drawn(6), drawn(0, 3, counts=(3, 3, 0)), drawn(0, 3, counts=(0, 0, 0))
    with pytest.raises(ValueError, match=r"(?s)2 problems.*'class 2' has no test image.*drop_classes=\"\('class 2',\)\""
                                         r".*there is no synthetic image"):
        images.check(real, test, none)
    with pytest.raises(ValueError, match="1 class .class 0.: a classifier needs at least 2"):
        images.check(drawn(4, 1), drawn(4, 1), drawn(4, 1))
    assert "class 0 2" in images.few(drawn(6))[0] and not images.few(drawn(90))
    assert "class 2" in images.missing(test)[0] and not images.missing(real)
    twice = joined(real, drawn(6).only([0]), [])
    assert not images.duplicates(twice, "synthetic")
    again = images.of_tensors(real.pixels[[0, 0, 1, 0]], real.labels[[0, 0, 1, 0]], real.classes)
    assert images.duplicates(again, "synthetic") == ["2 of 4 synthetic images repeat another one pixel by pixel"]


# training

def test_visits_take_turns():
    labels, rng = np.repeat([0, 1, 2], [2, 6, 24]), np.random.default_rng(0)
    even = training.visits(labels, n_steps=8, batch_size=8, balanced=False, rng=rng)
    assert even.shape == (8, 8) and (np.bincount(even.ravel()) == 2).all()
    fair = training.visits(labels, n_steps=9, batch_size=8, balanced=True, rng=rng)
    assert (np.bincount(labels[fair.ravel()]) == 24).all()
    assert (np.bincount(fair.ravel()) == np.repeat([12, 4, 1], [2, 6, 24])).all()


def test_augmentation_does_as_it_is_told():
    x = torch.arange(2 * 4 * 4, dtype=torch.uint8).view(2, 1, 4, 4)
    still = torch.tensor([[0.7, 0.7, 0.5, 0.5]] * 2)
    both = {"random_flip": True, "random_vflip": True, "random_shift": 1}
    assert torch.equal(training.augmented(x, still, **both), x)
    turned = training.augmented(x, torch.tensor([[0.2, 0.7, 0.5, 0.5], [0.7, 0.2, 0.5, 0.5]]), **both)
    assert torch.equal(turned[0], x[0].flip(-1)) and torch.equal(turned[1], x[1].flip(-2))
    assert torch.equal(training.augmented(x, torch.zeros(2, 4)), x)
    moved = training.augmented(x, torch.tensor([[0.7, 0.7, 0.99, 0.5], [0.7, 0.7, 0.5, 0.01]]), random_shift=1)
    padded = torch.nn.functional.pad(x.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    assert torch.equal(moved[0], padded[0, :, 2:6, 1:5]) and torch.equal(moved[1], padded[1, :, 1:5, 0:4])


def learned(what, seed=0, train=(), **changes):
    options = dict(train=TRAIN | dict(train), optimizer=ADAM, lr_scheduler=RATE, nnet=SMALL) | changes
    return training.train(what.pixels, what.labels, len(what.classes), seed=seed, **options)


def test_a_training_is_a_function_of_its_seed():
    data = blobs(30, 0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = training.logits(learned(data), data.pixels)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one, training.logits(learned(data), data.pixels))
    assert not torch.equal(one, training.logits(learned(data, 1), data.pixels))
    with pytest.raises(FloatingPointError, match="not finite after 3 steps: lower config.optimizer.lr, now 1e[+]30"):
        learned(data, optimizer=ADAM | {"lr": 1e30})


def test_more_of_the_same_helps_where_images_are_few_and_wrong_labels_hurt():
    real, test, more = blobs(6, 1), blobs(150, 2), blobs(180, 3)
    wrong = images.of_tensors(more.pixels, (more.labels + 1) % 3, more.classes)
    area = {}
    for name, added in {"real": None, "more": more, "wrong": wrong}.items():
        parts = [real] if added is None else [real, added]
        both = images.of_tensors(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]), real.classes)
        said = [training.logits(learned(both, seed, {"n_steps": 100}), test.pixels).numpy() for seed in (0, 1)]
        area[name] = np.mean([points(logits, test.labels.numpy())["auc", ""] for logits in said])
    assert area["more"] > area["real"] + 0.1 and area["wrong"] < area["real"] - 0.1, area


@pytest.mark.parametrize("name", ["small", "timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:squeezenet1_1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_take_grey_and_colour(name, channels):
    net = networks.build(name, classes=3, channels=channels, resolution=32, width=8).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, channels, 32, 32, dtype=torch.uint8)).shape == (2, 3)
        other = networks.build(name, classes=3, channels=channels, resolution=32, size=64, width=8).eval()
        assert other(torch.zeros(2, channels, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_weights_from_a_file_reach_all_but_the_last_layer(tmp_path):
    from torchvision import models
    torch.manual_seed(0)
    source = models.resnet18(num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = networks.build("torchvision:resnet18", classes=3, channels=3, resolution=32, weights=str(tmp_path / "w.pth"))
    assert torch.equal(net.net.layer4[1].conv2.weight, source.layer4[1].conv2.weight) and net.net.fc.out_features == 3
    with pytest.raises(ValueError, match="does not hold the weights of this network"):
        networks.build("torchvision:resnet34", classes=3, channels=3, resolution=32, weights=str(tmp_path / "w.pth"))
    same = networks.identity("torchvision:resnet18", str(tmp_path / "w.pth"))["weights"]
    torch.save(models.resnet18(num_classes=1000).state_dict(), tmp_path / "w.pth")
    assert networks.identity("torchvision:resnet18", str(tmp_path / "w.pth"))["weights"] != same


@pytest.mark.parametrize("name, said", [
    ("smal", "expected 'small', 'timm:<model>' or 'torchvision:<model>'; did you mean 'small'"),
    ("tim:resnet18", "did you mean 'timm'"), ("timm:resnet188", "timm has no model 'resnet188'; did you mean 'resnet18"),
    ("torchvision:resnet81", "torchvision has no model 'resnet81'; did you mean 'resnet")])
def test_unknown_networks(name, said):
    with pytest.raises(ValueError) as error:
        networks.build(name, classes=3, channels=3, resolution=32)
    assert said in str(error.value)


@pytest.mark.parametrize("changes, said", [({"n_step": 3}, "'n_step': expected one of.*did you mean 'n_steps'"),
                                           ({"batch_size": 1}, "batch_size=1"), ({"label_smoothing": 1.0}, "in \\[0, 1\\)"),
                                           ({"mixed_precision": "fp16"}, "mixed_precision='fp16'"),
                                           ({"threads": 0}, "threads=0")])
def test_settings_out_of_range(changes, said):
    with pytest.raises(ValueError, match=said):
        training.check(TRAIN | changes, ADAM, RATE)


# the summary

def summarised(real, synthetic, test, logits, **changes):
    found = made(real, synthetic, test, **changes)
    return found, summary.summarise(found, {t.key: logits(t) for t in found}, test, (0.1, 1.0), resamples=200)


def test_differences_of_equal_predictions_are_zero_and_findings_say_what_the_interval_says():
    real, synthetic, test = drawn(30), drawn(60, seed=1), drawn(90, seed=2)
    rng = {seed: np.random.default_rng(seed).normal(size=(90, 3)) for seed in (0, 1)}
    eye = np.eye(3)[test.labels.numpy()]
    found, rows = summarised(real, synthetic, test, lambda t: rng[t.seed] + 2 * eye)
    changes = [row for row in rows if row["arm"] != "real"]
    assert len(rows) == 2 * 5 * (4 + 9) and all(row["finding"] == "no difference shown" for row in changes)
    assert all(row["difference"] == row["difference_low"] == row["difference_high"] == 0 for row in changes)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    strength = {"real": 1.0, "synthetic": 0.0}
    found, rows = summarised(real, synthetic, test, lambda t: rng[0] + strength.get(t.arm.name, 8.0) * eye)
    finding = {row["arm"]: row["finding"] for row in rows if row["metric"] == "auc" and not row["class"]}
    assert finding == {"real": "", "synthetic": "loss", **{arm: "gain" for arm in
                       ("real + 0.5 synthetic", "real + 2 synthetic", "real + all synthetic")}}
    said = summary.sentences(rows)
    assert len(said) == 8 and said[0].startswith("10 %, synthetic instead of real alone: AUC -0.") and "loss; F1" in said[0]
    assert "8 comparisons" in " ".join(summary.warnings(found, rows)) and "2 seeds" in " ".join(summary.warnings(found, rows))
    text = summary.as_csv(rows)
    table = list(csv.DictReader(text.splitlines()))
    assert len(table) == len(rows) and table[0]["arm"] == "real" and table[0]["difference"] == ""
    only = {row["n_real"] for row in rows if row["arm"] == "synthetic"}
    assert only == {0} and {row["fraction"] for row in rows if row["arm"] == "synthetic"} == {0.1, 1.0}


def test_a_class_that_draws_of_groups_miss_gives_no_interval_and_a_warning():
    """All of class 2 is one patient's, who counts as of class 1: a third of the draws are without, (4/5)^5."""
    groups = [f"a{i // 2}" for i in range(10)] + [f"b{i // 2}" for i in range(10)] + ["b0"] * 5
    test = drawn(25, counts=(10, 10, 5), seed=2, groups=groups)
    logits = np.random.default_rng(0).normal(size=(25, 3)) + np.eye(3)[test.labels.numpy()]
    found, rows = summarised(drawn(30), drawn(60, seed=1), test, lambda t: logits)
    without = {(row["metric"], row["class"]) for row in rows if math.isnan(row["low"])}
    assert without == {("auc", ""), ("f1", ""), ("balanced_accuracy", ""), *((name, "class 2") for name in ("auc", "f1", "recall"))}
    assert all(math.isfinite(row["value"]) and (0.2 < row["undefined"] < 0.5) == ((row["metric"], row["class"]) in without)
               for row in rows)
    said = " ".join(summary.warnings(found, rows))
    assert "no interval where more than 5% of the draws" in said and "recall of class 2 (3" in said and "class 1 (" not in said
    assert "AUC +0.000, no interval" in summary.sentences(rows)[0]


# the script

def picture(label, rng, side=16):
    """A picture whose class shows."""
    array = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
    array[:, :, label] += 100
    return Image.fromarray(array)


def write_table(folder, rows, rng, side=16):
    folder.mkdir(parents=True)
    with open(folder / "metadata.csv", "w") as stream:
        stream.write("file_name,label,split\n" if len(rows[0]) > 2 else "file_name,label\n")
        for name, label, *split in rows:
            picture("abc".index(label[0]), rng, side).save(folder / name)
            stream.write(",".join([name, label, *split]) + "\n")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(real, synthetic): 3 classes; 36 real images to train on and 18 to test, 45 synthetic ones."""
    root, rng = tmp_path_factory.mktemp("downstream"), np.random.default_rng(0)
    classes = ("a", "b", "c")
    write_table(root / "real", [(f"{split}{i}.png", classes[i % 3], split) for split, n in (("train", 36), ("test", 18))
                                for i in range(n)], rng)
    write_table(root / "synthetic", [(f"{i}.png", classes[i % 3]) for i in range(45)], rng)
    return root / "real", root / "synthetic"


def options(real, synthetic, workdir, *more):
    """Command line options of a small study; `more` replaces some (a tuple given twice would be appended to)."""
    given = (CONFIG, f"--config.dataset.path={real}", "--config.dataset.resolution=16", f"--config.synthetic.path={synthetic}",
             f"--workdir={workdir}", "--config.train.n_steps=3", "--config.lr_scheduler.warmup_steps=1",
             "--config.train.batch_size=6", "--config.nnet.width=8", "--config.study.fractions=(0.1, 1.0)",
             "--config.study.ratios=(1.0, 2.0)", "--config.study.seeds=(0, 1)", "--config.study.bootstrap=100")
    names = {option.split("=")[0] for option in more}
    return (*(option for option in given if option.split("=")[0] not in names), *more)


def study(*options):
    """What the script does with these options, in this process."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    before, sys.argv = sys.argv, ["eval_downstream.py", *options]  # config_flags reads the overrides from there
    try:
        values(sys.argv)
        importlib.import_module("eval_downstream").study(values["config"].value, values["workdir"].value)
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def finished(script, folders, tmp_path_factory):
    """(folder of a finished study, what the script said)."""
    folder = tmp_path_factory.mktemp("study")
    return folder, script("eval_downstream.py", *options(*folders, folder))


def test_the_files_of_a_study(finished):
    folder, done = finished
    # 2 seeds x (2 x real, 2 x 1:1, 2 x 2:1, synthetic, 2 x all), but 2:1 and all are the same at 100 %
    assert len(list((folder / "trainings").iterdir())) == 2 * 2 * 8
    assert "training 16 of 16" in done.stderr and "27 are missing" in done.stdout
    record = json.loads((folder / "downstream.json").read_text())
    assert record["counts"]["test"] == {"a": 6, "b": 6, "c": 6} and len(record["trainings"]) == 18
    assert record["config"]["study"]["seeds"] == [0, 1] and len(record["rows"][0]["per_seed"]) == 2
    assert Image.open(folder / "downstream.png").size[0] > 1000
    page = (folder / "downstream.md").read_text()
    for text in ("| real + 2 synthetic | 3 | 6 |", "## 100 % of the real images", "same 3 steps of 6 images", "## In words",
                 "| a (n=6) | synthetic |"):
        assert text in page, page
    assert "10 %, synthetic instead of real alone: AUC" in done.stdout and "10 %, synthetic instead of real alone: AUC" in page
    rows = list(csv.DictReader((folder / "downstream.csv").read_text().splitlines()))
    assert len(rows) == 2 * 5 * (4 + 9) and {row["seeds"] for row in rows} == {"2"}


def test_two_processes_give_the_files_of_one(script, folders, finished, tmp_path):
    script("eval_downstream.py", *options(*folders, tmp_path), processes=2)
    for name in ("downstream.csv", "downstream.md"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_study_goes_on_with_what_is_there_and_trains_anew_what_changed(finished, folders, tmp_path, caplog):
    folder = tmp_path / "again"
    shutil.copytree(finished[0], folder)
    kept = {path: path.stat().st_mtime_ns for path in (folder / "trainings").iterdir()}
    lost = sorted(path for path in kept if path.suffix == ".npz")[:3]
    lost[0].unlink()
    lost[1].write_bytes(lost[1].read_bytes()[:100])
    np.savez(lost[2], logits=np.zeros((18, 3), np.float32))
    (folder / "downstream.csv").unlink()
    study(*options(*folders, folder))
    assert "16 trainings of 3 steps, 13 of them are there already" in caplog.text
    assert "cannot be read" in caplog.text and "is damaged" in caplog.text
    assert (folder / "downstream.csv").read_bytes() == (finished[0] / "downstream.csv").read_bytes()
    changed = {path.stem for path, at in kept.items() if path.stat().st_mtime_ns != at}
    assert changed == {path.stem for path in lost}
    study(*options(*folders, folder, "--config.train.label_smoothing=0.1", "--config.study.with_all=False"))
    assert "14 trainings of 3 steps, 0 of them are there already" in caplog.text
    study(*options(*folders, folder, "--config.study.bootstrap=200", "--config.study.fractions=(1.0, 0.1)"))
    assert "16 trainings of 3 steps, 16 of them are there already" in caplog.text


def test_a_study_of_phantoms(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("nevus", "melanoma", "angioma", "dermatofibroma"):  # class folders serve as well
        (tmp_path / "made" / name).mkdir(parents=True)
        for i in range(3):
            picture(0, rng, 32).save(tmp_path / "made" / name / f"{i}.png")
    study(f"--config={ROOT / 'configs' / 'phantom32_downstream.py'}", f"--config.synthetic.path={tmp_path / 'made'}",
          f"--workdir={tmp_path / 'run'}", "--config.train.n_steps=2", "--config.lr_scheduler.warmup_steps=1",
          "--config.nnet.width=4", "--config.study.fractions=(0.02,)", "--config.study.seeds=(0,)", "--config.study.ratios=()",
          "--config.study.bootstrap=100", "--config.dataset.size=40", "--config.test.size=40")
    said = capsys.readouterr().out
    assert "40 real images to train on, 12 synthetic ones, 40 real ones to test on" in said and "one seed" in said


def test_test_images_from_another_folder_and_a_class_left_out(folders, tmp_path, capsys):
    real, synthetic = folders
    write_table(tmp_path / "other", [(f"{i}.png", "ab"[i % 2], "test") for i in range(8)], np.random.default_rng(2))
    study(*options(real, synthetic, tmp_path / "run", f"--config.test.path={tmp_path / 'other'}",
                   "--config.dataset.drop_classes=('c',)", "--config.study.ratios=()", "--config.study.fractions=(1.0,)"))
    said = capsys.readouterr().out
    assert "24 real images to train on, 30 synthetic ones, 8 real ones to test on (a 4, b 4)" in said


@pytest.mark.parametrize("change, said", [
    ("--config.synthetic.path=", "python sample.py --workdir=<its run>"),
    ("--config.synthetic.path=nowhere", "config.synthetic.path='nowhere': no such folder"),
    ("--config.study.test_split=train", "is also trained on"),
    ("--config.study.test_split=tst", "no split 'tst' in the data; they have ['test', 'train']; did you mean 'test'"),
    ("--config.nnet.name=timm:resnet188", "timm has no model 'resnet188'; did you mean"),
    ("--config.nnet.weights=nowhere.pth", "weights"),
    ("--config.study.fractions=(2.0,)", "expected shares of the real images"),
    ("--config.study.shared=warn", "expected one of ['error', 'drop']"),
    ("--config.optimizer.name=sgd", "unknown optimizer 'sgd'"),
    ("--config.lr_scheduler.warmup_steps=9", "cannot begin with 9 steps of warm-up"),
    ("--config.study.bootstrap=5", "bootstrap=5: expected at least 100"),
    ("--config.dataset.drop_classes=('a','b')", "1 class (c): a classifier needs at least 2"),
], ids=lambda text: text.split("=")[0].removeprefix("--config.") if text.startswith("--") else "")
def test_bad_input(folders, tmp_path, change, said):
    with pytest.raises((ValueError, OSError)) as error:
        study(*options(*folders, tmp_path / "run", change))
    assert said in str(error.value)
    assert not (tmp_path / "run" / "trainings").exists()


def test_synthetic_images_of_an_unknown_class_or_without_labels(inside, folders, tmp_path):
    real, _ = folders
    made = tmp_path / "made"
    write_table(made, [("0.png", "a"), ("1.png", "bb")], np.random.default_rng(1))
    done = inside("eval_downstream.py", *options(real, made, tmp_path / "run"), fails=True)
    assert "class 'bb' is not among ['a', 'b', 'c']; did you mean 'b'" in done.stderr and "Traceback" not in done.stderr
    (made / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="unlabelled.*metadata.csv"):
        study(*options(real, made, tmp_path / "run"))


def test_a_copied_test_image_is_named_or_dropped(folders, tmp_path, capsys):
    real, _ = folders
    made = tmp_path / "made"
    write_table(made, [(f"{i}.png", "abc"[i % 3]) for i in range(6)], np.random.default_rng(1))
    (made / "1.png").write_bytes((real / "test1.png").read_bytes())
    with pytest.raises(ValueError, match="1 synthetic images have the pixels of a test image .*: 1.png is test1.png"):
        study(*options(real, made, tmp_path / "run"))
    study(*options(real, made, tmp_path / "run", "--config.study.shared=drop", "--config.study.fractions=(1.0,)"))
    said = capsys.readouterr().out
    assert "36 real images to train on, 5 synthetic ones" in said and "left out of the training: 1 synthetic" in said
