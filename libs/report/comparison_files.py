"""The numbers of a comparison as files for papers and programs: JSON, CSV, Markdown and LaTeX."""

import csv
import io
import json
import math
import re

from libs.report.meanings import MEANINGS
from libs.report.yardsticks import kind

COLUMNS = ("run", "class", "name", "value", "low", "high", "n", "best")
TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}


def texts(found, title):
    """{'json', 'csv', 'md', 'tex'}: the content of each file, from what `comparison.contents` gives."""
    return {"json": json.dumps(plain(found, title), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "csv": table(found),
            "md": markdown(found, title), "tex": latex(found)}


def plain(found, title):
    """The comparison as JSON: runs with their facts and scores, and all that is said about them."""
    runs = {}
    for run in found["runs"]:
        own = {"workdir": str(run.workdir), "facts": found["facts"][run.name], "scores": {}, "per_class": {}}
        for metric, cells in every(found):
            own["scores"] |= {metric: bare(cells[run.name])} if run.name in cells else {}
        for metric, rows in found["per_class"].items():
            for name, cells in rows.items():
                if run.name in cells:
                    own["per_class"].setdefault(name, {})[metric] = bare(cells[run.name])
        near = (found["nearest"] or {}).get("runs", {}).get(run.name)
        own |= {"nearest": {key: finite(value) for key, value in near.items()}} if near else {}
        own["curves"] = {chart["metric"]: {key: values.tolist() for key, values in zip(
            ("steps", "seconds", "values"), chart["lines"][run.name])} for chart in found["charts"] if run.name in chart["lines"]}
        runs[run.name] = own
    return {"title": title, **{key: found[key] for key in ("rule", "faults", "remarks", "left_out")}, "runs": runs}


def table(found):
    """One row for each number: scores of all images (class ''), scores by class, and what runs cost (without interval)."""
    stream = io.StringIO()
    rows = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    rows.writeheader()

    def score(run, name, metric, cell):
        rows.writerow({"run": run, "class": name, "name": metric, **{key: bare(cell)[key] for key in ("value", "low", "high", "n")},
                       "best": int(cell["best"])})

    for metric, cells in every(found):
        for run, cell in cells.items():
            score(run, "", metric, cell)
    for metric, classes in found["per_class"].items():
        for name, cells in classes.items():
            for run, cell in cells.items():
                score(run, name, metric, cell)
    for run, facts in found["facts"].items():
        for name, value in facts.items():
            if type(value) in (int, float):
                rows.writerow({"run": run, "name": name, "value": value})
    return stream.getvalue()


def markdown(found, title):
    """Tables of scores, the best value bold where intervals tell it apart, and what stands against the comparison."""
    lines = [f"# {one_line(title)}", ""]
    lines += [line for fault in found["faults"] for line in [f"**Against this comparison:** {one_line(fault['text'])}", "",
              *[f"    {command}" for command in fault["commands"]], ""]]
    for part in found["scores"]:
        lines += ["| | " + " | ".join(escaped(heading(metric, part["judge"])) for metric in part["metrics"]) + " |",
                  "|---" * (len(part["metrics"]) + 1) + "|"]
        for run in found["runs"]:
            if any(run.name in cells for cells in part["metrics"].values()):
                lines.append(f"| {escaped(run.name)} | " + " | ".join(
                    said(cells[run.name], "**{}**") if run.name in cells else "–" for cells in part["metrics"].values()) + " |")
        lines += ["", f"Judged by {escaped(part['judge'])}." if part["judge"] else "", ""]
    lines += [found["rule"], ""] + [f"- Left out: {escaped(each['run'])}, {escaped(each['what'])}: {escaped(each['reason'])}"
                                    for each in found["left_out"]]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def latex(found):
    """The same tables for LaTeX with booktabs; intervals stand small below the values."""
    lines = []
    for part in found["scores"]:
        lines += [rf"% judged by {one_line(part['judge'])}; bold: its 95 % interval overlaps that of no other run",
                  r"\begin{tabular}{l" + "r" * len(part["metrics"]) + "}", r"\toprule",
                  tex_row("", [tex(heading(metric, part["judge"])) for metric in part["metrics"]]), r"\midrule"]
        for run in found["runs"]:
            cells = [each.get(run.name) or {"value": "--", "interval": "", "best": False} for each in part["metrics"].values()]
            if any("number" in cell for cell in cells):
                lines.append(tex_row(run.name, [minus(rf"\textbf{{{cell['value']}}}" if cell["best"] else cell["value"])
                                                for cell in cells]))
                lines.append(tex_row("", [rf"{{\scriptsize {minus(cell['interval'])}}}" for cell in cells]))
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def tex_row(name, cells):
    return " & ".join([tex(name), *cells]) + r" \\"


def every(found):
    """(metric, cells) of all tables of scores."""
    return [(metric, cells) for part in found["scores"] for metric, cells in part["metrics"].items()]


def bare(cell):
    """A score as numbers."""
    return {"value": cell["number"], "low": cell["low"], "high": cell["high"], "n": cell["n"], "best": cell["best"]}


def finite(value):
    return value if value is not None and math.isfinite(value) else None


def heading(metric, judge):
    """What a metric is called below the name of its judge, with the direction that is better."""
    title, way = MEANINGS.get(kind(metric), (metric, ""))[:2]
    rest = metric[len(kind(metric)) + 1:]
    title += f" {rest}" if rest and rest != judge and kind(metric) in MEANINGS else ""
    return title + {"lower": " ↓", "higher": " ↑"}.get(way, "")


def said(cell, best):
    value = best.format(cell["value"]) if cell["best"] else cell["value"]
    return f"{value} [{cell['interval']}]" if cell["interval"] else value


def one_line(text):
    return " ".join(str(text).split())


def escaped(text):
    """Text for a cell of a Markdown table."""
    return re.sub(r"([|*_`<\[\]\\])", r"\\\1", one_line(text))


def tex(text):
    return "".join(TEX.get(letter, letter) for letter in one_line(text))


def minus(text):
    """Numbers with a minus sign in place of a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)
