"""Feature extraction through the command line: one store per split, the same from two processes, bad input named."""

import importlib.util
import json
import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from libs import codecs, data, encoders
from tests.conftest import ROOT

CONFIG = """
from configs.common import d
from configs.phantom32_uvit_label import get_config as base


def get_config():
    config = base()
    config.train.validation_split = "val"
    config.codec = d(name="pixels", channels=3)
    config.encoder = d(**{encoder})
    config.features = d(path="{path}/features", dtype="float32")
    config.dataset = d(name="folder", path="{path}/images", resolution=8, split="train", random_flip=True)
    return config
"""
WORDS_ENCODER = {"name": "words", "max_length": 8, "dim": 16}
WORDS = ("a large red lesion", "a small brown lesion with an irregular border and much more than fits", "pale skin")


@pytest.fixture
def place(tmp_path):
    """Eleven images with labels and texts in two splits, and a config that asks for their features."""
    (tmp_path / "images").mkdir()
    rng, lines = np.random.default_rng(0), ["file_name,label,text,split"]
    for k in range(11):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{k}.png")
        lines.append(f"{k}.png,{'ab'[k % 2]},{WORDS[k % 3]},{'val' if k > 7 else 'train'}")
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "config.py").write_text(CONFIG.format(path=tmp_path, encoder=WORDS_ENCODER))
    return tmp_path


def extract(config, split="", batch_size=4, name="extract_feature.py", **changes):
    """What the script does once the command line is read, in this process."""
    spec = importlib.util.spec_from_file_location("config", config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(changes)
    runpy.run_path(str(ROOT / "scripts" / name))["extract"](config, split, batch_size)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


def test_every_split_becomes_a_store(script, place):
    said = script("scripts/extract_feature.py", f"--config={place}/config.py", "--batch_size=4").stdout
    assert "latents/s" in said and "3 of" not in said and "exceed" in said, said
    images = data.get(name="folder", path=str(place / "images"), resolution=8, split="train")
    train, val = (data.Features(place / "features" / split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 3) and train.classes == ["a", "b"]
    batch = train.batch(range(8))
    torch.testing.assert_close(batch["mean"], images.batch(range(8))["image"])
    assert "std" not in batch, "pixels have no spread"
    assert train.captions == [[text] for text in images.captions] and batch["label"].tolist() == images.labels.tolist()
    words = encoders.get(**WORDS_ENCODER)
    torch.testing.assert_close(batch["text"], words.encode(images.captions))
    torch.testing.assert_close(train.null["text"], words.empty)
    mirrored = data.Features(place / "features" / "train", random_flip=True)
    seen = torch.stack([mirrored.batch([0], [seed])["mean"][0] for seed in range(16)])
    same = (seen == batch["mean"][0]).all(dim=(1, 2, 3))
    assert 0 < same.sum() < 16 and torch.equal(seen[~same][0], batch["mean"][0].flip(-1))
    assert train.manifest["about"]["dataset"]["name"] == "folder"


def test_two_processes_make_the_same_store(script, place, capsys):
    said = script("scripts/extract_feature.py", f"--config={place}/config.py", f"--config.features.path={place}/two",
                  processes=2).stdout
    assert said.count("latents/s") == 2, "one line for each split, from one process"
    extract(place / "config.py")
    for split in ("train", "val"):
        assert contents(place / "features" / split) == contents(place / "two" / split)
    capsys.readouterr()
    extract(place / "config.py")
    assert capsys.readouterr().out.count("it was finished before") == 2


def without_text(place, **changed):
    """The path of the config without its encoder, and with other words in it."""
    text = (place / "config.py").read_text().replace("    return", "    del config.encoder\n    return")
    for old, new in changed.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    (place / "images_only.py").write_text(text)
    return place / "images_only.py"


def test_one_split_without_text(place):
    extract(without_text(place), split="all")
    features = data.Features(place / "features" / "all")
    assert len(features) == 11 and features.text_shape is None and set(features.null) == {"label"}
    assert not (place / "features" / "train").exists()


class Halves(codecs.Codec):
    """Every second pixel, with a spread that depends on its neighbour: all that extraction must carry over."""

    channels, downsample, fingerprint = 3, 2, "c0de"

    def moments(self, x):
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], dim=1)


def test_latents_keep_their_spread_and_are_mirrored_as_images(place, monkeypatch):
    monkeypatch.setattr(codecs, "get", lambda **_: Halves())
    extract(without_text(place))
    images = data.get(name="folder", path=str(place / "images"), resolution=8, split="train").batch(range(8))["image"]
    features = data.Features(place / "features" / "train", random_flip=True)
    assert features.shape == (3, 4, 4) and features.manifest["identity"]["codec"]["fingerprint"] == "c0de"
    mean, logvar = torch.stack([Halves().moments(images), Halves().moments(images.flip(-1))], 1).chunk(2, dim=2)
    for seeds in (None, list(range(8))):
        batch = features.batch(range(8), seeds)
        shown = [[torch.equal(batch["mean"][i], mean[i, k]) for k in range(2)].index(True) for i in range(8)]
        assert set(shown) == ({0} if seeds is None else {0, 1})
        torch.testing.assert_close(batch["std"], (logvar[range(8), shown] / 2).exp())


def test_what_cannot_be_extracted_is_said(place):
    config = place / "config.py"
    extract(config, split="val")
    with pytest.raises(ValueError, match="val: this feature store is of something else"):
        extract(config, split="val", **{"dataset.resolution": 4})
    with pytest.raises(ValueError, match="config.features.path is missing"):
        extract(config, **{"features.path": ""})
    with pytest.raises(ValueError, match="--batch_size=0: expected at least 1"):
        extract(config, batch_size=0)
    (place / "images" / "3.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="metadata.csv:5: "):
        extract(config)
    assert not (place / "features" / "train").exists()
    table = place / "images" / "metadata.csv"
    table.write_text(table.read_text().replace("text", "words"))
    (place / "images" / "3.png").write_bytes((place / "images" / "1.png").read_bytes())
    with pytest.raises(ValueError, match="config.encoder is .*, but the data have no texts: give a column 'text'"):
        extract(config)


def test_imagenet_under_the_published_name(inside, place):
    for k, name in enumerate(("n02/b.JPEG", "n01/a.JPEG")):
        path = place / "imagenet" / "train" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16), k * 50).save(path)
    config = without_text(place, val="", folder="imagenet")
    inside("scripts/extract_imagenet_feature.py", f"{place}/imagenet", f"--config={config}")
    features = data.Features(place / "features" / "train")
    assert features.classes == ["n01", "n02"] and features.labels.tolist() == [0, 1]
    arguments = runpy.run_path(str(ROOT / "scripts" / "extract_imagenet_feature.py"))["arguments"]
    assert arguments(["--path=/i", "--resolution=512", "--batch_size=8"]) == [
        f"--config={ROOT}/configs/imagenet512_uvit_huge.py", "--config.dataset.path=/i", "--batch_size=8"]
    with pytest.raises(SystemExit, match="--resolution=100: expected 256 or 512"):
        arguments(["--path=/i", "--resolution=100"])


def test_mscoco_under_the_published_name(inside, place):
    (place / "coco" / "annotations").mkdir(parents=True)
    (place / "coco" / "val2014").mkdir()
    Image.new("RGB", (16, 16), 50).save(place / "coco" / "val2014" / "9.jpg")
    notes = [{"image_id": 9, "caption": text} for text in WORDS]
    (place / "coco" / "annotations" / "captions_val2014.json").write_text(
        json.dumps({"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": notes}))
    text = (place / "config.py").read_text().replace('name="folder"', 'name="mscoco"').replace("/images", "/coco")
    (place / "coco.py").write_text(text)
    inside("scripts/extract_mscoco_feature.py", "--split=val", f"--config={place}/coco.py")
    features = data.Features(place / "features" / "val")
    assert features.captions == [list(WORDS)] and features.labels is None
    words = encoders.get(**WORDS_ENCODER)
    torch.testing.assert_close(features.texts([0, 0], [2, 1]), words.encode([WORDS[2], WORDS[1]]))


def test_empty_and_prompt_states(inside, place):
    inside("scripts/extract_empty_feature.py", f"--config={place}/config.py")
    words = encoders.get(**WORDS_ENCODER)
    empty = np.load(place / "features" / "empty_context.npy", allow_pickle=False)
    assert empty.dtype == np.float32
    np.testing.assert_array_equal(empty, words.empty.numpy())
    (place / "prompts.txt").write_text("\n".join([WORDS[0], "", WORDS[1], WORDS[2]]) + "\n")
    said = inside("scripts/extract_test_prompt_feature.py", f"--config={place}/config.py", "--batch_size=2",
                  f"--input_path={place}/prompts.txt").stdout
    assert "states of 3 prompts, 8 x 16 each" in said and "exceed" in said
    with np.load(place / "features" / "test_prompts.npz", allow_pickle=False) as file:
        assert file["prompts"].tolist() == list(WORDS)
        np.testing.assert_array_equal(file["states"], words.encode(list(WORDS)).numpy())
        np.testing.assert_array_equal(file["mask"], words.mask(list(WORDS)).numpy())
    prompts = runpy.run_path(str(ROOT / "scripts" / "extract_test_prompt_feature.py"))["extract"]
    with pytest.raises(ValueError, match="--input_path is missing"):
        prompts(None, "", "", 64)
    (place / "prompts.txt").write_text("\n")
    with pytest.raises(ValueError, match="prompts.txt: no prompt in it"):
        prompts(None, str(place / "prompts.txt"), "", 64)
