"""Sinusoidal embedding of the diffusion time (Vaswani et al. 2017, sec. 3.5; Ho et al. 2020)."""

import functools
import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """t (N,), as the network receives it (about 0 to 1000, fractions allowed) -> float32 (N, dim).

    The first dim // 2 columns are cos(t w_i), the next are sin(t w_i), w_i = max_period^(-i / (dim // 2)); an
    odd `dim` ends in a column of zeros. float32 whatever t is: in bfloat16 neighbouring times near 1000
    coincide.
    """
    if t.ndim != 1:
        raise ValueError(f"the time must have shape (N,), one per image, got {tuple(t.shape)}")
    # A compiler folds the constants itself, and fake or traced tensors must not enter the cache.
    cached = type(t) is Tensor and not torch.compiler.is_compiling()
    frequencies = (_kept_frequencies if cached else _frequencies)(dim // 2, max_period, t.device)
    angles = t.float()[:, None] * frequencies
    columns = [torch.cos(angles), torch.sin(angles)]
    if dim % 2:
        columns.append(torch.zeros_like(angles[:, :1]))
    return torch.cat(columns, dim=1)


def _frequencies(half: int, max_period: float, device: torch.device) -> Tensor:
    # Outside inference mode, since a tensor made there could not be used in training later.
    with torch.inference_mode(False):
        exponents = torch.arange(half, dtype=torch.float32, device=device) / half
        return torch.exp(-math.log(max_period) * exponents)


_kept_frequencies = functools.lru_cache(maxsize=64)(_frequencies)
