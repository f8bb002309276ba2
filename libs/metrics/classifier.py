"""A small classifier trained on the data at hand: features where ImageNet's mean little, and class
recognition.

Its 64 penultimate features give Fréchet distances that are cheap and need few images; its probabilities say
whether a generated image shows the class that was asked for. It sees what tells the classes apart and little
else, so read its numbers beside those of a general network. A folder holds config.json and
weights.safetensors.
"""

import logging
import time

import torch
from torch import nn
from torch.nn import functional as F

from .networks import Built
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

FEATURES = 64


class FeatureNetwork(nn.Module):
    """Convolutions down to 4x4 pixels, pooling, 64 features, a linear head.

    `forward(x) -> (features (N, 64), logits (N, classes))` for x (N, channels, R, R) in [-1, 1].
    """

    def __init__(self, classes, channels, resolution, width=24):
        super().__init__()
        if min(classes, channels, width) < 1 or resolution < 8:
            raise ValueError(
                f"classes {classes}, channels {channels}, width {width} must be positive and resolution "
                f"{resolution} at least 8"
            )
        self.report = {}
        self.arguments = {"classes": classes, "channels": channels, "resolution": resolution, "width": width}
        # At full resolution a layer would cost as much as all the others together: the first already halves.
        layers, held, side = [_layer(channels, width, 5)], width, (resolution + 1) // 2
        while side > 4:
            layers.append(_layer(held, wider := min(2 * held, 4 * width), 3))
            held, side = wider, (side + 1) // 2
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.penultimate = nn.Sequential(nn.Linear(held, FEATURES), nn.GELU())
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x):
        features = self.penultimate(self.layers(x))
        return features, self.head(features)

    def save(self, folder):
        """Writes config.json (arguments and report) and weights.safetensors."""
        save_network(self, folder)


def train_classifier(
    images,
    labels,
    *,
    classes=0,
    epochs=0,
    seed=0,
    width=24,
    resolution=0,
    batch_size=64,
    learning_rate=3e-3,
    flips=("horizontal",),
    held_out=None,
    device="cpu",
    name="",
    fingerprint="",
):
    """A `FeatureNetwork` trained on uint8 images (N, C, H, W) and labels (N,).

    classes     their number, or list of their names; 0: as many as the labels show
    resolution  the side at which the network looks; 0: that of the images, at most 64
    epochs      0: 10, or as many as make 400 steps where there are few images
    flips       'horizontal' and 'vertical', each with probability 1/2: only what leaves the class as it is
    held_out    indices that are not trained on (patients must not be on both sides); None: every class's 15 %
    name, fingerprint   of the data; the extractor will be called 'classifier-<name>'
    Errors count by class, as rare ones matter as much. `network.report`: `accuracy` on the held-out images,
    `balanced` (its mean over classes), `accuracy_per_class`, how many images, seconds and the settings.
    """
    started = time.monotonic()
    names = list(classes) if not isinstance(classes, int) else []
    images, labels, count = _checked(images, labels, len(names) or classes)
    check_flips(flips)
    if epochs < 0 or batch_size < 2:
        raise ValueError(
            f"epochs {epochs} must not be negative and batch_size {batch_size} must be at least 2"
        )
    draw = torch.Generator().manual_seed(seed)
    train, test = divided(len(labels), held_out, lambda: _split(labels, count, draw))
    resolution = resolution or min(64, *images.shape[2:])
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        network = FeatureNetwork(count, images.shape[1], resolution, width)
    network.to(device, memory_format=torch.channels_last).train()
    held = torch.bincount(labels[train], minlength=count)
    weight = (len(train) / (held.clamp(min=1) * (held > 0).sum())).to(device)
    per_epoch = -(-len(train) // batch_size)
    epochs = epochs or max(10, -(-400 // per_epoch))
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * per_epoch)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for chosen in train[torch.randperm(len(train), generator=draw)].split(batch_size):
            if len(chosen) < 2:
                continue  # batch normalisation needs two images
            x = network_input(images[chosen].to(device), resolution)
            x = flipped(x, draw_flips(len(x), flips, draw))
            loss = F.cross_entropy(network(x)[1], labels[chosen].to(device), weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(chosen)
        log.debug("feature network, epoch %d of %d: loss %.4f", epoch + 1, epochs, total.item() / len(train))
    network.eval()
    right = (
        torch.cat([_logits(network, images[part], device).argmax(dim=1) for part in test.split(256)])
        == labels[test]
    )
    per_class = [
        right[labels[test] == k].float().mean().item() if (labels[test] == k).any() else None
        for k in range(count)
    ]
    present = [value for value in per_class if value is not None]
    network.report = {
        "name": name,
        "fingerprint": fingerprint,
        "accuracy": right.float().mean().item(),
        "balanced": sum(present) / len(present),
        "accuracy_per_class": per_class,
        "classes": names or [str(k) for k in range(count)],
        "trained_on": len(train),
        "held_out": len(test),
        "seconds": round(time.monotonic() - started, 1),
        "epochs": epochs,
        "seed": seed,
        "flips": list(flips),
    }
    return network.cpu()


def load_classifier(folder, *, fingerprint=""):
    """The network of a folder, with its `report`.

    FileNotFoundError where there is none; ValueError where its files do not belong together or, if a
    `fingerprint` is given, where it was trained on other data.
    """
    hint = "scripts/train_feature_network.py writes them"
    return load_network(FeatureNetwork, folder, what="feature network", hint=hint, fingerprint=fingerprint)


def built(network):
    """The network as `features.Extractor` takes it, under the name 'classifier-<data>'."""
    one, name = network.arguments, network.report.get("name", "")
    half = (0.5,) * one["channels"]
    return Built(
        f"classifier-{name}" if name else "classifier",
        network,
        one["resolution"],
        half,
        half,
        "bicubic",
        True,
        one["channels"],
    )


def network_input(images, resolution):
    """uint8 images as the network sees them: [-1, 1], resized with antialiasing where their size differs."""
    images = images.to(torch.float32, memory_format=torch.channels_last) / 255
    if images.shape[2:] != (resolution, resolution):
        images = F.interpolate(
            images, size=(resolution, resolution), mode="bicubic", align_corners=False, antialias=True
        )
    return (images - 0.5) / 0.5


def _layer(inside, outside, side):
    return nn.Sequential(
        nn.Conv2d(inside, outside, side, 2, side // 2, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


def _checked(images, labels, classes):
    labels = torch.as_tensor(labels).long()
    check_images(images)
    if labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"{tuple(labels.shape)} labels for {len(images)} images; expected one label each")
    low, high = int(labels.min()), int(labels.max())
    classes = classes or high + 1
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}; {classes} classes are numbered 0 to {classes - 1}"
        )
    if classes < 2:
        raise ValueError("1 class: a classifier needs at least 2 to tell apart")
    return images, labels, classes


def _split(labels, classes, generator):
    """15 % of every class, rounded up, but never all of a class."""
    chosen = []
    for k in range(classes):
        of_class = (labels == k).nonzero().flatten()
        order = of_class[torch.randperm(len(of_class), generator=generator)]
        chosen.append(order[: min(-(-len(order) * 15 // 100), max(len(order) - 1, 0))])
    return torch.cat(chosen).sort().values


@torch.inference_mode()
def _logits(network, images, device):
    return network(network_input(images.to(device), network.arguments["resolution"]))[1].cpu()
