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
from .loader import Stream, check_batch, in_order
from .masks import MaskCode
from .opening import at_hand, feature_folder, feature_root, open_all, open_features, validation
from .medical import ISIC2018, ISIC2019, ChestXray14
from .path_text import PathText
from .published import CIFAR10, CelebA, ImageNet
from .reading import read_image
from .store import Features
from .tokens import WithTokens, with_tokens

__all__ = ["CIFAR10", "CelebA", "ChestXray14", "Dataset", "Features", "Folder", "ISIC2018", "ISIC2019", "ImageMask",
           "ImageNet", "MSCOCO", "MaskCode", "NAMES", "PathText", "Stream", "Subset", "WithTokens", "at_hand", "check_batch",
           "feature_folder", "feature_root", "get", "held_out", "in_order", "list_options", "open_all", "open_features", "preflight",
           "read_image", "some", "store", "validation", "with_tokens"]

_DATASETS = {"folder": Folder, "image_mask": ImageMask, "path_text": PathText, "phantoms": None, "cifar10": CIFAR10,
             "celeba": CelebA, "imagenet": ImageNet, "mscoco": MSCOCO, "isic2018": ISIC2018, "isic2019": ISIC2019,
             "chestxray14": ChestXray14}
NAMES = tuple(_DATASETS)


OWN_IMAGES = ("folder", "image_mask", "path_text")  # forms of one's own images, between which a config may switch


def get(name, **kwargs):
    """The data set `name` (folder, phantoms, cifar10, isic2018, ...), built with its own options.

    An option that only another form of one's own images has, such as image_prefix of 'image_mask', may be there for 'folder' too
    where it has its default value, so that config.dataset.name=folder is all that it takes to go from one to the other.

    Raises:
        ValueError: an unknown name or option; whatever is wrong with the data.
    """
    build = _constructor(name)
    known = _options(build)
    others = {other: _options(_DATASETS[other]) for other in OWN_IMAGES} if name in OWN_IMAGES else {}
    for option, value in list(kwargs.items()):
        of = next((other for other in others if option not in known and option in others[other]), None)
        if of is None:
            one_of(f"data set {name!r}: option", option, sorted(known))
        elif value != others[of][option]:
            raise ValueError(f"data set {name!r}: option {option}={value!r} is one of {of!r}: set name={of!r} "
                             f"(config.dataset.name), or leave it {others[of][option]!r}")
        else:
            del kwargs[option]
    return build(**kwargs)


def list_options(name):
    """{option: default} of the data set `name`, all that `get` takes beside the name; `inspect.Parameter.empty` where one is needed.

    Raises:
        ValueError: no such data set.
    """
    return _options(_constructor(name))


def _constructor(name):
    build = _DATASETS[one_of("data set name", name, _DATASETS)]
    if name == "phantoms":
        from .phantoms import Phantoms as build
    return build


def _options(build):
    """{option: default} of a data set: what its constructor takes, and what those do that it passes further options on to."""
    found = {}
    for kind in (kind for kind in build.__mro__ if "__init__" in vars(kind)):
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        found = {each.name: each.default for each in parameters if each.kind is not each.VAR_KEYWORD
                 and each.name not in vars(kind).get("INNER", ())} | found
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return found


def held_out(options, split):
    """Another split of the data set that `options` (name included) describe; there classes may have no image.

    A `holdout` divides the training images into 'train' and 'val', and says nothing of other splits.
    """
    other = {"min_per_class": 0} if options["name"] in OWN_IMAGES else {}
    if options.get("holdout") and split not in ("train", "val"):
        other["holdout"] = 0.0
    return get(**{**options, "split": split, **other})


def some(dataset, size):
    """Indices of `size` images (all, where there are fewer), rising: a random choice that is always the same."""
    chosen = np.random.default_rng(0).permutation(len(dataset))[:size]
    return sorted(chosen.tolist())
