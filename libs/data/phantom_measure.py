"""What a phantom shows, read off its pixels: to measure whether a generated lesion is what was asked for."""
import math

import numpy as np

from .phantom_drawing import ATTRIBUTES, SKIN, TRANSMISSION


def measure(image):
    """Words read off an image uint8 (H, W, 3) of at least 32 x 32 pixels: size, shape, colour, skin.

    Skin is the median of the frame, pigment the largest patch that absorbs more than skin does, at a scale of
    32 x 32 pixels on which hairs vanish. Size is read from its area with the holes filled; shape from that
    area's moments, of order 2 (aspect) and, after making the ellipse a disc, 3 to 5 (irregularity); colour
    from the median absorption, by its direction and its strength. Without pigment the words but skin are ''.
    """
    side = min(image.shape[:2])
    if image.ndim != 3 or image.shape[2] != 3 or side < 32:
        raise ValueError(f"measure takes an image (H, W, 3) of at least 32 x 32 pixels, not {image.shape}")
    step = side // 32
    small = image[:32 * step, :32 * step].reshape(32, step, 32, step, 3).astype(np.float32).mean((1, 3))
    frame = np.pad(np.zeros((28, 28), bool), 2, constant_values=True)
    tone = np.median(small[frame], 0)
    words = dict.fromkeys(("size", "shape", "colour"), "")
    words["skin"] = min(SKIN, key=lambda word: np.abs(tone - SKIN[word]).sum())
    absorbed = np.log(tone / np.maximum(small, 1))
    strength = absorbed.max(2)
    if (strength > .4).sum() < 12:
        return words
    pigment = _patch(strength > np.clip(.5 * np.median(strength[strength > .4]), .4, .48))
    area = pigment | _between(pigment, 0) & _between(pigment, 1)
    y, x = np.nonzero(area)
    words["size"] = ATTRIBUTES["size"][np.searchsorted((.39, .545), math.sqrt(len(x) / math.pi) / 16)]
    points = np.stack([x - x.mean(), y - y.mean()])
    spread, axes = np.linalg.eigh(points @ points.T / len(x) + np.eye(2) / 12)
    disc = axes.T @ points / (2 * np.sqrt(spread[:, None]))
    uneven = np.linalg.norm([np.mean((disc[0] + 1j * disc[1]) ** m) for m in (3, 4, 5)])
    aspect = math.sqrt(spread[1] / spread[0])
    words["shape"] = "irregular" if uneven > .11 else "oval" if aspect > 1.35 else "round"
    found = np.median(absorbed[pigment], 0)
    known = -np.log(np.array(list(TRANSMISSION.values())))
    strong, strengths = np.linalg.norm(found), np.linalg.norm(known, axis=1)
    turned = ((found / strong - known / strengths[:, None]) ** 2).sum(1)
    words["colour"] = ATTRIBUTES["colour"][np.argmin(np.log(strong / strengths) ** 2 + 8 * turned)]
    return words


def _patch(pigment):
    """The largest connected patch of a boolean picture."""
    best, left = np.zeros_like(pigment), pigment.copy()
    while left.sum() > best.sum():
        patch, size = np.zeros_like(pigment), 0
        patch.flat[np.argmax(left)] = True
        while patch.sum() > size:
            size = patch.sum()
            wide = np.pad(patch, 1)
            patch = left & (patch | wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2])
        best, left = patch if size > best.sum() else best, left & ~patch
    return best


def _between(pigment, axis):
    """Whether a pixel has pigment on both sides along an axis."""
    return (np.logical_or.accumulate(pigment, axis)
            & np.flip(np.logical_or.accumulate(np.flip(pigment, axis), axis), axis))
