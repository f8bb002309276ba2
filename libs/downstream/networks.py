"""Networks to train: a small classifier of our own, or any of timm's and torchvision's, under one interface; or a small U-Net."""

import hashlib
import re

import torch
from torch import nn
from torch.nn import functional as F

from libs.data.base import did_you_mean
from libs.metrics import weights as weights_of
from libs.metrics.segmenter import Segmenter

LIBRARIES = ("timm:", "torchvision:")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Classifier(nn.Module):
    """uint8 images (N, C, H, W) -> logits (N, classes).

    Args:
        net: what looks at normalised float images; a tuple's first entry counts, as torchvision's Inception gives one.
        mean, std: per channel, of images in [0, 1].
        size: side that images are resized to, bilinearly with antialiasing; 0 leaves them as they are.
        rgb: whether grey images are shown as RGB.
    """

    def __init__(self, net, mean, std, *, size=0, rgb=False):
        super().__init__()
        self.net, self.size, self.rgb = net, size, rgb
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images):
        x = images.to(torch.float32, memory_format=torch.channels_last)
        if self.rgb and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.size and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        logits = self.net(((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last))
        return logits[0] if isinstance(logits, tuple) else logits


class Small(nn.Module):
    """A residual network of about 0.1 million parameters for x (N, C, R, R): seconds for 300 steps on a processor core.

    The first convolution halves the side, as does each block after it until at most 4 pixels are left; the blocks have
    width, 2 width, 3 width, 3 width, ... channels.
    """

    def __init__(self, classes, channels, resolution, width=24):
        super().__init__()
        if min(classes, channels, width) < 1 or resolution < 8:
            raise ValueError(f"classes {classes}, channels {channels}, width {width} must be positive and the resolution "
                             f"{resolution} at least 8")
        layers = [nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        side, held = (resolution + 1) // 2, width
        while side > 4:
            wider = width * min(len(layers) - 2, 3)
            layers.append(Block(held, wider))
            side, held = (side + 1) // 2, wider
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(held, classes))

    def forward(self, x):
        return self.layers(x)


class Block(nn.Module):
    """A convolution that halves the side, then one with a residual connection."""

    def __init__(self, inside, outside):
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv, self.norm = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)

    def forward(self, x):
        x = F.relu(self.down_norm(self.down(x)))
        return F.relu(x + self.norm(self.conv(x)))


def build(name="small", *, classes, channels, resolution, weights="", size=0, width=24):
    """A `Classifier`, its random weights drawn from torch's global generator.

    Args:
        name: 'small', 'timm:<model>' or 'torchvision:<model>'.
        classes, channels, resolution: number of classes; 1 or 3; side of the images.
        weights: '' random; 'published' those of the library, downloaded where they are not in its cache; or a file
            of them. The last layer is always new.
        size: side that the network looks at; 0: that of the images.
        width: of the network 'small'.
    Raises:
        ValueError: a name or file that is none. FileNotFoundError: published weights that cannot be had.
    """
    if name == "small":
        if weights:
            raise ValueError(f"config.nnet.weights={weights!r}: the network 'small' has no weights but those of its training")
        half = (0.5,) * channels
        return Classifier(Small(classes, channels, size or resolution, width), half, half, size=size)
    library, _, model = name.partition(":")
    if f"{library}:" not in LIBRARIES or not model:
        raise ValueError(f"config.nnet.name={name!r}: expected 'small', 'timm:<model>' or 'torchvision:<model>'"
                         f"{did_you_mean(library, ('small', 'timm', 'torchvision'))}")
    make = _timm if library == "timm" else _torchvision
    net, mean, std = make(model, classes, size or resolution, weights)
    return Classifier(net, mean, std, size=size, rgb=channels == 1)


def build_segmenter(name="small", *, classes, channels, resolution, weights="", size=0, width=16):
    """A U-Net for uint8 images (N, C, H, W) -> logits (N, classes, H, W), its weights drawn from torch's global generator.

    Args as for `build`, of which 'small' alone segments. Raises ValueError for another network, or given weights.
    """
    if name != "small" or weights:
        raise ValueError(f"config.nnet.name={name!r}, weights={weights!r}: the network that segments is 'small', without weights "
                         "but those of its training")
    return Segmenter(classes, channels, size or resolution, width)


def identity(name, weights, **options):
    """What decides a network's first weights, as JSON: its options, and the hash of a weights file."""
    if weights and weights != "published":
        with open(weights_of.local(weights), "rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": name, "weights": weights, **options}


def _timm(model, classes, side, weights):
    import timm

    known = timm.list_models()
    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}{did_you_mean(model, known)} (timm.list_models() has all "
                         f"{len(known)})")
    published, own = timm.get_pretrained_cfg(model), {}
    if published is not None and published.fixed_input_size:
        own["img_size"] = side
    if weights:
        if weights == "published" and not (published and (published.hf_hub_id or published.url)):
            raise ValueError(f"timm publishes no weights for {model!r}: set config.nnet.weights='' or a file")
        path = weights_of.from_hub(model, published) if weights == "published" else weights_of.local(weights)
        own |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    try:
        net = timm.create_model(model, num_classes=classes, **own)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"timm:{model} cannot be built for images of {side} pixels: {str(error)[:300]}") from error
    config = timm.data.resolve_model_data_config(net)
    return net, tuple(config["mean"]), tuple(config["std"])


def _torchvision(model, classes, side, weights):
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise ValueError(f"torchvision has no model {model!r}{did_you_mean(model, known)}; it has {', '.join(known)}")
    own = {"image_size": side} if model.startswith("vit_") else {}
    if model in ("googlenet", "inception_v3"):
        own |= {"aux_logits": False, "init_weights": True}
    try:
        net = models.get_model(model, weights=None, num_classes=classes, **own)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"torchvision:{model} cannot be built for images of {side} pixels: {str(error)[:300]}") from error
    if weights:
        path = weights_of.fetch(models.get_model_weights(model).DEFAULT.url) if weights == "published" \
            else weights_of.local(weights)
        # DenseNet's published files hold names from before dots were forbidden.
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
                 for key, value in weights_of.read(path).items()}
        _load_all_but_head(net, state, path)
    return net, *IMAGENET


def _load_all_but_head(net, state, path):
    """Load what fits; only the last layer, and heads for training that the network lacks, may not."""
    own = net.state_dict()
    head = {key for key in list(own)[-2:]}
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    strange = [key for key in state if key not in own and "aux" not in key.lower()]
    lacking = [key for key in own if key not in fitting and key not in head and not key.endswith("num_batches_tracked")]
    if strange or lacking:
        raise ValueError(f"{path} does not hold the weights of this network: {len(lacking)} are missing "
                         f"({', '.join(lacking[:3])}), {len(strange)} are unknown ({', '.join(strange[:3])})")
    net.load_state_dict(fitting, strict=False)
