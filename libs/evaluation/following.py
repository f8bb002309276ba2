"""Does a generated image follow the mask that was asked for? A network that segments real images segments it again.

The network is trained once on real pairs of image and mask, and tried on real pairs that it was not trained on: their Dice
coefficient is the most that can be hoped for, and stands beside that of the generated images.
"""

import hashlib
import json
import logging
from typing import NamedTuple

import torch
from torch.nn import functional as F

from libs import data, metrics
from libs.evaluation.references import held_out_groups, kept_once, named
from libs.metrics.segmenter import LOOKS_AT
from libs.pipeline import to_uint8

MOST = 10_000  # pairs that the network is trained on
TRIED = 1_000  # real pairs that it is tried on
TRUSTED = 0.7  # of Dice on real pairs, below which it is called no judge


class Following(NamedTuple):
    """Compares images with the masks that they were asked for.

    masks_as: data.MaskCode of the masks. network: metrics.segmenter.Segmenter.
    of_real: scores of real pairs that were not trained on, as `scores` gives them. source: which pairs these are.
    """

    masks_as: data.MaskCode
    network: torch.nn.Module
    of_real: dict
    source: str

    def obtained(self, images):
        """The masks that uint8 images (N, C, H, W) show, as classes: int64 (N, H, W)."""
        return self.network.predict(images)

    def read(self, images, masks):
        """Dice of each image with its mask, float32 (N, K, H, W), by class: float64 (N, classes); nan where neither has it."""
        asked = self.masks_as.index(masks)
        if asked.shape[1:] != images.shape[2:]:
            asked = _resized(asked, images.shape[2:])
        return metrics.dice(asked, self.obtained(images), self.masks_as.classes)

    def scores(self, values, **options):
        """{'dice': score, 'dice_<class of the masks>': score} of what `read` gave; options of `metrics.dice_scores`."""
        return metrics.dice_scores(values, self.masks_as.names, **options)

    def foreground(self, values):
        """Dice of each image (N,): the mean over the classes but the background that it has or was asked to have."""
        return values[:, 1:].nanmean(1)

    def of_classes(self, values, labels, classes, groups=None, **options):
        """`scores` of the images of each class, {class name: scores}, where it has an image."""
        return {name: self.scores(values[labels == k], groups=None if groups is None else groups[labels == k], **options)
                for k, name in enumerate(classes) if (labels == k).any()}

    def warnings(self):
        """What must be said of it as a judge."""
        reached = self.of_real.get("dice", {"value": 0.0})["value"]
        return [] if reached >= TRUSTED else [
            f"the segmentation network reaches a Dice of {reached:.3f} on real pairs ({self.source}): it cannot judge well whether "
            "images follow their masks, and only the distance to this number says something"]


def following(config, dataset, device="cpu"):
    """The `Following` of a data set with masks; None without.

    Tried are real pairs of config.train.validation_split, or where there is none the 15 % that the network was not trained on.
    """
    if dataset is None or dataset.masks_as is None:
        return None
    folder = segmenter(dataset, seed=config.seed, flip=config.dataset.get("random_flip", False), device=device)
    network = metrics.load_segmenter(folder, fingerprint=dataset.fingerprint).to(device)
    split = config.train.get("validation_split", "")
    if split and config.dataset.get("split", "") not in ("", split):
        pairs, chosen, source = data.held_out(config.dataset, split), None, f"split {split!r}"
    else:
        pairs, chosen, source = dataset, network.report["held_out_rows"], "held out of the training of the segmenter"
    found = Following(dataset.masks_as, network, {}, "")
    parts = []
    for batch in data.in_order(pairs, data.some(pairs, TRIED) if chosen is None else chosen[:TRIED], 64):
        parts.append(found.read(to_uint8(batch["image"], named(pairs, batch)), batch["mask"]))
    values = torch.cat(parts)
    return found._replace(of_real=found.scores(values, seed=config.seed, resamples=config.metrics.get("bootstrap", 0)),
                          source=f"{len(values)} pairs, {source}")


def segmenter(dataset, *, seed, flip=False, device="cpu"):
    """Folder of a segmentation network of `dataset`'s pairs: trained at the first call, then found by the data's fingerprint.

    `flip`: whether mirrored images are images of the data as well (config.dataset.random_flip). `device`:
    that it is trained on.
    """
    rows = data.some(dataset, MOST)
    held_out = held_out_groups(dataset, rows, seed)
    code = dataset.masks_as
    identity = json.dumps([list(map(str, code.values)), code.max, list(code.names)]).encode()
    name = f"{dataset.name}{dataset.shape[-1]}"
    options = f"-masks-{hashlib.sha256(identity).hexdigest()[:8]}" + "-flip" * flip + "-groups" * (held_out is not None)

    def train():
        logging.info("training a segmentation network on %d pairs of %s", len(rows), dataset.name)
        network = metrics.train_segmenter(*pairs_of(dataset, rows), list(code.names), seed=seed, name=name,
                                          flips=("horizontal",) if flip else (), held_out=held_out,
                                          fingerprint=dataset.fingerprint, device=device)
        network.report["held_out_rows"] = [rows[i] for i in network.report["held_out_rows"]]
        logging.info("Dice of %d held-out pairs: %s", network.report["held_out"], ", ".join(
            f"{each} {value:.3f}" for each, value in zip(code.names, network.report["dice_per_class"]) if value is not None))
        return network

    return kept_once(f"{name}-{dataset.fingerprint[:12]}-{seed}{options}", train)


def pairs_of(dataset, rows):
    """Images uint8 (N, C, H, W) and masks int64 (N, H, W) of a data set, no larger than a segmenter looks at them."""
    images, masks = [], []
    for batch in data.in_order(dataset, rows, 64):
        image, mask = to_uint8(batch["image"], named(dataset, batch)), dataset.masks_as.index(batch["mask"])
        if max(image.shape[2:]) > LOOKS_AT:
            image = F.interpolate(image.float(), size=(LOOKS_AT, LOOKS_AT), mode="bilinear", antialias=True)
            image, mask = image.round().clamp(0, 255).to(torch.uint8), _resized(mask, (LOOKS_AT, LOOKS_AT))
        images.append(image)
        masks.append(mask.to(torch.uint8))
    return torch.cat(images), torch.cat(masks)


def pictures(masks_as, masks):
    """Classes (N, H, W) as colours to look at: uint8 (N, 3, H, W)."""
    return torch.stack([masks_as.picture(mask) for mask in masks])


def _resized(masks, size):
    return F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
