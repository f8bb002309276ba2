"""The real side of a comparison: what is cached and when it is made anew, who is held out, what is missing."""

import csv
import logging
import os

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from libs import data, engine, evaluation, metrics
from libs.evaluation import references as room


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder of its own, so that caches are empty; with a small labelled data set of 6 patients."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(room, "NETWORKS", tmp_path / "networks")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    with open("data/metadata.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "label", "patient"])
        for i in range(36):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"data/{i}.png")
            table.writerow([f"{i}.png", "ab"[i % 2], f"p{i // 6}"])
    return tmp_path


def load(**options):
    return data.get(name="folder", path="data", resolution=16, **options)


def config(**own):
    return ConfigDict({"seed": 0, "train": {"workers": 0, "eval_interval": 1}, "dataset": {},
                       "metrics": {"features": ("classifier",), "names": ("fd",), "fid_stat": ""} | own})


@pytest.fixture
def run(here):
    run = engine.Run(here / "run")
    yield run
    run.finish()


def test_statistics_are_those_of_the_features_and_are_cached_until_the_data_change(here, run):
    (extractor, first), = evaluation.prepare(run, config(), load())
    features = extractor(torch.stack([((load()[i]["image"] + 1) * 127.5).round().to(torch.uint8) for i in range(36)]))
    np.testing.assert_allclose(first.gaussian.mean, features.double().mean(0), atol=1e-6)
    np.testing.assert_allclose(first.gaussian.covariance, np.cov(features.double().numpy().T), atol=1e-6)
    assert first.indices.tolist() == list(range(36)) and first.labels.tolist() == load().labels.tolist()
    cached = {path: path.stat().st_mtime_ns for path in room.CACHE.iterdir()}
    evaluation.reference(run, extractor, load())
    assert {path: path.stat().st_mtime_ns for path in room.CACHE.iterdir()} == cached, "made once"
    Image.new("RGB", (16, 16), (255, 0, 0)).save("data/0.png")
    changed = evaluation.reference(run, extractor, load())
    assert len(list(room.CACHE.iterdir())) == 2 and not torch.equal(changed.features[0], first.features[0])


def test_a_damaged_cache_is_made_anew(here, run):
    (extractor, first), = evaluation.prepare(run, config(), load())
    path, = room.CACHE.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    assert torch.equal(evaluation.reference(run, extractor, load()).features, first.features)


def test_a_missing_statistics_file_is_said_and_computed(here, run, caplog):
    sides = evaluation.prepare(run, config(fid_stat="assets/fid_stats/nowhere.npz"), load())
    assert "no statistics at assets/fid_stats/nowhere.npz: they are computed from data" in caplog.text
    assert sides[0][1].gaussian.n == 36


def test_statistics_of_other_features_are_not_used(here, run):
    metrics.save_stats("other.npz", metrics.Gaussian(torch.zeros(64), torch.eye(64), 5, "something"))
    (extractor, real), = evaluation.prepare(run, config(fid_stat="other.npz"), load())
    assert real.gaussian.n == 36
    with pytest.raises(ValueError, match="holds something features, not those of classifier-data16"):
        evaluation.reference(run, extractor, None, stats="other.npz")


def test_statistics_belong_to_one_network_and_each_may_have_its_file(here, run, caplog):
    """A network of the domain trained anew with another seed keeps its name, but the statistics are the other's."""
    folders = [evaluation.feature_network(load(), seed=seed) for seed in (0, 1)]
    (one, real), (other, _) = evaluation.prepare(run, config(features=tuple(map(str, folders))), load())
    assert one.name == other.name == "classifier-data16" and one.fingerprint != other.fingerprint
    metrics.save_stats("stats/classifier-data16.npz", real.gaussian)
    assert metrics.load_stats("stats/classifier-data16.npz").network == one.fingerprint
    side = evaluation.reference(run, one, None, stats="stats/{features}.npz")
    assert torch.equal(side.gaussian.mean, real.gaussian.mean) and "stats/classifier-data16.npz" in side.source
    with pytest.raises(ValueError, match="not those of classifier-data16 as it is here, with other weights, and the images"):
        evaluation.reference(run, other, None, stats="stats/{features}.npz")
    assert not torch.equal(evaluation.reference(run, other, load(), stats="stats/{features}.npz").gaussian.mean, real.gaussian.mean)
    assert "features of another classifier-data16, with other weights: they are computed from data" in caplog.text
    with pytest.raises(ValueError, match="no statistics at other/classifier-data16.npz, and the images are not there"):
        evaluation.reference(run, one, None, stats="other/{features}.npz")
    names = ("", "stats/{features}.npz", "stats/classifier-data16.npz", "other/{features}.npz", "stats")
    there = [room.statistics_there(name) for name in names]
    assert there == [False, True, True, False, False]


def test_training_goes_on_where_no_network_can_be_had(here, run, caplog, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(here / "empty"))
    with caplog.at_level(logging.WARNING):
        assert evaluation.evaluator(run, None, config(features=("classifier",)), load(label_column="")) is None
    assert "training goes on without scores" in caplog.text and "need labelled data" in caplog.text
    with pytest.raises(ValueError, match="unknown features 'inceptoin'"):
        evaluation.evaluator(run, None, config(features=("inceptoin",)), load())


def test_a_feature_network_is_tested_on_other_patients(here):
    dataset = load(group_column="patient")
    held_out = room.held_out_groups(dataset, range(len(dataset)), 0)
    groups = [row["group"] for row in dataset.rows]
    assert {groups[i] for i in held_out}.isdisjoint({groups[i] for i in set(range(36)) - set(held_out.tolist())})
    assert room.held_out_groups(load(), range(36), 0) is None
    folder = evaluation.feature_network(dataset, seed=0)
    assert metrics.load_classifier(folder).report["held_out"] == len(held_out)
    assert evaluation.feature_network(dataset, seed=0) == folder and not list(room.NETWORKS.glob(".staging*"))
    assert sorted(os.listdir(folder)) == ["config.json", "weights.safetensors"]
