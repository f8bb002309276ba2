"""Codecs between images in [-1, 1] and the space in which diffusion runs.

Every codec is a module with `encode(x) -> z`, `moments(x) -> (N, 2C, h, w)` (mean and log-variance before
scaling) and `decode(z) -> x`, and with the attributes `channels` (of z), `downsample` (image side / latent
side) and `scale_factor` (z = scale_factor * a sample of the moments).
"""

import difflib

from torch import nn

from libs.codecs.pixels import Pixels

__all__ = ["NAMES", "get"]

_CONSTRUCTORS = {"pixels": Pixels}
NAMES = tuple(_CONSTRUCTORS)


def get(name: str, **kwargs) -> nn.Module:
    """The codec of that name. Raises ValueError for an unknown name."""
    if name not in _CONSTRUCTORS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown codec {name!r}; known: {', '.join(NAMES)}{hint}")
    return _CONSTRUCTORS[name](**kwargs)
