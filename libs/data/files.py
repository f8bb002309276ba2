"""Image files as a data set: decoded, cut to a square, flipped, and kept in memory where they fit."""

import functools
import logging
import os

import numpy as np
import torch
from PIL import Image

from . import weights
from .base import Dataset, Names, fail, fingerprint, one_of
from .cache import PixelCache
from .masks import MaskCode
from .reading import open_image, pixels, to_float
from .transforms import CROPS, apply_crop, apply_crop_to_mask, draw_flips, plan_crop, too_small

log = logging.getLogger(__name__)
# between the files of several masks of one image, in `table.Row.mask`: no file name holds it
MASKS_APART = "\0"
EMPTY, FULL, MIXED = 1, 2, 3  # what a mask file holds: background alone, none of it, or several classes


class ImageFiles(Dataset):
    """The files of `rows`, at one resolution.

    Data sets that find their rows themselves pass these on, and INNER with them; the other arguments are options of theirs.

    Args:
        root: the folder that the names of the rows are relative to.
        rows: `table.Row`s, a list; each has a mask where `masks`.
        resolution: side of the square images.
        channels: 3 (RGB) or 1 (grey).
        classes: names in label order; [] = unlabelled.
        texts, masks: whether the rows have them.
        crop, random_flip, random_vflip, mask_max, mask_values, mask_names, window, upscale, cache, cache_gb: see `folder.Folder`.
    """

    INNER = ("root", "rows", "name", "texts", "masks")

    def __init__(self, root, rows, resolution, channels=3, *, name, classes=(), texts=False, masks=False,
                 crop="center", random_flip=False, random_vflip=False, mask_max=255, mask_values=(), mask_names=(),
                 window=(), upscale=False, cache="auto", cache_gb=1.0):
        check_options(resolution, channels, crop, window, cache)
        self.root, self.name, self.shape = str(root), name, (channels, resolution, resolution)
        self.crop, self.window, self.upscale = crop, tuple(window), upscale
        self.flips = {"horizontal": random_flip, "vertical": random_vflip}
        self.names, self.wheres = Names(row.name for row in rows), Names(row.where for row in rows)
        self.masks = Names(row.mask for row in rows) if masks else None
        self.masks_as = MaskCode(mask_values, mask_max, mask_names) if masks else None
        self.mask_max = mask_max
        self.captions = [row.text for row in rows] if texts else None
        if any(row.group for row in rows):
            self.groups = Names(row.group or row.name for row in rows)
        if any(row.split for row in rows):
            self.splits = Names(row.split for row in rows)
        self.weights = weights.of_rows(rows)
        self.classes = list(classes)
        if self.classes:
            number = {name: k for k, name in enumerate(self.classes)}
            self.labels = torch.tensor([number[row.label] for row in rows], dtype=torch.long)
        self.mask_peak = 0  # largest grey level met in a mask
        # EMPTY, FULL or MIXED, 0 before it is read
        self.mask_kinds = np.zeros(len(self.names) if masks else 0, np.uint8)
        self.cache = self._make_cache(cache, cache_gb)

    def __len__(self):
        return len(self.names)

    def file_name(self, i):
        return self.names[i]

    def item(self, i, generator=None):
        image, mask = self._load(i, generator)
        flips = draw_flips(generator, **self.flips)
        image = np.broadcast_to(image, image.shape[:2] + self.shape[:1]).transpose(2, 0, 1)
        item = {"image": torch.from_numpy(to_float(np.flip(image, flips))), "index": torch.tensor(i)}
        if self.labels is not None:
            item["label"] = self.labels[i]
        if self.weights is not None:
            item["weight"] = self.weights[i]
        if mask is not None:
            item["mask"] = self.masks_as.tensor(np.flip(mask, flips).copy())
        return item

    def problems(self, i):
        return self.inspect(i)[0]

    def inspect(self, i):
        measured = {}
        try:
            self._load(i, None, measured)
            return [], measured
        except ValueError as error:
            where = self.wheres[i]
            return [str(error) if where == self.names[i] else f"{where}: {error}"], {}

    def common_faults(self):
        self._log_constant_masks()
        if self.masks is not None and not self.masks_as.values and 0 < self.mask_peak <= self.mask_max / 2:
            return [f"masks: the largest grey level is {self.mask_peak} where mask_max={self.mask_max} is 1, so that no pixel is "
                    f"above one half, where the foreground begins: set mask_values=(0, ..., {self.mask_peak}), the levels that "
                    f"stand for classes, or set mask_max={self.mask_peak}"]
        return []

    @functools.cached_property
    def fingerprint(self):
        files = sorted((row, *self._state(name)) for row, name in self._files())
        added = [self.masks_as.values] if self.masks_as is not None and self.masks_as.values else []
        added += ["pad"] if self.crop == "pad" else []
        return fingerprint("folder", files, self.classes, self.labels.tolist() if self.classes else [],
                           self.captions or [], self.shape, self.window, self.upscale, self.mask_max, *added)

    def _files(self):
        for k in range(len(self)):
            yield k, self.names[k]
            if self.masks is not None:
                for name in self.masks[k].split(MASKS_APART):
                    yield k, name

    def _path(self, name):
        """Where the file that a row calls `name` lies."""
        return os.path.join(self.root, name)

    def _state(self, name):
        status = os.stat(self._path(name))
        return name, status.st_size, status.st_mtime_ns

    def _make_cache(self, cache, gb):
        side = self.shape[1]
        if not cache or self.crop == "random" or not len(self):
            return None
        if cache == "auto" and len(self) * side * side * (self.shape[0] + 1) > gb * 1e9:
            return None
        try:
            image, _ = self._decode(0, None)
        except ValueError:  # the pre-flight names it among the others
            return None
        return PixelCache(len(self), image.shape[:2] + self.shape[:1], image.dtype.str,
                          (side, side) if self.masks is not None else None, gb)

    def _load(self, i, generator, measured=None):
        """(integer pixels (H, W, 1 or C), mask (H, W) uint8 or None), from memory where they are kept.

        measured: a dict for what the files hold, see `Measurements.add`; they are then decoded in any case.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}: index {i} outside 0..{len(self) - 1}")
        kept = self.cache.get(i) if self.cache and measured is None else None
        if kept is None:
            kept = self._decode(i, generator, measured)
            if self.cache:
                self.cache.put(i, *kept)
        return kept

    def _open(self, i, measured=None):
        """The decoded PIL image; published sets cut it here."""
        return open_image(self._path(self.names[i]), channels=self.shape[0], window=self.window, measured=measured)

    def _decode(self, i, generator, measured=None):
        image, side, name = self._open(i, measured), self.shape[1], self.names[i]
        if too_small(image.size, side, crop=self.crop) and not self.upscale:
            raise ValueError(f"{name}: {image.width}x{image.height} pixels are smaller than resolution={side}"
                             ": remove it, lower the resolution, or set upscale=True")
        how = "center" if self.crop == "random" and generator is None else self.crop
        crop = plan_crop(image.size, side, crop=how, generator=generator)
        mask = self._decode_mask(i, image.size, crop)
        if measured is not None:
            width, height = crop.sizes[-1]
            measured["share"] = measured.get("share", 1.0) * min(1.0, side * side / (width * height))
            measured["enlarged"] = too_small(image.size, side, crop=self.crop)
            if mask is not None:
                measured["mask_levels"] = np.bincount(mask.ravel(), minlength=256)
                measured["foreground"] = float((mask > (0 if self.masks_as.values else self.mask_max / 2)).mean())
        return pixels(apply_crop(image, crop)), mask

    def _decode_mask(self, i, size, crop):
        if self.masks is None:
            return None
        index = None
        for name in self.masks[i].split(MASKS_APART):
            each = self.masks_as.read(self._path(name))
            if each.shape[::-1] != size:
                raise ValueError(f"{name}: the mask has {each.shape[1]}x{each.shape[0]} pixels, its image "
                                 f"{self.names[i]} {size[0]}x{size[1]}: they must be equal")
            index = each if index is None else np.maximum(index, each)
        self.mask_peak = max(self.mask_peak, int(index.max()))
        self.mask_kinds[i] = kind_of_mask(index, self.masks_as)
        return np.asarray(apply_crop_to_mask(Image.fromarray(index), crop))

    def _log_constant_masks(self):
        """Warn where no mask that was read holds two classes."""
        met = self.mask_kinds[self.mask_kinds > 0]
        text = describe_constant_masks(met)
        if text:
            log.warning("%s: %s", self.name, text)


def kind_of_mask(index, code):
    """EMPTY, FULL or MIXED of what `MaskCode.read` gave."""
    foreground = index > 0 if code.values else index > code.max / 2
    if (index != index.flat[0]).any() and foreground.any():
        return MIXED
    return FULL if foreground.all() else EMPTY


def describe_constant_masks(kinds):
    """What is strange about masks of the `kinds` (EMPTY, FULL, MIXED of each file), in a sentence; '' for
    nothing."""
    empty, full = (sum(int(kind) == each for kind in kinds) for each in (EMPTY, FULL))
    if not len(kinds) or empty + full < len(kinds):
        return ""
    total = len(kinds)
    parts = []
    for count, what in ((empty, "empty, nothing but the first class (the background)"),
                        (full, "full, without a pixel of the first class (the background)")):
        many = f"{'all' if count == total else count} of the {total} masks {'is' if count == 1 else 'are'}"
        parts += [f"{'the only mask is' if total == 1 else many} {what}"] if count else []
    return (f"{' and '.join(parts)}, and none holds two classes: compare the files with "
            "--config.dataset.mask_values (the first value is the background) and mask_max")


def check_options(resolution, channels, crop, window, cache):
    """ValueError that lists every option out of range."""
    problems = []
    if not (isinstance(resolution, int) and resolution > 0):
        problems.append(f"resolution={resolution!r}: expected a whole number of pixels > 0")
    if channels not in (1, 3):
        problems.append(f"channels={channels!r}: expected 1 (grey) or 3 (RGB)")
    if len(window) not in (0, 2) or (window and not window[0] < window[1]):
        problems.append(f"window={window!r}: expected (low, high) with low < high, or ()")
    if cache == "memory" and crop == "random":
        problems.append("cache='memory' with crop='random': a random crop differs at every visit; "
                        "use cache=''")
    fail("data options", problems)
    one_of("crop", crop, CROPS)
    one_of("cache", cache, ("auto", "memory", ""))
