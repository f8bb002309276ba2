"""The identity codec: diffusion in pixel space."""

import torch
from torch import Tensor, nn

# Where latent codecs clamp their log-variance from below: a deviation of 3e-7, next to nothing in an image.
LOGVAR_FLOOR = -30.0


class Pixels(nn.Module):
    """Images (N, C, H, W) in [-1, 1] are their own latents; without parameters, on any device.

    channels: C, which is then checked; 0 takes images as they come.
    """

    scale_factor = 1.0
    downsample = 1

    def __init__(self, *, channels: int = 0):
        super().__init__()
        if channels < 0:
            raise ValueError(f"channels={channels}: 1 (grey), 3 (RGB), or 0 for images as they come")
        self.channels = channels

    def encode(self, x: Tensor) -> Tensor:
        """x (N, channels, H, W) -> x itself."""
        return self._checked(x)

    def moments(self, x: Tensor) -> Tensor:
        """Mean x and log-variance -30, stacked to (N, 2 * channels, H, W): their samples are x to 2e-6."""
        return torch.cat([self._checked(x), torch.full_like(x, LOGVAR_FLOOR)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """z (N, channels, H, W) -> z itself, not clamped."""
        return self._checked(z)

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the images that latents of this shape decode to: the same."""
        return tuple(shape)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or self.channels not in (0, x.shape[1]):
            raise ValueError(f"expected images of shape (N, {self.channels or 'C'}, H, W), got {tuple(x.shape)}: "
                             "the codec was built for that many channels")
        return x
