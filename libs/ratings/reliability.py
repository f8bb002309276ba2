"""Coefficients of agreement and their intervals: arrays in, numbers out.

Every coefficient here is a function of sums over images: of pairs of scores, of ranks, of scores. So a resample of the images is a
row of counts, how often each is drawn, and all resamples of a coefficient are one product of matrices. The reported values of
kappa and alpha are those of scikit-learn and of the package krippendorff; the tests hold ours, of the resamples, equal to them.
"""

import math
import warnings

import numpy as np

LEVEL = 0.95
ENOUGH = 10  # images, below which an interval from resamples would pretend to a knowledge that is not there


def resampled(groups, *, resamples=1000, seed=0):
    """How often each unit occurs (B, N) when its group is drawn with replacement.

    groups: (N,) hashable, such as the image that a score is of: the scores of one image come and go together.
    """
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    n = int(number.max(initial=-1)) + 1
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) if n else np.zeros((resamples, 0), int)
    return drawn[:, number]


def interval(values, n):
    """(low, high), percentiles of the resampled values that hold 95 %; (None, None) below `ENOUGH` images.

    Plain percentiles are too narrow for few images. These lie as much further out as Student's t with n - 1 degrees of freedom does
    (the expanded percentile interval of Hesterberg 2015, "What teachers should know about the bootstrap"). Resamples without a
    value (all scores equal) are left out; where they are more than a tenth, no interval is given.
    """
    values = np.asarray(values, dtype=float)
    known = values[np.isfinite(values)]
    if n < ENOUGH or len(known) < 0.9 * len(values):
        return None, None
    from scipy.stats import norm, t
    tail = float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - LEVEL) / 2, n - 1)))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def estimate(value, values, groups):
    """{'value', 'low', 'high', 'images'}, None for what is not known; `values` are those of the resamples."""
    n = len(set(np.asarray(groups).tolist()))
    low, high = interval(values, n) if number(value) is not None else (None, None)
    return {"value": number(value), "low": low, "high": high, "images": n}


def number(value):
    """A float for JSON, None where there is none."""
    return None if value is None or not math.isfinite(value) else float(value)


def alpha(counts, groups, **how):
    """Krippendorff's alpha for ordinal levels, with its interval (Krippendorff 2004, chapter 11).

    counts: (N, K), how many raters gave unit n the level k. groups: (N,) the image of each unit. how: of `resampled`.
    Returns an `estimate`; its value is None where no unit has two scores, or all scores are equal.
    """
    counts, groups = np.asarray(counts, dtype=float), np.asarray(groups)
    paired = counts.sum(axis=1) >= 2
    counts, groups = counts[paired], groups[paired]
    if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
        return estimate(None, [], groups)
    import krippendorff
    value = krippendorff.alpha(value_counts=counts.astype(int), value_domain=np.arange(counts.shape[1]),
                               level_of_measurement="ordinal")
    tables = np.tensordot(resampled(groups, **how), coincidences(counts), axes=1)
    return estimate(value, alpha_of(tables), groups)


def coincidences(counts):
    """(N, K, K): the pairs of levels within each unit, each unit weighing as many as it has scores."""
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    return pairs / (counts.sum(axis=1)[:, None, None] - 1)


def alpha_of(tables):
    """Ordinal alpha of coincidence tables (..., K, K); nan where all scores are equal."""
    margin = tables.sum(axis=-1)
    total = margin.sum(axis=-1)
    middle = np.cumsum(margin, axis=-1) - margin / 2  # the squared difference of these is the ordinal metric
    distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    observed = (tables * distance).sum(axis=(-2, -1))
    expected = (margin[..., :, None] * margin[..., None, :] * distance).sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (total - 1) * observed / expected


def leniency(scores):
    """(R,) how much higher each rater scores than the others on the same units: the least squares fit of unit + rater, with mean 0.

    scores: (R, N), nan where there is none; raters may have answered different units.
    """
    given = ~np.isnan(scores)
    given &= given.sum(axis=0) >= 2
    often = np.maximum(given.sum(axis=0), 1)
    centred = np.where(given, scores - np.where(given, scores, 0).sum(axis=0) / often, 0)
    normal = np.diag(given.sum(axis=1)) - (given / often) @ given.T
    return np.linalg.pinv(normal, hermitian=True) @ centred.sum(axis=1)


def consistency(scores, groups, **how):
    """Whether raters order images alike, whatever numbers they prefer: interval alpha of scores without each rater's leniency.

    scores: (R, N), nan where a rater has not answered. groups: (N,) the image of each unit. Returns an `estimate`.
    """
    own, groups = np.asarray(scores, dtype=float), np.asarray(groups)
    own = np.round(own - leniency(own)[:, None], 9)
    paired = (~np.isnan(own)).sum(axis=0) >= 2
    own, groups = own[:, paired], groups[paired]
    if not len(groups) or np.nanmax(own) - np.nanmin(own) < 1e-6:
        return estimate(None, [], groups)
    import krippendorff
    value = krippendorff.alpha(reliability_data=own, level_of_measurement="interval")
    return estimate(value, consistency_of(own, resampled(groups, **how)), groups)


def consistency_of(scores, weights):
    """Interval alpha (B,) of scores (R, N), two or more of each unit, whose units occur `weights` (B, N) times."""
    n, total, squares = (~np.isnan(scores)).sum(axis=0), np.nansum(scores, axis=0), np.nansum(scores**2, axis=0)
    within = weights @ ((n * squares - total**2) / (n - 1))
    count = weights @ n
    spread = weights @ squares - (weights @ total) ** 2 / count
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (count - 1) / count * within / np.where(spread > 1e-9, spread, np.nan)


def kappa(first, second, groups, *, levels, **how):
    """Cohen's kappa with quadratic weights of two raters' scores (N,), with its interval (Cohen 1968).

    Returns an `estimate` with 'same', the share of equal scores; the value is None where both gave one and the same level always.
    """
    first, second, groups = np.asarray(first, int), np.asarray(second, int), np.asarray(groups)
    same = number(np.mean(first == second)) if len(first) else None
    if len(first) < 2 or len({*first.tolist(), *second.tolist()}) < 2:
        return estimate(None, [], groups) | {"same": same}
    from sklearn.metrics import cohen_kappa_score
    value = cohen_kappa_score(first, second, labels=list(levels), weights="quadratic")
    cells = np.zeros((len(first), len(levels), len(levels)))
    place = {level: k for k, level in enumerate(levels)}
    cells[np.arange(len(first)), [place[each] for each in first.tolist()], [place[each] for each in second.tolist()]] = 1
    return estimate(value, kappa_of(np.tensordot(resampled(groups, **how), cells, axes=1)), groups) | {"same": same}


def kappa_of(tables):
    """Quadratic weighted kappa of tables of two raters (..., K, K); nan where both gave one level."""
    k = np.arange(tables.shape[-1])
    distance = (k[:, None] - k[None, :]) ** 2
    chance = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - tables.sum(axis=(-2, -1)) * (tables * distance).sum(axis=(-2, -1)) / (chance * distance).sum(axis=(-2, -1))


def mean(values, groups, **how):
    """Mean of values (N,), with its interval over groups."""
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    if not len(values):
        return estimate(None, [], groups)
    weights = resampled(groups, **how)
    return estimate(values.mean(), weights @ values / weights.sum(axis=1), groups)


def spearman(first, second, groups, **how):
    """Spearman's rank correlation of (N,) and (N,), ties at their middle rank, with its interval over groups."""
    first, second, groups = np.asarray(first, dtype=float), np.asarray(second, dtype=float), np.asarray(groups)
    if len(first) < 3:
        return estimate(None, [], groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rater who gives one score only has no correlation, which nan says
        from scipy.stats import spearmanr
        value = spearmanr(first, second).statistic
    weights = resampled(groups, **how)
    return estimate(value, _correlation(_ranks(first, weights), _ranks(second, weights), weights), groups)


def _ranks(values, weights):
    """Middle ranks (B, N) of values (N,) that occur `weights` (B, N) times."""
    distinct, at = np.unique(values, return_inverse=True)
    often = weights @ np.eye(len(distinct))[at]
    return (np.cumsum(often, axis=1) - often / 2)[:, at]


def _correlation(x, y, weights):
    total = weights.sum(axis=1, keepdims=True)
    x, y = (each - (weights * each).sum(axis=1, keepdims=True) / total for each in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights * x * y).sum(axis=1) / np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))


def difference(upper, lower, *, resamples=1000, seed=0):
    """Two groups of images compared, upper (N,) and lower (M,), each resampled by itself: the difference of their means, and the
    AUROC, which is the chance that one of `upper` lies above one of `lower`, ties counting half."""
    upper, lower = np.asarray(upper, dtype=float), np.asarray(lower, dtype=float)
    fewer = range(min(len(upper), len(lower)))
    if not fewer:
        return {"difference": estimate(None, [], fewer), "auroc": estimate(None, [], fewer)}
    a = resampled(range(len(upper)), resamples=resamples, seed=seed)
    b = resampled(range(len(lower)), resamples=resamples, seed=seed + 1)
    wins = np.sign(upper[:, None] - lower[None, :]) / 2 + 0.5
    return {"difference": estimate(upper.mean() - lower.mean(), a @ upper / len(upper) - b @ lower / len(lower), fewer),
            "auroc": estimate(wins.mean(), ((a @ wins) * b).sum(axis=1) / wins.size, fewer)}


def share(found, groups):
    """The share of true values with Wilson's interval (1927), as {'value', 'low', 'high', 'found', 'of', 'images'}.

    found: (N,) bool. groups: (N,) the image of each; values of one image are taken as one case, so that the interval is rather too
    wide (Kish's effective number of cases, 1965, at a correlation of 1). It also holds for shares of 0 and 1 and for few images,
    where resamples would all be alike.
    """
    n = len(found)
    if not n:
        return {"value": None, "low": None, "high": None, "found": 0, "of": 0, "images": 0}
    _, often = np.unique(np.asarray(groups), return_counts=True)
    z, p, cases = 1.959964, float(np.mean(found)), n**2 / float((often**2).sum())
    middle, half = p + z * z / (2 * cases), z * math.sqrt(p * (1 - p) / cases + z * z / (4 * cases * cases))
    low, high = ((middle + side) / (1 + z * z / cases) for side in (-half, half))
    return {"value": p, "low": max(0.0, low), "high": min(1.0, high), "found": int(np.sum(found)), "of": n, "images": len(often)}


def raters_for(alpha_value, wanted=0.8):
    """How many raters' mean reaches the reliability `wanted`, by Spearman and Brown's formula; None where none would.

    Approximate: alpha stands for the correlation of two raters.
    """
    if alpha_value is None or alpha_value <= 0:
        return None
    return 1 if alpha_value >= 1 else max(1, math.ceil(wanted * (1 - alpha_value) / (alpha_value * (1 - wanted)) - 1e-9))
