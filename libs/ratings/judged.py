"""What a filter is worth, measured on ratings that it was not trained on; intervals are bootstrapped over prompts, drawn whole.

An image counts as good where more than half of its ratings, without the raters' bias, call it good on every axis. Real images and
controls are easier to tell from the rest than one generated image from another, so what holds of the generated ones alone is told
beside what holds of all.
"""

import textwrap

import numpy as np
import torch
from scipy.stats import binomtest, rankdata

from libs.metrics.intervals import drawn, interval

from .learning import plain
from .pool import SYNTHETIC

GRID = tuple(round(0.05 * step, 2) for step in range(20))
RESAMPLES = 500
FEW = 50  # images below which a warning is due
LEAST_GROUPS, LEAST_EACH = 20, 5  # prompts (images, in a split by image), and good and bad images, that a test of use takes
SHOWN = 8  # images of each row of `pictures`
MEANINGS = {  # name of a score: (what it says, which way is better)
    "auroc": ("How often the filter scores an image that raters call good on every axis above one that they do not; a coin does in "
              "half of all cases.", "higher"),
    "auroc_axis": ("The same for good on one axis alone.", "higher"),
    "rated_good": ("Share of the rated images that raters call good on every axis: what comes without a filter.", ""),
    "kept_good": ("The same share of those that the filter keeps.", "higher"),
    "kept": ("Share of the images that the filter keeps: what it costs is one over this share.", "higher"),
    "calibration_error": ("How far the filter's probability is from the share of images that are good (expected calibration "
                          "error).", "lower"),
    "auroc_generated": ("The first score on generated images alone, without real images and controls, which are easier to tell "
                        "apart.", "higher"),
    "rated_good_generated": ("Share of the generated images that raters call good on every axis.", ""),
    "kept_good_generated": ("The same share of those generated images that the filter keeps.", "higher"),
    "kept_generated": ("Share of the generated images that the filter keeps.", "higher")}
GENERATED = "_generated"


def judge(judge_of, image, text, found, *, by="prompt", seed=0):
    """Set `report` and `useful` of a `Filter` by `Rated` images of the test part, and return their scores, float32 (N,).

    Args:
        image, text: embeddings (N, Di) and (N, Dt) of the images and of their prompts.
        by: as of `report`.
    """
    logits = judge_of.logits_of(image, text)
    scores = judge_of.scores(logits)
    judge_of.report = report(scores, logits, found, threshold=judge_of.threshold, by=by, seed=seed)
    judge_of.useful = judge_of.report["useful"]
    return scores


def report(scores, logits, found, *, threshold, by="prompt", seed=0):
    """What a filter is worth on `Rated` images, as a dict that JSON can hold.

    Args:
        scores: (N,), the filter's probabilities. logits: {axis: (N, levels - 1)} of it.
        found: `Rated`, of the same rows.
        threshold: of the scores, from which on images are kept.
        by: what the test was held out by, and intervals are over: 'prompt' (no prompt of it was trained on) or 'image'.
    Returns:
        {'n', 'prompts', 'by', 'scores': {name: {'value', 'low', 'high', 'n'}}, 'grid': [{'threshold', 'kept', 'kept_good'}],
        'calibration': [{'score', 'good', 'n'}], 'per_class': {label: {'n', 'rated_good', 'kept', 'kept_good'}},
        'generated': the scores without real images and controls, 'shown_on_generated': whether these alone are told apart beyond
        chance, 'useful', 'verdict', 'warnings'}.
    """
    scores, passed = scores.double().numpy(), found.passed.numpy()
    logits = {name: values.double().numpy() for name, values in logits.items()}
    prompts = prompt_groups([item.prompt for item in found.items])
    groups = prompts if by == "prompt" else groups_of([item.sha256 for item in found.items])
    rows = [np.concatenate([groups[i] for i in chosen.tolist()]) for chosen in drawn(len(groups), RESAMPLES, seed=seed)]
    measures = {"auroc": lambda at: auroc(scores[at], passed[at])}
    for number, axis in enumerate(found.axes):
        good, own = found.good[:, number].numpy(), logits[axis.name][:, axis.good - 2]
        measures[f"auroc_{axis.name}"] = lambda at, own=own, good=good: auroc(own[at], good[at])
    measures |= {"rated_good": lambda at: passed[at].mean(),
                 "kept_good": lambda at: _mean(passed[at][scores[at] >= threshold]),
                 "kept": lambda at: (scores[at] >= threshold).mean()}
    table = {name: bootstrapped(measure, rows, len(scores)) for name, measure in measures.items()}
    generated = _generated(scores, passed, found.items, threshold, rows)
    table |= {f"{name}{GENERATED}": entry for name, entry in generated.items()}
    bins = _bins(scores, passed)
    table["calibration_error"] = _shifted(lambda at: _error(_bins(scores[at], passed[at])), rows, len(scores))
    grid = [{"threshold": cut, "kept": bootstrapped(lambda at: (scores[at] >= cut).mean(), rows, len(scores)),
             "kept_good": bootstrapped(lambda at: _mean(passed[at][scores[at] >= cut]), rows, int((scores >= cut).sum()))}
            for cut in GRID]
    table["kept_good"]["n"] = int((scores >= threshold).sum())
    shown = _beyond_chance(generated["auroc"])
    useful, verdict = _verdict(table, passed, len(prompts), len(groups), by, threshold)
    warnings = list(found.warnings)
    if len(scores) < FEW:
        warnings.append(f"{len(scores)} images in the test: its intervals are wide, and its threshold is a guess; rate more")
    if not useful or not shown:
        warnings.append(verdict)
    return {"n": len(scores), "prompts": len(prompts), "by": by, "threshold": threshold, "useful": useful,
            "verdict": verdict, "scores": table, "grid": grid, "calibration": bins,
            "per_class": _per_class(scores, passed, found.items, threshold),
            "generated": {"n": generated["auroc"]["n"], **generated}, "shown_on_generated": shown, "warnings": warnings}


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
            "interval": f"Intervals: 95 %, bootstrap over the {_held_out(report['n'], report['prompts'], report['by'])}",
            "verdict": report["verdict"],
            "judged": {key: report[key] for key in ("threshold", "by", "useful", "shown_on_generated", "grid", "calibration",
                                                    "per_class", "generated")}}


def _held_out(n, prompts, by):
    if by == "prompt":
        return f"{prompts} prompts of the test, which training did not see"
    return f"{n} images of the test, which training did not see; their {prompts} prompts it did"


def told(report):
    """The report as lines of text."""
    def cell(entry):
        if entry["value"] is None:
            return "-"
        ends = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
        return f"{entry['value']:.3f}{ends}"
    lines = [f"{name:<22} {cell(entry)}" for name, entry in report["scores"].items()]
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


def _verdict(table, passed, prompts, groups, by, threshold):
    """(useful, sentences)."""
    whole, base, kept, yielded, own = (table[name] for name in ("auroc", "rated_good", "kept_good", "kept", f"auroc{GENERATED}"))
    seen = (f"on {len(passed)} images of {prompts} prompts that it was not trained on" if by == "prompt" else
            f"on {len(passed)} images that it was not trained on, of {prompts} prompts that it was")
    at, alone = f"at its threshold of {threshold:.2f}", _on_generated(own)
    if whole["value"] is None:
        return False, f"Not useful: raters call {base['value']:.0%} of the test images good, which tests nothing, {seen}."
    if whole["value"] <= 0.5:
        return False, f"Not useful: it scores below chance, AUROC {_ends(whole)} {seen}."
    good = int(passed.sum())
    if groups < LEAST_GROUPS or min(good, len(passed) - good) < LEAST_EACH:
        units = "prompts" if by == "prompt" else "images"
        return False, (f"Not useful: too few {units} in the test to tell, {groups} with {good} good and {len(passed) - good} other "
                       f"images, AUROC {_ends(whole)} {seen}. {LEAST_GROUPS} {units} are needed, with {LEAST_EACH} good and "
                       f"{LEAST_EACH} other images; rate images of more {units}.")
    if not _beyond_chance(whole):
        return False, (f"Not useful: its AUROC of {_ends(whole)} {seen} is not beyond chance. Rate more images, or images that "
                       "differ more.")
    if own["value"] is not None and own["value"] <= 0.5:
        return False, (f"Not useful: its AUROC of {_ends(whole)} {seen} comes from real images and controls; on the {own['n']} "
                       f"generated images alone it is {_ends(own)}, no better than chance.")
    if kept["value"] is None:
        return False, f"Not useful {at}: it keeps no image {seen}.{alone}"
    if kept["value"] <= base["value"]:
        return False, (f"Not useful {at}: of the images that it keeps {kept['value']:.0%} are good, of all {base['value']:.0%}, "
                       f"{seen}.{alone}")
    return True, (f"Useful: AUROC {_ends(whole)} {seen}. A{at[1:]} it keeps {yielded['value']:.0%}, of which "
                  f"{_ends(kept, '.0%')} are good; of all, {base['value']:.0%} are.{alone}")


def _on_generated(own):
    """What is to be said of the generated images alone, where that is less than of all."""
    if own["value"] is None:
        return (" On generated images alone it is not shown to do better than chance: raters call all of them good, or none"
                if own["n"] else " There are no generated images in the test, and nothing is shown of them") + "."
    if not _beyond_chance(own):
        return f" On the {own['n']} generated images alone it is not shown to do better than chance: AUROC {_ends(own)}."
    return f" On the {own['n']} generated images alone: AUROC {_ends(own)}."


def _beyond_chance(entry):
    """Whether an AUROC has an interval, all of it above one half."""
    return entry["low"] is not None and entry["low"] > 0.5


def _ends(entry, form=".2f"):
    if entry["low"] is None:
        return f"{entry['value']:{form}} (no interval)"
    return f"{entry['value']:{form}} ({entry['low']:{form}} to {entry['high']:{form}})"


def prompt_groups(prompts):
    """Row numbers of each prompt, by which resamples draw: a list of arrays."""
    return groups_of([plain(prompt) for prompt in prompts])


def groups_of(keys):
    """Row numbers of each key: a list of arrays."""
    numbers = {}
    for row, key in enumerate(keys):
        numbers.setdefault(key, []).append(row)
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


def _generated(scores, passed, items, threshold, rows):
    """{name: entry} of images as a generator makes them, without the pool's real images and controls."""
    own = np.array([item.kind == SYNTHETIC and not item.control for item in items])
    kept = own & (scores >= threshold)
    measures = {"auroc": lambda at: auroc(scores[at][own[at]], passed[at][own[at]]),
                "rated_good": lambda at: _mean(passed[at][own[at]]), "kept_good": lambda at: _mean(passed[at][kept[at]]),
                "kept": lambda at: _mean(kept[at][own[at]])}
    return {name: bootstrapped(measure, rows, int(kept.sum() if name == "kept_good" else own.sum()))
            for name, measure in measures.items()}


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
