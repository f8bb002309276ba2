"""Do images follow their masks: a judge trained on real pairs, tried on held-out ones, and what an evaluation makes of it."""

import importlib
import json

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from libs import data, engine, evaluation, report
from libs.evaluation import references
from libs.metrics import segmenter

room = importlib.import_module("libs.evaluation.following")  # evaluation.following is its function
CLASSES = ["nevus", "melanoma", "angioma", "dermatofibroma"]


def config(**train):
    return ConfigDict({"seed": 0, "train": {"workers": 0, "validation_split": "val", **train},
                       "dataset": {"name": "phantoms", "resolution": 32, "size": 120, "split": "train", "masks": True},
                       "sample": {"labels": "data", "mini_batch_size": 16, "path": "", "npz": "", "masks": ""},
                       "metrics": {"features": ("classifier",), "names": ("fd",), "fid_stat": "", "bootstrap": 20}})


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(folder of the networks, data set, its `Following`); the segmenter is trained for a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "NETWORKS", tmp_path_factory.mktemp("networks"))
        patch.setattr(segmenter.train_segmenter, "__kwdefaults__", {**segmenter.train_segmenter.__kwdefaults__, "steps": 80})
        dataset = data.get(**config().dataset)
        yield references.NETWORKS, dataset, room.following(config(), dataset)


def pairs(dataset, rows):
    items = [dataset[i] for i in rows]
    images = torch.stack([((item["image"] + 1) * 127.5).round().to(torch.uint8) for item in items])
    return images, torch.stack([item["mask"] for item in items])


def test_real_pairs_follow_and_shuffled_ones_do_not(judged):
    _, dataset, found = judged
    assert found.source == "120 pairs, split 'val'" and set(found.of_real) == {"dice", "dice_skin", "dice_lesion"}
    ceiling = found.of_real["dice"]
    assert ceiling["value"] > 0.85 and ceiling["low"] < ceiling["value"] < ceiling["high"] and found.warnings() == []
    images, masks = pairs(dataset, range(60))
    right, wrong = (found.scores(found.read(images, each))["dice"]["value"] for each in (masks, masks.roll(1, 0)))
    assert right > 0.85 and wrong < right - 0.15
    assert torch.equal(found.read(images, masks), room.metrics.dice(masks[:, 0].long(), found.obtained(images), 2))
    assert found.foreground(found.read(images, masks)).tolist() == found.read(images, masks)[:, 1].tolist()
    small = found.read(images, torch.nn.functional.interpolate(masks, 16))  # masks of another size are resized
    assert small[:, 1].mean() > 0.7


def test_each_class_has_its_own_scores(judged):
    _, dataset, found = judged
    values = found.read(*pairs(dataset, range(12)))
    per_class = found.of_classes(values, dataset.labels[:12], [*CLASSES, "none"], resamples=10)
    assert list(per_class) == CLASSES
    assert per_class["melanoma"]["dice_lesion"]["value"] == pytest.approx(values[1::4, 1].mean().item())
    assert per_class["melanoma"]["dice"]["n"] == 3


def test_it_is_trained_once_and_without_a_split_tried_on_what_it_held_out(judged, monkeypatch):
    networks, dataset, found = judged
    kept, = networks.iterdir()
    assert kept.name.startswith("phantoms32-") and "-masks-" in kept.name
    monkeypatch.setattr(room.metrics, "train_segmenter", None)  # nothing is trained any more
    own = room.following(config(validation_split=""), dataset)
    assert own.source == "18 pairs, held out of the training of the segmenter" and own.of_real["dice"]["n"] == 18
    assert own.of_real["dice"]["value"] == pytest.approx(own.network.report["dice"], abs=1e-6)
    assert room.following(config(), None) is None
    assert room.following(config(), data.get(**{**config().dataset, "masks": False})) is None


def test_a_weak_judge_is_called_one(judged):
    weak = judged[2]._replace(of_real={"dice": {"value": 0.5}})
    assert "reaches a Dice of 0.500 on real pairs (120 pairs, split 'val'): it cannot judge well" in weak.warnings()[0]


def test_large_pairs_are_kept_small(monkeypatch):
    dataset = data.get(name="phantoms", resolution=64, size=4, masks=True)
    monkeypatch.setattr(room, "LOOKS_AT", 32)
    images, masks = room.pairs_of(dataset, [0, 2])
    assert images.shape == (2, 3, 32, 32) and masks.shape == (2, 32, 32) and masks.dtype == images.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 1}


class Copier:
    """In place of a network: the real image of each mask asked for, or of the next one."""

    takes, null, image_shape = ("label", "mask"), {"label": torch.tensor(4)}, (3, 32, 32)
    masks_as = data.MaskCode((0, 255))
    net, codec, algorithm, steps, guidance = torch.nn.Linear(1, 1), None, "copies", 1, 1.0

    def __init__(self, dataset, follows=True):
        self.dataset, self.follows = dataset, follows
        self.masks = torch.stack([dataset[i]["mask"] for i in range(len(dataset))])

    def __call__(self, cond, *, seed, indices):
        rows = [int((self.masks == mask).flatten(1).all(1).nonzero()[0]) for mask in cond["mask"]]
        assert self.dataset.labels[rows].tolist() == cond["label"].tolist(), "mask and class are of one real image"
        return torch.stack([self.dataset[row if self.follows else (row + 4) % len(self.dataset)]["image"] for row in rows])

    def describe(self):
        return "copies"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")
    run = engine.Run(tmp_path / "run")
    yield run
    run.finish()


def test_an_evaluation_states_dice_beside_that_of_real_images_and_shows_the_masks(judged, run, monkeypatch):
    _, dataset, found = judged
    monkeypatch.setattr(evaluation, "prepare", lambda *a, **k: [(Still(), real_side(dataset))])
    results = [evaluation.evaluate(run, Copier(dataset, follows), config(), dataset, n=24, seed=1, name=f"follows_{follows}")
               for follows in (True, False)]
    good, bad = results
    assert good["judges"] == bad["judges"] and set(good["judges"]) == {"means", "following"}
    assert good["judges"]["following"]["reference"] == "120 pairs, split 'val'"
    assert len(good["judges"]["following"]["weights"]) == 64 and good["real"]["fingerprint"] == dataset.fingerprint
    assert good["scores"]["dice"]["value"] > 0.85 > bad["scores"]["dice"]["value"] + 0.1 and good["scores"]["dice"]["n"] == 24
    assert good["scores"]["dice"]["low"] < good["scores"]["dice"]["value"] < good["scores"]["dice"]["high"]
    assert good["following_of_real"] == found.of_real and good["following_source"] == "120 pairs, split 'val'"
    assert {"dice", "dice_skin", "dice_lesion"} <= set(good["per_class"]["melanoma"])
    assert good["masks"] == 23 and good["interval"].endswith("of dice over 23 different masks, each with all its images")
    said = evaluation.table(good)
    assert "dice_lesion" in said and said.startswith("24 images of 23 different masks, copies, against")
    assert "real images that were held out follow their own masks (120 pairs, split 'val'): dice 0." in said
    folder = run.folder / "eval" / "follows_True"
    assert json.loads((folder / "scores.json").read_text()) == good
    with np.load(folder / "shown.npz") as file:
        asked, obtained, dice, images = (file[f"arr_{k}"] for k in (8, 9, 10, 0))
    assert asked.shape == obtained.shape == images.shape == (len(dice), 32, 32, 3)
    together = ((asked[..., 0] > 0) & (obtained[..., 0] > 0)).sum((1, 2))
    sizes = (asked[..., 0] > 0).sum((1, 2)) + (obtained[..., 0] > 0).sum((1, 2))
    assert dice == pytest.approx(2 * together / sizes)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "following", lambda *_: found)  # else one is trained on the three
        few = evaluation.evaluate(run, Copier(dataset), config(), data.Subset(dataset, range(3)), n=24, seed=1, name="")
    assert few["masks"] == 3 and few["scores"]["dice"]["n"] == 24, "so many images of three masks"
    assert few["scores"]["dice"]["low"] is not None and few["per_class"]["melanoma"]["dice"]["low"] is None, "of one mask only"
    other = Copier(dataset)
    other.masks_as = data.MaskCode((0, 128))
    with pytest.raises(ValueError, match=r"masks with mask_values=\(0, 128\), those of phantoms have mask_values=\(0, 255\): give "
                                         r"the data of the run, or --config.dataset.mask_values=\(0,128\)"):
        evaluation.evaluate(run, other, config(), dataset, n=8, seed=1, name="")
    page = report.write(run.folder).read_text()
    assert "Masks asked for and obtained" in page and "Dice of real images with their own masks" in page
    assert page.count('alt="mask asked for"') == page.count('alt="mask obtained"') == 2 * min(24, len(dice))


class Still:
    """In place of a feature network: three features, the mean of each channel."""

    name, dims, classes, fingerprint = "means", 3, None, "means"

    def both(self, images):
        return images.float().mean((2, 3)), None


def real_side(dataset):
    features = torch.stack([(dataset[i]["image"] + 1).mean((1, 2)) * 127.5 for i in range(40)])
    gaussian = room.metrics.Gaussian(features.double().mean(0), features.double().T.cov(), 40, "means")
    return references.Reference(gaussian, features, dataset.labels[:40], torch.arange(40), "40 images")
