"""Nearest neighbours in feature space: does a generated image copy a real one?

Distances are taken a block of rows at a time in float64, around the real mean (a common offset costs digits),
so memory is bounded by block x the larger set.
"""

import torch

from .gaussian import as_features


def nearest(generated, real, *, k=1, block=1024):
    """The k nearest real images of each generated one: distances (N, k) rising, and indices (N, k) into
    `real`."""
    generated, real = pair(generated, real)
    if not 1 <= k <= len(real):
        raise ValueError(f"k is {k}; there are {len(real)} real images to choose from")
    centre = real.mean(dim=0)
    indices = torch.cat(
        [
            squared_distances(rows - centre, real - centre).topk(k, dim=1, largest=False).indices
            for rows in generated.split(block)
        ]
    )
    # Taken again by subtraction: a copy of a real image must be at distance 0, not at a product's rounding.
    distances = torch.cat(
        [
            (real[chosen] - rows[:, None]).norm(dim=2)
            for rows, chosen in zip(generated.split(64), indices.split(64))
        ]
    )
    distances, order = distances.sort(dim=1, stable=True)
    return distances, indices.gather(1, order)


def pair(generated, real):
    generated, real = as_features(generated, "generated features"), as_features(real, "real features")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"generated features of {generated.shape[1]} dimensions cannot be compared with real "
            f"features of {real.shape[1]}"
        )
    if not len(generated) or not len(real):
        raise ValueError(f"{len(generated)} generated and {len(real)} real images: neither may be empty")
    return generated, real.to(generated.device)


def squared_distances(x, y):
    """Squared distances (N, M), not below zero."""
    squared = torch.addmm(y.square().sum(dim=1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(dim=1, keepdim=True)).clamp_(min=0)
