"""A finished store as a data set: whole batches by one gather per array."""

import functools
import json

import numpy as np
import torch

from ..base import Dataset, Names, fingerprint
from ..masks import MaskCode
from .manifest import WEIGHTS, read

_FLIP, _CAPTION = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)  # make the choices of a visit independent


class Features(Dataset):
    """Latents, text states, masks and labels of one split, from the folder that `store.write` made.

    What a visit shows (the mirrored copy, which caption) follows from its seed alone.

    Args:
        path: folder of the store.
        random_flip: show the mirrored copy at half of the visits.
        memory_gb: arrays that fit into this together, the smallest first, are read from disk as a whole at first use, into
            the page cache, which all processes of a machine share; others row by row, as they are asked for.
    Attributes:
        shape: (C, h, w) of a latent.
        text_shape: (L, D) of the states of a text, or None.
        labels: LongTensor (N,), or None.
        classes: class names; [] where the data are unlabelled.
        masks_as: `masks.MaskCode` of the masks, None where the store has none.
        weights: FloatTensor (N,), or None; those of when the store was made, until others are set (`opening.open_features`).
        manifest: what the store says of itself.
    Raises:
        ValueError: no finished, whole store at `path`, or one without mirrored copies for random_flip.
    """

    def __init__(self, path, random_flip=False, memory_gb=2.0):
        self.manifest, self.path, self.memory_gb = read(path), path, memory_gb
        # Plain arrays over the mapped files: a memmap costs more to index.
        self._arrays = {name.removesuffix(".npy"): np.asarray(np.load(f"{path}/{name}", mmap_mode="r", allow_pickle=False))
                        for name in self.manifest["files"] if name.endswith(".npy")}
        _, self._copies, *shape = self._arrays["mean"].shape
        if random_flip and self._copies < 2:
            raise ValueError(f"{path}: random_flip=True, but the store has no mirrored images: delete the folder and "
                             "extract with --config.dataset.random_flip=True, or set it to False")
        self.random_flip, self.shape, self.name = random_flip, tuple(shape), self.manifest["name"]
        self.classes = self.manifest["classes"]
        small = {name: torch.from_numpy(self._arrays[name].copy()) for name in ("labels", "empty", WEIGHTS) if name in self._arrays}
        self.labels, self._empty, self.weights = small.get("labels"), small.get("empty"), small.get(WEIGHTS)
        if "mask" in self._arrays:
            self.masks_as = MaskCode(**self.manifest["masks"])
        self.text_shape = self._arrays["text"].shape[1:] if "text" in self._arrays else None
        self._latents = {name: self._arrays[name].reshape(-1, *shape) for name in ("mean", "std") if name in self._arrays}
        self._warm = False

    def __len__(self):
        return len(self._arrays["mean"])

    def __reduce__(self):
        return Features, (self.path, self.random_flip, self.memory_gb), {"weights": self.weights}

    def batch(self, indices, seeds=None):
        """Items as {'mean' and 'std' (n, C, h, w), 'text' (n, L, D), 'mask' (n, K, H, W), 'label', 'weight' and 'index' (n,)}.

        float32 and int64. 'std' is absent for a codec without spread, 'text', 'mask', 'label' and 'weight' where there are
        none; a mirrored image has its mask mirrored. seeds: one per item, of which
        its copy and its caption are drawn; None shows each as it is, with its first caption.
        """
        rows = self._rows(indices)
        if not self._warm:
            self._read_ahead()
        flips = _choose(seeds, _FLIP, 2) if self.random_flip and seeds is not None else 0
        found = {name: _gather(values, rows * self._copies + flips) for name, values in self._latents.items()}
        if self.text_shape:
            counts = self._caption_starts[rows + 1] - self._caption_starts[rows]
            found["text"] = self._states(rows, 0 if seeds is None else _choose(seeds, _CAPTION, counts))
        if self.masks_as is not None:
            masks = self._arrays["mask"].take(rows, axis=0)
            found["mask"] = self.masks_as.tensor(np.where(np.reshape(flips, (-1, 1, 1)), masks[..., ::-1], masks))
        if self.labels is not None:
            found["label"] = self.labels[torch.from_numpy(rows)]
        if self.weights is not None:
            found["weight"] = self.weights[torch.from_numpy(rows)]
        return found | {"index": torch.from_numpy(rows)}

    def item(self, i, generator=None):
        """Item i of `batch`; the seed that `generator` was started with is that of the visit."""
        batch = self.batch([i], None if generator is None else [generator.initial_seed()])
        return {key: values[0] for key, values in batch.items()}

    def texts(self, indices, which):
        """States (n, L, D) float32 of caption which[k] of image indices[k]."""
        if not self.text_shape:
            raise ValueError(f"{self.path}: the store has no texts")
        rows, which = self._rows(indices), np.asarray(which, np.int64)
        counts = self.caption_counts(rows)
        if ((which < 0) | (which >= counts)).any():
            k = int(np.argmax((which < 0) | (which >= counts)))
            raise IndexError(f"caption {which[k]} of {self.file_name(rows[k])}, which has {counts[k]}")
        return self._states(rows, which)

    def caption_counts(self, indices):
        """How many captions (n,) the images have."""
        rows = self._rows(indices)
        return self._caption_starts[rows + 1] - self._caption_starts[rows]

    @property
    def null(self):
        return super().null | ({} if self._empty is None else {"text": self._empty.float()})

    @functools.cached_property
    def captions(self):
        """The captions of each image, a list of lists of strings; None where the strings are unknown."""
        if "captions.jsonl" not in self.manifest["files"]:
            return None
        texts = self._strings("captions")
        return [[texts[row] for row in self._arrays["caption_rows"][start:stop]]
                for start, stop in zip(self._caption_starts, self._caption_starts[1:])]

    def file_name(self, i):
        return self._file_names[i]

    @property
    def fingerprint(self):
        return fingerprint("features", {name: known for name, known in self.manifest["files"].items() if name != f"{WEIGHTS}.npy"})

    @property
    def _caption_starts(self):
        return self._arrays["caption_starts"]

    @functools.cached_property
    def _file_names(self):
        return Names(self._strings("file_names"))

    def _strings(self, name):
        with open(f"{self.path}/{name}.jsonl", encoding="ascii") as file:
            return [json.loads(line) for line in file]

    def _states(self, rows, which):
        return _gather(self._arrays["text"], self._arrays["caption_rows"][self._caption_starts[rows] + which])

    def _rows(self, indices):
        rows = np.asarray(indices, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self.path}: items {rows.min()}..{rows.max()} of {len(self)}")
        return rows

    def _read_ahead(self):
        """Read what fits into memory in the order of the disk, smallest files first: faster than row by row."""
        sizes = {name: known["bytes"] for name, known in self.manifest["files"].items() if name.endswith(".npy")}
        room, scratch = self.memory_gb * 1e9, bytearray(1 << 24)
        for name in sorted(sizes, key=sizes.get):
            room -= sizes[name]
            if room < 0:
                break
            with open(f"{self.path}/{name}", "rb", buffering=0) as file:
                while file.readinto(scratch):
                    pass
        self._warm = True


def _gather(values, rows):
    """values[rows] as a float32 tensor."""
    return torch.from_numpy(values.take(rows, axis=0)).float()


def _choose(seeds, constant, counts):
    """Numbers below `counts` (n,), one per seed: the upper half of splitmix64's mixing, scaled."""
    mixed = np.asarray(seeds, np.uint64) ^ constant
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(32)) * np.asarray(counts, np.uint64) >> np.uint64(32)).astype(np.int64)
