"""Networks that turn images into features: built from their own weights, a local file, or at random.

Each builder returns a `Built`, which `features.py` feeds. `weights` is a file, "random", or "" (published).
"""

import contextlib
import re
from typing import NamedTuple

import torch
from torch import nn

from . import weights as weights_of

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"

DINOV2 = "vit_base_patch14_dinov2.lvd142m"


class Built(NamedTuple):
    """A network `module(x) -> (features (N, D), logits (N, K) or None)` and what x must be."""

    name: str
    module: nn.Module
    size: int  # side of x in pixels; 0: that of the images
    mean: tuple  # x = (image in [0, 1] - mean) / std, per channel
    std: tuple
    resize: str  # 'bilinear' or 'bicubic'
    antialias: bool
    channels: int = 3


class Headed(nn.Module):
    """A classifier seen as (what enters its last linear layer, what leaves it)."""

    def __init__(self, network, head, *, bias=True):
        super().__init__()
        self.network, self.head, self.bias = network, head, bias

    def forward(self, x):
        seen = []
        hook = self.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(x)
        finally:
            hook.remove()
        return seen[0].flatten(1), logits if self.bias else logits - self.head.bias


class Timm(nn.Module):
    """A timm model seen as (pooled features, logits or None)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        maps = self.model.forward_features(x)
        features = self.model.forward_head(maps, pre_logits=True).flatten(1)
        return features, self.model.forward_head(maps) if self.model.num_classes else None


class Colour(nn.Module):
    """Images (N, 3, H, W) -> mean and standard deviation of each channel, (N, 6): what Med-Art's colour loss compares."""

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1), None


def colour():
    """Colour statistics in place of a network: of images in [-1, 1], at the size that they have."""
    return Built("colour", Colour(), 0, (0.5,) * 3, (0.5,) * 3, "bilinear", True)


def inception(*, weights="", seed=0):
    """The Inception of the FID, ported by pytorch-fid: 2048 features of its last pooling, 1008 classes.

    Only with the published weights is its name 'inception'; any other file is named with its hash. Images are
    resized to 299 bilinearly without antialiasing and logits lack the bias, as in the reference
    implementations.
    """
    from pytorch_fid import inception as fid
    from torchvision.models import inception_v3

    path = None
    if weights != "random":
        path = weights_of.local(weights) if weights else weights_of.fetch(INCEPTION_URL)
    with _seeded(seed):
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
        network.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
        network.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
        network.Mixed_7b = fid.FIDInceptionE_1(1280)
        network.Mixed_7c = fid.FIDInceptionE_2(2048)
    if path:
        weights_of.load_into(network, weights_of.read(path), path)
    name = weights_of.reported_name("inception", weights, path, INCEPTION_FILE)
    return Built(
        name, Headed(network, network.fc, bias=False), 299, (0.5,) * 3, (0.5,) * 3, "bilinear", False
    )


def torchvision(model, *, weights="", seed=0):
    """A torchvision classifier, its features those that enter its last linear layer."""
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise ValueError(f"torchvision has no model {model!r}; it has {', '.join(known)}")
    published = models.get_model_weights(model).DEFAULT
    path = None
    if weights != "random":
        path = weights_of.local(weights) if weights else weights_of.fetch(published.url)
    with _seeded(seed):
        network = models.get_model(model, weights=None)
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise ValueError(
            f"torchvision:{model} has no linear layer at its end whose input could serve as features"
        )
    if path:
        # DenseNet's published files hold names from before dots were forbidden.
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
            for key, value in weights_of.read(path).items()
        }
        classes = _classes(state, heads[-1])
        if classes and classes != network.get_submodule(heads[-1]).out_features:
            network = models.get_model(model, weights=None, num_classes=classes)
        weights_of.load_into(network, state, path)
    given = published.transforms()
    name = weights_of.reported_name(f"torchvision_{model}", weights, path, published.url)
    return Built(
        name,
        Headed(network, network.get_submodule(heads[-1])),
        given.crop_size[0],
        tuple(given.mean),
        tuple(given.std),
        given.interpolation.value if given.interpolation.value == "bicubic" else "bilinear",
        True,
    )


def timm(model, *, weights="", seed=0, size=0):
    """A timm model, its features those before its classifier; `size` in place of its own, where it can."""
    import timm as library

    if not library.is_model(model):
        near = library.list_models(f"*{model.split('.')[0].split('_')[0]}*")[:10]
        raise ValueError(f"timm has no model {model!r}; similar names: {', '.join(near) or 'none'}")
    own = {"img_size": size} if size else {}
    path = None
    if weights != "random":
        config = library.get_pretrained_cfg(model)
        if not weights and not (config and (config.hf_hub_id or config.url)):
            raise ValueError(
                f'timm publishes no weights for {model!r}: give weights= a local file, or "random"'
            )
        path = weights_of.local(weights) if weights else weights_of.from_hub(model, config)
        overlay = {"file": str(path)}
        if weights and config and isinstance(config.classifier, str):
            classes = _classes(weights_of.read(path), config.classifier)
            if classes and classes != config.num_classes:  # else timm would leave the head out of the file
                own["num_classes"] = overlay["num_classes"] = classes
        own |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    with _seeded(seed):
        try:
            network = library.create_model(model, **own)
        except RuntimeError as error:
            if not weights:
                raise
            raise ValueError(f"{path} does not hold the weights of this network: {str(error)[:500]}") from error
    data = library.data.resolve_model_data_config(network)
    base = f"timm_{model}_{size}px" if size else f"timm_{model}"
    return Built(
        weights_of.reported_name(base, weights, path, ""),
        Timm(network),
        size or data["input_size"][-1],
        tuple(data["mean"]),
        tuple(data["std"]),
        "bicubic" if data["interpolation"] == "bicubic" else "bilinear",
        True,
    )


def dinov2(*, weights="", seed=0, size=224):
    """DINOv2 ViT-B/14 through timm, 768 features, at the 224 pixels of the literature (Stein et al. 2023)."""
    built = timm(DINOV2, weights=weights, seed=seed, size=size)
    plain = built.name.replace(f"timm_{DINOV2}_{size}px", "dinov2_vitb14")
    return built._replace(name=plain if size == 224 else f"{plain}_{size}px")


def _classes(state, head):
    """How many classes the layer `head` tells apart by a file's weights; 0 where they do not say."""
    weight = state.get(f"{head}.weight")
    return 0 if weight is None or weight.ndim != 2 else len(weight)


@contextlib.contextmanager
def _seeded(seed):
    """A scope in which random weights depend on `seed` alone; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
