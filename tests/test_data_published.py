"""CIFAR-10, CelebA and ImageNet as published, from small stand-ins in their file formats."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image

from libs import data
from libs.data import published


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "PER_FILE", 100)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in sum(published.CIFAR_FILES.values(), []):
        records = rng.integers(0, 256, (100, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records[7, 1:] = np.arange(3072) // 1024 * 100 + np.arange(3072) % 32  # planes of a ramp along x
        records.tofile(folder / name)
    return tmp_path


def test_cifar10_layout_and_batches(cifar):
    train, test = (data.get(name="cifar10", path=str(cifar), split=s, download=False)
                   for s in ("train", "test"))
    assert (len(train), len(test), train.shape) == (500, 100, (3, 32, 32)) and train.classes[3] == "cat"
    ramp = torch.arange(3)[:, None, None] * 100.0 + torch.arange(32)
    for i in (7, 107):
        assert torch.allclose((train[i]["image"] + 1) * 127.5, ramp.expand(3, 32, 32), atol=1e-4)
    raw = np.fromfile(cifar / "cifar-10-batches-bin" / "data_batch_2.bin", np.uint8).reshape(-1, 3073)
    assert train[103]["label"] == raw[3, 0] and train.labels.shape == (500,) and train.null["label"] == 10
    assert train.file_name(103) == "data_batch_2.bin[3]"
    indices, seeds = [7, 107, 3, 499], [1, 2, 3, 4]
    for given in (seeds, None):
        fast, slow = train.batch(indices, given), published.Dataset.batch(train, indices, given)
        assert fast.keys() == slow.keys() and all(torch.equal(fast[k], slow[k]) for k in fast)
    flipped = sum(torch.equal(train.batch([7], [s])["image"][0], train[7]["image"].flip(-1))
                  for s in range(50))
    assert 12 < flipped < 38
    plain = data.get(name="cifar10", path=str(cifar), random_flip=False, labelled=False)
    assert plain.labels is None and plain.null == {}
    assert torch.equal(plain.batch([7], [0])["image"][0], plain[7]["image"])


def test_cifar10_missing_or_torn(cifar, tmp_path, monkeypatch):
    with open(cifar / "cifar-10-batches-bin" / "data_batch_2.bin", "r+b") as file:
        file.truncate(1000)
    (cifar / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError, match=r"2 problems\n  data_batch_2.bin: 1000 bytes; expected 307300 "
                                         r"bytes\n  data_batch_4"):
        data.get(name="cifar10", path=str(cifar))
    (tmp_path / "other" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(ValueError, match="is the Python version: a pickle"):
        data.get(name="cifar10", path=str(tmp_path / "other"), download=False)
    with pytest.raises(ValueError, match="split='val': expected one of"):
        data.get(name="cifar10", path=str(cifar), split="val")

    def unreachable(*_, **__):
        raise OSError("no network here")
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(ValueError, match="could not be fetched .*no network here.*unpack it in"):
        data.get(name="cifar10", path=str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == [] and socket.getdefaulttimeout() is None


def test_celeba_crop(tmp_path):
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    y, x = np.mgrid[:218, :178]
    for k in range(4):
        Image.fromarray(np.dstack([x, y, np.full_like(x, k * 50)]).astype(np.uint8)).save(
            tmp_path / "celeba" / "img_align_celeba" / f"{k:06}.png")
    table = tmp_path / "celeba" / "list_eval_partition.txt"
    table.write_text("000000.png 0\n000001.png 1\n000002.png 2\n000003.png 0\n")
    train = data.get(name="celeba", path=str(tmp_path))
    assert len(train) == 2 and train.classes == [] and train.shape == (3, 64, 64) and train.name == "celeba"
    levels = (train[1]["image"] + 1) * 127.5
    inner = slice(2, -2)
    assert (levels[0, inner, inner] - (25.5 + 2 * torch.arange(64.0))[inner]).abs().max() <= 1
    assert (levels[1, inner, inner] - (57.5 + 2 * torch.arange(64.0))[inner, None]).abs().max() <= 1
    assert levels[2].mean().round() == 150 and len(data.get(name="celeba", path=str(tmp_path), split="")) == 4
    picture = Image.open(tmp_path / "celeba" / "img_align_celeba" / "000003.png")
    picture.resize((200, 218)).save(tmp_path / "celeba" / "img_align_celeba" / "000003.png")
    with pytest.raises(ValueError, match=r"list_eval_partition.txt:4: img_align_celeba/000003.png: 200x218 "
                                         r"pixels"):
        data.preflight(data.get(name="celeba", path=str(tmp_path)))
    table.write_text("000000.png 0\n../../secret.png 0\n000001.png 7\n")
    with pytest.raises(ValueError, match=r"2 problems[\s\S]*txt:2: [\s\S]*txt:3: "):
        data.get(name="celeba", path=str(tmp_path))
    table.unlink()
    with pytest.raises(ValueError, match="expected CelebA as img_align_celeba/000001.jpg"):
        data.get(name="celeba", path=str(tmp_path))


def test_imagenet(tmp_path):
    for k, name in enumerate(("n02/b.JPEG", "n01/a.JPEG", "n01/c.JPEG", "n10/d.JPEG")):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("CMYK" if k == 3 else "RGB", (80, 100), k * 50).save(path)
    dataset = data.get(name="imagenet", path=str(tmp_path), resolution=64)
    assert dataset.classes == ["n01", "n02", "n10"] and dataset.labels.tolist() == [0, 0, 1, 2]
    assert dataset.file_name(2) == "train/n02/b.JPEG" and data.preflight(dataset) == 4
    assert dataset.flips["horizontal"]
    with pytest.raises(ValueError, match=r"expected ImageNet as train/n01440764/\*.JPEG"):
        data.get(name="imagenet", path=str(tmp_path / "nowhere"))
