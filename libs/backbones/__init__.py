"""Networks that predict noise (or the image) from a noisy image, its time and conditions: net(x, t, **cond).

Every network's parameter names are those of its published checkpoints.
"""

import difflib

from torch import nn

from libs.backbones import adm, controlnet, dit, pixart, unet_label, unet_sd, uvit
from libs.backbones.checkpoint import adaptations, frozen_hash, init_without, load
from libs.backbones.flops import flops_per_image, train_flops
from libs.backbones.precision import lower

__all__ = ["NAMES", "adaptations", "flops_per_image", "frozen_hash", "get", "init_without", "load", "lower", "numbers_null",
           "takes_text", "train_flops"]

CONSTRUCTORS = {
    "uvit": uvit.uvit,
    "uvit_t2i": uvit.uvit_t2i,
    "uvit_t2i_label": uvit.uvit_t2i_label,
    "uvit_t2i_prototype": uvit.uvit_t2i_prototype,
    "dit": dit.dit,
    "adm_unet": adm.UNet,
    "adm_classifier": adm.Classifier,
    "unet_label": unet_label.LabelUNet,
    "controlnet": controlnet.MaskControlNet,
    "unet_sd": unet_sd.build,
    "pixart": pixart.build,
}
NAMES = tuple(CONSTRUCTORS)
_TAKE_TEXT = ("uvit_t2i", "uvit_t2i_label", "uvit_t2i_prototype", "unet_sd", "pixart")
_NUMBERS_NULL = ("uvit", "uvit_t2i_label", "uvit_t2i_prototype")


def numbers_null(name: str) -> bool:
    """Whether num_classes of that network's constructor counts the null class, or the network adds it by itself."""
    return name in _NUMBERS_NULL


def takes_text(name: str) -> bool:
    """Whether that network is conditioned on texts."""
    return name in _TAKE_TEXT


def get(name: str, **kwargs) -> nn.Module:
    """The network of that name, freshly initialized; kwargs are those of the published constructors.

    Raises ValueError for an unknown name and for sizes that do not fit, TypeError for an unknown argument.
    """
    if name not in CONSTRUCTORS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NAMES)}{hint}")
    return CONSTRUCTORS[name](**kwargs)
