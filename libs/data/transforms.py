"""Resize, crop and flip: the geometry of guided-diffusion, the same for an image and its mask."""

import math
from typing import NamedTuple

import torch
from PIL import Image

CROPS = ("center", "random")


class Crop(NamedTuple):
    """How a square is cut from an image: resize to each of `sizes` (width, height), cut at (left, top)."""

    sizes: list
    left: int
    top: int
    side: int


def plan_crop(size, side, *, crop="center", generator=None):
    """The `Crop` of a `side` x `side` square from an image of `size` (width, height).

    The image is halved while its short side is at least twice the target, then brought to it; this is guided-
    diffusion's recipe (Dhariwal & Nichol 2021). 'center' aims the short side at `side`; 'random' draws the
    aim from side .. side / 0.8 and the place uniformly.
    """
    aim = side
    if crop == "random":
        aim = _randint(side, math.ceil(side / 0.8), generator)
    sizes = []
    while min(size) >= 2 * aim:
        size = (size[0] // 2, size[1] // 2)
        sizes.append(size)
    scale = aim / min(size)
    size = (round(size[0] * scale), round(size[1] * scale))
    sizes.append(size)
    left, top = size[0] - side, size[1] - side
    if crop == "random":
        return Crop(sizes, _randint(0, left, generator), _randint(0, top, generator), side)
    return Crop(sizes, left // 2, top // 2, side)


def apply_crop(image, crop):
    """The square, halvings averaged (BOX), the last step BICUBIC."""
    for size in crop.sizes[:-1]:
        image = image.resize(size, Image.Resampling.BOX)
    return _cut(image.resize(crop.sizes[-1], Image.Resampling.BICUBIC), crop)


def apply_crop_to_mask(mask, crop):
    """The same square with no new grey levels: nearest pixel."""
    return _cut(mask.resize(crop.sizes[-1], Image.Resampling.NEAREST), crop)


def draw_flips(generator, *, horizontal=False, vertical=False):
    """Which axes of a (..., H, W) array to reverse, each with probability 1/2; () without a generator."""
    if generator is None:
        return ()
    asked = ((-1, horizontal), (-2, vertical))
    return tuple(axis for axis, wanted in asked if wanted and torch.rand((), generator=generator) < 0.5)


def _cut(image, crop):
    return image.crop((crop.left, crop.top, crop.left + crop.side, crop.top + crop.side))


def _randint(low, high, generator):
    return int(torch.randint(low, high + 1, (), generator=generator))
