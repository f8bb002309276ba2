"""Do raters agree, with each other and with themselves, and do their scores carry a signal? Numbers, and sentences that say so.

    found = summary(pool, answers)   # a dict that JSON holds
    found["verdict"]                 # plain sentences
    table(found); figure(found, "agreement.png")

The unit is the image: all intervals are percentiles of 1,000 resamples of the images, an image and its repeat drawn together, the
raters held fixed. They say what other images would have given, and nothing about other raters.
"""

import statistics
from collections import Counter

import numpy as np

from . import reliability
from .figures import figure, table
from .pool import REAL, SYNTHETIC
from .scripted import is_scripted

__all__ = ["figure", "summary", "table"]

FEW = 30  # images scored by two raters, below which an interval is too wide to decide anything by
RELIABLE, TENTATIVE = 0.8, 0.667  # Krippendorff (2004, page 241): conclusions, tentative conclusions
REPEATS = 20  # images that a rater saw twice, below which kappa with oneself is not worth a sentence
BIAS = 0.25  # of a level: smaller shifts between raters are not worth a sentence
METHOD = ("alpha: Krippendorff's, ordinal, whether raters give the same numbers; without leniency: alpha, interval, of scores from "
          "which each rater's mean shift is taken out, whether they order images alike; kappa: Cohen's with quadratic weights; rho: Spearman's correlation with the mean of the "
          "others; bias: mean difference from it, in levels; self: images shown twice. Intervals: 95 %, {resamples} resamples of the images, raters fixed; "
          "of shares Wilson's.")


def summary(pool, answers, *, resamples=1000, seed=0):
    """What the answers to a pool say about raters and images.

    Args:
        pool: `Pool`. answers: list of `Answer`; of several of a rater to an item the newest counts.
    Returns:
        a dict of numbers, strings, lists and dicts; None stands for what cannot be known:
        counts      answers, items, images, scored by two raters or more, real, generated, controls, repeats
        axes        {axis: good, levels, shares, alpha, consistency, without_controls (consistency), same, pairs}
        raters      {name: answers, seconds, scripted, axes: {axis: mean, sd, shares, rho, bias, self}, below_good:
                    {controls, real, generated: share of items that were below good on an axis at least}}
        real        {axis: {difference, auroc}}, real minus generated; {} where one of them has no scores
        sources     {model, folder of real images, or kind of control: {kind, axes: {axis: estimate of the mean score}}}
        controls    {kind of control: share of answers that were below good on an axis at least}
        signal      {axis: True, False, or None where it is unknown}; verdict: list of sentences; method
    Raises:
        ValueError: an answer to an item that the pool does not have.
    """
    answers = _newest(pool, answers)
    how = dict(resamples=resamples, seed=seed)
    raters = sorted({answer.rater for answer in answers}, key=str.casefold)
    tables = {axis.name: _Table(pool, answers, raters, axis) for axis in pool.axes}
    found = {"counts": _counts(pool, answers),
             "axes": {name: _of_axis(each, **how) for name, each in tables.items()},
             "raters": {rater: _of_rater(pool, rater, answers, tables, **how) for rater in raters},
             "real": _real_and_generated(tables, **how),
             "sources": _of_sources(pool, tables, **how),
             "controls": _of_controls(pool, answers)}
    found["signal"] = {name: _signal(each) for name, each in found["axes"].items()}
    found["verdict"] = _verdict(found)
    found["method"] = METHOD.format(resamples=f"{resamples:,}")
    return found


class _Table:
    """The scores of one axis: `scores` float (raters, items), nan where there is no answer; `image` (items,) of each item."""

    def __init__(self, pool, answers, raters, axis):
        self.pool, self.axis, self.raters = pool, axis, raters
        self.levels = sorted(axis.levels)
        place = {item.item: number for number, item in enumerate(pool.items)}
        self.image = np.array([place[item.repeat_of or item.item] for item in pool.items])
        self.control = np.array([bool(item.control) for item in pool.items])
        self.scores = np.full((len(raters), len(pool.items)), np.nan)
        for answer in answers:
            self.scores[raters.index(answer.rater), place[answer.item]] = answer.scores[axis.name]
        self.repeats = [(place[item.repeat_of], place[item.item]) for item in pool.items if item.repeat_of]

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
        return self.scores[rater, both], np.nanmean(others[:, both], axis=0) if both.any() else np.zeros(0), self.image[both]

    def with_self(self, rater):
        """(first scores, second scores, images) of the repeated images that a rater has answered twice."""
        both = [(a, b) for a, b in self.repeats if not np.isnan(self.scores[rater, [a, b]]).any()]
        first, second = np.array(both, dtype=int).reshape(-1, 2).T
        return self.scores[rater, first], self.scores[rater, second], self.image[first]


def _newest(pool, answers):
    newest = {}
    for answer in sorted(answers, key=lambda each: each.number):
        if answer.item not in pool.by_name:
            raise ValueError(f"answer {answer.number} of {answer.rater} is to item {answer.item!r}, which the pool in {pool.folder} "
                             "does not have: the ratings belong to another pool")
        newest[answer.rater, answer.item] = answer
    return list(newest.values())


def _counts(pool, answers):
    own = [item for item in pool.items if not item.repeat_of]
    pairs = {(answer.rater, pool.by_name[answer.item].repeat_of or answer.item) for answer in answers}
    by = Counter(image for _, image in pairs)
    return {"answers": len(answers), "items": len(pool.items), "images": len(own), "scored": len(by),
            "scored_by_two": sum(n > 1 for n in by.values()), "raters": len({answer.rater for answer in answers}),
            "real": sum(item.kind == REAL for item in own),
            "generated": sum(item.kind == SYNTHETIC and not item.control for item in own),
            "controls": sum(bool(item.control) for item in own), "repeats": len(pool.items) - len(own)}


def _of_axis(of, **how):
    pairs = [{"raters": [of.raters[a], of.raters[b]], "items": len(of.pair(a, b)[0])}
             | reliability.kappa(*of.pair(a, b), levels=of.levels, **how)
             for a in range(len(of.raters)) for b in range(a + 1, len(of.raters))]
    both = sum(pair["items"] for pair in pairs)
    return {"good": of.axis.good, "levels": {str(level): meaning for level, meaning in of.axis.levels.items()},
            "shares": of.shares(of.scores), "alpha": reliability.alpha(of.counts(), of.image, **how),
            "consistency": reliability.consistency(of.scores, of.image, **how),
            "without_controls": (reliability.consistency(of.scores[:, ~of.control], of.image[~of.control], **how)
                                 if of.control.any() else None),
            "same": sum(pair["same"] * pair["items"] for pair in pairs if pair["items"]) / both if both else None,
            "pairs": pairs}


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
                      "self": {"repeats": len(first)} | reliability.kappa(first, second, repeated, levels=of.levels, **how)}
    below = {answer.item: _below_good(pool, answer) for answer in own}
    shown = {name: list(filter(_is(kind), pool.items)) for name, kind in (("controls", ""), ("real", REAL), ("generated", SYNTHETIC))}
    return {"answers": len(own), "of": len(pool.items), "scripted": is_scripted(rater),
            "seconds": float(statistics.median(answer.seconds for answer in own)), "axes": axes,
            "below_good": {kind: reliability.share(sum(below[item.item] for item in items if item.item in below),
                                                   sum(item.item in below for item in items)) for kind, items in shown.items()}}


def _below_good(pool, answer):
    return any(answer.scores[axis.name] < axis.good for axis in pool.axes)


def _is(kind):
    """Whether an item is of this kind ('real', 'synthetic') and shown as it is, or where kind is '' a control."""
    return lambda item: bool(item.control) if not kind else item.kind == kind and not item.control


def _real_and_generated(tables, **how):
    means = {name: (of.means(_is(REAL)), of.means(_is(SYNTHETIC))) for name, of in tables.items()}
    return {name: reliability.difference(*both, **how) for name, both in means.items() if len(both[0]) and len(both[1])}


def _of_sources(pool, tables, **how):
    found = {}
    for item in pool.items:
        kind = "control" if item.control else item.kind
        name = item.control or item.source.get("model", "") or "unknown"
        found.setdefault(f"{name} (real)" if kind == REAL else f"{name} (control)" if item.control else name, (kind, []))[1].append(item)
    order = sorted(found, key=lambda name: ((REAL, SYNTHETIC, "control").index(found[name][0]), name))
    means = {name: {axis: of.means(lambda item, own={each.item for each in found[name][1]}: item.item in own)
                    for axis, of in tables.items()} for name in order}
    return {name: {"kind": found[name][0], "axes": {axis: reliability.mean(each, range(len(each)), **how)
                                                    for axis, each in means[name].items()}} for name in order}


def _of_controls(pool, answers):
    kinds = {}
    for answer in answers:
        item = pool.by_name[answer.item]
        if item.control:
            kinds.setdefault(item.control, []).append(_below_good(pool, answer))
    return {kind: reliability.share(sum(each), len(each)) for kind, each in sorted(kinds.items())}


def _signal(axis):
    if _only_level(axis):
        return False
    return None if axis["consistency"]["low"] is None else axis["consistency"]["low"] > 0


def _only_level(axis):
    """The one level that all scores have, '' where they differ or there are none."""
    return next((level for level, share in axis["shares"].items() if share == 1), "")


def _verdict(found):
    """Plain sentences, the most important first."""
    counts, raters = found["counts"], found["raters"]
    if not raters:
        return ["There are no answers yet."]
    said = [_overall(found)]
    if len(raters) == 1:
        said.append(f"Only {next(iter(raters))} has answered so far, so nothing shows whether another rater would agree. Let a second "
                    f"one answer {FEW} images or more.")
    elif not counts["scored_by_two"]:
        said.append("No image has answers of two raters yet, so nothing shows whether they agree.")
    for name, axis in found["axes"].items():
        said += _about_axis(name, axis, several=len(raters) > 1 and counts["scored_by_two"])
    for rater, about in raters.items():
        said += _about_leniency(rater, about, [other for other in raters if other != rater]) + _about_care(rater, about)
    for name, compared in found["real"].items():
        said += _about_real(name, compared)
    programs = [rater for rater, about in raters.items() if about["scripted"]]
    if programs:
        said.append(f"{_listed(programs)} {'is a program' if len(programs) == 1 else 'are programs'}, not people: these numbers are a "
                    "rehearsal.")
    return said


def _overall(found):
    yes, no, unknown = ([name for name, signal in found["signal"].items() if signal is kind] for kind in (True, False, None))
    parts = [f"The labels carry a signal in {_listed(yes)}."] * bool(yes)
    parts += [f"They show none in {_listed(no)}." if yes else f"The labels show no signal in {_listed(no)}."] * bool(no)
    parts += [f"It is not known yet whether the labels carry a signal in {_listed(unknown)}."] * bool(unknown)
    return " ".join(parts)


def _about_axis(name, axis, *, several):
    alpha, order, only = axis["alpha"], axis["consistency"], _only_level(axis)
    if only:
        return [f"{name}: every score is {only} ({axis['levels'][only]}). Scores that never differ cannot tell good images from bad "
                "ones."]
    if not several:
        return []
    if order["value"] is None:
        return [f"{name}: no rater's scores differ among the images that two have scored, which tells nothing about agreement."]
    if order["low"] is None:
        return [f"{name}: {order['images']} images with the scores of two raters are too few to tell agreement from chance: {FEW} or "
                "more are needed."]
    if order["low"] > 0:
        said = [f"{name}: raters order the images alike, beyond chance (alpha without leniency {_said(order)}, {order['images']} "
                f"images). {_how_reliable(order['value'])}"]
    else:
        said = [f"{name}: agreement beyond chance is not shown (alpha without leniency {_said(order)}, {order['images']} images). A "
                "filter that learns from these scores may learn noise."]
    if order["low"] > 0 and alpha["value"] is not None and order["value"] - alpha["value"] >= 0.1:
        said.append(f"{name}: they do not use the same numbers (alpha {_said(alpha)}): compare scores of different raters only after "
                    "each rater's leniency is taken out.")
    if order["images"] < FEW:
        said.append(f"{name}: only {order['images']} images have scores of two raters; with {FEW} or more the interval is worth "
                    "deciding by.")
    most = max(axis["shares"], key=axis["shares"].get)
    if axis["shares"][most] >= 0.9:
        said.append(f"{name}: {axis['shares'][most]:.0%} of the scores are {most}. With so little spread alpha can be low although "
                    "raters mostly say the same.")
    rest = axis["without_controls"]
    if order["low"] > 0 and rest and not (rest["low"] is not None and rest["low"] > 0):
        said.append(f"{name}: the agreement rests on the images that were made wrong on purpose. On the others it is not shown "
                    + (f"({_said(rest)})." if rest["value"] is not None else "(their scores do not differ)."))
    return said


def _how_reliable(alpha):
    if alpha >= RELIABLE:
        return f"That is reliable (at least {RELIABLE}, Krippendorff 2004)."
    needed = f"the mean of about {reliability.raters_for(alpha, RELIABLE)} raters would reach {RELIABLE}"
    if alpha >= TENTATIVE:
        return f"That allows tentative conclusions ({TENTATIVE} to {RELIABLE}, Krippendorff 2004); {needed}."
    return (f"But it is below {TENTATIVE}, where Krippendorff (2004) begins to allow tentative conclusions: single scores are noisy; "
            f"{needed}.")


def _about_leniency(rater, about, others):
    said, whom = [], others[0] if len(others) == 1 else "the others"
    for name, axis in about["axes"].items():
        bias = axis["bias"]
        clear = bias["low"] is not None and abs(bias["value"]) >= BIAS and bias["low"] * bias["high"] > 0
        if clear and (len(others) > 1 or bias["value"] > 0):  # of two raters one sentence says it for both
            said.append(f"{rater} scores {name} {abs(bias['value']):.2f} levels {'lower' if bias['value'] < 0 else 'higher'} than "
                        f"{whom} ({bias['low']:+.2f} to {bias['high']:+.2f}): take this out before scores are averaged.")
    return said


def _about_care(rater, about):
    """What repeats and controls say of a rater, where they are enough to say something."""
    said = []
    for name, axis in about["axes"].items():
        own = axis["self"]
        if own["repeats"] >= REPEATS and own["low"] is not None and own["low"] <= 0:
            said.append(f"{rater}: the two scores for {name} of {own['repeats']} images shown twice do not agree beyond chance (kappa "
                        f"{_said(own)}).")
    noticed, real, generated = (about["below_good"][kind] for kind in ("controls", "real", "generated"))
    other, kind = (real, "real") if real["of"] >= 4 else (generated, "generated")
    if noticed["of"] >= 4 and other["of"] and noticed["low"] <= other["value"]:
        said.append(f"{rater} called {noticed['found']} of {noticed['of']} images bad that were made wrong on purpose, and "
                    f"{other['found']} of {other['of']} {kind} ones: that does not show that {rater} sees the difference.")
    return said


def _about_real(name, compared):
    difference, auroc = compared["difference"], compared["auroc"]
    if difference["low"] is None:
        return []
    if difference["low"] <= 0 <= difference["high"]:
        return [f"{name}: real and generated images do not clearly differ (real minus generated {_said(difference)} levels)."]
    return [f"{name}: real images score {'higher' if difference['value'] > 0 else 'lower'} than generated ones (difference "
            f"{_said(difference)} levels; a real one lies above a generated one with a chance of {_said(auroc)}, ties halved)."]


def _said(estimate):
    if estimate["low"] is None:
        return f"{estimate['value']:.2f}"
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def _listed(names):
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
