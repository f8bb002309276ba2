"""Precision, recall, density and coverage: how two sets of features lie among each other's nearest
neighbours.

A set's manifold is the union of balls, one around each image, up to its k-th nearest neighbour in the set.
    precision   share of generated images inside the real manifold             Kynkäänniemi et al. 2019, k = 3
    recall      share of real images inside the generated manifold
    density     real balls that hold a generated image, on average, over k     Naeem et al. 2020, k = 5
    coverage    share of real balls that hold at least one generated image
Mode collapse onto few good images: precision near 1, recall near 0. Generated features always come first.

The `..._parts` say what each image contributes, so that the numbers can be averaged, resampled or split by
class.
"""

import torch

from .neighbours import pair, squared_distances


def precision_recall(generated, real, *, k=3, block=1024):
    """Precision and recall of generated features (N, D) against real ones (M, D), as two floats."""
    parts = precision_recall_parts(generated, real, k=k, block=block)
    return float(parts["precision"].mean()), float(parts["recall"].mean())


def density_coverage(generated, real, *, k=5, block=1024):
    """Density (may exceed 1) and coverage of generated features (N, D) against real ones (M, D), as two
    floats."""
    parts = density_coverage_parts(generated, real, k=k, block=block)
    return float(parts["density"].mean()), float(parts["coverage"].mean())


def precision_recall_parts(generated, real, *, k=3, block=1024):
    """{'precision': (N,) 1 where a generated image is inside, 'recall': (M,) 1 where a real one is}."""
    generated, real = _centred(generated, real)
    generated_radii, real_radii = _radii(generated, k, block, "generated"), _radii(real, k, block, "real")
    inside, recalled = torch.zeros(len(generated), dtype=torch.bool, device=real.device), []
    for rows, radii in zip(real.split(block), real_radii.split(block)):
        squared = squared_distances(rows, generated)
        inside |= (squared <= radii[:, None]).any(dim=0)
        recalled.append((squared <= generated_radii).any(dim=1))
    return {"precision": inside.double(), "recall": torch.cat(recalled).double()}


def density_coverage_parts(generated, real, *, k=5, block=1024):
    """{'density': (N,) real balls around a generated image over k, 'coverage': (M,) 1 where a real ball holds
    one}."""
    generated, real = _centred(generated, real)
    real_radii = _radii(real, k, block, "real")
    balls, covered = torch.zeros(len(generated), dtype=torch.long, device=real.device), []
    for rows, radii in zip(real.split(block), real_radii.split(block)):
        inside = squared_distances(rows, generated) <= radii[:, None]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
    return {"density": balls.double() / k, "coverage": torch.cat(covered).double()}


def _centred(generated, real):
    generated, real = pair(generated, real)
    centre = real.mean(dim=0)
    return generated - centre, real - centre


def _radii(x, k, block, what):
    """Squared distance of each image of x (N, D) to its k-th nearest other image: (N,)."""
    if not 1 <= k < len(x):
        raise ValueError(
            f"k is {k} for {len(x)} {what} images; it must be at least 1 and less than their number"
        )
    found = []
    for start in range(0, len(x), block):
        squared = squared_distances(x[start : start + block], x)
        rows = torch.arange(len(squared), device=x.device)
        squared[rows, rows + start] = torch.inf
        found.append(squared.kthvalue(k, dim=1).values)
    return torch.cat(found)
