"""What became of the captions of a data set: counts per check, examples, and whether they follow the images."""

import statistics
from collections import defaultdict

from . import checks
from .table import Caption

_KINDS = ("blank", "shuffled")

def report(rows: list[Caption], *, images: int, dependence: dict, max_identical: float, max_unchanged: float) -> dict:
    """The state of a table as a JSON dict; `problems` holds what is wrong with the captions as a whole.

    images: how many the data set has. dependence: of `describe.image_dependence`, {} = not looked at.
    """
    failed, notes, written = defaultdict(list), defaultdict(int), [row for row in rows if row.text]
    for row in rows:
        for name in set(row.failed_for):
            failed[name].append(row)
        if row.text and row.checks:
            notes[row.checks.split(":")[0]] += 1
    share, text = checks.identical([row.text for row in written])
    lengths = [checks.words(row.text) for row in written]
    problems = []
    if share > max_identical:
        problems.append(f"{share:.0%} of {len(written)} descriptions are the same (at most {max_identical:.0%}): "
                        f"{text[:100]!r}")
    problems += unchanged(dependence, max_unchanged)
    return {
        "images": images, "asked": len(rows), "described": len(written), "failed": len(rows) - len(written),
        "attempts": round(statistics.fmean(row.attempts for row in rows), 2) if rows else 0,
        "words": {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)} if lengths else {},
        "checks": {name: {"count": len(those), "examples": [
            {"file_name": row.file_name, "reason": row.checks, "answer": list(row.answers.values())[-1:]}
            for row in those[:3]]} for name, those in sorted(failed.items())},
        "notes": dict(notes), "identical": {"share": round(share, 4), "text": text},
        "dependence": dependence, "problems": problems,
        "models": sorted({row.model for row in rows}), "prompts": sorted({row.prompt for row in rows}),
    }


def unchanged(dependence: dict, max_unchanged: float) -> list[str]:
    """A sentence for each kind of image under which too many descriptions stayed what they were."""
    return [f"{found['same']} of {found['n']} descriptions stayed the same with a {kind} image (at most "
            f"{max_unchanged:.0%}): the model does not look at the image"
            for kind in _KINDS if (found := dependence.get(kind)) and found["share"] > max_unchanged]


def summary(found: dict) -> list[str]:
    """The report in lines for a person."""
    lines = [f"{found['described']} of {found['images']} images described, {found['failed']} failed, "
             f"{found['images'] - found['asked']} not asked; {found['attempts']:g} attempts each"]
    if found["words"]:
        lines.append("{min} to {max} words, median {median:g}".format(**found["words"]))
    lines += [f"{count} {name}" for name, count in found["notes"].items()]
    for name, entry in found["checks"].items():
        first = entry["examples"][0]
        lines.append(f"failed {name}: {entry['count']}, such as {first['file_name']} ({first['reason']})")
    lines += [f"image dependence: {entry['same']} of {entry['n']} descriptions the same with a {kind} image"
              for kind in _KINDS if (entry := found["dependence"].get(kind))]
    return lines + [f"PROBLEM: {problem}" for problem in found["problems"]]
