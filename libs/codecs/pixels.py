"""The identity codec: diffusion in pixel space."""

import hashlib

import torch
from torch import Tensor

from libs.codecs.base import LOGVAR_FLOOR, Codec


class Pixels(Codec):
    """Images (N, C, H, W) in [-1, 1] are their own latents; without parameters, on any device.

    channels: C, which is then checked; 0 takes images as they come.
    """

    deterministic = True
    fingerprint = hashlib.sha256(b"pixels").hexdigest()

    def __init__(self, *, channels: int = 0):
        super().__init__()
        if channels < 0:
            raise ValueError(f"channels={channels}: 1 (grey), 3 (RGB), or 0 for images as they come")
        self.channels = channels
        self.eval()

    def encode(self, x: Tensor) -> Tensor:
        """x (N, channels, H, W) -> x itself."""
        return self._checked(x)

    def moments(self, x: Tensor) -> Tensor:
        """Mean x and log-variance -30, stacked to (N, 2 * channels, H, W): their samples are x to 2e-6."""
        return torch.cat([self._checked(x), torch.full_like(x, LOGVAR_FLOOR)], dim=1)

    def decode(self, z: Tensor, *, checkpointed: bool = False) -> Tensor:
        """z (N, channels, H, W) -> z itself, not clamped."""
        return self._checked(z)

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the images that latents of this shape decode to: the same."""
        return tuple(shape)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the latents of images of this shape: the same."""
        return tuple(shape)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or self.channels not in (0, x.shape[1]):
            raise ValueError(f"expected images of shape (N, {self.channels or 'C'}, H, W), got {tuple(x.shape)}: "
                             "the codec was built for that many channels")
        return x
