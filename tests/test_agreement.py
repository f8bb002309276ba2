"""Agreement between texts and pictures: counting, the phantoms' geometry, classifiers learned from captions."""

import pytest
import torch

from configs.common import d, metrics
from libs import data, evaluation
from libs.evaluation import references

PHANTOM_WORDS = dict(size=("small", "medium", "large"), shape=("round", "oval", "irregular"),
                     colour=("light brown", "dark brown", "black", "red", "purple"),
                     skin=("light skin", "tan skin", "brown skin"), border=("sharp border", "blurred border"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Caches go to an empty folder."""
    monkeypatch.setattr(references, "NETWORKS", tmp_path / "networks")


def config(measure, words):
    return d(seed=0, metrics=metrics(attributes=words, measure=measure))


def test_shares_count_only_what_the_text_mentions():
    words = {"size": ("small", "large"), "colour": ("red", "blue")}
    found = evaluation.Agreement(words, None, {})
    shown = torch.tensor([[0, 0], [0, 1], [1, -1], [0, 0]])
    scores = found.scores(["a small red cell", "a large blue cell", "a large cell", "a cell"], shown)
    assert (scores["agreement_size"]["value"], scores["agreement_size"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (scores["agreement_colour"]["value"], scores["agreement_colour"]["n"]) == (1.0, 2)
    assert (scores["agreement_all"]["value"], scores["agreement_all"]["n"]) == (pytest.approx(2 / 3), 3)
    assert scores["agreement_size"]["low"] is None
    intervals = found.scores(["a small cell"] * 20, torch.tensor([[0, 0]] * 10 + [[1, 0]] * 10), resamples=200)
    assert 0.2 < intervals["agreement_size"]["low"] < 0.5 < intervals["agreement_size"]["high"] < 0.8


def test_words_that_cannot_be_read_do_not_count():
    found = evaluation.Agreement({"size": ("small", "large", "huge")}, None, {}, {"size": [0, 1]})
    scores = found.scores(["a huge cell", "a small cell"], torch.tensor([[1], [0]]))
    assert (scores["agreement_size"]["value"], scores["agreement_size"]["n"]) == (1.0, 1)


def test_phantoms_are_measured_by_their_geometry():
    dataset = data.get(name="phantoms", resolution=64, size=60)
    found = evaluation.agreement(config("phantoms", PHANTOM_WORDS), dataset)
    assert set(found.words) == {"size", "shape", "colour", "skin"}, "borders cannot be measured"
    assert min(found.of_real[name] for name in found.words) > 0.9
    images = torch.stack([((dataset[i]["image"] + 1) * 127.5).round().byte() for i in range(60)])
    right = found.scores(dataset.captions, found.read(images))["agreement_all"]["value"]
    wrong = found.scores(dataset.captions[1:] + dataset.captions[:1], found.read(images))["agreement_all"]["value"]
    assert right > 0.85 and wrong < 0.3


def test_other_attributes_are_learned_from_the_captions():
    dataset = data.get(name="phantoms", resolution=32, size=240)
    words = {"skin": ("light skin", "tan skin", "brown skin"), "hair": ("hairy", "bald")}
    found = evaluation.agreement(config("classifier", words), dataset)
    assert set(found.words) == {"skin"}, "no caption speaks of hair"
    assert found.of_real["skin"] > 0.8
    images = torch.stack([((dataset[i]["image"] + 1) * 127.5).round().byte() for i in range(100)])
    assert found.scores(dataset.captions[:100], found.read(images))["agreement_skin"]["value"] > 0.8
    assert found.scores(dataset.captions[:100], found.read(255 - images))["agreement_skin"]["value"] < 0.8


def test_what_cannot_be_measured_is_said(caplog):
    dataset = data.get(name="phantoms", resolution=32, size=40)
    assert evaluation.agreement(config("classifier", {}), dataset) is None
    assert evaluation.agreement(config("classifier", {"hair": ("hairy", "bald")}), dataset) is None
    assert "none of hair can be learned" in caplog.text
    with pytest.raises(ValueError, match="config.metrics.measure is 'eyes'; known: phantoms, classifier"):
        evaluation.agreement(config("eyes", PHANTOM_WORDS), dataset)
    with pytest.raises(ValueError, match="config.metrics.attributes.size"):
        evaluation.agreement(config("phantoms", {"size": ("large", "medium", "small")}), dataset)
