"""What a filter is worth, measured on ratings that it was not trained on; intervals are bootstrapped over prompts, drawn whole.

An image counts as good where more than half of its ratings, without the raters' bias, call it good on every axis.
"""

import textwrap

import numpy as np
import torch
from scipy.stats import binomtest, rankdata

from libs.metrics.intervals import drawn, interval

from .learning import plain

GRID = tuple(round(0.05 * step, 2) for step in range(20))
RESAMPLES = 500
FEW = 50  # images below which a warning is due
SHOWN = 8  # images of each row of `pictures`
MEANINGS = {  # name of a score: (what it says, which way is better)
    "auroc": ("How often the filter scores an image that raters call good on every axis above one that they do not; a coin does in "
              "half of all cases.", "higher"),
    "auroc_axis": ("The same for good on one axis alone.", "higher"),
    "rated_good": ("Share of the rated images that raters call good on every axis: what comes without a filter.", ""),
    "kept_good": ("The same share of those that the filter keeps.", "higher"),
    "kept": ("Share of the images that the filter keeps: what it costs is one over this share.", "higher"),
    "calibration_error": ("How far the filter's probability is from the share of images that are good (expected calibration "
                          "error).", "lower")}


def judge(judge_of, image, text, found, *, seed=0):
    """Set `report` and `useful` of a `Filter` by `Rated` images of the test part, and return their scores, float32 (N,).

    Args:
        image, text: embeddings (N, Di) and (N, Dt) of the images and of their prompts.
    """
    logits = judge_of.logits_of(image, text)
    scores = judge_of.scores(logits)
    judge_of.report = report(scores, logits, found, threshold=judge_of.threshold, seed=seed)
    judge_of.useful = judge_of.report["useful"]
    return scores


def report(scores, logits, found, *, threshold, seed=0):
    """What a filter is worth on `Rated` images, as a dict that JSON can hold.

    Args:
        scores: (N,), the filter's probabilities. logits: {axis: (N, levels - 1)} of it.
        found: `Rated`, of the same rows.
        threshold: of the scores, from which on images are kept.
    Returns:
        {'n', 'prompts', 'scores': {name: {'value', 'low', 'high', 'n'}}, 'grid': [{'threshold', 'kept', 'kept_good'}],
        'calibration': [{'score', 'good', 'n'}], 'per_class': {label: {'n', 'rated_good', 'kept', 'kept_good'}},
        'generated': the scores without real images and controls, 'useful', 'verdict', 'warnings'}.
    """
    scores, passed = scores.double().numpy(), found.passed.numpy()
    logits = {name: values.double().numpy() for name, values in logits.items()}
    groups = prompt_groups([item.prompt for item in found.items])
    rows = [np.concatenate([groups[i] for i in chosen.tolist()]) for chosen in drawn(len(groups), RESAMPLES, seed=seed)]
    measures = {"auroc": lambda at: auroc(scores[at], passed[at])}
    for number, axis in enumerate(found.axes):
        good, own = found.good[:, number].numpy(), logits[axis.name][:, axis.good - 2]
        measures[f"auroc_{axis.name}"] = lambda at, own=own, good=good: auroc(own[at], good[at])
    measures |= {"rated_good": lambda at: passed[at].mean(),
                 "kept_good": lambda at: _mean(passed[at][scores[at] >= threshold]),
                 "kept": lambda at: (scores[at] >= threshold).mean()}
    table = {name: bootstrapped(measure, rows, len(scores)) for name, measure in measures.items()}
    bins = _bins(scores, passed)
    table["calibration_error"] = _shifted(lambda at: _error(_bins(scores[at], passed[at])), rows, len(scores))
    grid = [{"threshold": cut, "kept": bootstrapped(lambda at: (scores[at] >= cut).mean(), rows, len(scores)),
             "kept_good": bootstrapped(lambda at: _mean(passed[at][scores[at] >= cut]), rows, int((scores >= cut).sum()))}
            for cut in GRID]
    table["kept_good"]["n"] = int((scores >= threshold).sum())
    useful, verdict = _verdict(table, len(scores), len(groups), threshold)
    warnings = list(found.warnings)
    if len(scores) < FEW:
        warnings.append(f"{len(scores)} images in the test: its intervals are wide, and its threshold is a guess; rate more")
    if not useful:
        warnings.append(verdict)
    return {"n": len(scores), "prompts": len(groups), "threshold": threshold, "useful": useful, "verdict": verdict, "scores": table,
            "grid": grid, "calibration": bins, "per_class": _per_class(scores, passed, found.items, threshold),
            "generated": _generated(scores, passed, found.items, threshold), "warnings": warnings}


def auroc(scores, good):
    """Area under the ROC curve by ranks; nan where all or none are good."""
    positive = int(good.sum())
    negative = len(good) - positive
    if not positive or not negative:
        return float("nan")
    return float((rankdata(scores)[good].sum() - positive * (positive + 1) / 2) / (positive * negative))


def share(count, n):
    """{'value', 'low', 'high', 'n'} of count of n, with Wilson's interval at 95 %; None for values where n is 0."""
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    ends = binomtest(int(count), int(n)).proportion_ci(method="wilson")
    return {"value": int(count) / int(n), "low": float(ends.low), "high": float(ends.high), "n": int(n)}


def scores_json(report, *, encoder, nnet, seed):
    """What eval/<name>/scores.json holds of a report, for the page of a run."""
    table = {}
    for name, entry in report["scores"].items():
        text, better = MEANINGS.get(name) or MEANINGS["auroc_axis"]
        if entry["value"] is not None:
            table[name] = {**entry, "meaning": text, "better": better}
    return {"n": report["n"], "seed": seed, "nnet": str(nnet), "features": encoder, "scores": table, "warnings": report["warnings"],
            "interval": f"Intervals: 95 %, bootstrap over the {report['prompts']} prompts of the test, which training did not see",
            "verdict": report["verdict"], "judged": {key: report[key] for key in ("threshold", "useful", "grid", "calibration",
                                                                                 "per_class", "generated")}}


def told(report):
    """The report as lines of text."""
    def cell(entry):
        if entry["value"] is None:
            return "-"
        ends = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
        return f"{entry['value']:.3f}{ends}"
    lines = [f"{name:<20} {cell(entry)}" for name, entry in report["scores"].items()]
    lines += ["threshold   kept                   good among them"]
    lines += [f"  {row['threshold']:<8g} {cell(row['kept']):<22} {cell(row['kept_good'])}" for row in report["grid"][::2]]
    if len(report["per_class"]) > 1:
        lines += ["kept at the threshold, by class"]
        lines += [f"  {name}: {cell(row['kept'])} of {row['n']}" for name, row in report["per_class"].items()]
    return "\n".join([*lines, *[f"warning: {text}" for text in report["warnings"] if text != report["verdict"]], report["verdict"]])


def figures(report, scores, found, pictures, folder):
    """Write calibration.png, yield.png and accepted_rejected.png below `folder`.

    Args:
        scores: (N,). found: `Rated`. pictures: list of N uint8 (C, H, W), all of the same rows.
    """
    _calibration(report, folder / "calibration.png")
    _yield(report, folder / "yield.png")
    _pictures(scores, found, pictures, report["threshold"], folder / "accepted_rejected.png")


def _verdict(table, n, prompts, threshold):
    """(useful, a sentence)."""
    whole, base, kept, yielded = (table[name] for name in ("auroc", "rated_good", "kept_good", "kept"))
    seen = f"on {n} images of {prompts} prompts that it was not trained on"
    if whole["value"] is None:
        return False, f"Not useful: raters call {base['value']:.0%} of the test images good, which tests nothing, {seen}."
    ends = f"{whole['value']:.2f} ({whole['low']:.2f} to {whole['high']:.2f})"
    if whole["value"] <= 0.5:
        return False, f"Not useful: it scores below chance, AUROC {ends} {seen}."
    if whole["low"] <= 0.5:
        return False, f"Not useful: its AUROC of {ends} {seen} is not beyond chance. Rate more images, or images that differ more."
    if kept["value"] is None:
        return False, f"Not useful at its threshold of {threshold:.2f}: it keeps no image {seen}."
    if kept["value"] <= base["value"]:
        return False, (f"Not useful at its threshold of {threshold:.2f}: of the images that it keeps {kept['value']:.0%} are good, "
                       f"of all {base['value']:.0%}, {seen}.")
    return True, (f"Useful: AUROC {ends} {seen}. At its threshold of {threshold:.2f} it keeps {yielded['value']:.0%}, of which "
                  f"{kept['value']:.0%} ({kept['low']:.0%} to {kept['high']:.0%}) are good; of all, {base['value']:.0%} are.")


def prompt_groups(prompts):
    """Row numbers of each prompt, by which resamples draw: a list of arrays."""
    numbers = {}
    for row, prompt in enumerate(prompts):
        numbers.setdefault(plain(prompt), []).append(row)
    return [np.array(rows) for rows in numbers.values()]


def bootstrapped(measure, rows, n):
    """{'value', 'low', 'high', 'n'} of a measure of row numbers; percentiles over resamples where it is defined."""
    value = float(measure(slice(None)))
    values = np.array([float(measure(at)) for at in rows])
    values = values[np.isfinite(values)]
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = (None, None) if len(values) < len(rows) / 2 else np.quantile(values, (0.025, 0.975)).tolist()
    return {"value": value, "low": low, "high": high, "n": n}


def _shifted(measure, rows, n):
    """The same for a measure that resampling makes larger, see `intervals.interval`."""
    value = float(measure(slice(None)))
    low, high = interval(value, [float(measure(at)) for at in rows])
    return {"value": value, "low": max(0.0, low), "high": high, "n": n}


def _mean(values):
    return values.mean() if len(values) else float("nan")


def _bins(scores, passed):
    """[{'score', 'good', 'n'}]: means of images of similar score, as many in each bin."""
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(10, max(2, len(scores) // 15)))
    return [{"score": float(scores[at].mean()), "good": float(passed[at].mean()), "n": len(at)} for at in parts if len(at)]


def _error(bins):
    return sum(each["n"] * abs(each["score"] - each["good"]) for each in bins) / sum(each["n"] for each in bins)


def _per_class(scores, passed, items, threshold):
    found, kept = {}, scores >= threshold
    for label in sorted({item.label for item in items}):
        own = np.array([item.label == label for item in items])
        found[label] = {"n": int(own.sum()), "rated_good": share(passed[own].sum(), own.sum()),
                        "kept": share(kept[own].sum(), own.sum()), "kept_good": share((kept & passed)[own].sum(), kept[own].sum())}
    return found


def _generated(scores, passed, items, threshold):
    """What holds of images as a generator makes them, without the pool's real images and controls."""
    own = np.array([item.kind == "synthetic" and not item.control for item in items])
    kept = own & (scores >= threshold)
    value = auroc(scores[own], passed[own])
    return {"n": int(own.sum()), "auroc": value if np.isfinite(value) else None, "rated_good": share(passed[own].sum(), own.sum()),
            "kept": share(kept.sum(), own.sum()), "kept_good": share(passed[kept].sum(), kept.sum())}


def _calibration(report, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    bins = report["calibration"]
    ends = [share(round(each["good"] * each["n"]), each["n"]) for each in bins]
    error = np.array([[each["good"] - end["low"], end["high"] - each["good"]] for each, end in zip(bins, ends)]).T.clip(0)
    axes.plot((0, 1), (0, 1), color="#888888", linewidth=0.9)
    axes.errorbar([each["score"] for each in bins], [each["good"] for each in bins], yerr=error, color="#1f5f8b", marker="o",
                  markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score of the filter", ylabel="share that raters call good",
             title=f"Calibration, {report['n']} test images")
    _plain_axes(axes)
    figure.savefig(path, metadata={"Software": None})


def _yield(report, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, colour, label in (("kept_good", "#1f5f8b", "good among those kept (precision)"), ("kept", "#b5562b", "kept (yield)")):
        rows = [row for row in report["grid"] if row[name]["value"] is not None]
        x, entries = [row["threshold"] for row in rows], [row[name] for row in rows]
        axes.plot(x, [each["value"] for each in entries], color=colour, linewidth=1.6, label=label)
        known = [(at, each["low"], each["high"]) for at, each in zip(x, entries) if each["low"] is not None]
        if known:
            axes.fill_between(*zip(*known), color=colour, alpha=0.15, linewidth=0)
    axes.axhline(report["scores"]["rated_good"]["value"], color="#888888", linewidth=0.9, linestyle="--", label="good among all")
    axes.axvline(report["threshold"], color="#222222", linewidth=0.9, linestyle=":", label="threshold")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold", ylabel="share", title="What filtering gains and costs")
    _plain_axes(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _pictures(scores, found, pictures, threshold, path):
    """The best and the worst of the accepted images, and of the rejected ones, each under its prompt."""
    from matplotlib.figure import Figure

    order = torch.as_tensor(scores).argsort(descending=True).tolist()
    kept = [i for i in order if scores[i] >= threshold]
    left = [i for i in order if scores[i] < threshold]
    rows = {"accepted, best": kept[:SHOWN], "accepted, worst": kept[SHOWN:][-SHOWN:], "rejected, best": left[:SHOWN],
            "rejected, worst": left[SHOWN:][-SHOWN:]}
    rows = [(title, chosen) for title, chosen in rows.items() if chosen]
    figure = Figure(figsize=(1.62 * SHOWN, 2.55 * len(rows)), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), SHOWN, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, (title, chosen) in zip(grid, rows):
        for axes, i in zip(line, chosen):
            picture = pictures[i].permute(1, 2, 0).numpy()
            axes.imshow(picture.repeat(3, axis=2) if picture.shape[2] == 1 else picture, interpolation="nearest")
            axes.set_title(f"{float(scores[i]):.2f}, raters: {'good' if found.passed[i] else 'not good'}", fontsize=7,
                           color="#1a1a1a" if bool(found.passed[i]) == (title[0] == "a") else "#b5262b")
            text = textwrap.shorten(found.items[i].prompt, 110, placeholder=" ...")
            axes.text(0.5, -0.04, textwrap.fill(text, 26), fontsize=6, ha="center", va="top", transform=axes.transAxes,
                      parse_math=False)
        line[0].text(-0.06, 0.5, title, rotation=90, fontsize=8, ha="right", va="center", transform=line[0].transAxes)
    figure.savefig(path, metadata={"Software": None})


def _plain_axes(axes):
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
