"""What every codec offers: images in [-1, 1] to latents and back."""

import torch
from torch import Tensor, nn

# The log-variance of latents is kept in this range, as everywhere in latent diffusion. The floor stands for "no
# spread": a deviation of 3e-7, next to nothing in an image.
LOGVAR_FLOOR, LOGVAR_CEILING = -30.0, 20.0


class Codec(nn.Module):
    """A frozen map between images and latents; subclasses define `moments`, `decode`, `fingerprint` and the shapes.

    Attributes:
        channels: C of a latent.
        downsample: image side / latent side.
        scale_factor: latents are scale_factor * a sample of the moments; belongs to the codec, so that it is
            never lost on the way.
        deterministic: True where the moments have no spread, so that only means need storing.
        fingerprint: hex digest of all that decides `moments`: architecture and weights, not scale_factor.
        decoder_fingerprint: the same of what decides `decode`; '' where nothing is computed.
        folder_scale: the scale factor that the autoencoder's folder says, 0 where it says none.
        published_scale: whether the scale factor in use was given and is the one of Stable Diffusion's
            autoencoder, as in configs of published names.
    """

    channels = 0
    downsample = 1
    scale_factor = 1.0
    deterministic = False
    decoder_fingerprint = ""
    folder_scale = 0.0
    published_scale = False

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def moments(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> mean and log-variance before scaling, stacked to (N, 2c, h, w)."""
        raise NotImplementedError

    def decode(self, z: Tensor, *, checkpointed: bool = False) -> Tensor:
        """Latents (N, c, h, w) -> float32 images (N, C, H, W) about [-1, 1], not clamped; gradients flow through.

        checkpointed: for a backward pass in less memory and more time, with the same result.
        """
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> latents (N, c, h, w), float32, a new sample at each call."""
        mean, logvar = self.moments(x).chunk(2, dim=1)
        return self.sample(mean, None if self.deterministic else torch.exp(0.5 * logvar))

    def sample(self, mean: Tensor, std: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents of stored moments: scale_factor * (mean + std * noise), float32.

        Args:
            mean, std: (N, c, h, w) of any float type, before scaling; std None adds no noise.
            generator: draws the noise, on its own device; None takes torch's default one.
        """
        z = mean.float()
        if std is not None:
            device = generator.device if generator else z.device
            z = z + std.float() * torch.randn(z.shape, generator=generator, device=device).to(z.device)
        return z if self.scale_factor == 1.0 else self.scale_factor * z

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the images that latents of shape (c, h, w) decode to."""
        raise NotImplementedError

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images of shape (C, H, W)."""
        raise NotImplementedError
