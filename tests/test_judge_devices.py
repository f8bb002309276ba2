"""Networks that score and judge are trained and used on the device of the run, and scores are computed
there."""

from types import SimpleNamespace

import pytest
import torch
from ml_collections import ConfigDict

from libs import data, evaluation, metrics
from libs.evaluation import rated_pairs, references
from libs.evaluation.agreement import agreement
from libs.evaluation.following import following

DEVICE = torch.device("cpu", 0)  # told from the default 'cpu' by its index


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """The devices that the trainings and extractors were given, by name."""
    monkeypatch.setattr(references, "NETWORKS", tmp_path / "networks")
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")
    found = {}

    def spy(name, **less):
        whole = getattr(metrics, name)

        def called(*args, **kwargs):
            found.setdefault(name, []).append(kwargs.get("device"))
            return whole(*args, **{**kwargs, "device": "cpu", **less})
        monkeypatch.setattr(metrics, name, called)
    spy("train_classifier", epochs=1)
    spy("train_segmenter", steps=2)
    spy("extractor")
    return found


def run_of():
    return SimpleNamespace(device=DEVICE, is_main=True, from_main=lambda value: value, rank=0, world=1)


def test_the_classifier_of_the_data(seen):
    dataset = data.get("phantoms", resolution=16, size=40)
    config = ConfigDict(dict(seed=0, dataset={}, metrics=dict(features=("classifier",))))
    references.extractors(run_of(), config, dataset)
    assert seen == {"train_classifier": [DEVICE], "extractor": [DEVICE]}


def test_the_segmenter(seen):
    dataset = data.get("phantoms", resolution=16, size=40, masks=True)
    config = ConfigDict(dict(seed=0, dataset={}, train={}, metrics=dict(bootstrap=0)))
    found = following(config, dataset, DEVICE)
    assert seen["train_segmenter"] == [DEVICE] and next(found.network.parameters()).device.type == "cpu"


def test_readers_of_attributes(seen):
    dataset = data.get("phantoms", resolution=16, size=60)
    words = {"colour": ("light brown", "dark brown", "black", "red", "purple")}
    config = ConfigDict(dict(seed=0, metrics=dict(attributes=words, measure="classifier")))
    found = agreement(config, dataset, DEVICE)
    assert found.words and seen["train_classifier"] == [DEVICE] and seen["extractor"] == [DEVICE]


@pytest.mark.parametrize("unrated", [list(range(40)), list(range(30))])
def test_the_network_of_a_filter(seen, unrated):
    dataset = data.get("phantoms", resolution=16, size=40)
    pairs = SimpleNamespace(dataset=dataset, unrated=unrated, labels=dataset.labels.tolist())
    assert rated_pairs.own_network(pairs, 0, DEVICE).startswith("classifier:") and seen["train_classifier"] == [DEVICE]


def test_scores(monkeypatch):
    """What reaches the metrics lies on the run's device, in float64; of a device without float64, on the
    CPU."""
    asked, given = [], {}
    float64 = metrics.gaussian.float64

    def watched(values, device=None):
        asked.append(device)
        return float64(values, "cpu" if device == DEVICE else device)
    monkeypatch.setattr(metrics.gaussian, "float64", watched)

    def scores(generated, real, *_, **kwargs):
        given.update(generated=generated, real=real)
        return {}
    monkeypatch.setattr(metrics, "scores", scores)
    real = references.Reference(None, torch.randn(6, 3), None, torch.arange(6), "here")
    extractor = SimpleNamespace(name="x", dims=3, classes=None)
    result = {"scores": {}, "warnings": [], "per_class": {}}
    evaluation._score(result, ("fd",), extractor, real, torch.randn(5, 3), None, None, None, seed=0, resamples=0, per_class=False,
                      device=DEVICE)
    assert DEVICE in asked and given["generated"].dtype == torch.float64 and given["real"].device == given["generated"].device
