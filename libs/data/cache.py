"""Decoded images kept in memory, shared by a process and the data workers it forks."""

import logging
import mmap

import numpy as np

log = logging.getLogger(__name__)


class PixelCache:
    """Resized images (and masks) as integers, the first `capacity` of a data set.

    The memory is anonymous and shared: what one worker decodes all see, /dev/shm is not used, and a page
    costs nothing before it is written. Copies sent to a process that is not forked start without it.
    """

    def __init__(self, count, shape, dtype, mask_shape, gb):
        """Room for `count` images `shape` (H, W, C) and masks `mask_shape` (None: none), or for `gb` GB."""
        self.shape, self.dtype, self.mask_shape = shape, np.dtype(dtype), mask_shape
        pixels = int(np.prod(shape)) * self.dtype.itemsize
        mask = int(np.prod(mask_shape)) if mask_shape else 0
        self.capacity = min(count, int(gb * 1e9) // (pixels + mask + 1))
        if self.capacity < count:
            log.info("%d of %d decoded images fit in cache_gb=%g; the others are decoded each time",
                     self.capacity, count, gb)
        self.memory = mmap.mmap(-1, max(1, self.capacity * (pixels + mask + 1)))
        split = np.cumsum([0, pixels, mask, 1]) * self.capacity
        whole = np.frombuffer(self.memory, np.uint8)
        self.pixels = whole[split[0]:split[1]].view(self.dtype).reshape(self.capacity, *shape)
        self.masks = whole[split[1]:split[2]].reshape(self.capacity, *mask_shape) if mask_shape else None
        self.filled = whole[split[2]:split[3]]

    def get(self, i):
        """(pixels, mask) of image i, or None where it is not kept."""
        if i >= self.capacity or not self.filled[i]:
            return None
        return self.pixels[i], self.masks[i] if self.masks is not None else None

    def put(self, i, pixels, mask):
        """Keep image i if there is room and nothing of it would be lost."""
        if i >= self.capacity or pixels.dtype.itemsize > self.dtype.itemsize:
            return
        if pixels.dtype != self.dtype:
            pixels = pixels.astype(np.uint16) * 257  # v/255 = 257v/65535: the same grey level
        self.pixels[i] = pixels
        if mask is not None:
            self.masks[i] = mask
        self.filled[i] = 1  # last: a reader must not see half an image

    def __reduce__(self):
        return PixelCache, (0, self.shape, self.dtype.str, self.mask_shape, 0)
