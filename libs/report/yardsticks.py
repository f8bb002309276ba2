"""Which scores of several runs may stand beside each other, and which value of them is best.

A score says something beside another one only where both were measured alike: against the same real images, by a judge with
the same weights and, where the metric depends on it, from the same number of images. scores.json says so by hashes; older ones
by the name of the cached statistics, which is a hash of the real images and of the network together.
"""

import re
from collections import Counter
from typing import NamedTuple

from libs.report.meanings import MEANINGS

# Metrics whose expected value moves with the number of generated images; the others only become surer.
MOVE_WITH_N = ("fid", "fd", "recall", "coverage", "is")
OWN_JUDGES = {"agreement": "agreement", "dice": "following"}  # metrics that a network beside the feature networks judges


class Yardstick(NamedTuple):
    """What a score is measured by: equal ones are the same. reference: key of the cached statistics, or the file of them."""

    reference: str
    real: str = ""
    weights: str = ""


def kind(metric):
    """The name that MEANINGS knows a metric by: 'fd' of 'fd_inception'; the first word of one that is not known."""
    return max((key for key in MEANINGS if f"{metric}_".startswith(f"{key}_")), key=len, default=metric.split("_")[0])


def feature_names(evaluation):
    """The feature networks of an evaluation, in order."""
    known = [name for name in evaluation["judges"] if name not in OWN_JUDGES.values()]
    return known or [name for name in str(evaluation.get("features") or "").split(", ") if name]


def judge(evaluation, metric):
    """Who judged a metric: the feature network, 'agreement' or 'following'; '' where nothing says so."""
    if kind(metric) in OWN_JUDGES:
        return OWN_JUDGES[kind(metric)]
    names = ["inception"] if metric == "fid" else [name for name in feature_names(evaluation) if metric.endswith(f"_{name}")]
    return max(names, key=len, default="")


def yardstick(evaluation, name):
    """The `Yardstick` of the judge `name`; None where the evaluation does not say enough."""
    known, real = evaluation["judges"].get(name) or {}, evaluation["real"].get("fingerprint") or ""
    weights = str(known.get("weights") or "")
    if name in OWN_JUDGES.values():
        return Yardstick("", real, weights) if weights and real else None
    text = str(known.get("reference") or evaluation.get("reference") or "")
    cached = re.search(rf"-{re.escape(name.replace('/', '_'))}-([0-9a-f]{{16}})\.npz\)", text)
    if cached:
        return Yardstick(cached[1])
    file = re.search(r"\(([0-9a-f]{16})\)", text)
    return Yardstick(file[1] if file else text, real, weights) if text and name else None


def marks(evaluation):
    """All yardsticks of an evaluation, to tell it from others."""
    names = {*feature_names(evaluation), *evaluation["judges"]}
    return frozenset((name, yardstick(evaluation, name)) for name in names)


def column(runs, metric, entries):
    """Which runs may stand in one column of a metric.

    Args:
        runs: [Run], in order.
        entries: {run name: score} of those that have the metric.

    Returns:
        (kept, reasons): the entries of the largest group that was measured alike, {} where no two were; {run name: why not} of
        the others.
    """
    found = {}
    for run in runs:
        if run.name in entries:
            measured = yardstick(run.evaluation, judge(run.evaluation, metric)) if run.evaluation else None
            n = entries[run.name]["n"] if kind(metric) in MOVE_WITH_N else None
            found[run.name] = (measured or run.name, n)
    if len(found) < 2:
        return {}, {name: "no other run has it" for name in found}
    sizes = Counter(found.values())
    alike = max(found.values(), key=sizes.get)  # of equal groups the first
    first = next(name for name in found if found[name] == alike)
    by_name = {run.name: run for run in runs}
    reasons = {name: difference(by_name[name], by_name[first], metric) for name in found
               if found[name] != alike or (sizes[alike] == 1 and name != first)}
    if sizes[alike] == 1:
        reasons[first] = "no other run was measured like it"
        return {}, reasons
    return {name: entries[name] for name in found if found[name] == alike}, reasons


def difference(run, other, metric):
    """Why a metric of two runs is not comparable, in words about the first."""
    if not run.evaluation or not other.evaluation:
        return "no evaluation says which real images and which network it is measured by"
    name = judge(run.evaluation, metric)
    own, its = (yardstick(each.evaluation, name) for each in (run, other))
    if own is None or its is None:
        which = run if own is None else other
        return f"the scores.json of {which.name} does not say by which network it was judged: evaluate it again"
    if own == its:
        return f"measured on another number of images than {other.name}, with which this metric moves"
    return f"{unlike(run.evaluation, other.evaluation, name)} than {other.name}"


def in_words(evaluation, overall, by_class):
    """What is left out, short: 'all scores by X', or the metrics by name; by_class: of which only scores by class may be."""
    parts = []
    for name in dict.fromkeys(judge(evaluation, metric) for metric in [*overall, *by_class]):
        own = [metric for metric in overall if judge(evaluation, metric) == name]
        every = [metric for metric in evaluation["scores"] if judge(evaluation, metric) == name]
        parts += [f"all scores by {name}"] if name and len(own) > 1 and set(every) <= set(own) else own
        parts += [f"{metric} by class" for metric in by_class if judge(evaluation, metric) == name and metric not in own]
    return ", ".join(parts)


def unlike(own, its, name):
    """What differs between the yardsticks of two evaluations, as 'compared with other real images (...)'."""
    ours, theirs = own["real"].get("fingerprint"), its["real"].get("fingerprint")
    weights = [str((each["judges"].get(name) or {}).get("weights") or "") for each in (own, its)]
    said = []
    if ours and theirs and ours != theirs:
        said.append(f"compared with other real images ({told(own)}, not {told(its)})")
    elif all(weights) and weights[0] != weights[1]:  # a classifier of other images has other weights anyway
        said.append(f"judged by other weights of {name} ({weights[0][:8]}, not {weights[1][:8]})")
    if not said:
        keys = [(yardstick(each, name) or Yardstick("nothing that is told")).reference for each in (own, its)]
        said.append(f"measured against other real images or by other weights of {name} (statistics {keys[0]}, not {keys[1]})")
    return said[0]


def told(evaluation):
    """The real images of an evaluation in words."""
    real = evaluation["real"]
    return f"{real.get('images')} of {real.get('name')}, {str(real.get('fingerprint'))[:8]}"


def best(metric, cells):
    """The name of the run whose value is best and whose interval overlaps that of no other; '' where there is none.

    An interval without width, of a share that none or all of n images have, is taken as 3 / n wide to either side: the bootstrap
    cannot draw what was not seen, and 3 / n is the 95 % bound for what n trials did not show.

    cells: {run name: score} of one column.
    """
    entries = list(cells.values())
    way = next((entry["better"] for entry in entries if entry.get("better")), MEANINGS.get(kind(metric), ("", ""))[1])
    if way not in ("lower", "higher") or len(cells) < 2 or any(entry["low"] is None for entry in entries):
        return ""
    ends = {name: (entry["low"] - slack, entry["high"] + slack) for name, entry in cells.items()
            for slack in [3 / entry["n"] if entry["low"] == entry["high"] and entry["n"] else 0.0]}
    name = (min if way == "lower" else max)(cells, key=lambda each: cells[each]["value"])
    others = [ends[each] for each in cells if each != name]
    low, high = ends[name]
    return name if all(high < its[0] if way == "lower" else low > its[1] for its in others) else ""
