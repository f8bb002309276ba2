"""How far latents spread before scaling, which gives the scale factor; as sums that processes can add up."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from libs.codecs.base import Codec


class Spread(NamedTuple):
    """Mean and deviation of latents: of all numbers together, and of each channel (C,), float64."""

    count: int  # numbers per channel
    mean: float
    std: float
    channel_mean: Tensor
    channel_std: Tensor

    @property
    def scale_factor(self) -> float:
        """What gives the latents a deviation of 1, all channels together (Rombach et al. 2022, section D.1)."""
        return 1.0 / self.std

    @classmethod
    def of(cls, sums: Tensor) -> "Spread":
        """From what `latent_sums` returned, one row or many.

        Raises:
            ValueError: the latents do not vary at all.
        """
        count, total, squares = sums.sum(0).tensor_split([1, 1 + sums.shape[1] // 2])
        mean = total.mean() / count
        variance = squares.mean() / count - mean ** 2
        if not torch.isfinite(variance):
            raise ValueError("latents are not finite (nan or infinite): the autoencoder's weights, or the "
                             "images, are at fault")
        if not variance > 0:
            raise ValueError("all latents are the same number: there is nothing to scale")
        channel_mean = total / count
        return cls(int(count), float(mean), float(variance.sqrt()), channel_mean,
                   (squares / count - channel_mean ** 2).clamp_min(0).sqrt())


@torch.no_grad()
def latent_sums(codec: Codec, batches, *, seed: int, device="cpu") -> Tensor:
    """Count, sums and sums of squares per channel of sampled latents, before scaling.

    Args:
        codec: on `device`.
        batches: of images, dicts with 'image' and 'index'; each image's noise is fixed by (seed, index), so that neither
            batches nor processes matter.

    Returns:
        float64 Tensor (1, 1 + 2C) on the CPU, to be added up over processes and given to `Spread.of`.
    """
    sums = None
    for batch in batches:
        mean, logvar = codec.moments(batch["image"].to(device)).chunk(2, dim=1)
        std = torch.zeros_like(mean) if codec.deterministic else torch.exp(0.5 * logvar)
        noise = torch.stack([_noise(seed, int(i), mean.shape[1:]) for i in batch["index"]]).to(device)
        z = (mean + std * noise).cpu().double().transpose(0, 1).flatten(1)  # not every accelerator has float64
        mine = torch.cat([torch.tensor([z.shape[1]], dtype=torch.float64), z.sum(1), z.square().sum(1)])
        sums = mine if sums is None else sums + mine
    return torch.empty(0, 1 + 2 * codec.channels, dtype=torch.float64) if sums is None else sums[None]


def _noise(seed, index, shape):
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state)))
