"""How far a metric would move with other images: bootstrap intervals, and warnings where there are too few.

Intervals are percentiles of resamples of the images a metric averages over: the generated ones (the real ones
for recall and coverage), everything else held. They say nothing about bias: see `sample_size_warning`.
"""

import torch

from . import gaussian, kernel
from .inception_score import inception_score


def drawn(n, count, *, seed=0):
    """Yields `count` times n indices, drawn of n images with replacement, by `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randint(n, (n,), generator=generator)


def interval(value, values, *, level=0.95):
    """(low, high) that hold `level` of the resampled `values`, moved so that their median lies on `value`.

    The move matters for Fréchet distances: a resample repeats images, which narrows its covariance and raises
    the distance as fewer images would; unmoved, the interval would lie above the value it belongs to.
    """
    low, middle, high = _quantiles(values, level)
    return value + low - middle, value + high - middle


def bootstrap(statistic, n, *, value=None, resamples=30, seed=0, level=0.95):
    """Interval (low, high) of `statistic(indices) -> float` over n images; `value` is that of all of them."""
    if n < 1 or resamples < 2:
        raise ValueError(f"{n} images and {resamples} resamples; at least 1 image and 2 resamples are needed")
    value = float(statistic(torch.arange(n))) if value is None else value
    return interval(
        value, [float(statistic(indices)) for indices in drawn(n, resamples, seed=seed)], level=level
    )


def mean_interval(contributions, *, resamples=1000, seed=0, level=0.95):
    """Interval of the mean of contributions (N,): precision, recall, density, coverage, accuracy."""
    contributions = contributions.double().cpu()
    means = torch.stack(
        [contributions[indices].mean() for indices in drawn(len(contributions), resamples, seed=seed)]
    )
    low, _, high = _quantiles(means, level)  # a mean is not biased, and a share must stay within 0 and 1
    return low, high


def clustered_interval(sums, counts, *, resamples=1000, seed=0, level=0.95):
    """Interval of the means sum(sums) / sum(counts), averaged over columns, where images come in groups that are drawn whole.

    sums, counts: (G, K), of the contributions of each group's images, and how many these are. A column that a resample has
    nothing in is left out of its average. None, None for fewer than two groups: one says nothing about others.
    """
    if len(sums) < 2:
        return None, None
    means = []
    for groups in drawn(len(sums), resamples, seed=seed):
        total = counts[groups].sum(dim=0)
        means.append((sums[groups].sum(dim=0) / total)[total > 0].mean())
    means = torch.stack(means)
    low, _, high = _quantiles(means[~means.isnan()], level)
    return low, high


def frechet_interval(x, reference, value, *, resamples=30, seed=0, level=0.95):
    """Interval of the Fréchet distance from features x (N, D) to a `Gaussian`, given its value.

    One factor of the reference's covariance serves every resample.
    """
    x = gaussian.as_features(x)
    mean2, other = reference.mean.to(x), gaussian.factor(reference.covariance.to(x))
    trace2 = other.square().sum()
    projected = x @ other
    squares = x.square().sum(dim=1)

    def distance(indices):
        times = torch.bincount(indices, minlength=len(x)).to(x)
        kept = times.nonzero().flatten()
        weights = times[kept] / (len(x) - 1)
        mean = times @ x / len(x)
        trace = weights @ squares[kept] - len(x) / (len(x) - 1) * mean.square().sum()
        centred = (projected[kept] - mean @ other) * weights.sqrt()[:, None]
        if len(kept) <= x.shape[1]:
            overlap = torch.linalg.svdvals(centred).sum()
        else:
            overlap = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt().sum()
        return float((mean - mean2).square().sum() + trace + trace2 - 2 * overlap)

    return bootstrap(distance, len(x), value=value, resamples=resamples, seed=seed, level=level)


def kid_interval(x, y, value, *, resamples=30, seed=0, level=0.95):
    """Interval of KID between features x (N, D) and y (M, D), given its value over all pairs."""
    counts = torch.stack(
        [torch.bincount(row, minlength=len(x)) for row in drawn(len(x), resamples, seed=seed)]
    )
    return interval(value, kernel.kid_resampled(x, y, counts), level=level)


def inception_score_interval(probabilities, value, *, splits=10, resamples=30, seed=0, level=0.95):
    """Interval of the Inception score of class probabilities (N, K), given its value."""
    return bootstrap(
        lambda rows: inception_score(probabilities[rows], splits=splits, seed=seed)[0],
        len(probabilities),
        value=value,
        resamples=resamples,
        seed=seed,
        level=level,
    )


def sample_size_warning(n, dims, *, what="generated images"):
    """What a reader must know of a Fréchet distance from n images at `dims` dimensions; '' where n is ample.

    Its bias grows with dims / n (Chong and Forsyth 2020): about n > 5 dims, and the 10,000 to 50,000 of
    publications for 2048 dimensions, are taken as ample.
    """
    if n <= dims:
        return (
            f"{n} {what} for {dims} feature dimensions: the covariance cannot have full rank, and the "
            "Fréchet distance comes out too high. Compare it only at the same number of images, or read KID, "
            "which has no such bias."
        )
    if n < max(2048, min(5 * dims, 10_000)):
        return (
            f"{n} {what} are few for a Fréchet distance at {dims} dimensions (usual are 10,000 to 50,000): "
            "it comes out higher than with more. Compare it only at the same number of images."
        )
    return ""


def _quantiles(values, level):
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it is a share between 0 and 1")
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    ends = torch.tensor([(1 - level) / 2, 0.5, (1 + level) / 2], dtype=torch.float64)
    return torch.quantile(values, ends).tolist()
