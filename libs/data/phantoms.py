"""Phantoms: an embedded data set of dermoscopy-like lesions whose truth is known, at any resolution.

    phantoms.draw(0, 7, 64, ask={'class': 'angioma', 'size': 'large'})  # Phantom(image, mask, ...)
    phantoms.measure(image)                                             # {'size': 'large', ...}
    phantoms.Phantoms(resolution=32, size=4000, split='train')          # the data set
"""
import functools

import numpy as np
import torch

from . import base, transforms
from .masks import MaskCode
from .phantom_drawing import ATTRIBUTES, CLASSES, VERSION, Phantom, caption, describe, draw
from .phantom_measure import measure

__all__ = ["ATTRIBUTES", "CLASSES", "Phantom", "Phantoms", "caption", "describe", "draw", "measure"]

SPLITS = {"train": 0, "val": 1 << 24, "test": 2 << 24}  # first index
KEPT = 1 << 30


class Phantoms(base.Dataset):
    """`size` phantoms as a data set; the classes take turns, and no image is in two splits.

    resolution: pixels per side. split: 'train', 'val' or 'test'. random_flip: mirrored at random in training.
    masks: items carry 'mask' float32 (1, H, W) in {0, 1}.
    tell_class: captions say 'melanoma', else 'lesion'. wordings: captions of each image: the full sentence, then
    freer ones, in other orders and with some attributes left out.
    without: a mixture that is left out, {'colour': 'red', 'shape': 'irregular'}, to ask for it later.
    cast: factors of red, green and blue, each above 0: the same scenes under a lamp of that colour.
    An image is drawn at its first visit and kept, unless all together exceed KEPT bytes.
    """

    name, classes = "phantoms", list(CLASSES)

    def __init__(self, resolution=32, size=4000, *, seed=0, split="train", random_flip=False, masks=False,
                 tell_class=True, without=None, wordings=1, cast=(1.0, 1.0, 1.0)):
        first = SPLITS[base.one_of("phantoms split", split, SPLITS)]
        if not 1 <= size <= 1 << 22:
            raise ValueError(f"phantoms: size={size}: expected 1 .. {1 << 22}")
        self.masks_as = MaskCode((0, 255), names=("skin", "lesion")) if masks else None
        self.resolution, self.seed, self.random_flip, self.masks = resolution, seed, random_flip, masks
        if wordings < 1:
            raise ValueError(f"phantoms: wordings={wordings}: expected 1 or more")
        if len(cast) != 3 or not all(0 < factor < 10 for factor in cast):
            raise ValueError(f"phantoms: cast={tuple(cast)}: expected factors of red, green and blue such as (1.0, 0.9, 0.7)")
        self.tell_class, self.without, self.split = tell_class, dict(without or {}), split
        self.cast = tuple(float(factor) for factor in cast)
        self.wordings = wordings
        self.scenes = self._scenes(first, size)
        self.labels = torch.tensor(self.scenes % len(CLASSES))
        self.shape = (3, resolution, resolution)
        draw(seed, 0, resolution)
        keep = size if 4 * size * resolution ** 2 <= KEPT else 0
        self._pixels = np.zeros((keep, resolution, resolution, 4), np.uint8)
        self._drawn = np.zeros(keep, bool)

    def _scenes(self, first, size):
        if not self.without:
            return np.arange(first, first + size)
        describe(self.seed, 0, ask=self.without)
        scenes = []
        for i in range(size):
            index = first + i if i < len(CLASSES) else scenes[i - len(CLASSES)] + len(CLASSES)
            for _ in range(1000):
                name, attributes = describe(self.seed, index)
                if any((attributes | {"class": name})[key] != word for key, word in self.without.items()):
                    break
                index += len(CLASSES)
            else:
                raise ValueError(f"phantoms: without={self.without} leaves no {name}")
            scenes.append(index)
        return np.array(scenes)

    def __len__(self):
        return len(self.scenes)

    @functools.cached_property
    def attributes(self):
        """What each lesion is drawn to be: a list of {'size': 'large', ...}."""
        return [describe(self.seed, int(index))[1] for index in self.scenes]

    @functools.cached_property
    def captions(self):
        nouns = [CLASSES[label] if self.tell_class else "lesion" for label in self.labels]
        full = [caption(words, noun) for words, noun in zip(self.attributes, nouns)]
        if self.wordings == 1:
            return full
        free = [[caption(words, noun, np.random.default_rng([self.seed, int(index), 2, k])) for k in range(1, self.wordings)]
                for words, noun, index in zip(self.attributes, nouns, self.scenes)]
        return [[first, *others] for first, others in zip(full, free)]

    def _image_and_mask(self, i):
        if len(self._drawn) and self._drawn[i]:
            return self._pixels[i]
        image, mask, *_ = draw(self.seed, int(self.scenes[i]), self.resolution)
        if self.cast != (1.0, 1.0, 1.0):
            image = (image * np.float32(self.cast) + 0.5).clip(0, 255).astype(np.uint8)
        pixels = np.dstack([image, mask])
        if len(self._drawn):
            self._pixels[i], self._drawn[i] = pixels, True
        return pixels

    def item(self, i, generator=None):
        if not 0 <= i < len(self):
            raise IndexError(f"phantoms: image {i} of {len(self)}")
        pixels = torch.from_numpy(self._image_and_mask(i)).permute(2, 0, 1).float()
        pixels = pixels.flip(transforms.draw_flips(generator, horizontal=self.random_flip))
        item = {"image": pixels[:3] / 127.5 - 1, "label": self.labels[i], "index": torch.tensor(i)}
        return item | {"mask": pixels[3:] / 255} if self.masks else item

    def file_name(self, i):
        return f"phantoms/{self.seed}/{self.split}/{i}"

    @property
    def fingerprint(self):
        return base.fingerprint(self.name, VERSION, self.seed, self.split, len(self), self.resolution,
                                self.masks, self.tell_class, self.without, self.wordings,
                                *([self.cast] if self.cast != (1.0, 1.0, 1.0) else []))
