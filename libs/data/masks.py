"""What the values of a mask file mean: grey levels on a scale, or classes by grey level, palette index or colour."""

import colorsys
import dataclasses

import numpy as np
import torch
from torch.nn import functional as F

from .base import fail
from .reading import decode, grey_mask, opaque_mask, open_mask

SHOWN = 5  # values named in one message


@dataclasses.dataclass(frozen=True)
class MaskCode:
    """Mask files <-> classes (H, W) <-> the tensors that networks are given.

    Args:
        values: () reads grey levels on a scale of 0 .. `max`; otherwise what each class is in the files, in the order of the
            classes, the background first: grey levels (or the numbers of a palette, or of a 16-bit file) such as (0, 1, 2), or
            colours such as ((0, 0, 0), (255, 0, 0), (0, 0, 255)).
        max: the largest grey level where values=(), which becomes 1.
        names: of the classes, () calls them 'class 0', 'class 1', ...
    Attributes:
        channels: of the tensors: 1 for grey levels and for two classes, else one for each class, the background too.
        classes: how many; grey levels count as two, below and above one half.
    Raises:
        ValueError: for values that cannot be told apart or are out of range, and names that are not one for each class.
    """

    values: tuple = ()
    max: int = 255
    names: tuple = ()

    def __post_init__(self):
        values, problems = _checked(self.values)
        if not 1 <= self.max <= 255:
            problems.append(f"mask_max={self.max!r}: expected a grey level in 1 .. 255")
        names, classes = tuple(self.names), len(values) or 2
        if names and (len(names) != classes or len(set(names)) < classes):
            problems.append(f"mask_names={names}: expected {classes} different names, one for each of "
                            f"{f'mask_values={values}' if values else 'dark and bright'}")
        fail("mask options", problems)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "names", names or tuple(f"class {k}" for k in range(classes)))

    @property
    def settings(self):
        """The arguments as JSON has them: MaskCode(**settings) is equal."""
        values = [list(value) if isinstance(value, tuple) else value for value in self.values]
        return {"values": values, "max": self.max, "names": list(self.names)}

    @property
    def classes(self):
        return len(self.values) or 2

    @property
    def channels(self):
        return self.classes if self.classes > 2 else 1

    def read(self, path):
        """A mask file as uint8 (H, W): the class of each pixel, or its grey level where values=().

        Colour palettes give their indices where grey levels are declared, and their colours where colours
        are. Transparent pixels are background; a file of one colour is told by its transparency alone
        (`reading.opaque_mask`).

        Raises:
            ValueError: naming the file, what it holds beside the declared values, and in how many pixels.
        """
        if not self.values:
            levels = np.array(open_mask(path, foreground=self.max))
            if levels.max() > self.max:
                raise ValueError(f"{path}: grey level {levels.max()} is above mask_max={self.max}")
            return levels
        found = _colours(path, self.values) if self._in_colour else _levels(path, self.values)
        index, known = np.zeros(found.shape, np.uint8), np.zeros(found.shape, bool)
        for k, value in enumerate(self.values):
            same = found == _code(value)
            index += same.view(np.uint8) * np.uint8(k)
            known |= same
        if not known.all():
            raise ValueError(f"{path}: {self._strange(found[~known], found.size)}")
        return index

    def tensor(self, index):
        """What `read` gave, uint8 (H, W) or (N, H, W), as float32 (K, H, W) or (N, K, H, W) in [0, 1]."""
        index = torch.as_tensor(index)
        if self.channels > 1:
            return F.one_hot(index.long(), self.channels).movedim(-1, -3).float()
        return index.unsqueeze(-3).float() / (1 if self.values else self.max)

    def levels(self, mask):
        """What `tensor` was given: float32 (N, K, H, W) -> uint8 (N, H, W)."""
        if self.values:
            return self.index(mask).to(torch.uint8)
        return (mask[:, 0] * self.max).round().to(torch.uint8)

    def index(self, mask):
        """Masks (N, K, H, W) as classes int64 (N, H, W)."""
        return mask.argmax(1) if self.channels > 1 else (mask[:, 0] > 0.5).long()

    def picture(self, index):
        """Classes (H, W), or a float mask (K, H, W), as colours uint8 (3, H, W) to look at.

        Declared colours are shown as they are, two classes as black and white. Grey levels keep their shades as a float
        mask; as integers, whatever is not 0 is white.
        """
        index = torch.as_tensor(index)
        if index.is_floating_point() and not self.values:
            return (index[:1].clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).contiguous()
        if index.is_floating_point():
            index = self.index(index[None])[0]
        colours = self.values if self._in_colour else _distinct(self.classes)
        index = index.long() if self.values else index.long().clamp(max=1)
        return torch.tensor(colours, dtype=torch.uint8, device=index.device)[index].movedim(-1, 0).contiguous()

    @property
    def _in_colour(self):
        return bool(self.values) and isinstance(self.values[0], tuple)

    def _strange(self, outside, pixels):
        """What is wrong with the codes `outside` of the declared values, in words."""
        codes, counts = np.unique(outside, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:SHOWN]
        shown = ", ".join(f"{_value(codes[k]) if self._in_colour else codes[k]} in {counts[k]}" for k in most)
        more = f" and {len(codes) - SHOWN} further values" if len(codes) > SHOWN else ""
        return (f"{len(outside)} of {pixels} pixels hold no value of mask_values={self.values} (value in pixels: {shown}{more}); "
                "declare them too, or save the mask without smoothing, as PNG rather than JPEG")


def _checked(values):
    """(values as a tuple of ints or of triples, what is wrong with them)."""
    values, problems = tuple(tuple(value) if isinstance(value, (tuple, list)) else value for value in values), []
    flat = [level for value in values for level in (value if isinstance(value, tuple) else (value,))]
    if len({isinstance(value, tuple) for value in values}) > 1:
        problems.append(f"mask_values={values}: either grey levels or colours, not both")
    elif any(isinstance(value, tuple) and len(value) != 3 for value in values):
        problems.append(f"mask_values={values}: a colour is three numbers (red, green, blue)")
    elif not all(type(level) is int and 0 <= level <= 255 for level in flat):
        problems.append(f"mask_values={values}: expected whole numbers in 0 .. 255")
    elif len(set(values)) < len(values):
        problems.append(f"mask_values={values}: one occurs twice")
    elif len(values) == 1:
        problems.append(f"mask_values={values}: expected two classes or more, the background first; () takes grey levels")
    return values, problems


def _levels(path, values):
    """The grey levels, or numbers of a colour palette, of a file (H, W)."""
    image = opaque_mask(decode(path, deep_alpha=True), path, values)
    if image.mode == "1":
        return np.asarray(image) * (1 if 1 in values and 255 not in values else 255)
    if image.mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3))
        number = np.asarray(image)
        return palette[number, 0] if (palette == palette[:, :1]).all() else number
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    return np.asarray(grey_mask(image, path))


def _colours(path, values):
    """The colours of a file as one number each (H, W)."""
    image = opaque_mask(decode(path, deep_alpha=True), path, values)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "RGBa", "LA", "La", "PA"):
        raise ValueError(f"{path}: a mask of type {image.mode!r}; mask_values in colour need 8-bit RGB, a palette or greyscale")
    return _code(np.asarray(image.convert("RGB")).astype(np.int32).transpose(2, 0, 1))


def _code(value):
    """A grey level as it is, a colour as one number."""
    return value if isinstance(value, int) else (value[0] << 16) + (value[1] << 8) + value[2]


def _value(code):
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255


def _distinct(count):
    """Colours of `count` classes: black and white for two, else black and hues a golden ratio of the circle apart."""
    if count == 2:
        return [(0, 0, 0), (255, 255, 255)]
    hues = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.85 - 0.35 * (k // 7 % 2), 0.95) for k in range(count - 1)]
    return [(0, 0, 0), *(tuple(round(255 * part) for part in hue) for hue in hues)]
