"""Resize, crop and flip: the geometry of guided-diffusion, the same for an image and its mask."""

import math
from typing import NamedTuple

import torch
from PIL import Image

CROPS = ("center", "random", "pad")


class Crop(NamedTuple):
    """How a square is cut from an image: resize to each of `sizes` (width, height), cut at (left, top).

    A negative `left` or `top` lies outside: there the square is black, and a mask 0.
    """

    sizes: list
    left: int
    top: int
    side: int


def plan_crop(size, side, *, crop="center", generator=None):
    """The `Crop` of a `side` x `side` square from an image of `size` (width, height).

    The image is halved while its short side is at least twice the target, then brought to it; this is guided-
    diffusion's recipe (Dhariwal & Nichol 2021). 'center' aims the short side at `side`; 'random' draws the
    aim from side .. side / 0.8 and the place uniformly; 'pad' brings the long side to `side` in the same way, and
    centres what there is.
    """
    aim, decisive = side, max if crop == "pad" else min
    if crop == "random":
        aim = _randint(side, math.ceil(side / 0.8), generator)
    sizes = []
    while decisive(size) >= 2 * aim:
        size = (max(1, size[0] // 2), max(1, size[1] // 2))
        sizes.append(size)
    scale = aim / decisive(size)
    size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    sizes.append(size)
    left, top = size[0] - side, size[1] - side
    if crop == "random":
        return Crop(sizes, _randint(0, left, generator), _randint(0, top, generator), side)
    return Crop(sizes, left // 2, top // 2, side)


def too_small(size, side, *, crop="center"):
    """Whether a `side` x `side` square can only be had by enlarging an image of `size`: its short side decides, or the
    long one where the rest is padded."""
    return (max if crop == "pad" else min)(size) < side


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
