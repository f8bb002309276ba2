"""Do raters agree, with each other and with themselves, and do their scores carry a signal? Numbers, and sentences that say so.

    found = summary(pool, answers)   # a dict that JSON holds
    found["verdict"]                 # plain sentences
    table(found); figure(found, "agreement.png")

The unit is the image: intervals come from resamples of the images, an image and its repeat drawn together, the raters held fixed.
They say what other images would have given, and nothing about other raters.
"""

import statistics
from collections import Counter

import numpy as np

from . import reliability
from .figures import figure, table
from .pool import REAL, SYNTHETIC
from .scripted import is_scripted
from .verdict import FEW, TENTATIVE, only_level, verdict

__all__ = ["figure", "summary", "table"]

METHOD = ("alpha: Krippendorff's, ordinal, whether raters give the same numbers; without leniency: alpha, interval, of scores "
          "from which each rater's mean shift is taken out, whether they order images alike; kappa: Cohen's with quadratic "
          "weights; rho: Spearman's correlation with the mean of the others; bias: mean difference from it, in levels; self: "
          "images shown twice, {self}. Intervals: 95 %, expanded percentiles of {resamples} resamples of the images, raters "
          "fixed; of shares Wilson's, all answers to an image taken as one case.")
FIRST, LAST = "the first answer to each", "changes of mind included, which may have been made to match"


def summary(pool, answers, *, history=None, resamples=1000, seed=0):
    """What the answers to a pool say about raters and images.

    Args:
        pool: `Pool`. answers: list of `Answer`; of several of a rater to an item the newest counts.
        history: the answers with all that were changed later; raters are compared with themselves by their first ones.
    Returns:
        a dict of numbers, strings, lists and dicts; None stands for what cannot be known, and an estimate is
        {'value', 'low', 'high', 'images'}:
        counts    answers, raters, items, images, scored, scored_by_two (or more), real, generated, controls, repeats
        axes      {axis: good, levels {level: meaning}, shares {level: share}, alpha, consistency, without_controls (consistency),
                  same (share of equal scores of two raters), pairs [{raters, items, same, kappa as an estimate}]}
        raters    {name: answers, of, scripted, seconds (median), axes {axis: mean, sd, shares, rho, bias, self}, below_good
                  {controls, real, generated: share of items that were below good on an axis at least}}
        real      {axis: {difference, auroc}}, real against generated; {} where one of them has no scores
        sources   {model, folder of real images, or kind of control: {kind, axes {axis: estimate of the mean score}}}
        controls  {kind of control: share of answers that were below good on an axis at least}
        signal    {axis: True, False or None}: do raters order the images alike, beyond chance. False: it is not shown, with
                  images enough to show good agreement; None: that cannot be told yet
        verdict   list of sentences. method: one more
    Raises:
        ValueError: an answer to an item that the pool does not have.
    """
    every = [*answers, *(history or ())]
    answers, first = _one_each(pool, every), _one_each(pool, every, first=True)
    how = dict(resamples=resamples, seed=seed)
    raters = sorted({answer.rater for answer in answers}, key=str.casefold)
    tables = {axis.name: _Table(pool, answers, first, raters, axis) for axis in pool.axes}
    found = {"counts": _counts(pool, answers),
             "axes": {name: _of_axis(each, **how) for name, each in tables.items()},
             "raters": {rater: _of_rater(pool, rater, answers, tables, **how) for rater in raters},
             "real": _real_and_generated(tables, **how),
             "sources": _of_sources(pool, tables, **how),
             "controls": _of_controls(pool, answers)}
    found["signal"] = {name: _signal(each) for name, each in found["axes"].items()}
    return found | {"verdict": verdict(found), "method": METHOD.format(
        resamples=f"{resamples:,}", self=LAST if history is None else FIRST)}


class _Table:
    """The scores of one axis: `scores` float (raters, items), nan where there is no answer; `first` likewise of first answers,
    before any change of mind; `image` (items,) of each item."""

    def __init__(self, pool, answers, first, raters, axis):
        self.pool, self.axis, self.raters = pool, axis, raters
        self.levels = sorted(axis.levels)
        place = {item.item: number for number, item in enumerate(pool.items)}
        self.image = np.array([place[item.repeat_of or item.item] for item in pool.items])
        self.control = np.array([bool(item.control) for item in pool.items])
        self.repeats = [(place[item.repeat_of], place[item.item]) for item in pool.items if item.repeat_of]
        self.scores, self.first = (np.full((len(raters), len(pool.items)), np.nan) for _ in range(2))
        for scores, given in ((self.scores, answers), (self.first, first)):
            for answer in given:
                scores[raters.index(answer.rater), place[answer.item]] = answer.scores[axis.name]

    def counts(self):
        """(items, K), how often each level was given to each item."""
        return np.stack([(self.scores == level).sum(axis=0) for level in self.levels], axis=1)

    def shares(self, scores):
        given = scores[~np.isnan(scores)]
        return {str(level): float(np.mean(given == level)) if len(given) else None for level in self.levels}

    def means(self, kept):
        """Mean score of each image among the items that `kept` (a function of an item) picks: over its raters and its repeats."""
        kept = np.array([kept(item) for item in self.pool.items], dtype=float)
        given = np.bincount(self.image, (~np.isnan(self.scores)).sum(axis=0) * kept)
        total = np.bincount(self.image, np.nansum(self.scores, axis=0) * kept)
        return total[given > 0] / given[given > 0]

    def pair(self, first, second):
        """(scores, scores, images) of the items that both raters have answered."""
        both = ~np.isnan(self.scores[[first, second]]).any(axis=0)
        return self.scores[first, both], self.scores[second, both], self.image[both]

    def with_others(self, rater):
        """(scores of a rater, means of the others, images) where there are both."""
        others = np.delete(self.scores, rater, axis=0)
        both = ~np.isnan(self.scores[rater]) & ~np.isnan(others).all(axis=0)
        means = np.nanmean(others[:, both], axis=0) if both.any() else np.zeros(0)
        return self.scores[rater, both], means, self.image[both]

    def with_self(self, rater):
        """(scores, scores of the repeats, images) of the repeated images that a rater has answered twice, by first answers: at
        the end both can be seen, and be made to match."""
        both = [(a, b) for a, b in self.repeats if not np.isnan(self.first[rater, [a, b]]).any()]
        shown, again = np.array(both, dtype=int).reshape(-1, 2).T
        return self.first[rater, shown], self.first[rater, again], self.image[shown]


def _one_each(pool, answers, *, first=False):
    """The newest answer of each rater to each item, or the first one."""
    kept = {}
    for answer in sorted(answers, key=lambda each: each.number, reverse=first):
        if answer.item not in pool.by_name:
            raise ValueError(f"answer {answer.number} of {answer.rater} is to item {answer.item!r}, which the pool in "
                             f"{pool.folder} does not have: the ratings belong to another pool")
        kept[answer.rater, answer.item] = answer
    return list(kept.values())


def _counts(pool, answers):
    own = [item for item in pool.items if not item.repeat_of]
    scored = Counter(answer.item for answer in answers)
    images, by_two = ({pool.by_name[item].repeat_of or item for item, n in scored.items() if n >= least} for least in (1, 2))
    return {"answers": len(answers), "raters": len({answer.rater for answer in answers}), "items": len(pool.items),
            "images": len(own), "scored": len(images), "scored_by_two": len(by_two),
            **{name: sum(map(_is(kind), own)) for name, kind in KINDS.items()}, "repeats": len(pool.items) - len(own)}


def _is(kind):
    """Whether an item is of this kind ('real', 'synthetic') and shown as it is, or where kind is '' a control."""
    return lambda item: bool(item.control) if not kind else item.kind == kind and not item.control


KINDS = {"controls": "", "real": REAL, "generated": SYNTHETIC}


def _of_axis(of, **how):
    pairs = []
    for a in range(len(of.raters)):
        for b in range(a + 1, len(of.raters)):
            first, second, images = of.pair(a, b)
            pairs.append({"raters": [of.raters[a], of.raters[b]], "items": len(first),
                          **reliability.kappa(first, second, images, levels=of.levels, **how)})
    both = sum(pair["items"] for pair in pairs)
    right = ~of.control
    return {"good": of.axis.good, "levels": {str(level): meaning for level, meaning in of.axis.levels.items()},
            "shares": of.shares(of.scores),
            "alpha": reliability.alpha(of.counts(), of.image, **how),
            "consistency": reliability.consistency(of.scores, of.image, **how),
            "without_controls": None if right.all() else reliability.consistency(of.scores[:, right], of.image[right], **how),
            "same": sum(pair["same"] * pair["items"] for pair in pairs if pair["items"]) / both if both else None,
            "pairs": pairs}


def _signal(axis):
    if only_level(axis):
        return False
    found = axis["consistency"]
    if found["low"] is None or found["low"] > 0:
        return None if found["low"] is None else True
    return None if found["images"] < FEW or found["high"] >= TENTATIVE else False


def _of_rater(pool, rater, answers, tables, **how):
    own = [answer for answer in answers if answer.rater == rater]
    axes = {}
    for name, of in tables.items():
        number = of.raters.index(rater)
        given = of.scores[number, ~np.isnan(of.scores[number])]
        mine, others, images = of.with_others(number)
        first, second, repeated = of.with_self(number)
        axes[name] = {"mean": float(given.mean()), "sd": float(given.std(ddof=1)) if len(given) > 1 else None,
                      "shares": of.shares(given), "rho": reliability.spearman(mine, others, images, **how),
                      "bias": reliability.mean(mine - others, images, **how),
                      "self": {"repeats": len(first), **reliability.kappa(first, second, repeated, levels=of.levels, **how)}}
    below = {answer.item: _below_good(pool, answer) for answer in own}
    answered = {name: [item.item for item in pool.items if item.item in below and _is(kind)(item)] for name, kind in KINDS.items()}
    return {"answers": len(own), "of": len(pool.items), "scripted": is_scripted(rater),
            "seconds": float(statistics.median(answer.seconds for answer in own)), "axes": axes,
            "below_good": {name: reliability.share([below[item] for item in items], [_image(pool, item) for item in items])
                           for name, items in answered.items()}}


def _image(pool, item):
    return pool.by_name[item].repeat_of or item


def _below_good(pool, answer):
    return any(answer.scores[axis.name] < axis.good for axis in pool.axes)


def _real_and_generated(tables, **how):
    means = {name: (of.means(_is(REAL)), of.means(_is(SYNTHETIC))) for name, of in tables.items()}
    return {name: reliability.difference(*both, **how) for name, both in means.items() if len(both[0]) and len(both[1])}


def _of_sources(pool, tables, **how):
    """Mean scores of real images, of each model and of each kind of control, in this order."""
    kinds, items = {}, {}
    for item in pool.items:
        model = item.source.get("model", "") or "unknown"
        name, kind = (f"{item.control} (control)", "control") if item.control else \
            (f"{model} (real)", REAL) if item.kind == REAL else (model, SYNTHETIC)
        kinds[name] = kind
        items.setdefault(name, set()).add(item.item)
    found = {}
    for name in sorted(kinds, key=lambda name: ((REAL, SYNTHETIC, "control").index(kinds[name]), name)):
        means = {axis: of.means(lambda item, own=items[name]: item.item in own) for axis, of in tables.items()}
        found[name] = {"kind": kinds[name],
                       "axes": {axis: reliability.mean(each, range(len(each)), **how) for axis, each in means.items()}}
    return found


def _of_controls(pool, answers):
    kinds = {}
    for answer in answers:
        control = pool.by_name[answer.item].control
        if control:
            kinds.setdefault(control, []).append((_below_good(pool, answer), _image(pool, answer.item)))
    return {kind: reliability.share(*zip(*each, strict=True)) for kind, each in sorted(kinds.items())}
