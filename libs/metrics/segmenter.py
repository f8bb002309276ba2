"""A small segmentation network trained on the data at hand, and the Dice coefficient: does a generated image follow
the mask that was asked for?

Re-segmented generated images are compared with the masks they were made for, and real images that were held out with
theirs: no generated image can be expected to come out better. A folder holds config.json and weights.safetensors.
"""

import logging
import time

import torch
from torch import nn
from torch.nn import functional as F

from . import intervals
from .own_networks import (
    check_flips,
    check_images,
    divided,
    draw_flips,
    flipped,
    load_network,
    save_network,
)

log = logging.getLogger(__name__)

LOOKS_AT = 128  # pixels a side at most, where no resolution is asked for
STEPS = 400


class UNet(nn.Module):
    """Convolutions down to an eighth of the side and up again, joined at every scale: (N, C, H, W) -> (N, K, H, W).

    At full resolution there is one thin layer on either way, which keeps borders sharp and costs little; the channels
    are width // 2, width, 2 width, 4 width. Any size from 8 pixels on goes (Ronneberger et al. 2015).
    """

    def __init__(self, classes, channels, width=16):
        super().__init__()
        if classes < 2 or channels < 1 or width < 2:
            raise ValueError(
                f"classes {classes} and width {width} must be at least 2 and channels {channels} positive"
            )
        held = [width // 2, width, 2 * width, 4 * width]
        self.stem = _layer(channels, held[0])
        self.down = nn.ModuleList(
            nn.Sequential(_layer(inside, outside, stride=2), _layer(outside, outside))
            for inside, outside in zip(held, held[1:], strict=False)
        )
        self.up = nn.ModuleList(
            _layer(inside + outside, outside)
            for inside, outside in zip(held[:0:-1], held[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(held[0], classes, 1)

    def forward(self, x):
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        return self.head(x)


class Segmenter(nn.Module):
    """uint8 images (N, channels, H, W) -> logits (N, classes, H, W), by a `UNet` that looks at `resolution` pixels a side."""

    def __init__(self, classes, channels, resolution, width=16):
        super().__init__()
        if resolution < 8:
            raise ValueError(f"resolution {resolution}: at least 8 pixels are needed")
        self.report = {}
        self.arguments = {"classes": classes, "channels": channels, "resolution": resolution, "width": width}
        self.net = UNet(classes, channels, width)

    def forward(self, images):
        side = self.arguments["resolution"]
        x = images.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
        if x.shape[2:] == (side, side):
            return self.net(x)
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        return F.interpolate(self.net(x), size=images.shape[2:], mode="bilinear", align_corners=False)

    @torch.inference_mode()
    def predict(self, images, *, batch_size=256):
        """The class of every pixel of uint8 images (N, C, H, W), or of one channel that stands for all: int64 (N, H, W)."""
        check_images(images)
        channels = self.arguments["channels"]
        if images.shape[1] not in (1, channels):
            raise ValueError(
                f"the segmenter looks at images of {channels} channels; these have {images.shape[1]}"
            )
        device = self.net.head.weight.device
        parts = [
            self(part.expand(-1, channels, -1, -1).to(device)).argmax(dim=1).cpu()
            for part in images.split(batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, *images.shape[2:], dtype=torch.int64)

    def save(self, folder):
        """Writes config.json (arguments and report) and weights.safetensors."""
        save_network(self, folder)


def train_segmenter(
    images,
    masks,
    classes,
    *,
    steps=STEPS,
    seed=0,
    width=16,
    resolution=0,
    batch_size=0,
    learning_rate=5e-3,
    flips=("horizontal",),
    held_out=None,
    device="cpu",
    name="",
    fingerprint="",
):
    """A `Segmenter` trained on uint8 images (N, C, H, W) and masks (N, H, W), the class of each pixel.

    classes     their number, or list of their names; class 0 is the background
    resolution  the side at which the network looks; 0: that of the images, at most 128
    batch_size  0: 32, fewer where the images are larger than 32 pixels a side, so that a step costs about the same
    flips       'horizontal' and 'vertical', each with probability 1/2, of image and mask alike
    held_out    indices that are not trained on (patients must not be on both sides); None: 15 %
    name, fingerprint   of the data
    The loss is `segmentation_loss`. `network.report`: `dice` on the held-out images (mean over the foreground classes),
    `dice_per_class`, which images were held out, seconds and the settings. A minute at most on one core.
    """
    started = time.monotonic()
    names = [f"class {k}" for k in range(classes)] if isinstance(classes, int) else list(classes)
    check_images(images)
    masks = check_masks(masks, images, len(names))
    check_flips(flips)
    if steps < 1 or batch_size < 0 or batch_size == 1:
        raise ValueError(f"steps {steps} must be positive and batch_size {batch_size} 0 or at least 2")
    draw = torch.Generator().manual_seed(seed)
    train, test = divided(len(images), held_out, lambda: _split(len(images), draw))
    resolution = resolution or min(LOOKS_AT, max(images.shape[2:]))
    batch_size = min(batch_size or max(4, 32 * 32 * 32 // resolution**2), len(train))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        network = Segmenter(len(names), images.shape[1], resolution, width)
    network.to(device, memory_format=torch.channels_last).train()
    weight = class_weights(masks[train], len(names)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    order = torch.cat(
        [torch.randperm(len(train), generator=draw) for _ in range(-(-steps * batch_size // len(train)))]
    )
    for step in range(steps):
        rows = train[order[step * batch_size :][:batch_size]]
        turned = draw_flips(len(rows), flips, draw)
        logits = network(flipped(images[rows].to(device), turned))
        loss = segmentation_loss(logits, flipped(masks[rows].to(device), turned), weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            log.debug("segmenter, step %d of %d: loss %.4f", step + 1, steps, loss.item())
    network.eval()
    values = dice(masks[test], network.predict(images[test]), len(names))
    found = dice_scores(values, names, resamples=0)
    network.report = {
        "name": name,
        "fingerprint": fingerprint,
        "dice": found["dice"]["value"] if "dice" in found else None,
        "dice_per_class": [
            found[f"dice_{each}"]["value"] if f"dice_{each}" in found else None for each in names
        ],
        "classes": names,
        "trained_on": len(train),
        "held_out": len(test),
        "held_out_rows": test.tolist(),
        "seconds": round(time.monotonic() - started, 1),
        "steps": steps,
        "seed": seed,
        "flips": list(flips),
    }
    return network.cpu()


def load_segmenter(folder, *, fingerprint=""):
    """The `Segmenter` of a folder, with its `report`; errors as `own_networks.load_network` says."""
    return load_network(
        Segmenter,
        folder,
        what="segmenter",
        hint="`train_segmenter(...).save(folder)` writes them",
        fingerprint=fingerprint,
    )


def segmentation_loss(logits, masks, weight):
    """Cross entropy of pixels weighted by class, plus one minus the soft Dice coefficient (Milletari et al. 2016).

    logits float (N, K, H, W), masks int64 (N, H, W), weight (K,) as `class_weights` gives it. Dice is over the pixels
    of the whole batch, where a class that few images have still counts, and its mean over the classes there.
    """
    entropy = F.cross_entropy(logits, masks, weight=weight)
    truth = F.one_hot(masks, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
    said, over = logits.softmax(dim=1), (0, 2, 3)
    size = truth.sum(over)
    overlap = 2 * (said * truth).sum(over) / (said.sum(over) + size).clamp(min=1e-6)
    there = size > 0
    return entropy + 1 - overlap[there].mean()


def class_weights(masks, classes):
    """Weights (K,) of the classes' pixels: the inverse square root of how many there are, 1 for a pixel on average.

    The inverse itself would make a network see a rare class everywhere, which Dice punishes.
    """
    held = torch.bincount(masks.flatten(), minlength=classes).double()
    weight = held.clamp(min=1).rsqrt() * (held > 0)
    return (weight * held.sum() / (weight * held).sum()).float()


def dice(asked, obtained, classes):
    """Dice coefficient 2 |A and B| / (|A| + |B|) of two masks (N, H, W), by image and class: float64 (N, classes).

    nan where neither mask has the class: there is nothing to agree on.
    """
    if asked.shape != obtained.shape or asked.ndim != 3:
        raise ValueError(
            f"masks of shapes {tuple(asked.shape)} and {tuple(obtained.shape)}; expected equal (N, H, W)"
        )
    first, second = (
        torch.stack([(mask == k).flatten(1) for k in range(classes)], dim=1) for mask in (asked, obtained)
    )
    together = (first & second).sum(dim=2).double()
    return 2 * together / (first.sum(dim=2) + second.sum(dim=2)).double()


def dice_scores(values, names, *, groups=None, resamples=0, seed=0, level=0.95):
    """Dice of images (N, K), as `dice` gives it, as scores: {'dice': {'value', 'low', 'high', 'n'}, 'dice_<name>': ...}.

    A class's score is the mean over the images that have it, in either mask; 'dice' is the mean of those of the
    foreground (all but the first class). A class that no image has is absent.

    groups  integers (N,), equal for images that were made for one mask: intervals are then over masks, each drawn with
            all its images, which say less together than images of as many masks. None: over images
    """
    there = ~values.isnan()
    if groups is None:
        groups = torch.arange(len(values))
    groups = torch.as_tensor(groups).unique(return_inverse=True)[1]
    sums, counts = (
        torch.zeros(len(groups), len(names)).double().index_add_(0, groups, each.double())
        for each in (values.nan_to_num(), there)
    )

    def score(columns):
        some = counts[:, columns].sum(dim=1) > 0
        total = counts[:, columns].sum(dim=0)
        low = high = None
        if resamples:
            low, high = intervals.clustered_interval(
                sums[some][:, columns],
                counts[some][:, columns],
                resamples=max(resamples, 200),
                seed=seed,
                level=level,
            )
        value = (sums[:, columns].sum(dim=0) / total)[total > 0].mean()
        return {"value": float(value), "low": low, "high": high}

    found = {}
    if there[:, 1:].any():
        found["dice"] = score(slice(1, None)) | {"n": len(values)}
    for k, name in enumerate(names):
        if there[:, k].any():
            found[f"dice_{name}"] = score(slice(k, k + 1)) | {"n": int(there[:, k].sum())}
    return found


def check_masks(masks, images, classes):
    """Masks (N, H, W) of whole numbers as int64; ValueError where they are not those of the images and classes."""
    expected = (len(images), *images.shape[2:])
    if tuple(masks.shape) != expected or masks.is_floating_point():
        raise ValueError(
            f"masks are {masks.dtype} of shape {tuple(masks.shape)} for images of shape {tuple(images.shape)}; "
            f"expected whole numbers {expected}"
        )
    masks = masks.long()
    if masks.numel() and not 0 <= int(masks.min()) <= int(masks.max()) < classes:
        raise ValueError(
            f"masks hold {int(masks.min())} to {int(masks.max())}; {classes} classes are numbered 0 to {classes - 1}"
        )
    return masks


def _split(n, generator):
    order = torch.randperm(n, generator=generator)
    return order[: min(-(-n * 15 // 100), max(n - 2, 0))].sort().values


def _layer(inside, outside, stride=1):
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )
