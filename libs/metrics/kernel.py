"""Kernel Inception distance: the unbiased squared maximum mean discrepancy under a cubic polynomial kernel.

    k(x, y) = (x.y / D + 1)^3
    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m-1)) + sum_{i != j} k(y_i, y_j) / (n (n-1)) - 2 mean k(x_i, y_j)

Binkowski et al. 2018, "Demystifying MMD GANs". Unlike a Fréchet distance it has no bias in the number of
images, so it is the one to read when there are few; it may come out below zero.
"""

import torch

from .gaussian import as_features


def kid(x, y, *, block=2048):
    """MMD^2 between features x (m, D) and y (n, D) over all pairs; returns a float. Memory is block x max(m,
    n)."""
    x, y = _pair(x, y)
    return float(_weighted(x, y, x.new_ones(1, len(x)), y.new_ones(1, len(y)), block)[0])


def kid_subsets(x, y, *, subsets=100, size=1000, seed=0):
    """Mean and standard deviation of MMD^2 over random subsets of `size` images, as KID is usually reported.

    Where a set has fewer than `size` images, subsets are half the smaller set, so that they still differ. The
    mean estimates the same number as `kid`; the deviation describes a subset, and is no error bar of the
    mean.
    """
    x, y = _pair(x, y)
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets is {subsets} and size {size}; at least 1 subset of 2 images is needed")
    smaller = min(len(x), len(y))
    size = size if smaller >= size else max(2, smaller // 2)
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        [torch.randperm(len(part), generator=generator)[:size].to(part.device) for part in (x, y)]
        for _ in range(subsets)
    ]
    if max(len(x), len(y)) ** 2 <= subsets * size**2:
        # Subsets overlap so much that one pass over all pairs, with a row of 0 and 1 per subset, costs less.
        of_x, of_y = x.new_zeros(subsets, len(x)), y.new_zeros(subsets, len(y))
        for i, (rows, columns) in enumerate(chosen):
            of_x[i, rows], of_y[i, columns] = 1, 1
        values = _weighted(x, y, of_x, of_y)
    else:
        values = x.new_tensor([kid(x[rows], y[columns]) for rows, columns in chosen])
    return float(values.mean()), float(values.std(correction=0))


def kid_resampled(x, y, counts):
    """MMD^2 with image i of x taken counts[r, i] times, for each row of counts (R, m): (R,) in float64.

    Pairs of an image with its own copies are left out, or every resample would look unlike the sample.
    """
    x, y = _pair(x, y)
    return _weighted(x, y, counts.to(x), y.new_ones(1, len(y)).expand(len(counts), -1))


def _pair(x, y):
    x, y = as_features(x, "first features"), as_features(y, "second features")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features of {x.shape[1]} dimensions cannot be compared with features of {y.shape[1]}"
        )
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{len(x)} and {len(y)} images: KID needs at least 2 on each side")
    return x, y.to(x.device)


def _kernel(products, dims):
    return (products / dims + 1) ** 3


def _weighted(x, y, of_x, of_y, block=2048):
    """MMD^2 for weights of_x (R, m), of_y (R, n): (R,)."""
    across = _pairs_sum(x, y, of_x, of_y, block) / (of_x.sum(dim=1) * of_y.sum(dim=1))
    return _within(x, of_x, block) + _within(y, of_y, block) - 2 * across


def _within(x, weights, block):
    if bool((weights == weights[0]).all()):
        weights = weights[:1]
    itself = weights.square() @ _kernel(x.square().sum(dim=1), x.shape[1])
    pairs = weights.sum(dim=1).square() - weights.square().sum(dim=1)
    return (_pairs_sum(x, x, weights, weights, block) - itself) / pairs


def _pairs_sum(x, y, of_x, of_y, block):
    """Sum over pairs of weight x weight x kernel, a block of rows of x at a time: (R,)."""
    total = of_x.new_zeros(len(of_x))
    for rows, weights in zip(x.split(block), of_x.split(block, dim=1)):
        total += ((weights @ _kernel(rows @ y.T, x.shape[1])) * of_y).sum(dim=1)
    return total
