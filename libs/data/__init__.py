"""Data: images from folders, tables and published sets, as dicts of tensors in an order fixed by the seed.

    dataset = data.get(name='folder', path='my_images', resolution=64)
    data.preflight(dataset)
    for batch in data.Stream(dataset, 128, seed=0, workers=4)(start=0): ...
"""

import inspect

import numpy as np

from . import store
from .base import Dataset, Subset, one_of
from .check import preflight
from .coco import MSCOCO
from .folder import Folder
from .image_mask import ImageMask
from .loader import Stream, in_order
from .masks import MaskCode
from .opening import at_hand, feature_folder, open_all, open_features, validation
from .medical import ISIC2018, ISIC2019, ChestXray14
from .path_text import PathText
from .published import CIFAR10, CelebA, ImageNet
from .reading import read_image
from .store import Features
from .tokens import WithTokens, with_tokens

__all__ = ["CIFAR10", "CelebA", "ChestXray14", "Dataset", "Features", "Folder", "ISIC2018", "ISIC2019", "ImageMask",
           "ImageNet", "MSCOCO", "MaskCode", "PathText", "Stream", "Subset", "WithTokens", "at_hand", "feature_folder", "get",
           "held_out", "in_order", "open_all", "open_features", "preflight", "read_image", "some", "store", "validation",
           "with_tokens"]

_DATASETS = {"folder": Folder, "image_mask": ImageMask, "path_text": PathText, "phantoms": None, "cifar10": CIFAR10,
             "celeba": CelebA, "imagenet": ImageNet, "mscoco": MSCOCO, "isic2018": ISIC2018, "isic2019": ISIC2019,
             "chestxray14": ChestXray14}


def get(name, **kwargs):
    """The data set `name` (folder, phantoms, cifar10, isic2018, ...), built with its own options."""
    build = _DATASETS[one_of("data set name", name, _DATASETS)]
    if name == "phantoms":
        from .phantoms import Phantoms as build
    known = {option for kind in build.__mro__ if "__init__" in vars(kind)
             for option in inspect.signature(kind.__init__).parameters} - {"self", "options"}
    for option in kwargs:
        one_of(f"data set {name!r}: option", option, sorted(known))
    return build(**kwargs)


def held_out(options, split):
    """Another split of the data set that `options` (name included) describe; there classes may have no image."""
    empty_classes = {"min_per_class": 0} if options["name"] in ("folder", "image_mask", "path_text") else {}
    return get(**{**options, "split": split, **empty_classes})


def some(dataset, size):
    """Indices of `size` images (all, where there are fewer), rising: a random choice that is always the same."""
    chosen = np.random.default_rng(0).permutation(len(dataset))[:size]
    return sorted(chosen.tolist())
