"""Codecs between images in [-1, 1] and the space in which diffusion runs.

    codec = codecs.get(name='kl', path='stabilityai/sd-vae-ft-mse')
    z = codec.encode(images)          # scale_factor * a sample of the moments
    images = codec.decode(z)

`base.Codec` says what every codec offers; the scale factor belongs to the codec.
"""

import difflib

from torch import Tensor

from libs.codecs import kl
from libs.codecs.base import Codec
from libs.codecs.kl import KL
from libs.codecs.pixels import Pixels
from libs.codecs.spread import Spread, latent_sums
from libs.codecs.tiny import Tiny

__all__ = ["KL", "NAMES", "Codec", "Spread", "get", "latent_sums", "latents"]

CONSTRUCTORS = {"pixels": Pixels, "kl": kl.build, "tiny": Tiny}
NAMES = tuple(CONSTRUCTORS)


def get(name: str, **kwargs) -> Codec:
    """The codec of that name, frozen and in eval mode. Raises ValueError for an unknown name."""
    if name not in CONSTRUCTORS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown codec {name!r}; known: {', '.join(NAMES)}{hint}")
    return CONSTRUCTORS[name](**kwargs)


def latents(codec: Codec, batch: dict) -> Tensor:
    """The latents of a batch, from stored 'mean' and 'std' where it has them, else from 'image'."""
    if "mean" in batch:
        return codec.sample(batch["mean"], batch.get("std"))
    return codec.encode(batch["image"])
