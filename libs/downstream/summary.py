"""What a study found: each arm's scores over all seeds with intervals, its difference to real images alone, in words."""

import csv
import io
import math
from collections import defaultdict

import numpy as np

from libs.downstream import scores as scoring, segmentation

SHOWN = {"auc": "AUC", "f1": "F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "recall": "recall",
         "dice": "Dice"}
HEADLINE = ("dice", "auc", "f1", "balanced_accuracy")  # in tables, sentences and the figure, as far as they are measured
COLUMNS = ("arm", "fraction", "ratio", "metric", "class", "value", "low", "high", "difference", "difference_low",
           "difference_high", "finding", "n_real", "n_synthetic", "n_test", "seeds")
FEW_CLASSES = 12  # of so many the page shows each
TRAINED = {"classification": "classifier", "segmentation": "segmentation network"}
GENERATOR = ("A generator that was trained on more real images than a fraction holds brings those in by way of its images: a "
             "gain there is not one of the fraction alone. It must never have seen the test images; only copies of them can be "
             "found here.")


def summarise(found, kept, test, fractions, *, resamples, seed=0):
    """The rows of a study: one dict with COLUMNS for each arm, fraction and metric.

    The arm without real images stands at every fraction, for its difference to real images alone there.

    Args:
        found: `plan.Training`s. kept: {key: float32 (N, K)} of the test images, logits, or Dice where these have masks.
        test: `images.Images`.
        resamples: draws behind an interval. seed: of these draws.
    """
    labels, groups = test.labels.numpy(), test.groups
    seeds = sorted({training.seed for training in found})
    draws = scoring.Resamples(labels, groups, len(seeds), count=resamples, seed=seed)
    keys = sorted({training.key for training in found})
    whole = np.ones((1, len(labels)))
    if test.masks is None:
        columns, counts, truth, scores = scoring.names(test.classes), test.counts(), labels, scoring.scores
    else:
        counts = test.pairs()
        columns, truth, scores = segmentation.names(test.mask_names), np.array(list(counts.values())) > 0, segmentation.scores
    points = {key: scores(kept[key], truth, whole)[0] for key in keys}
    parts = defaultdict(list)
    for weights in draws.weights():
        for key in keys:
            parts[key].append(scores(kept[key], truth, weights))
    resampled = {key: np.concatenate(blocks) for key, blocks in parts.items()}
    cells = defaultdict(list)  # (arm, fraction) -> trainings in order of seed
    for training in sorted(found, key=lambda each: each.seed):
        for fraction in fractions if math.isnan(training.arm.ratio) else (training.fraction,):
            cells[training.arm.name, fraction].append(training)
    arms = list(dict.fromkeys(training.arm.name for training in found))
    rows = []
    for fraction in sorted(fractions):
        base = cells["real", fraction]
        for arm in arms:
            cell = cells[arm, fraction]
            for column, (metric, name) in enumerate(columns):
                row = {"arm": arm, "fraction": fraction, "ratio": cell[0].arm.ratio, "metric": metric, "class": name,
                       **_values(cell, base, column, points, resampled, draws),
                       "n_real": _mean_count(t.real for t in cell), "n_synthetic": _mean_count(t.synthetic for t in cell),
                       "n_test": counts[name] if name else len(test), "seeds": len(seeds)}
                rows.append(row)
    return rows


def headline(rows):
    """The metrics of HEADLINE that rows have."""
    there = {row["metric"] for row in rows}
    return [metric for metric in HEADLINE if metric in there]


def sentences(rows):
    """What each arm does beside real images alone, a sentence for each arm and fraction."""
    grouped = defaultdict(list)
    for row in rows:
        if row["arm"] != "real" and not row["class"] and row["metric"] in HEADLINE:
            grouped[row["fraction"], row["arm"]].append(row)
    return [f"{share(fraction)}, {arm} instead of real alone: " + "; ".join(
        f"{SHOWN[row['metric']]} {row['difference']:+.3f}{_ends(row, 'difference_')}, {row['finding'] or 'no interval'}"
        for row in group) + "."
        for (fraction, arm), group in grouped.items()]


def warnings(found, rows):
    """What a reader of the rows must know: few seeds, equal trainings, many comparisons."""
    said, seeds = [], {training.seed for training in found}
    if len(seeds) == 1:
        said.append("one seed: the intervals hold what other test images would change, not what another training would")
    elif len(seeds) < 5:
        said.append(f"{len(seeds)} seeds say little about how much trainings differ, and the intervals are widened by "
                    f"{scoring.widening(len(seeds)):.2g} for it; 5 or more (--config.study.seeds) make them narrower")
    compared = len({(row["arm"], row["fraction"]) for row in rows if row["arm"] != "real"})
    if compared > 4:
        said.append(f"{compared} comparisons are made at {scoring.LEVEL:.0%} each: about {compared * (1 - scoring.LEVEL):.1f} of "
                    "them would show a difference where there is none")
    gaps = {f"{SHOWN[row['metric']]}{' of ' + row['class'] if row['class'] else ''}": row["undefined"] for row in rows
            if row["undefined"] > scoring.MOST_UNDEFINED}  # of whatever arm: they share their draws
    if gaps:
        named = [f"{name} ({part:.0%} undefined)" for name, part in gaps.items()]
        said.append(f"no interval where more than {scoring.MOST_UNDEFINED:.0%} of the draws of whole groups miss a class, which "
                    f"needs test images of more groups: {', '.join(named[:10])}{' and others' if named[10:] else ''}")
    same = defaultdict(set)
    for training in found:
        same[training.key].add(f"{training.arm.name} at {share(training.fraction) if training.fraction else 'any share'}")
    said += [f"{' and '.join(sorted(names))} are the same training" for names in
             dict.fromkeys(tuple(sorted(names)) for names in same.values() if len(names) > 1)]
    return said


def as_csv(rows):
    """The rows as the text of a .csv file."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows({key: _cell(row[key]) for key in COLUMNS} for row in rows)
    return stream.getvalue()


def as_markdown(rows, result):
    """The page of a study: how it was done, tables for each fraction, sentences, warnings; `result` is downstream.json."""
    shown, of_class = headline(rows), list(dict.fromkeys(row["metric"] for row in rows if row["class"]))
    lines = [f"# What synthetic images are worth to a {TRAINED[result['task']]}", "",
             *[f"- {text}" for text in result["notes"]], ""]
    classes = [""] + (result["classes"] if len(result["classes"]) <= FEW_CLASSES else [])
    for fraction in dict.fromkeys(row["fraction"] for row in rows):
        here = [row for row in rows if row["fraction"] == fraction]
        lines += [f"## {share(fraction)} of the real images", "",
                  "| trained on | real | synthetic | " + " | ".join(f"{SHOWN[m]} | difference" for m in shown) + " |",
                  "|---|---:|---:|" + "---|---|" * len(shown)]
        for arm in dict.fromkeys(row["arm"] for row in here):
            mean = {row["metric"]: row for row in here if row["arm"] == arm and not row["class"]}
            first = mean[shown[0]]
            cells = [f"{_number(mean[m]['value'])}{_ends(mean[m])} | {_difference(mean[m])}" for m in shown]
            lines.append(f"| {arm} | {_cell(first['n_real'])} | {_cell(first['n_synthetic'])} | {' | '.join(cells)} |")
        lines.append("")
        if len(classes) > 1:
            lines += [f"By class, at {share(fraction)}:", "",
                      "| class | trained on | " + " | ".join(SHOWN[metric] for metric in of_class) + " |",
                      "|---|---|" + "---|" * len(of_class)]
            for name in classes[1:]:
                for arm in dict.fromkeys(row["arm"] for row in here):
                    mine = {row["metric"]: row for row in here if row["arm"] == arm and row["class"] == name}
                    cells = [f"{_number(mine[m]['value'])}{_ends(mine[m])}" for m in of_class]
                    lines.append(f"| {name} (n={mine[of_class[0]]['n_test']}) | {arm} | {' | '.join(cells)} |")
            lines.append("")
    lines += ["## In words", "", *[f"- {text}" for text in result["sentences"]], ""]
    if result["warnings"]:
        lines += ["## Read with care", "", *[f"- {text}" for text in result["warnings"]], ""]
    return "\n".join(lines)


def as_text(rows, result):
    """The same for a terminal: a line for each arm."""
    wide = max(len(row["arm"]) for row in rows)
    lines = [*result["notes"][:-1]]
    for fraction in dict.fromkeys(row["fraction"] for row in rows):
        lines.append(f"{share(fraction)} of the real images")
        for arm in dict.fromkeys(row["arm"] for row in rows):
            mean = {row["metric"]: row for row in rows
                    if row["arm"] == arm and row["fraction"] == fraction and not row["class"]}
            first = mean[headline(rows)[0]]
            lines.append(f"  {arm:{wide}s}  {_cell(first['n_real']):>6s} real {_cell(first['n_synthetic']):>6s} synthetic   "
                         + "   ".join(f"{SHOWN[m]} {_number(mean[m]['value'])}{_ends(mean[m])}" for m in headline(rows)))
    return "\n".join([*lines, *result["sentences"], *[f"warning: {text}" for text in result["warnings"]]])


def figure(rows, path):
    """Draw the scores against the fraction of real images, a line with intervals for each arm, as a PNG at `path`."""
    import matplotlib
    from matplotlib.figure import Figure

    fractions = sorted({row["fraction"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    colours = matplotlib.colormaps["viridis"](np.linspace(0.2, 0.9, max(1, len(arms) - 2)))
    looks = {"real": ("#111111", "o"), "synthetic": ("#c0392b", "s")}
    looks |= {arm: (colour, "^") for arm, colour in zip([arm for arm in arms if arm not in looks], colours)}
    metrics = headline(rows)
    figure = Figure(figsize=(4.6 * len(metrics) if len(metrics) > 1 else 7.0, 4.4), dpi=110, layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for number, arm in enumerate(arms):
            mine = [row for row in rows if row["arm"] == arm and row["metric"] == metric and not row["class"]]
            aside = 1.05 ** (number - (len(arms) - 1) / 2)  # so that intervals stand beside each other
            x = [aside * row["fraction"] for row in mine]
            y = np.array([row["value"] for row in mine])
            ends = np.array([[row["low"], row["high"]] for row in mine])
            error = np.abs(np.nan_to_num(ends.T - y, nan=0.0))
            colour, marker = looks[arm]
            axes.errorbar(x, y, yerr=error, color=colour, marker=marker, markersize=4, linewidth=1.4, elinewidth=0.9,
                          capsize=2, label=arm, linestyle="--" if arm == "synthetic" else "-")
        axes.set_xscale("log")
        axes.set_xticks(fractions, [share(fraction) for fraction in fractions])
        axes.minorticks_off()
        axes.set(xlabel="share of the real images", title=SHOWN[metric])
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(arms), 6), frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _values(cell, base, column, points, resampled, draws):
    """value, low, high of one score of one arm, and its difference to `base`, the arm of real images alone."""
    own = np.array([points[t.key][column] for t in cell])
    spread = np.stack([resampled[t.key][:, column] for t in cell])
    means = draws.mean(spread)
    low, high = scoring.interval(means, 0.0, 1.0)
    row = {"value": float(own.mean()), "low": low, "high": high, "undefined": scoring.undefined(means),
           "per_seed": own.tolist(), "difference": float("nan"), "difference_low": float("nan"),
           "difference_high": float("nan"), "finding": ""}
    if cell is not base:
        real = np.array([points[t.key][column] for t in base])
        change = spread - np.stack([resampled[t.key][:, column] for t in base])
        low, high = scoring.interval(draws.mean(change), -1.0, 1.0)
        row |= {"difference": float((own - real).mean()), "difference_low": low, "difference_high": high,
                "finding": "gain" if low > 0 else "loss" if high < 0 else "" if math.isnan(low) else "no difference shown"}
    return row


def _mean_count(lists):
    counts = [len(values) for values in lists]
    return sum(counts) / len(counts)


def _cell(value):
    """A value as text, the same on every machine; '' where undefined."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _number(value):
    return "-" if math.isnan(value) else f"{value:.3f}"


def _ends(row, before=""):
    low, high = row[f"{before}low"], row[f"{before}high"]
    return "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"


def _difference(row):
    return "" if math.isnan(row["difference"]) else f"{row['difference']:+.3f}{_ends(row, 'difference_')}"


def share(fraction):
    """A fraction in words: '10 %'."""
    return f"{100 * fraction:.4g} %"
