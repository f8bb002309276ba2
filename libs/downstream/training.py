"""One classifier or segmentation network: the same number of steps whatever it is trained on, and all it draws depends on
its seed alone.
"""

import contextlib
import logging

import numpy as np
import torch
from torch.nn import functional as F

from libs.data.base import one_of
from libs.downstream import networks
from libs.engine import optim
from libs.metrics.segmenter import class_weights, segmentation_loss

log = logging.getLogger(__name__)
SETTINGS = ("n_steps", "batch_size", "balanced", "mixed_precision", "label_smoothing", "random_flip", "random_vflip",
            "random_shift", "threads")


def check(train, optimizer, lr_scheduler, *, masks=False):
    """ValueError for training settings that are unknown or out of range, before anything is read or trained.

    masks: whether masks are learned.
    """
    for key in train:
        one_of("config.train: setting", key, SETTINGS)
    if train["batch_size"] < 2:
        raise ValueError(f"config.train.batch_size={train['batch_size']}: batch normalisation needs at least 2")
    if masks and train["label_smoothing"]:
        raise ValueError(f"config.train.label_smoothing={train['label_smoothing']}: a segmentation network is trained without; "
                         "set it to 0")
    if not 0 <= train["label_smoothing"] < 1:
        raise ValueError(f"config.train.label_smoothing={train['label_smoothing']}: expected a share in [0, 1)")
    if train["random_shift"] < 0 or train["threads"] < 1:
        raise ValueError(f"config.train.random_shift={train['random_shift']}, threads={train['threads']}: expected at least 0 "
                         "pixels and at least 1 thread")
    one_of("config.train.mixed_precision", train["mixed_precision"], ("", "no", "bf16", "auto"))
    optim.make([torch.zeros(1, requires_grad=True)], **optimizer)
    optim.lr_factor(0, n_steps=train["n_steps"], **lr_scheduler)


def visits(labels, *, n_steps, batch_size, balanced, rng):
    """Indices (n_steps, batch_size) that a training sees: each image once before any comes again.

    Where `balanced`, classes take turns in the same way, and the images of each within it.
    """
    total, labels = n_steps * batch_size, np.asarray(labels)
    if not balanced:
        return _rounds(len(labels), total, rng).reshape(n_steps, batch_size)
    there = np.unique(labels)
    classes, found = there[_rounds(len(there), total, rng)], np.empty(total, np.int64)
    for label in there:
        of_class, places = np.flatnonzero(labels == label), np.flatnonzero(classes == label)
        found[places] = of_class[_rounds(len(of_class), len(places), rng)]
    return found.reshape(n_steps, batch_size)


def augmented(pixels, drawn, *, random_flip=False, random_vflip=False, random_shift=0):
    """Images (N, C, H, W), mirrored and moved as `drawn` says.

    Args:
        drawn: (N, 4) of floats in [0, 1): two that mirror left-right and up-down where they are below 1/2, two places.
        random_shift: pixels by which an image is moved at most, each way; its border is reflected.
    """
    for axis, column, wanted in ((3, 0, random_flip), (2, 1, random_vflip)):
        if wanted:
            turn = (drawn[:, column] < 0.5).to(pixels.device).view(-1, 1, 1, 1)
            pixels = torch.where(turn, pixels.flip(axis), pixels)
    if random_shift:
        rows, columns = (_moved(pixels.shape[axis], drawn[:, column], random_shift).to(pixels.device)
                         for axis, column in ((2, 2), (3, 3)))
        number = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1)
        pixels = pixels.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return pixels


def train(pixels, labels, classes, *, seed, train, optimizer, lr_scheduler, nnet, masks=None, device="cpu", autocast=None):
    """A `networks.Classifier` trained on uint8 images (N, C, H, W) and labels (N,), ready to classify.

    The caller's random state is left as it was.

    Args:
        classes: their number.
        masks: uint8 (N, H, W), the class of each pixel: then a segmentation network is trained on these, with
            `metrics.segmenter.segmentation_loss`; images and masks are mirrored and moved alike.
        train, optimizer, lr_scheduler, nnet: sections of the config.
        autocast: () -> context in which the network computes; None for float32.
    Raises:
        FloatingPointError: the loss is not finite.
    """
    rng = np.random.default_rng([seed, 0])
    order = torch.from_numpy(visits(labels, n_steps=train["n_steps"], batch_size=train["batch_size"],
                                    balanced=train["balanced"], rng=rng))
    drawn = torch.from_numpy(rng.random((*order.shape, 4), dtype=np.float32))
    looks = {key: train[key] for key in ("random_flip", "random_vflip", "random_shift")}
    device, autocast = torch.device(device), autocast or contextlib.nullcontext
    pixels, labels = pixels.to(device), labels.to(device)
    if masks is not None:
        weight, masks = class_weights(masks.long(), classes).to(device), masks.to(device)
    with _alone(seed, device, train["threads"]):
        build = networks.build if masks is None else networks.build_segmenter
        net = build(**nnet, classes=classes, channels=pixels.shape[1], resolution=pixels.shape[2])
        net.to(device, memory_format=torch.channels_last).train()
        update = optim.make([p for p in net.parameters() if p.requires_grad], **optimizer)
        rates = [group["lr"] for group in update.param_groups]
        for step, chosen in enumerate(order.to(device)):
            factor = optim.lr_factor(step, n_steps=train["n_steps"], **lr_scheduler)
            for group, rate in zip(update.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            x = augmented(pixels[chosen], drawn[step], **looks)
            with autocast():
                logits = net(x)
            if masks is None:
                loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=train["label_smoothing"])
            else:
                truth = augmented(masks[chosen][:, None], drawn[step], **looks)[:, 0].long()
                loss = segmentation_loss(logits.float(), truth, weight)
            loss.backward()
            update.step()
            update.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of a network (seed {seed}, {len(labels)} images) is not finite after "
                                     f"{train['n_steps']} steps: lower config.optimizer.lr, now {optimizer['lr']}")
    net.eval()
    net.last_loss = loss.item()
    return net


def logits(net, pixels, **options):
    """What a trained classifier says of uint8 images: float32 (N, classes); options as for `outputs`."""
    return torch.cat(list(outputs(net, pixels, **options)))


@torch.inference_mode()
def outputs(net, pixels, *, device="cpu", threads=1, batch_size=256):
    """Yields what a trained network says of uint8 images (N, C, H, W), `batch_size` at a time: float32 on the CPU."""
    for part in pixels.split(batch_size):
        with _alone(0, torch.device(device), threads):
            found = net(part.to(device)).float().cpu()
        yield found


def _rounds(n, total, rng):
    """`total` of the numbers 0 .. n-1: one random order of all after another."""
    return np.concatenate([rng.permutation(n) for _ in range(-(-total // n))] or [np.empty(0, np.int64)])[:total]


def _moved(side, drawn, most):
    """Which rows (or columns) of an image are shown where it is moved by -most .. most pixels: LongTensor (N, side)."""
    moves = (drawn * (2 * most + 1)).long() - most
    places = torch.arange(side)[None] + moves[:, None]
    places = places.abs()
    return torch.where(places > side - 1, 2 * (side - 1) - places, places).clamp(0, side - 1)


@contextlib.contextmanager
def _alone(seed, device, threads):
    """A scope whose random numbers and arithmetic depend on nothing outside it."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), \
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
