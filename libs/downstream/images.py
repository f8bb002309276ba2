"""The images of a study in memory: real ones to train on, synthetic ones, and held-out real ones to test on.

A classifier is trained on their labels; a segmentation network on their masks, and labels they then need not have.

The test images are worth something only where nothing of them is trained on, so shared files, groups (patients) and
copies are looked for before anything is trained.
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from libs import data
from libs.data.base import fail, one_of
from libs.downstream import segmentation

log = logging.getLogger(__name__)
LISTED = 5  # names in one sentence
UNLABELLED = ["images"]  # the one class of images without labels


@dataclass
class Images:
    """Labelled images as tensors, or pairs of images and masks.

    pixels: uint8 (N, C, H, W). labels: LongTensor (N,). classes: names in label order. names: what messages call an
    image. groups: N strings, equal where images belong together (a patient), or None. hashes: sha256 of the pixels of
    each image. looks: the same for images that differ by mirroring alone. masks: uint8 (N, H, W), the class of each pixel, or
    None; mask_names: the names of these classes, the background first; mask_hashes: sha256 of each mask.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    classes: list
    names: list
    groups: list | None
    hashes: list
    looks: list
    masks: torch.Tensor | None = None
    mask_names: list | None = None
    mask_hashes: list | None = None

    @property
    def targets(self):
        """The names of what a network is to tell apart: classes of images, or of the pixels of their masks."""
        return self.classes if self.masks is None else self.mask_names

    def __len__(self):
        return len(self.labels)

    def counts(self, indices=None):
        """{class name: number of images}, of these indices or of all."""
        labels = self.labels if indices is None else self.labels[torch.as_tensor(indices, dtype=torch.long)]
        return dict(zip(self.classes, torch.bincount(labels, minlength=len(self.classes)).tolist(), strict=True))

    def pairs(self):
        """{class of the masks: number of images that have it}."""
        return {name: int((self.masks == k).flatten(1).any(1).sum()) for k, name in enumerate(self.mask_names)}

    def only(self, indices):
        """These images alone."""
        keep = torch.as_tensor(indices, dtype=torch.long)
        names, hashes, looks = ([values[i] for i in indices] for values in (self.names, self.hashes, self.looks))
        groups = None if self.groups is None else [self.groups[i] for i in indices]
        masks = {} if self.masks is None else {"masks": self.masks[keep], "mask_names": self.mask_names,
                                               "mask_hashes": [self.mask_hashes[i] for i in indices]}
        return Images(self.pixels[keep], self.labels[keep], self.classes, names, groups, hashes, looks, **masks)


def of_tensors(pixels, labels, classes, *, names=(), groups=None, masks=None, mask_names=()):
    """`Images` of uint8 pixels (N, C, H, W) and labels (N,), and of masks uint8 (N, H, W) where they are given."""
    hashes, looks = zip(*[_hashes(image) for image in pixels], strict=True) if len(pixels) else ((), ())
    names = list(names) or [str(i) for i in range(len(pixels))]
    own = {} if masks is None else {"masks": masks, "mask_names": list(mask_names), "mask_hashes": [_hash(mask) for mask in masks]}
    return Images(pixels, torch.as_tensor(labels).long(), list(classes), names, groups, list(hashes), list(looks), **own)


def load(dataset, batch_size=256, *, masks=False):
    """All images of a data set, decoded once, as `Images`; with their masks where asked for, and then with labels or without."""
    pixels = torch.empty(len(dataset), *dataset.shape, dtype=torch.uint8)
    own = {"masks": torch.empty(len(dataset), *dataset.shape[1:], dtype=torch.uint8),
           "mask_names": dataset.masks_as.names} if masks else {}
    for batch in data.in_order(dataset, range(len(dataset)), batch_size):
        pixels[batch["index"]] = (batch["image"].float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        if masks:
            own["masks"][batch["index"]] = dataset.masks_as.index(batch["mask"]).to(torch.uint8)
    names = [dataset.file_name(i) for i in range(len(dataset))]
    groups = None if dataset.groups is None else [dataset.groups[i] for i in range(len(dataset))]
    labels, classes = (dataset.labels, dataset.classes) if dataset.labels is not None else (torch.zeros(len(pixels)), UNLABELLED)
    return of_tensors(pixels, labels, classes, names=names, groups=groups, **own)


def open_real(options, test_options, test_split, *, masks=False):
    """(training data, test data) as data sets under the same classes.

    Args:
        masks: whether they must have masks, of the same classes, and need no labels.
        options: config.dataset.
        test_options: what the test data have differently, config.test; '' and 0 mean as in `options`.
        test_split: the split of the test data.
    """
    other = {key: value for key, value in test_options.items() if value not in ("", 0)}
    elsewhere = "path" in other
    if not elsewhere and options.get("split", "") in ("", test_split):
        raise ValueError(f"config.study.test_split={test_split!r} is also trained on: config.dataset.split is "
                         f"{options.get('split', '')!r}; give another one, such as 'train'")
    train = data.get(**options)
    if masks and train.masks_as is None:
        raise ValueError(f"{train.name}: the real images have no masks, which a segmentation network is trained on: give a column "
                         "mask_file_name (config.dataset.mask_column) or, of phantoms, config.dataset.masks=True")
    if train.labels is None and not masks:
        raise ValueError(f"{train.name}: the real images have no labels, which a classifier is trained on")
    if elsewhere and options["name"] == "folder" and train.labels is not None:
        other |= _same_classes(train.classes, options)
    test = data.held_out({**options, **other}, test_split)
    if masks and (test.masks_as is None or test.masks_as.names != train.masks_as.names):
        raise ValueError(f"{test.name}: the test images have {'no masks' if test.masks_as is None else test.masks_as.names}, the "
                         f"training images masks of {train.masks_as.names}; they must be the same")
    if (test.labels is None) != (train.labels is None) or list(test.classes) != list(train.classes):
        raise ValueError(f"{test.name}: the test images have the classes {list(test.classes)}, the training images "
                         f"{list(train.classes)}; they must be the same")
    return train, test


def open_synthetic(options, real, real_options, *, masks=False):
    """The synthetic images as a data set under the classes, size and channels of the real ones.

    Args:
        options: config.synthetic: `path` and further options of the data set 'folder'.
        real: the real data set.
        real_options: config.dataset; classes that are dropped there are dropped here.
        masks: whether they must have masks, in the values of the real ones, and need no labels. The mask that an image was
            asked for is its truth.
    """
    if not options["path"]:
        raise ValueError(
            "config.synthetic.path is '': give the folder of the synthetic images, --config.synthetic.path=FOLDER. A trained "
            "network makes one: python sample.py --workdir=<its run> --label=all --n_samples=200 --config.sample.path=FOLDER")
    if not Path(options["path"]).expanduser().exists():
        raise ValueError(f"config.synthetic.path={options['path']!r}: no such folder or table (looked from {Path.cwd()})")
    channels, resolution, _ = real.shape
    # A study counts every image once, also those of a table that weighs them for a training of a generator.
    options = {**options, "resolution": resolution, "channels": channels, "min_per_class": 0, "weight_column": ""}
    if masks:
        return _open_pairs(options, real, real_options)
    try:
        return data.get("folder", **options, **_same_classes(real.classes, real_options))
    except ValueError as error:
        if "unlabelled" not in str(error):
            raise ValueError(f"config.synthetic: {error}") from error
        raise ValueError(f"config.synthetic.path={options['path']!r}: the synthetic images are unlabelled; a classifier needs a "
                         "metadata.csv with file_name,label beside them, or a folder for each class") from error


def _open_pairs(options, real, real_options):
    """Synthetic pairs, under the image classes of the real ones where both are labelled."""
    code = real.masks_as
    options |= {"mask_values": code.values, "mask_names": code.names, "mask_max": code.max, "require": ("mask",)}
    unlabelled = options | {"label_column": ""}
    try:
        if real.labels is None:
            return data.get("folder", **unlabelled)
        try:
            return data.get("folder", **options, **_same_classes(real.classes, real_options))
        except ValueError as error:
            if "unlabelled" not in str(error):
                raise
            return data.get("folder", **unlabelled)
    except ValueError as error:
        if "no mask" not in str(error):
            raise ValueError(f"config.synthetic: {error}") from error
        raise ValueError(f"config.synthetic.path={options['path']!r}: the synthetic images have no masks: a segmentation network "
                         "needs a metadata.csv with file_name,mask_file_name beside them, as sample.py writes it for a network "
                         "that takes masks") from error


def _same_classes(classes, options):
    """Options under which another folder has the same classes, and may hold those that are dropped."""
    drop = tuple(options.get("drop_classes", ()))
    return {"classes": (*classes, *drop), "drop_classes": drop}


def check(real, test, synthetic):
    """What makes a study impossible: ValueError that lists all of it."""
    if real.masks is not None:
        fail("segmentation of real and synthetic images", segmentation.problems(real, test, synthetic))
        return
    problems = []
    if len(real.classes) < 2:
        problems.append(f"{len(real.classes)} class ({', '.join(real.classes)}): a classifier needs at least 2 to tell apart")
    for what, images in (("training", real), ("test", test)):
        problems += [f"class {name!r} has no {what} image: add some, or leave it out by "
                     f"--config.dataset.drop_classes=\"('{name}',)\"" for name, count in images.counts().items() if not count]
    if not len(synthetic):
        problems.append("there is no synthetic image")
    fail("classifiers of real and synthetic images", problems)


def without_leaks(real, test, synthetic, *, shared="error", one_source=True):
    """(real, synthetic, warnings) after looking for what is both trained on and tested on.

    Looked for are groups and files of the same name within one data set, images of equal pixels, also mirrored, and
    synthetic copies of training images, which are no leak but tell of a network that repeats its data.

    Args:
        shared: 'error', or 'drop' to leave out of the training what the test images hold as well.
        one_source: whether training and test images come from one data set, so that equal group names mean the same
            group; elsewhere they are a warning.
    Raises:
        ValueError: what is shared, by name, where that is an error.
    """
    one_of("config.study.shared", shared, ("error", "drop"))
    problems, warnings = [], []
    tested = {look: test.names[i] for i, look in reversed(list(enumerate(test.looks)))}
    groups = set(test.groups or ()) - set(test.names)
    both = [i for i, group in enumerate(real.groups or ()) if group in groups]
    if both:
        names = sorted({real.groups[i] for i in both})
        (problems if one_source else warnings).append(
            f"{len(names)} groups are in the training and the test images: {_some(names)}")
        both = both if one_source else []
    copies = {}
    for what, images in (("real training", real), ("synthetic", synthetic)):
        found = copies[what] = [i for i, look in enumerate(images.looks) if look in tested]
        if found:
            pairs = [f"{images.names[i]} is {tested[images.looks[i]]}" for i in found]
            problems.append(f"{len(found)} {what} images have the pixels of a test image (mirrored ones count): {_some(pairs)}")
    if problems and shared == "error":
        fail("training and test images must have nothing in common", problems + [
            "remove them, or set --config.study.shared=drop to leave them out of the training"])
    if problems:
        warnings += [f"left out of the training: {problem}" for problem in problems]
        real = _without(real, {*both, *copies["real training"]})
        synthetic = _without(synthetic, set(copies["synthetic"]))
    known = {look: name for look, name in zip(real.looks, real.names, strict=True)}
    repeated = [f"{name} is {known[look]}" for look, name in zip(synthetic.looks, synthetic.names, strict=True) if look in known]
    if repeated:
        warnings.append(f"{len(repeated)} of {len(synthetic)} synthetic images have the pixels of a real training image "
                        f"(mirrored ones count): {_some(repeated)}")
    return real, synthetic, warnings


def few(test, least=30):
    """Warnings about classes with few test images."""
    if test.masks is not None:
        return segmentation.few(test, least)
    small = [f"{name} {count}" for name, count in test.counts().items() if count < least]
    return [f"classes with fewer than {least} test images: {', '.join(small)}; their scores move much with each image"] \
        if small else []


def missing(synthetic):
    """Warnings about classes without a synthetic image."""
    if synthetic.masks is not None:
        return segmentation.missing(synthetic)
    none = [name for name, count in synthetic.counts().items() if not count]
    return [f"classes without a synthetic image: {', '.join(none)}; a classifier of synthetic images alone cannot know "
            "them"] if none else []


def duplicates(images, what):
    """Warnings about images that are there several times."""
    more = [count - 1 for count in Counter(images.hashes).values() if count > 1]
    return [f"{sum(more)} of {len(images)} {what} images repeat another one pixel by pixel"] if more else []


def _without(images, indices):
    return images.only([i for i in range(len(images)) if i not in indices]) if indices else images


def _some(names):
    more = f", ... and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(str, names[:LISTED])) + more


def _hashes(image):
    """(sha256 of the pixels, the least of those of the image and its mirrored forms)."""
    forms = [_hash(image.flip(axes)) for axes in ([], [-1], [-2], [-1, -2])]
    return forms[0], min(forms)


def _hash(array):
    return hashlib.sha256(array.contiguous().numpy().tobytes()).hexdigest()
