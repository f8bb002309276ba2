"""The page a person looks at after a run: one self-contained HTML file, made from the run folder alone.

Read where present, and replaced by a sentence where not: config.json, run.json, classes.json, metrics.jsonl,
samples/<step>.png, eval/<name>/scores.json and eval/<name>/shown.npz. Read where present: figures eval/<name>/*.png,
downstream.png and downstream.md. The page loads nothing: pictures are base64 PNG, curves inline SVG, and its content
security policy forbids the rest. The words are in report.html.j2, which escapes everything that comes out of files.
"""

import base64
import io
import itertools
import json
import math
import re
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from libs.engine.checkpoint import write_text
from libs.report.bridge import write_bridge
from libs.report.comparison import write_comparison
from libs.report.dataset import dataset
from libs.report.evaluations import rank, specialities
from libs.report.figures import curves, png, ramp
from libs.report.filtered import filtered
from libs.report.meanings import COLOUR, MEANINGS, explain

__all__ = ["contents", "write", "write_bridge", "write_comparison"]

SMALL_N = 50  # below it a score is marked, whatever the evaluation itself warned of
WITH_PICTURES = 2  # evaluations, the main one and the newest other one: a sweep of many would make a page too large to open
MOST_FIGURES, FIGURE_BYTES = 12, 3_000_000  # of one evaluation, and of each: they enter the page as they are
TEXT_CHARACTERS = 200_000
HEADLINE = ("fid", "fd", "accuracy", "dice", "balanced_accuracy", "nll", "ece", "precision", "recall", "kid", "coverage", "density",
            "is")
NOT_CURVES = ("step", "n", "seconds")
MEAN = ""  # of the lines of a chart, the mean of all
MEMBER = re.compile(r"(?P<name>.+?)_(?:of_(?P<class>.+)|t(?P<level>\d+(?:\.\d+)?(?:e-?\d+)?))")  # accuracy_of_X, accuracy_t0.25
FACTS = ("n", "step", "nnet", "seed", "sampler", "features", "reference", "reference_split", "seconds", "interval", "prompts",
         "agreement_of_real", "following_source", "verdict")


def write(workdir, *, title=""):
    """Write workdir/report.html atomically and return its Path; ValueError where there is no such folder."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"{workdir} is no folder: give the run folder, the --workdir of a training")
    path = workdir / "report.html"
    write_text(path, templates().get_template("report.html.j2").render(contents(workdir), title=title or workdir.resolve().name))
    return path


def templates():
    """The templates of the pages of runs, which escape everything that comes out of files."""
    found = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                               lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    found.filters.update(number=number, duration=duration, parted=parted)
    found.globals.update(meanings=MEANINGS, explain=explain)
    return found


def contents(workdir):
    """What the template shows, as a dict. What cannot be read becomes a line of its `warnings`."""
    warnings = []
    config = read_json(workdir / "config.json", dict, warnings)
    sections = {name: part for name, part in config.items() if isinstance(part, dict)}
    general = {name: part for name, part in config.items() if name not in sections}
    classes = [str(name) for name in read_json(workdir / "classes.json", list, warnings)]
    records = read_metrics(workdir / "metrics.jsonl", warnings)
    step = max((max(rows) for rows in records.values()), default=0)
    batch = sections.get("train", {}).get("batch_size", 0)
    evaluations = [evaluation(folder, classes, warnings, i < WITH_PICTURES, special)
                   for i, (folder, special) in enumerate(in_order(workdir, config, warnings))]
    evaluations = [each for each in evaluations if each]
    classifier = sections.get("nnet", {}).get("name") == "adm_classifier" or any(each["levels"] for each in evaluations)
    return {
        "kind": "filter" if "ratings" in sections else "study" if "study" in sections else "classifier" if classifier else
                "generator",
        "study": study(workdir, warnings), "data": dataset(workdir, warnings),
        "sections": sections, "classes": classes, "warnings": warnings, "small_n": SMALL_N,
        "config": {name: flat(part) for name, part in {"general": general, **sections}.items() if part},
        "sessions": sessions(workdir / "run.json", warnings), "evaluations": evaluations,
        "previews": previews(workdir / "samples", warnings), "charts": charts(records),
        "step": step, "images": step * batch, "seconds": train_seconds(records.get("train", {}), batch)}


def in_order(workdir, config, warnings):
    """[(folder, specialities)] of the evaluations: the main one, then the others, newest first."""
    found = []
    for path in sorted(workdir.glob("eval/*/scores.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        scores = read_json(path, dict, [])  # damage is told where it is shown
        special = specialities(scores, config)
        found.append((rank(scores, special, path.stat().st_mtime), path.parent, special))
    main = max(found, key=lambda each: each[0], default=None)
    return [each[1:] for each in sorted(found, key=lambda each: each is not main)]


def read_json(path, kind, warnings):
    """The dict or list (`kind`) in a JSON file; empty where the file is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else kind()
        if not isinstance(value, kind):
            raise ValueError(f"it holds no {kind.__name__}")
    except ValueError as error:
        warnings.append(f"{path.parent.name}/{path.name} could not be read: {error}")
        return kind()
    return value


def read_metrics(path, warnings):
    """{kind: {step: {name: number}}}, steps rising; of two lines about one step the later one counts.
    Lines that a kill has torn are left out and named in the warnings."""
    records, torn = {}, []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line_number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            row = {name: float(value) for name, value in record.items() if type(value) in (int, float)}
            records.setdefault(record["kind"], {}).setdefault(int(record["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            torn.append(str(line_number))
    if torn:
        warnings.append(f'metrics.jsonl: line {", ".join(torn)} could not be read and is left out.')
    return {kind: dict(sorted(steps.items())) for kind, steps in records.items()}


def sessions(path, warnings):
    """run.json's sessions, oldest first; a change of versions between two of them is a warning."""
    rows = read_json(path, dict, warnings).get("sessions") or []
    for before, after in zip(rows, rows[1:]):
        if before.get("versions") != after.get("versions"):
            warnings.append(f'Versions changed before the session of {after.get("started", "unknown time")}.')
    return rows


def train_seconds(train, batch):
    """Seconds spent in training steps, over all sessions: images over images/s, from one line to the next."""
    rates = (row.get("images_per_second", math.inf) for row in train.values())
    return sum(steps * batch / rate for steps, rate in zip(np.diff([0, *train]), rates) if rate > 0)


def evaluation(folder, classes, warnings, with_pictures=True, special=()):
    """One eval/<name>/ for the template: its scores with numbers as text, and the shown pictures; or None.

    special: what sets it apart from the main evaluation, see `evaluations.specialities`.
    """
    found = read_json(folder / "scores.json", dict, warnings)
    if not found:
        return None
    warnings += [f"{folder.name}: {text}" for text in found.get("warnings") or []]
    scores = {name: score(entry) for name, entry in (found.get("scores") or {}).items()}
    levels = by_level(scores, found.get("levels"))
    single = {cell["key"] for row in levels for cell in row["scores"].values()}
    scores = {name: entry for name, entry in scores.items() if name not in single}
    first = {parted(name, HEADLINE)[0]: name for name in reversed(scores)}  # of several feature networks the first
    headline = [(first[key], scores[first[key]]) for key in HEADLINE if key in first]
    per_class = {name: {key: score(entry) for key, entry in row.items()}
                 for name, row in (found.get("per_class") or {}).items()}
    networks = [name for name in str(found.get("features") or "").split(", ") if name]
    order = sorted(per_class, key=lambda name: classes.index(name) if name in classes else len(classes))
    shown, arrays = {"side_by_side": None, "nearest": None, "described": [], "followed": None}, {}
    try:
        if with_pictures:
            with np.load(folder / "shown.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if file[name].size}
            shown = {"side_by_side": side_by_side(arrays, classes),
                     "nearest": nearest(arrays, classes, by_colour=networks[:1] == [COLOUR]),
                     "described": described(arrays, classes, found.get("shown_texts") or []),
                     "followed": followed(arrays, classes)}
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged archive fails in many ways, and none of them may cost the page
        warnings.append(f"{folder.name}/shown.npz could not be shown: {error!r}")
    return {**{name: found.get(name) for name in FACTS}, "name": folder.name, "scores": scores,
            "special": list(special), "by_colour": networks == [COLOUR],
            "headline": (headline or list(scores.items()))[:4],
            "levels": levels, "level_columns": list(dict.fromkeys(key for row in levels for key in row["scores"])),
            "figures": own_figures(folder, warnings) if with_pictures else [], "pictured": with_pictures,
            "following_of_real": {name: score(entry) for name, entry in (found.get("following_of_real") or {}).items()},
            "per_class": {name: per_class[name] for name in order},
            "columns": list(dict.fromkeys(key for row in per_class.values() for key in row)),
            "warnings": found.get("warnings") or [], "filtered": filtered(found, arrays, classes, score), **shown}


def score(entry):
    """A score's value and interval as text, to two digits of the interval's width, and whether n is small."""
    low, high, n = entry.get("low"), entry.get("high"), entry.get("n")
    width = 0 if low is None or high is None else high - low
    interval = "" if low is None or high is None else f"{number(low, width)} to {number(high, width)}"
    return {**entry, "n": n, "small": n is not None and n < SMALL_N, "interval": interval,
            "value": number(entry.get("value"), width)}


def by_level(scores, times):
    """The scores of single noise levels, as rows [{level, time, scores: {measure: score and its `key` in scores.json}}].

    times: {'t0.25': time}, as scores.json has it under `levels`; a score of that level ends in '_t0.25'.
    """
    if not isinstance(times, dict) or any(type(time) not in (int, float) for time in times.values()):
        return []
    rows = [{"level": level.removeprefix("t"), "time": time, "scores": {
        name.removesuffix(f"_{level}"): {**entry, "key": name} for name, entry in scores.items() if name.endswith(f"_{level}")}}
        for level, time in sorted(times.items(), key=lambda item: item[1])]
    return [row for row in rows if row["scores"]]


def parted(name, known):
    """A score's name as the longest known name that it begins with, or else its first word, and the rest.

    'balanced_accuracy_t0.25' -> ('balanced_accuracy', 't0.25'), 'fd_clf' -> ('fd', 'clf').
    """
    key = max((key for key in known if f"{name}_".startswith(f"{key}_")), key=len, default=name.split("_")[0])
    return key, name[len(key) + 1:]


def own_figures(folder, warnings):
    """The figures that an evaluation has drawn, [{name, image}] of its *.png as they are; what is too large is named."""
    shown, paths = [], sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    for path in paths[:MOST_FIGURES]:
        uri = embedded(path, warnings)
        shown += [{"name": path.stem, "image": uri}] if uri else []
    if len(paths) > MOST_FIGURES:
        left_out = len(paths) - MOST_FIGURES
        warnings.append(f"{folder.name}: {left_out} more PNG files are left out, from {paths[MOST_FIGURES].name} on")
    return shown


def embedded(path, warnings):
    """The data URI of a PNG file, byte for byte; '' where it is absent, too large or no PNG, the latter two with a warning."""
    if not path.is_file():
        return ""
    name = f"{path.parent.name}/{path.name}"
    try:
        if path.stat().st_size > FIGURE_BYTES:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.1f} MB, and at most {FIGURE_BYTES / 1e6:g} MB enter this page")
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError) as error:
        reason = "it is no whole PNG" if isinstance(error, Image.UnidentifiedImageError) else error
        warnings.append(f"{name} could not be shown: {reason}")
        return ""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def study(workdir, warnings):
    """What eval_downstream.py has left, {image, blocks: [{table, text}]} of downstream.png and .md; None where there is neither."""
    path, text = workdir / "downstream.md", ""
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    if len(text) > TEXT_CHARACTERS:
        warnings.append(f"downstream.md is cut after {TEXT_CHARACTERS:,} of {len(text):,} characters")
    groups = itertools.groupby(text[:TEXT_CHARACTERS].strip().splitlines(), key=lambda line: line.startswith("|"))
    blocks = [{"table": table, "text": "\n".join(aligned(lines) if table else lines).strip()} for table, lines in groups]
    image = embedded(workdir / "downstream.png", warnings)
    return {"image": image, "blocks": [block for block in blocks if block["text"]]} if image or text else None


def aligned(lines):
    """The lines of a Markdown table with the columns below each other."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    rows = [row for row in rows if set("".join(row)) - set("-: ")]  # without the rule below the head
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def side_by_side(arrays, classes):
    """Real and generated images class by class, the same number of each."""
    generated, real = arrays["arr_0"], arrays.get("arr_5", [])
    labels = arrays.get("arr_1", np.zeros(len(generated))).ravel().astype(int)
    real_labels = arrays.get("arr_6", np.zeros(len(real))).ravel().astype(int)
    names, size, rows = class_names(labels, classes), generated.shape[2], []
    images = 96 if size <= 64 else 48  # of either, in all
    most = max(2, min(12, images // len(names)))
    most -= most % 4 if most > 4 else 0  # whole rows
    for label, name in list(names.items())[:images // 2]:
        ours, theirs = np.flatnonzero(labels == label), np.flatnonzero(real_labels == label)
        n = min(most, len(ours), len(theirs) if len(real) else most)
        rows.append({"name": name, "generated": [png(generated[i]) for i in ours[:n]],
                     "real": [png(real[i]) for i in theirs[:n]]})
    return {"rows": rows, "left_out": len(names) - len(rows), "size": size}


def described(arrays, classes, texts, *, limit=24):
    """Samples with the texts they were made for, spread over all classes: [{image, size, name, text}]."""
    generated, labels = arrays["arr_0"], arrays.get("arr_1", np.zeros(len(arrays["arr_0"]))).ravel().astype(int)
    names = class_names(labels, classes)
    chosen = np.linspace(0, len(generated) - 1, min(limit, len(generated), len(texts))).round().astype(int)
    return [{"image": png(generated[i]), "size": generated.shape[2], "name": names[labels[i]], "text": texts[i]} for i in chosen]


def followed(arrays, classes, *, limit=24):
    """Samples between the mask that was asked for and the one that they show, spread over all classes; None without masks."""
    generated, asked, obtained, dice = (arrays.get(f"arr_{k}", ()) for k in (0, 8, 9, 10))
    if not len(generated) == len(asked) == len(obtained) == len(dice):
        return None
    labels = arrays.get("arr_1", np.zeros(len(generated))).ravel().astype(int)
    names, chosen = class_names(labels, classes), np.linspace(0, len(generated) - 1, min(limit, len(generated))).round().astype(int)
    return {"size": generated.shape[2], "rows": [
        {"asked": png(asked[i]), "image": png(generated[i]), "obtained": png(obtained[i]), "name": names[labels[i]],
         "dice": float(dice[i])} for i in chosen]}


def nearest(arrays, classes, *, pairs=24, by_colour=False):
    """Samples beside their nearest real image, closest first, or None where shown.npz has no neighbours.

    arr_7, where present, holds the distances of real images to their own nearest real neighbour: a sample
    closer than the 5 % quantile of them is marked as a possible copy. by_colour: the distances are of mean colours, which
    different images share; nothing is marked then.
    """
    generated = arrays["arr_0"]
    if not all(len(arrays.get(name, ())) == len(generated) for name in ("arr_2", "arr_3")):
        return None
    distances, usual = arrays["arr_3"].ravel().astype(float), arrays.get("arr_7", np.zeros(0)).ravel()
    labels = arrays.get("arr_1", np.zeros(len(generated))).ravel().astype(int)
    indices = arrays.get("arr_4", np.full(len(generated), -1)).ravel()
    close = float(np.quantile(usual, 0.05)) if len(usual) and not by_colour else -math.inf
    names, chosen = class_names(labels, classes), np.argsort(distances, kind="stable")[:pairs]
    rows = [{"generated": png(generated[i]), "real": png(arrays["arr_2"][i]), "index": int(indices[i]),
             "name": names[labels[i]], "distance": float(distances[i]), "close": bool(distances[i] < close)}
            for i in chosen]
    return {"pairs": rows, "n": len(generated), "size": generated.shape[2], "close": close,
            "n_close": int((distances < close).sum()), "by_colour": by_colour, "median": float(np.median(distances)),
            "usual": float(np.median(usual)) if len(usual) else None}


def class_names(labels, classes):
    """{label: name} of the labels that occur, rising; where one nameless label is all, its name is ''."""
    known = np.unique(labels).tolist()
    return {k: classes[k] if 0 <= k < len(classes) else f"class {k}" if len(known) > 1 else "" for k in known}


def previews(folder, warnings, *, limit=6):
    """The preview grids [{step, image}] of up to `limit` steps over training, first and last included."""
    paths = sorted((p for p in folder.glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem))
    chosen = np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int)
    shown = []
    for path in (paths[i] for i in chosen):
        try:
            with Image.open(path) as image:
                grid = np.asarray(image.convert("RGB"))
            shown.append({"step": int(path.stem), "image": png(grid, limit=512)})
        except (OSError, ValueError, SyntaxError) as error:
            warnings.append(f"samples/{path.name} could not be shown: {error}")
    return shown


def charts(records):
    """[{kind, name, by, keys: [(words, colour)], svg}]: the loss (both kinds), images/s, then the rest as they come.

    What evaluations say of each noise level, or of each class, is one chart; `by` says of which. `keys` is its legend.
    """
    first, second, drawn = ("train", "loss", ""), ("train", "images_per_second", ""), {}
    for kind, steps in records.items():
        for name in dict.fromkeys(name for row in steps.values() for name in row if name not in NOT_CURVES):
            line = np.array([(step, row[name]) for step, row in steps.items() if math.isfinite(row.get(name, math.nan))]).T
            chart, words = place(kind, name)
            if line.size:
                drawn.setdefault(chart, {})[words] = line
    for kind, name, by in list(drawn):
        if by == "noise level" and (kind, name, "") in drawn:
            drawn[kind, name, by][MEAN] = drawn.pop((kind, name, ""))["eval"]
    order = sorted(drawn, key=lambda chart: (chart != first, chart != second, chart[2] != "noise level"))
    return [{"kind": chart[0], "name": chart[1], "by": chart[2],
             **draw(drawn[chart], chart[2], log=chart == first, zero=chart == second)} for chart in order]


def place(kind, name):
    """((kind, name, by) of the chart that a name of metrics.jsonl belongs to, what its line is called there)."""
    member = MEMBER.fullmatch(name) if kind == "eval" else None
    if member and member["class"]:
        return (kind, member["name"], "class"), member["class"]
    if member:
        return (kind, member["name"], "noise level"), f't {member["level"]}'
    return ("train" if (kind, name) == ("validation", "loss") else kind, name, ""), kind


def draw(lines, by, **options):
    """{keys, svg} of one chart from its lines {words: (2, K)}."""
    if by:
        mean = [lines[name] for name in lines if name == MEAN]
        names = [name for name in lines if name != MEAN]
        names = sorted(names, key=lambda name: float(name[2:])) if by == "noise level" else names
        keys = [(name, ramp(i, len(names))) for i, name in enumerate(names)] + [("mean of all", "var(--ink)")] * len(mean)
        return {"keys": keys, "svg": curves([], dots=mean, family=[lines[name] for name in names], **options)}
    keys = [(kind, "var(--accent)" if kind == "train" else "var(--second)") for kind in lines]
    return {"keys": keys if len(keys) > 1 or "validation" in lines else [], "svg": curves(
        [line for kind, line in lines.items() if kind == "train"],
        dots=[line for kind, line in lines.items() if kind != "train"], **options)}


def flat(config, prefix=""):
    """[(dotted name, value as JSON)] of a nested dict."""
    return [row for name, value in config.items() for row in (
        flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value
        else [(f"{prefix}{name}", json.dumps(value))])]


def number(value, width=0):
    """A number as text: to two digits of `width`, the interval around it, or else to four digits in all."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None else str(value)
    if 0 < width < math.inf:
        return f"{value:,.{min(7, max(0, 1 - math.floor(math.log10(width))))}f}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds):
    """Seconds as the two largest of days, hours, minutes and seconds that it has."""
    parts, left = [], round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        parts += [f"{left // size} {unit}"] if left >= size or (size == 1 and not parts) else []
        left %= size
    return " ".join(parts[:2])
