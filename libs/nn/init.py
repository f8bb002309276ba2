"""The initialization that vision transformers share."""

from torch import nn


def init_transformer_(module: nn.Module, *, std: float = 0.02) -> None:
    """In place: every Linear normal of deviation `std` with bias 0, LayerNorm 1 and 0, the rest untouched.

    The normal is cut at the absolute values -2 and 2 as in timm: 100 deviations, so in effect not at all.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2.0, b=2.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
