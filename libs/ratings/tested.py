"""A filter on a pool that it was not trained on: what it accepts of right and of wrong images."""

import numpy as np

from .judged import GRID, RESAMPLES, auroc, bootstrapped, drawn, prompt_groups, share


def tested(scores, right, items, *, threshold, seed=0):
    """What a filter accepts, where it is known which images are right.

    Args:
        scores: (N,) in [0, 1], by the filter. right: bool (N,). items: `pool.Item`, N of them.
        threshold: from which on it accepts.
    Returns:
        {'n', 'prompts', 'threshold', 'auroc', 'wrong': share of all images, 'accepted': share, 'wrong_accepted': share of wrong
        images among those accepted, 'factor': wrong / wrong_accepted, 'kinds': {kind: share accepted}, 'grid': [...]}: numbers as
        {'value', 'low', 'high', 'n'}, with 95 % intervals by a bootstrap over prompts; of kinds Wilson's.

    Raises:
        ValueError: no image, or all are right, or all wrong.
    """
    scores, right = np.asarray(scores, float), np.asarray(right, bool)
    if not len(right) or right.all() or not right.any():
        raise ValueError(f"{int(right.sum())} of {len(right)} images are right: a test needs right and wrong ones")
    groups = prompt_groups([item.prompt for item in items])
    rows = [np.concatenate([groups[i] for i in chosen.tolist()]) for chosen in drawn(len(groups), RESAMPLES, seed=seed)]

    def at(cut):
        def wrong_among(index):
            taken = ~right[index][scores[index] >= cut]
            return taken.mean() if len(taken) else np.nan

        taken = int((scores >= cut).sum())
        found = {"threshold": float(cut), "accepted": bootstrapped(lambda index: (scores[index] >= cut).mean(), rows, len(scores)),
                 "wrong_accepted": bootstrapped(wrong_among, rows, taken)}
        return found | {"factor": bootstrapped(lambda index: _ratio((~right[index]).mean(), wrong_among(index)), rows, taken)}

    kinds = {}
    for item, score, good in zip(items, scores, right):
        kind = item.control or (f"{item.kind}, {'right' if good else 'wrong'}")
        kinds.setdefault(kind, []).append(score >= threshold)
    return {"n": len(right), "prompts": len(groups), **at(threshold),
            "auroc": bootstrapped(lambda index: auroc(scores[index], right[index]), rows, len(right)),
            "wrong": bootstrapped(lambda index: (~right[index]).mean(), rows, len(right)),
            "kinds": {kind: share(sum(taken), len(taken)) for kind, taken in sorted(kinds.items())},
            "grid": [at(cut) for cut in GRID]}


def _ratio(before, after):
    return before / after if after else np.inf if before else np.nan


def told(found):
    """`tested` as text."""
    def number(entry, scale=1.0):
        if entry["value"] is None or not np.isfinite(entry["value"]):
            return "-" if entry["value"] is None or np.isnan(entry["value"]) else "all"
        ends = f" [{scale * entry['low']:.3g}, {scale * entry['high']:.3g}]" if entry["low"] is not None else ""
        return f"{scale * entry['value']:.3g}{ends}"

    def line(row):
        return (f"  {row['threshold']:<9.3g} {number(row['accepted'], 100):26s} {number(row['wrong_accepted'], 100):26s} "
                f"{number(row['factor'])}")

    lines = [f"{found['n']} images of {found['prompts']} prompts, of which {number(found['wrong'], 100)} % are wrong; AUROC "
             f"{number(found['auroc'])}",
             f"  {'threshold':9s} {'accepted, %':26s} {'wrong among them, %':26s} fewer wrong by the factor",
             line(found) + "   <- the filter's", *map(line, found["grid"]), "accepted at the filter's threshold, by kind"]
    return "\n".join(lines + [f"  {kind:20s} {number(entry, 100)} % of {entry['n']}" for kind, entry in found["kinds"].items()])
