"""The page of several runs side by side: their scores, what they cost, their images and their course.

Read are the run folders alone (libs/report/compared.py). Only scores that were measured alike stand in one column
(libs/report/yardsticks.py); what makes the comparison unfair stands at its top (libs/report/fairness.py).
"""

from pathlib import Path

import numpy as np

from libs import report
from libs.engine.checkpoint import write_text
from libs.report import comparison_files, fairness
from libs.report.compared import Run, choose
from libs.report.figures import curves, png, ramp
from libs.report.meanings import COLOUR
from libs.report.yardsticks import best, column, feature_names, in_words, judge, kind, yardstick

RULE = ("Marked is the best value of a column where its 95 % interval overlaps that of no other run there (one without width, "
        "where none or all of n images count, is taken as 3 / n wide); where nothing is marked, the intervals do not tell the runs "
        "apart. They are over the images drawn from one training each, and do not say how far another training seed would move a "
        "value.")
CURVES = ("fid", "fd", "accuracy")  # of what training logs
IMAGES = 96  # of one run, at most; half of it above 64 pixels
EACH = 8  # images of a class, at most
UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def write_comparison(workdirs, out, *, names=(), name="", title=""):
    """Write <out>/comparison.html, .json, .csv, .md and .tex; returns (Path of the page, what makes the comparison unfair).

    Args:
        workdirs: run folders, at least two, of any family.
        names: what to call them; by default their folders' names.
        name: the evaluation of each run, eval/<name>; '' takes the main one that all share: ordinary prompts, most images.

    Raises:
        ValueError: fewer than two runs, one named twice, one that is no run of a generative model, or none is evaluated.
    """
    found = contents(workdirs, names=names, name=name)
    out = Path(out)
    title = title or " and ".join([", ".join(run.name for run in found["runs"][:-1]), found["runs"][-1].name])
    templates = report.templates()
    templates.filters.update(engineering=engineering)
    page = templates.get_template("comparison.html.j2").render(found, title=title)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.html", page)
    for ending, text in comparison_files.texts(found, title).items():
        write_text(out / f"comparison.{ending}", text)
    return out / "comparison.html", found["faults"]


def contents(workdirs, *, names=(), name=""):
    """What the template shows, as a dict; the arguments of `write_comparison`."""
    warnings, workdirs = [], [str(each) for each in workdirs if str(each).strip()]
    names = called(workdirs, names)
    runs = [Run(workdir, each, warnings) for workdir, each in zip(workdirs, names)]
    choose(runs, name)
    if not any(run.evaluation for run in runs):
        what = f"an evaluation {name!r}" if name else "an evaluation"
        raise ValueError(f"none of the runs has {what}. To make them:\n  " + "\n  ".join(run.command(name=name) for run in runs))
    left_out = {}  # (run, reason): (metrics of all images, metrics by class)
    overall, drawings = scores(runs, left_out), pictures(runs, warnings)  # what cannot be read there becomes a warning
    return {"runs": runs, "facts": {run.name: run.facts() for run in runs}, "rule": RULE, "faults": fairness.faults(runs, name),
            "remarks": fairness.remarks(runs) + warnings, "evaluations_say": fairness.evaluations_say(runs),
            "scores": overall, "per_class": per_class(runs, left_out),
            "left_out": [{"run": name, "what": in_words(next(run.evaluation for run in runs if run.name == name), *metrics),
                          "reason": reason, "metrics": metrics[0], "by_class": metrics[1]}
                         for (name, reason), metrics in left_out.items()],
            "pictures": drawings, "nearest": nearest(runs), "charts": charts(runs), "small_n": report.SMALL_N,
            "intervals": list(dict.fromkeys(run.evaluation["interval"] for run in runs if (run.evaluation or {}).get("interval")))}


def called(workdirs, names):
    """A name for each run folder: those given, or as much of the end of its path as tells the folders apart."""
    if len(workdirs) < 2:
        raise ValueError(f"{len(workdirs)} run folders: give two or more, --workdirs=workdir/a,workdir/b")
    paths = [Path(each).resolve() for each in workdirs]
    twice = next((str(path) for i, path in enumerate(paths) if path in paths[:i]), None)
    if twice:
        raise ValueError(f"{twice} is given twice")
    names = [str(each).strip() for each in names]
    if names:
        if len(names) != len(workdirs) or len(set(names)) < len(names) or "" in names:
            raise ValueError(f"--names gives {names} for {len(workdirs)} run folders: one name for each is needed, all different")
        return names
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return workdirs


def scores(runs, left_out):
    """The tables of scores of all images, one for each judge.

    Returns:
        [{'judge', 'metrics': {metric: {run name: score and whether it is 'best'}}}]; why a score is not there stands in
        `left_out`.
    """
    tables = {}
    for metric in metrics_of(runs, lambda run: run.evaluation["scores"]):
        entries = {run.name: run.evaluation["scores"][metric] for run in runs
                   if run.evaluation and metric in run.evaluation["scores"]}
        kept = fair(runs, metric, entries, left_out)
        if kept:
            names = {judge(run.evaluation, metric) for run in runs if run.name in kept}
            tables.setdefault(names.pop(), {})[metric] = kept
    return [{"judge": name, "metrics": in_order(table)} for name, table in tables.items()]


def per_class(runs, left_out):
    """{metric: {class: {run name: score and whether it is 'best'}}} of the metrics that at least two runs have."""
    classes = dict.fromkeys(name for run in runs for name in ordered(run))
    found = {}
    for metric in metrics_of(runs, lambda run: {key: None for row in run.evaluation["per_class"].values() for key in row}):
        for name in classes:
            entries = {run.name: run.evaluation["per_class"][name][metric] for run in runs
                       if run.evaluation and metric in run.evaluation["per_class"].get(name, {})}
            kept = fair(runs, metric, entries, left_out, by_class=True)
            if kept:
                found.setdefault(metric, {})[name] = kept
    return in_order(found)


def fair(runs, metric, entries, left_out, by_class=False):
    """The entries that may stand in one column, as `report.score` gives them, with 'best'; reasons for others go to `left_out`."""
    kept, reasons = column(runs, metric, entries)
    for name, reason in reasons.items():
        metrics = left_out.setdefault((name, reason), ([], []))[by_class]
        metrics += [metric] if metric not in metrics else []
    first = best(metric, kept)
    return {name: {**report.score(entry), "number": entry["value"], "best": name == first} for name, entry in kept.items()}


def metrics_of(runs, table):
    """The metrics of all runs, each once."""
    return list(dict.fromkeys(metric for run in runs if run.evaluation for metric in table(run)))


def in_order(table):
    """A dict of metrics in the order of report.HEADLINE, others after them as they come."""
    rank = {name: place for place, name in enumerate(report.HEADLINE)}
    return {metric: table[metric] for metric in sorted(table, key=lambda each: rank.get(kind(each), len(rank)))}


def ordered(run):
    """The classes that a run's evaluation tells apart, in the order of its labels."""
    names = run.evaluation["per_class"] if run.evaluation else {}
    return sorted(names, key=lambda name: run.classes.index(name) if name in run.classes else len(run.classes))


def shown(run, warnings):
    """The arrays of the shown.npz of a run's evaluation, {} where there are none."""
    path = run.evaluation["path"] / "shown.npz" if run.evaluation else None
    try:
        if path is not None:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if file[name].size}
    except FileNotFoundError:
        warnings.append(f"{run.name}: {path.name} of its evaluation is missing, so none of its images are shown")
    except Exception as error:  # a damaged archive fails in many ways, and none of them may cost the page
        warnings.append(f"{run.name}: {path.name} of its evaluation could not be read: {error!r}")
    return {}


def pictures(runs, warnings):
    """Real and generated images: {'rows': [{'name', 'real': [uri], 'runs': {run name: [uri]}}], 'left_out', 'size', 'real_of'}.

    The same classes in rows, as many images of each run; real ones are those of the first evaluation that keeps some. None where
    no evaluation keeps images.
    """
    for run in runs:
        run.arrays = shown(run, warnings)
    drawn = {run: by_class(run.arrays["arr_0"], run.arrays.get("arr_1"), run.classes) for run in runs if "arr_0" in run.arrays}
    if not drawn:
        return None
    beside = next((run for run in drawn if "arr_5" in run.arrays), None)
    real = by_class(beside.arrays["arr_5"], beside.arrays.get("arr_6"), beside.classes) if beside else {}
    names = list(dict.fromkeys(name for table in drawn.values() for name in table))
    size = max(run.arrays["arr_0"].shape[2] for run in drawn)
    images = IMAGES if size <= 64 else IMAGES // 2
    most = max(2, min(EACH if len(names) > 1 else 3 * EACH, images // len(names)))
    rows = []
    for name in names[:images // 2]:
        n = min([most] + [len(table[name]) for table in drawn.values() if name in table])
        rows.append({"name": name, "real": [png(image) for image in real.get(name, [])[:n]],
                     "runs": {run.name: [png(image) for image in table.get(name, [])[:n]] for run, table in drawn.items()}})
    return {"rows": rows, "left_out": len(names) - len(rows), "size": size, "real_of": beside.name if beside else "",
            "names": [run.name for run in drawn]}


def by_class(images, labels, classes):
    """{class name: images}; all under '' where there are no labels."""
    labels = np.zeros(len(images), int) if labels is None else labels.ravel().astype(int)
    return {name: images[labels == label] for label, name in report.class_names(labels, classes).items()}


def nearest(runs):
    """How near the shown images are to real ones: {'judge', 'runs': {run name: {...}}, 'apart': names that are measured otherwise}.

    None where no evaluation keeps such distances.
    """
    found = {run: report.nearest(run.arrays, run.classes, pairs=0, by_colour=feature_names(run.evaluation)[:1] == [COLOUR])
             for run in runs if run.arrays}
    found = {run: each | {"closest": float(run.arrays["arr_3"].min())} for run, each in found.items() if each}
    measured = {run: (feature_names(run.evaluation) or [""])[0] for run in found}
    measured = {run: (name, yardstick(run.evaluation, name)) for run, name in measured.items()}
    first = next(iter(found), None)
    alike = [run for run in found if measured[run] == measured[first] and measured[run][1] is not None]
    keys = ("n", "closest", "median", "usual", "close", "n_close", "by_colour")
    return {"judge": measured[first][0], "runs": {run.name: {key: found[run][key] for key in keys} for run in alike},
            "real_known": np.isfinite(found[first]["close"]) if alike else False,
            "apart": [run.name for run in found if run not in alike]} if alike else None


def charts(runs):
    """Scores over training: [{'metric', 'n', 'unit', 'lines': {run name: (steps, seconds, values)}, 'keys', 'by_step', 'by_time'}].

    Only runs that were measured alike share a chart; 'without' names the others, with the reason.
    """
    found = []
    logged = {run: {metric for row in run.records.get("eval", {}).values() for metric in row} for run in runs}
    for metric in sorted({metric for names in logged.values() for metric in names if kind(metric) in CURVES},
                         key=lambda each: (CURVES.index(kind(each)), each)):
        rows = {run: [(step, row[metric], int(row.get("n", 0))) for step, row in run.records["eval"].items()
                      if np.isfinite(row.get(metric, np.nan))] for run in runs if metric in logged[run]}
        entries = {run.name: {"n": of_run[-1][2]} for run, of_run in rows.items() if of_run}
        kept, reasons = column(runs, metric, entries)
        without = [f"{name}: {reason}" for name, reason in reasons.items()]
        without += [f"{run.name}: it logged none (config.train.eval_interval)" for run in runs if run.name not in entries]
        lines = {}
        for run in rows:
            points = [(step, run.seconds_at(step), value) for step, value, n in rows[run] if kept and n == entries[run.name]["n"]]
            if run.name in kept and points:
                lines[run.name] = tuple(np.array(points, float).T)
        n = max((each["n"] for each in kept.values()), default=0)
        found.append({"metric": metric, "lines": lines, "without": without, "n": n, "unit": "", "keys": []}
                     | (drawn(lines, log=kind(metric) != "accuracy") if lines else {}))
    return found


def drawn(lines, log):
    """The two pictures of one metric: over steps and over training time, in the unit that fits; log: see `figures.curves`."""
    longest = max(seconds[-1] for _, seconds, _ in lines.values())
    size, unit = next((each for each in UNITS if longest >= 3 * each[0]), UNITS[-1])
    return {"unit": unit, "keys": [(name, ramp(i, len(lines))) for i, name in enumerate(lines)],
            "by_step": curves([], log=log, family=[(steps, values) for steps, _, values in lines.values()]),
            "by_time": curves([], log=log, family=[(seconds / size, values) for _, seconds, values in lines.values()])}


def engineering(value):
    """A large number as '2.85 M'; '–' for None."""
    if value is None:
        return "–"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
