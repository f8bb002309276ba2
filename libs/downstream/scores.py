"""What a classifier is worth: AUC, F1, recall and accuracy, all at once for every resample of the test images.

Intervals hold what would change with other test images and with other seeds (which draw the first weights, the order and
the fraction of the real images). Both are resampled: the test images within their classes, whole groups (patients)
together, the same for all classifiers; and the seeds, the same for two arms that are compared. From S seeds, deviations
between them come out too small by sqrt((S - 1) / S), and their spread is itself uncertain, so that these are widened by
sqrt(S / (S - 1)) t(S - 1) / z (Hesterberg 2015, the expanded percentile interval).
"""

from collections import defaultdict

import numpy as np

OVERALL = ("auc", "f1", "balanced_accuracy", "accuracy")
PER_CLASS = ("auc", "f1", "recall")
LEVEL = 0.95
MOST_UNDEFINED = 0.05  # share of the draws that an interval may do without
BLOCK = 4_000_000  # numbers in one array


def names(classes):
    """[(metric, class name)] in the order of the columns of `scores`; '' is the mean over classes."""
    return [(metric, "") for metric in OVERALL] + [(metric, name) for metric in PER_CLASS for name in classes]


def scores(logits, labels, weights):
    """The scores of one classifier, for each of R weightings of the test images: float64 (R, M), columns as in `names`.

    AUC is that of each class against the others (ties count half), its overall value the mean over classes; so is F1's.
    Balanced accuracy is the mean recall. Where a weighting leaves out a class that `labels` have, its scores and the means over
    classes are nan: a mean over fewer classes is another number. A class without any image is left out of the means.

    Args:
        logits: (N, K). labels: (N,). weights: (R, N), how often each image counts.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    count = logits.shape[1]
    weights = np.asarray(weights, np.float64)
    cells = np.zeros((len(labels), count * count))
    cells[np.arange(len(labels)), labels * count + logits.argmax(1)] = 1
    confusion = (weights @ cells).reshape(-1, count, count)
    right, true, said = confusion.diagonal(axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = right / true, np.where(true > 0, 2 * right / (true + said), np.nan)
        accuracy = right.sum(1) / true.sum(1)
    areas = np.stack([auc(_odds(logits, k), labels == k, weights) for k in range(count)], 1)
    there = np.bincount(labels, minlength=count) > 0
    overall = [each[:, there].mean(1) for each in (areas, f1, recall)] + [accuracy]
    return np.concatenate([np.stack(overall, 1), areas, f1, recall], 1)


def auc(values, positive, weights):
    """Area under the ROC curve of values (N,) that should be larger where `positive`, for weights (R, N): (R,)."""
    order = np.argsort(values, kind="stable")
    weights, positive, values = weights[:, order], positive[order], values[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])  # of each run of equal values
    above = np.add.reduceat(weights * positive, first, axis=1)
    below = np.add.reduceat(weights * ~positive, first, axis=1)
    beaten = np.cumsum(below, axis=1) - below / 2
    with np.errstate(invalid="ignore"):
        return (above * beaten).sum(1) / (above.sum(1) * below.sum(1))


class Resamples:
    """`count` draws of the test images and of the seeds, made anew by each walk through them, always the same.

    Args:
        labels: (N,) of the test images. groups: N strings or None. seeds: their number. seed: of the draws.
    """

    def __init__(self, labels, groups, seeds, *, count, seed=0):
        check_count(count)
        labels = np.asarray(labels)
        units = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(labels))
        self.units = units  # unit of each image
        lead = {}
        for i, unit in enumerate(units):
            lead.setdefault(int(unit), labels[i])
        strata = defaultdict(list)
        for unit, label in sorted(lead.items()):
            strata[label].append(unit)
        self.strata, self.count, self.seed = [strata[label] for label in sorted(strata)], count, seed
        self.seeds = np.random.default_rng([seed, 1]).integers(seeds, size=(count, seeds))
        self.widening = widening(seeds)

    def weights(self):
        """Yields (r, N) weightings of the test images, `count` rows in all."""
        rng, size = np.random.default_rng([self.seed, 0]), max(1, BLOCK // len(self.units))
        for begin in range(0, self.count, size):
            rows = min(size, self.count - begin)
            drawn = np.zeros((rows, self.units.max() + 1))
            for stratum in self.strata:
                drawn[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=rows)
            yield drawn[:, self.units]

    def mean(self, values):
        """Values (S, R) of S seeds, or of differences, as R resampled means."""
        middle = values.mean(0)
        drawn = np.take_along_axis(values.T, self.seeds, axis=1).mean(1)
        return middle + self.widening * (drawn - middle)


def check_count(count):
    """ValueError for fewer draws than an interval can be read from."""
    if count < 100:
        raise ValueError(f"config.study.bootstrap={count}: expected at least 100 draws for intervals of {LEVEL:.0%}")


def widening(seeds):
    """By how much deviations between seeds are widened; see the top of this file."""
    from scipy import stats
    tail = (1 + LEVEL) / 2
    return np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail) if seeds > 1 else 1.0


def interval(values, low, high):
    """(low, high) that hold 95 % of the resampled means (R,) that are defined, within the given ends.

    nan where more than MOST_UNDEFINED of them are undefined, which the rest cannot stand for.
    """
    if undefined(values) > MOST_UNDEFINED:
        return float("nan"), float("nan")
    ends = np.quantile(values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return tuple(np.clip(ends, low, high).tolist())


def undefined(values):
    """The share of resampled means (R,) that are undefined."""
    return float(1 - np.isfinite(values).mean())


def _odds(logits, k):
    """The log-odds of class k: ordered as its probability, but never so near to 1 that different ones are equal."""
    others = np.delete(logits, k, axis=1)
    top = others.max(1)
    return logits[:, k] - top - np.log(np.exp(others - top[:, None]).sum(1))
