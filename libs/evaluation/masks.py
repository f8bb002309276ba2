"""Masks that images are asked for: a file, a folder or a table of them, or those of the training images.

A mask is brought to the network's size as the data layer does it: resized to the nearest pixel, then cut around its centre.
"""

import functools
import hashlib
import logging
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from libs import data
from libs.data.base import did_you_mean, fail
from libs.data.files import describe_constant_masks, kind_of_mask
from libs.data.mask_like import masks_alone
from libs.data.scan import find
from libs.data.table import Columns
from libs.data.transforms import apply_crop_to_mask, plan_crop
from libs.engine.file_names import safe_name
from libs.names import match

MASK_NAME_BYTES = 160  # of the name of a mask, to which those of images add their class and their number
FOLDER = "masks"  # of the copies, beside the images
RESERVED = ("grid", "comparison")  # what else lies beside the images
KEPT = 64  # masks kept in memory


class MaskFile(NamedTuple):
    """name: path below the folder that was asked for. label: class name that a table or a folder says, '' where none does."""

    path: Path
    name: str
    label: str


class AskedMasks:
    """The mask of every image that is asked for: masks[[3, 5]] -> float32 (2, K, H, W), read as they are needed.

    Attributes:
        code: data.MaskCode, how masks are told in classes.
        of_image: for each image the number of its mask.
        names: of each mask; beside the images it is called masks/<name>.png.
        sources: of each mask, where it is from, in words.
        hashes: sha256 (16 hex digits) of each mask as the network sees it.
    """

    def __init__(self, code, read, of_image, *, names, sources):
        """
        Args:
            read: number of a mask -> uint8 (H, W), the class of every pixel (its grey level where code.values is ()).
        Raises:
            ValueError: with the faults of all masks.
        """
        self.code, self.of_image, self.names, self.sources = code, list(of_image), list(names), list(sources)
        self.read = functools.lru_cache(KEPT)(read)
        self.hashes, problems, kinds = [], [], []
        for number in range(len(self.names)):
            try:
                index = np.ascontiguousarray(self.read(number))
                self.hashes.append(hashlib.sha256(index.tobytes()).hexdigest()[:16])
                kinds.append(kind_of_mask(index, code))
            except (OSError, ValueError) as error:
                problems.append(str(error))
        fail("the masks", problems)
        strange = describe_constant_masks(kinds)
        if strange:
            logging.warning("the masks that images are asked for: %s", strange)

    def __len__(self):
        return len(self.of_image)

    def __getitem__(self, indices):
        return torch.stack([self.code.tensor(self.read(self.of_image[i])) for i in indices])

    def facts(self, index):
        """What a sample tells of its mask."""
        number = self.of_image[index]
        return {"mask_file_name": f"{FOLDER}/{self.names[number]}.png", "mask": self.sources[number],
                "mask_sha256": self.hashes[number]}

    def stored(self, number):
        """A mask as pixels of a file that the run's own code reads: uint8 (H, W), or (H, W, 3) where values are colours."""
        return np.array(self.code.values, np.uint8)[self.read(number)] if self.code.values else self.read(number)

    def picture(self, number):
        """A mask to look at, uint8 Tensor (3, H, W)."""
        return self.code.picture(self.code.tensor(self.read(number)))


def find_masks(path, classes, options):
    """The masks at a path, as a list of `MaskFile`.

    Args:
        path: a file; a folder, of which all masks count, also those further below (where images/ and masks/ lie side by side,
            those in masks/), with the label of the folder that has the name of a class; or a table or a folder with one
            (metadata.csv), whose column mask_file_name names the masks, or file_name, and label their classes.
        classes: names of the classes.
        options: config.dataset, for its label column and the names of its folders of images and of masks.
    Raises:
        ValueError: no such file, no mask in it, or whatever else is wrong with the folder.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"--mask_path={path}: no such file or folder (looked from {Path.cwd()}){_nearest(root)}")
    if root.is_file() and root.suffix.lower() not in (".csv", ".jsonl"):
        return [MaskFile(root, root.name, "")]
    try:
        found = find(root, Columns(label="", text="", split=""), path_option="--mask_path",
                     follow_links=options.get("follow_links", False))
    except ValueError as error:
        raise ValueError(f"--mask_path={path}: no masks can be had from there. {error}") from None
    if found.table:
        columns = [options.get("label_column", ""), "label"]
        said = [next((str(row.extra[key] or "") for key in columns if key in row.extra), "").strip() for row in found.rows]
        said = [match(label, classes) for label in said]
        names = [row.mask or row.name for row in found.rows]
    else:
        names = _without_images([row.name for row in found.rows], options.get("images_folder", "") or "images",
                                options.get("masks_folder", "") or "masks")
        names = masks_alone(names, found.root)
        names = _with_suffix(names, options.get("mask_suffix", ""), options.get("mask_prefix", ""))
        parts = [[match(part, classes) for part in PurePosixPath(name).parts[:-1]] for name in names]
        said = [next((part for part in each if part in classes), "") for each in parts]
    return [MaskFile(found.root / name, name, label) for name, label in zip(names, said, strict=True)]


def of_files(path, files, of_image, code, *, side, crop=""):
    """`AskedMasks` of files, called by their names without the folders that all of them share.

    Args:
        path: what was asked for, for messages.
        files: list of MaskFile. of_image: for each image the number of its file.
        side: of the network's images. crop: of the data; 'pad' keeps the whole mask.
    """
    def read(number):
        from PIL import Image
        mask = Image.fromarray(code.read(files[number].path))
        return np.array(apply_crop_to_mask(mask, plan_crop(mask.size, side, crop="pad" if crop == "pad" else "center")))

    parts = [PurePosixPath(each.name).parts for each in files]
    shared = len(os.path.commonprefix([each[:-1] for each in parts]))
    own = ["_".join(each[shared:]) for each in parts]
    names = distinct([_stem(each) for each in own],
                     [safe_name(each.replace(".", "_"), MASK_NAME_BYTES) for each in own])
    try:
        return AskedMasks(code, read, of_image, names=names, sources=[each.name for each in files])
    except ValueError as error:
        raise ValueError(f"--mask_path={path}: {error}") from None


def of_training_images(options, labels, classes, *, seed, side, names, code=None):
    """`AskedMasks` of training images, one for each image; that of image i depends on (seed, i) and its label alone.

    Args:
        options: config.dataset.
        labels: number of the class of each image, of which the masks then are; None for any.
        names: of the images.
        code: the network's MaskCode; by default that of the data.
    Raises:
        ValueError: the data are not at hand, have no masks, others than the network was trained on, or none of a class.
    """
    dataset = data.at_hand(options)
    if dataset is None or dataset.masks_as is None:
        what = f"config.dataset.path={options.get('path')!r} is not at hand" if dataset is None else f"{dataset.name} has none"
        raise ValueError(f"this network takes masks, and the training data are to give them, but {what}: give --mask_path=FILE or "
                         "FOLDER")
    if tuple(dataset.shape[1:]) != (side, side):
        raise ValueError(f"the training images have {dataset.shape[1]} pixels a side, the network's {side}: give --mask_path")
    check_code(code, dataset)
    code = code or dataset.masks_as
    own, rows = {None: np.arange(len(dataset))}, []
    for index, label in enumerate(labels if labels is not None and dataset.labels is not None else [None] * len(names)):
        if label not in own:
            number = dataset.classes.index(classes[label]) if classes[label] in dataset.classes else -1
            own[label] = np.flatnonzero(dataset.labels.numpy() == number)
        if not len(own[label]):
            raise ValueError(f"the training data have no mask of class {classes[label]!r}: give --mask_path")
        rows.append(int(own[label][np.random.default_rng([seed, index, 3]).integers(len(own[label]))]))

    def read(number):
        return code.levels(dataset[rows[number]]["mask"][None])[0].numpy()

    return AskedMasks(code, read, range(len(rows)), names=[_stem(name) for name in names],
                      sources=[dataset.file_name(row) for row in rows])


def check_code(trained, dataset):
    """ValueError where masks of a data set mean something else than those that a network was trained on.

    trained: the network's MaskCode; None where it is not known. Names of classes may differ.
    """
    if trained is not None and dataset is not None and dataset.masks_as is not None:
        known, found = ({"mask_values": each.values} if each.values else {"mask_max": each.max}
                        for each in (trained, dataset.masks_as))
        if known != found:
            told, there = (", ".join(f"{key}={value}" for key, value in each.items()) for each in (known, found))
            raise ValueError(f"the network was trained on masks with {told}, those of {dataset.name} have {there}: give the data "
                             f"of the run, or --config.dataset.{told.replace(' ', '')}")


def distinct(names, others):
    """`names` as file names that no two share, also where case does not count: `others[i]`, then a number, where they would."""
    numbered = [f"{i:06d}_{name}" for i, name in enumerate(names)]
    for instead in (others, numbered):
        count = Counter([name.lower() for name in names] + list(RESERVED))
        names = [instead[i] if count[name.lower()] > 1 else name for i, name in enumerate(names)]
    return names


def _stem(name):
    """'a/b.png' -> 'a_b', as a name that every file system takes."""
    return safe_name(str(PurePosixPath(name).with_suffix("")).replace("/", "_"), MASK_NAME_BYTES)


def _without_images(names, images, masks):
    """The names but those below a folder `images` that has a folder `masks` beside it."""
    split = [PurePosixPath(name).parts for name in names]
    beside = {parts[:k] for parts in split for k, part in enumerate(parts[:-1]) if part == masks}
    return [name for name, parts in zip(names, split)
            if not any(part == images and parts[:k] in beside for k, part in enumerate(parts[:-1]))]


def _with_suffix(names, suffix, prefix):
    """The names of masks where images lie beside them: those with the data's suffix and prefix, if any has
    them; else all."""
    def is_mask(name):
        path = PurePosixPath(name)
        number = r"([ _.-]?\(?\d{1,3}\)?)?"
        end = re.fullmatch(f".*{re.escape(suffix)}{number}", path.stem)
        end = path.name.endswith(suffix) if "." in suffix else end
        return bool(end) and path.name.startswith(prefix)
    return [name for name in names if is_mask(name)] or names


def _nearest(path):
    try:
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return ""
