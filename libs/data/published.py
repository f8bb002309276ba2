"""CIFAR-10, CelebA and ImageNet as the published U-ViT configurations use them (Bao et al. 2023)."""

import logging
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from libs import tables

from .base import Dataset, fail, fingerprint, one_of
from .files import ImageFiles
from .folder import Folder
from .table import Row
from .transforms import draw_flips

log = logging.getLogger(__name__)

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_FILE = 10_000
RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue plane


class CIFAR10(Dataset):
    """CIFAR-10 from its binary files (the Python version is a pickle, which could run code): 60,000 images.

    Args:
        path: holds cifar-10-batches-bin/, or is it; fetched there once where it is missing and `download`.
        split: 'train' or 'test'.
        random_flip: mirror left-right with probability 1/2 when a generator is given.
        labelled: whether the classes are part of the data.
    Raises:
        ValueError: where the files are missing or torn and cannot be fetched.
    """

    name = "cifar10"
    shape = (3, 32, 32)

    def __init__(self, path="assets/datasets/cifar10", random_flip=True, split="train", *, labelled=True,
                 download=True):
        files = CIFAR_FILES[one_of("split", split, CIFAR_FILES)]
        path = Path(path).expanduser()
        folder = path if path.name == CIFAR_FOLDER else path / CIFAR_FOLDER
        if download and not folder.exists():
            _fetch_cifar(folder)
        fail(f"{folder}: expected the binary version of CIFAR-10 from {CIFAR_URL}",
             _cifar_faults(folder, files))
        records = np.concatenate([np.fromfile(folder / file, np.uint8).reshape(-1, RECORD) for file in files])
        self.images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
        self.random_flip, self.split = random_flip, split
        if labelled:
            self.classes, self.labels = list(CIFAR_CLASSES), torch.from_numpy(records[:, 0].astype(np.int64))

    def __len__(self):
        return len(self.images)

    def item(self, i, generator=None):
        if not 0 <= i < len(self):
            raise IndexError(f"cifar10: index {i} outside 0..{len(self) - 1}")
        flips = draw_flips(generator, horizontal=self.random_flip)
        item = {"image": self.images[i].flip(flips) / 127.5 - 1, "index": torch.tensor(i)}
        return item if self.labels is None else item | {"label": self.labels[i]}

    def batch(self, indices, seeds=None):
        where, generator = torch.tensor(indices), torch.Generator()
        images = self.images[where]
        if seeds is not None and self.random_flip:
            flipped = torch.tensor([bool(draw_flips(generator.manual_seed(int(s)), horizontal=True))
                                    for s in seeds])
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        found = {"image": images / 127.5 - 1, "index": where}
        return found if self.labels is None else found | {"label": self.labels[where]}

    def file_name(self, i):
        return f"{CIFAR_FILES[self.split][i // PER_FILE]}[{i % PER_FILE}]"

    @property
    def fingerprint(self):
        return fingerprint("cifar10", CIFAR_MD5, self.split, len(self), self.classes)


class ImageNet(Folder):
    """ImageNet (ILSVRC 2012) from path/train/<wnid>/*.JPEG; the label is the rank of the sorted wnid."""

    MAY_HOLD_MASKS = False

    def __init__(self, path, resolution=64, random_flip=True, split="train", **options):
        if not (Path(path).expanduser() / split).is_dir():
            raise ValueError(f"{path}: expected ImageNet as {split}/n01440764/*.JPEG and so on below it")
        super().__init__(path, resolution, split=split, random_flip=random_flip, **options)
        self.name = "imagenet"
        if split == "train" and len(self) != 1_281_167:
            log.warning("imagenet: %d training images in %d classes; the published set has "
                        "1,281,167 in 1,000",
                        len(self), len(self.classes))


class CelebA(ImageFiles):
    """CelebA's aligned faces (178x218): the 128x128 square around (x, y) = (89, 121), shrunk bilinearly.

    Args:
        path: holds img_align_celeba/ and list_eval_partition.txt, or a folder celeba/ with them.
        split: 'train' (162,770 images), 'val', 'test', or '' for all.
    """

    CENTRE, SIDE, PARTITION = (89, 121), 128, {"train": "0", "val": "1", "test": "2"}

    def __init__(self, path, resolution=64, random_flip=True, split="train", **options):
        one_of("split", split, ("", *self.PARTITION))
        root = Path(path).expanduser()
        root = root / "celeba" if (root / "celeba").is_dir() else root
        table = root / "list_eval_partition.txt"
        if not (root / "img_align_celeba").is_dir() or not table.is_file():
            raise ValueError(f'{path}: expected CelebA as img_align_celeba/000001.jpg ... and '
                             'list_eval_partition.txt below it: "Align&Cropped Images" of '
                             'mmlab.ie.cuhk.edu.hk/projects/CelebA.html')
        rows, problems = [], []
        for number, line in tables.read_lines(table):
            file, part = (line.split() + ["", ""])[:2]
            if part not in self.PARTITION.values() or os.path.basename(file) != file:
                problems.append(f"{table.name}:{number}: {line[:80]!r}; expected a file name and 0, 1 or 2")
            elif not split or part == self.PARTITION[split]:
                rows.append(Row(f"img_align_celeba/{file}", f"{table.name}:{number}"))
        fail(str(root), problems or ([] if rows else [f"no images of split {split!r} in {table.name}"]))
        super().__init__(root, rows, resolution, name="celeba", random_flip=random_flip, **options)

    def _open(self, i, measured=None):
        image, (x, y), half = super()._open(i, measured), self.CENTRE, self.SIDE // 2
        if image.size != (178, 218):
            raise ValueError(f"{self.names[i]}: {image.width}x{image.height} pixels; the aligned faces "
                             "have 178x218")
        if measured is not None:
            measured["share"] = self.SIDE ** 2 / (image.width * image.height)
        face = image.crop((x - half, y - half, x + half, y + half))
        return face.resize(self.shape[1:], Image.Resampling.BILINEAR)


def _cifar_faults(folder, files):
    faults = []
    if (folder.parent / "cifar-10-batches-py").is_dir() and not folder.is_dir():
        faults.append("cifar-10-batches-py is the Python version: a pickle, which is not read here")
    for file in files:
        size = (folder / file).stat().st_size if (folder / file).is_file() else None
        if size != PER_FILE * RECORD:
            faults.append(f'{file}: {"missing" if size is None else f"{size} bytes"}; expected '
                          f'{PER_FILE * RECORD} bytes')
    return faults


def _fetch_cifar(folder):
    """Download, check and unpack beside `folder`, then move it there, so that it is whole or not there."""
    from torchvision.datasets.utils import download_and_extract_archive
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)  # torchvision sets none: behind some firewalls it would hang
        folder.parent.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s", CIFAR_URL)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            download_and_extract_archive(CIFAR_URL, beside, md5=CIFAR_MD5)
            if not folder.exists():  # else another process was faster
                os.rename(os.path.join(beside, CIFAR_FOLDER), folder)
    except (OSError, RuntimeError) as error:
        if not folder.exists():
            raise ValueError(f"{folder} is missing and could not be fetched ({error}): where there is a "
                             f"network, fetch {CIFAR_URL} and unpack it in {folder.parent}") from error
    finally:
        socket.setdefaulttimeout(patience)
