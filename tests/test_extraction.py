"""Features that a training makes for itself: once, where they are missing, checked where they are."""

import json
import logging

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from libs import codecs, data, encoders, engine, extraction, pipeline
from libs.evaluation.describing import stored_features

PIXELS = {"name": "pixels", "channels": 3}
WORDS = {"name": "words", "max_length": 8, "dim": 4}


@pytest.fixture
def place(tmp_path):
    """Nine images with masks, texts and two splits."""
    lines, rng = ["file_name,mask_name,label,text,split"], np.random.default_rng(0)
    for k in range(9):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        Image.fromarray(rng.integers(0, 3, (8, 8), dtype=np.uint8)).save(tmp_path / f"m{k}.png")
        lines.append(f"{k}.png,m{k}.png,{'ab'[k % 2]},a {'red' if k % 2 else 'pale'} cell,{'val' if k > 5 else 'train'}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


def config_of(place, path="auto", nnet=None, **dataset):
    config = ConfigDict({
        "seed": 0, "train": {"validation_split": "val", "mixed_precision": "no"}, "codec": PIXELS, "encoder": WORDS,
        "features": {"path": path, "dtype": "float32"},
        "dataset": {"name": "folder", "path": str(place), "resolution": 8, "split": "train", "random_flip": True,
                    "mask_values": (0, 1, 2), **dataset}} | ({"nnet": nnet} if nnet else {}))
    return config.lock()


def ready(config, workdir, encoder=None, **options):
    run = engine.start(config, workdir)
    try:
        return extraction.ready(run, config, codecs.get(**config.codec), encoder, **options)
    finally:
        run.finish()


def test_missing_stores_are_made_in_the_run_folder(place, tmp_path_factory, monkeypatch, caplog):
    config, home, encoder = config_of(place), tmp_path_factory.mktemp("run"), encoders.get(**WORDS)
    with caplog.at_level(logging.INFO):
        features = ready(config, home, encoder, masks=True)
    assert features.path == str(home / "features") == extraction.folder(config.features, home) and features.dtype == "float32"
    assert config.features.path == "auto" and "train: every text fits the encoder" in caplog.text and "latents/s" in caplog.text
    opened = data.open_all(config.dataset, features, pipeline.identity(codecs.get(**PIXELS), encoder), validation_split="val")
    assert (len(opened.examples), len(opened.held_out)) == (6, 3)
    assert opened.examples.random_flip and not opened.held_out.random_flip
    for stored, images in ((opened.examples, opened.images), (opened.held_out, data.held_out(config.dataset, "val"))):
        mine, real = stored.batch(range(3)), images.batch(range(3))
        assert torch.equal(mine["mask"], real["mask"]) and mine["mask"].shape == (3, 3, 8, 8)
        torch.testing.assert_close(mine["mean"], real["image"])
        assert torch.equal(mine["text"], encoder.encode(images.captions[:3])) and torch.equal(mine["label"], real["label"])
    found = stored_features(config, "val", home)
    assert found.captions == opened.held_out.captions and stored_features(config, "test", home) is None
    assert stored_features(config_of(place, ""), "val", home) is None
    assert (home / "preflight.json").is_file() and (home / "features" / "val_preflight.json").is_file()

    monkeypatch.setattr(data.store, "write", lambda *_, **__: pytest.fail("made again"))
    assert ready(config, home, encoder).path == features.path
    assert ready(config, home).path == features.path, "a network without text may use a store that has texts"


def test_what_does_not_fit_is_refused(place, tmp_path_factory):
    home, given = tmp_path_factory.mktemp("run"), str(tmp_path_factory.mktemp("store") / "features")
    ready(config_of(place, given, random_flip=False, mask_values=(), mask_max=2), home)
    grey = {"mask_values": (), "mask_max": 2}
    for options, message in (({**grey, "resolution": 4, "random_flip": False}, "resolution: stored 8, now 4"),
                             ({"random_flip": False}, "of something else"), (grey, "no mirrored images")):
        with pytest.raises(ValueError, match=message):
            ready(config_of(place, given, **options), home)
    for options in ({"crop": "random"}, {"random_vflip": True}):
        with pytest.raises(ValueError, match="only for training on images.*config.features.path='', to encode at every step"):
            ready(config_of(place, **options), home)
    with pytest.raises(ValueError, match="nowhere: no such folder or file"):
        ready(config_of(place / "nowhere"), home)
    assert not (home / "features").exists()
    with pytest.raises(ValueError, match="this feature store has no masks"):
        ready(config_of(place, random_flip=False, mask_column="", mask_values=()), home, masks=True)
    options = {**grey, "resolution": 8, "random_flip": False}
    with pytest.raises(ValueError, match=r"latents 3x8x8 \(channels, height, width\), of images of 8 pixels; config.nnet is built "
                                         "for 3x16x16: make config.dataset.resolution and the image size of config.nnet agree"):
        ready(config_of(place, given, nnet={"in_channels": 3, "sample_size": 16}, **options), home)
    away = config_of("/nowhere/images", given, **options | {"resolution": 4})
    with pytest.raises(ValueError, match="of images of 8 pixels; config.dataset.resolution is 4"):
        data.open_all(away.dataset, away.features, pipeline.identity(codecs.get(**PIXELS)))
    (place / "7.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="metadata.csv:9: .*7.png: "):
        ready(config_of(place), tmp_path_factory.mktemp("other"))


def test_texts_over_the_window_are_warned_of(place, tmp_path, caplog):
    ready(config_of(place), tmp_path, encoders.get("words", max_length=2, dim=4))
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2, "one for each split"
    assert "train: 2 of 2 texts exceed the window of 2 tokens; the longest needs 4: 'a pale cell' loses 'pale cell'" in warned[0]


def test_without_a_store(place, tmp_path):
    config = config_of(place, "", crop="random")
    assert ready(config, tmp_path) is config.features and extraction.folder(config.features, tmp_path) == ""
    assert extraction.folder(config_of(place, "some/where").features, tmp_path) == "some/where"


TRAINING = """
import sys
from ml_collections import ConfigDict
from libs import codecs, engine, extraction
config = ConfigDict({config})
run = engine.start(config, "{home}")
features = extraction.ready(run, config, codecs.get(**config.codec), batch_size=1)
sys.stdout.write(f"rank {{run.rank}}: {{features.path}}\\n")
run.finish()
"""


def test_two_processes_make_them_together(place, tmp_path_factory, script):
    home = tmp_path_factory.mktemp("run")
    config = config_of(place)
    (home / "training.py").write_text(TRAINING.format(config=json.loads(config.to_json_best_effort()), home=home / "two"))
    said = script(str(home / "training.py"), processes=2).stdout
    assert all(f"rank {rank}: {home / 'two' / 'features'}" in said for rank in range(2))
    ready(config, home / "one")
    for name in ("mean.npy", "mask.npy", "labels.npy"):
        one, two = (home / run / "features" / "train" / name for run in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
