"""Captions as token numbers beside the items of a data set, for a network that embeds them itself."""

import numpy as np
import torch

from .base import Dataset
from .opening import Opened


def with_tokens(opened, options, encode, *, validation_split=""):
    """What `open_all` gave, with `WithTokens` for what is trained on and held out; the captions are those of the images.

    Args:
        options: config.dataset, of which the held-out captions are read.
        encode, validation_split: see `WithTokens` and `open_all`.
    Raises:
        ValueError: the images, and with them their captions, are not at hand.
    """
    from . import held_out
    if opened.images is None:
        raise ValueError(f"config.dataset.path={options.get('path')!r}: no such file or folder, and captions are needed as text")
    unseen = opened.held_out and WithTokens(opened.held_out, held_out(options, validation_split).captions, encode)
    return Opened(opened.images, WithTokens(opened.examples, opened.images.captions, encode), unseen)


class WithTokens(Dataset):
    """Another data set, whose items have one of their captions as token numbers: 'text' int64 (L,).

    Which caption of several a visit shows follows from its seed alone; without a seed it is the first.

    Args:
        dataset: images or stored latents.
        captions: a text, or a list of texts, for each of its items.
        encode: texts -> token numbers (n, L) int64.
    Raises:
        ValueError: another number of captions than items, or an item without one.
    """

    def __init__(self, dataset, captions, encode):
        captions = [[texts] if isinstance(texts, str) else list(texts) for texts in captions or []]
        if len(captions) != len(dataset):
            raise ValueError(f"{dataset.name}: {len(dataset)} items, but {len(captions) or 'no'} captions: give the data a column "
                             "of texts")
        lacking = [i for i, texts in enumerate(captions) if not texts]
        if lacking:
            raise ValueError(f"{len(lacking)} items have no caption, such as {dataset.file_name(lacking[0])}")
        self.dataset, self.name, self.shape, self.classes = dataset, dataset.name, dataset.shape, list(dataset.classes)
        self.labels, self.groups, self.splits, self.masks_as = dataset.labels, dataset.groups, dataset.splits, dataset.masks_as
        self.captions, self.weights, self.window = captions, dataset.weights, dataset.window
        distinct = {text: row for row, text in enumerate(dict.fromkeys(text for texts in captions for text in texts))}
        self._tokens = encode(list(distinct)).to(torch.int32)  # half the memory of int64
        self._rows = np.array([distinct[text] for texts in captions for text in texts])
        self._starts = np.cumsum([0, *map(len, captions)])

    def __len__(self):
        return len(self.dataset)

    def item(self, i, generator=None):
        seeds = None if generator is None else [generator.initial_seed()]
        return self.dataset.item(i, generator) | {"text": self._texts([i], seeds)[0]}

    def batch(self, indices, seeds=None):
        return self.dataset.batch(indices, seeds) | {"text": self._texts(indices, seeds)}

    def _texts(self, indices, seeds):
        counts = [self._starts[i + 1] - self._starts[i] for i in indices]
        which = [0 if seeds is None else int(np.random.default_rng([int(seeds[k]), 3]).integers(count))
                 for k, count in enumerate(counts)]
        return self._tokens[self._rows[[self._starts[i] + own for i, own in zip(indices, which)]]].long()

    @property
    def null(self):
        return self.dataset.null

    def file_name(self, i):
        return self.dataset.file_name(i)

    def problems(self, i):
        return self.dataset.problems(i)

    def inspect(self, i):
        return self.dataset.inspect(i)

    def common_faults(self):
        return self.dataset.common_faults()

    @property
    def fingerprint(self):
        return self.dataset.fingerprint
