"""What every data set offers, whatever it reads: items, labels, captions, null conditions, a fingerprint."""

import difflib
import hashlib
import json

import numpy as np
import torch

LISTED = 50  # problems named in one message; the rest are counted


class Dataset(torch.utils.data.Dataset):
    """Images with what is known about them, indexed 0 .. N-1; subclasses define `item` and `__len__`.

    Attributes:
        name: short name for logs and file names.
        shape: (C, H, W) of an image.
        classes: class names, the position is the label; [] where the data are unlabelled.
        labels: LongTensor (N,), or None.
        captions: list of N strings, or None.
        groups: sequence of N strings, equal where images belong together (a patient, a lesion; an image by itself has its
            file name), or None where nothing is known to.
        splits: sequence of N strings, as the data call their splits, or None where they have none.
        weights: FloatTensor (N,), how many times the loss of each image counts in a training, or None: all count once.
        masks_as: `masks.MaskCode` where items have a 'mask': what its K channels mean; None where they have none.
        window: (low, high), the grey levels of the files that are shown as black and white; () where that is their full range.
        measurements: `measurements.Measurements` of the files, once `preflight` has decoded them; None before.
        split_sizes: {name: images} of all splits of the data, this one among them; {} where they have none.
    """

    name = ""
    shape = (3, 0, 0)
    classes: list = []
    labels = None
    captions = None
    groups = None
    splits = None
    weights = None
    masks_as = None
    window = ()
    measurements = None
    split_sizes: dict = {}

    def __len__(self):
        raise NotImplementedError

    def item(self, i, generator=None):
        """Image i as a dict of tensors; `generator` draws its augmentation, None gives it without.

        Keys: 'image' float32 (C, H, W) in [-1, 1], 'index' int64 (), where known 'label' int64 (), 'weight'
        float32 () and 'mask' float32 (K, H, W) in [0, 1]. Equal generator states give equal items.
        """
        raise NotImplementedError

    def __getitem__(self, i):
        return self.item(i)

    def batch(self, indices, seeds=None):
        """Images `indices` stacked, image k augmented by a generator seeded with seeds[k] (None: none).

        A subclass that can fetch many images at once overrides this with the same result.
        """
        return stack_items(self, indices, seeds)

    @property
    def null(self):
        """The conditions that mean "no condition", without batch axis: the label after the last class."""
        return {"label": torch.tensor(len(self.classes))} if self.classes else {}

    def file_name(self, i):
        """What to call image i in a message: its path below the data folder, where it has one."""
        return f"{self.name}[{i}]"

    def problems(self, i):
        """What is wrong with image i, as sentences for `preflight`; decodes it."""
        return []

    def inspect(self, i):
        """(`problems`, what the files of image i hold as a dict, see `Measurements.add`) for `preflight`; decodes it."""
        return self.problems(i), {}

    def common_faults(self):
        """What is wrong with the images together, once `problems` has seen each of them."""
        return []

    @property
    def fingerprint(self):
        """sha256 (hex) that changes with the data or with how `dataset[i]` shows them, augmentation aside."""
        raise NotImplementedError


class Subset(Dataset):
    """The images `indices` of another data set, in that order, under the same classes."""

    def __init__(self, dataset, indices):
        self.dataset = dataset
        self.indices = [int(i) for i in indices]
        outside = [i for i in self.indices if not 0 <= i < len(dataset)]
        if outside:
            raise ValueError(f"subset: indices {outside[:5]} outside 0..{len(dataset) - 1}")
        self.name, self.shape, self.classes = dataset.name, dataset.shape, list(dataset.classes)
        self.masks_as, self.window = dataset.masks_as, dataset.window
        if dataset.labels is not None:
            self.labels = dataset.labels[torch.tensor(self.indices, dtype=torch.long)]
        if dataset.weights is not None:
            self.weights = dataset.weights[torch.tensor(self.indices, dtype=torch.long)]
        if dataset.captions is not None:
            self.captions = [dataset.captions[i] for i in self.indices]
        self.groups, self.splits = (None if known is None else Names(known[i] for i in self.indices)
                                    for known in (dataset.groups, dataset.splits))

    def __len__(self):
        return len(self.indices)

    def item(self, i, generator=None):
        return self.dataset.item(self.indices[i], generator) | {"index": torch.tensor(i)}

    def batch(self, indices, seeds=None):
        return self.dataset.batch([self.indices[i] for i in indices], seeds) | {"index": torch.tensor(indices)}

    @property
    def null(self):
        return self.dataset.null

    def file_name(self, i):
        return self.dataset.file_name(self.indices[i])

    def problems(self, i):
        return self.dataset.problems(self.indices[i])

    def inspect(self, i):
        return self.dataset.inspect(self.indices[i])

    def common_faults(self):
        return self.dataset.common_faults()

    @property
    def fingerprint(self):
        return fingerprint(self.dataset.fingerprint, self.indices)


class Names:
    """An immutable list of strings in one buffer.

    Forked data workers share it: a list of a million str objects is copied page by page into every worker,
    because reading an object changes its reference count.
    """

    def __init__(self, strings):
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self.ends = np.cumsum([0] + [len(s) for s in encoded])
        self.buffer = b"".join(encoded)

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.buffer[self.ends[i]:self.ends[i + 1]].decode("utf-8", "surrogateescape")


def stack_items(dataset, indices, seeds=None):
    """`dataset.item` for each index, stacked; ValueError that names the file where one cannot be had."""
    generator, items = torch.Generator(), []
    for k, i in enumerate(indices):
        try:
            item = dataset.item(i, None if seeds is None else generator.manual_seed(int(seeds[k])))
        except (OSError, ValueError) as error:
            name = dataset.file_name(i)
            raise ValueError(f"{error}" if name in str(error) else f"{name}: {error}") from error
        items.append(item | {"index": torch.tensor(int(i))})
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def fingerprint(*parts):
    """sha256 (hex) over JSON-serialisable parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def fail(title, problems):
    """One ValueError that lists every problem, the first 50 in words; nothing where there is none."""
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise ValueError("\n  ".join([f'{title}: {len(problems)} problem{"s" * (len(problems) > 1)}',
                                      *problems[:LISTED], *more]))


def one_of(what, value, allowed):
    """`value` if it is allowed, else ValueError with the allowed ones and the nearest of them."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{what}={value!r}: expected one of {allowed}{did_you_mean(value, allowed)}")
    return value


def did_you_mean(value, allowed):
    """'; did you mean X?' or ''."""
    by_lower = {str(a).lower(): a for a in allowed}
    close = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
