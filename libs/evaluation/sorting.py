"""A folder of images that a filter sorts: its table, the tables of what is accepted and rejected, and copies of the former."""

import csv
import io
import shutil
from pathlib import Path

from libs import ratings, tables
from libs.engine.checkpoint import write_text
from libs.ratings.judged import share

TABLE, FILES = "metadata.csv", ("file_name", "mask_file_name")


def listed(folder, anew):
    """(rows of metadata.csv with their `prompt`, its columns without those that are written anew)."""
    path = folder / TABLE
    if not path.is_file():
        raise ValueError(f"{folder} has no {TABLE}: a folder of sample.py has one, with the prompt of each image")
    header, records = tables.read(path)
    rows, columns = [row for _, row in records], [name for name in header if name not in anew]
    if "file_name" not in columns or not {"text", "label"} & set(columns):
        raise ValueError(f"{path}: its columns are {', '.join(columns)}; file_name and text or label are needed")
    for number, row in enumerate(rows, 2):
        for name in (row[key] for key in FILES if row.get(key)):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{path}: image {number - 1}: {name!r} leads out of the folder")
        row["prompt"] = ratings.wording(*(row.get(key) or "" for key in ("text", "label", "modality")))
        if not row["prompt"]:
            raise ValueError(f"{path}: image {number - 1}, {row['file_name']!r}, has neither text nor label")
    if not rows:
        raise ValueError(f"{path} names no image")
    return rows, columns


def table(rows, columns):
    """Rows as the text of a CSV with these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def told(rows, kept, threshold, folder):
    """How much is kept, of each class too, as text."""
    def line(name, own):
        count = sum(row["passed"] for row in own)
        found = share(count, len(own))
        return f"{name}: {count} of {len(own)} accepted, {found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
    lines = [f"{line(f'score >= {threshold:.4g}', rows)}; {folder / 'accepted.csv'}, rejected.csv, scores.csv"]
    classes = {}
    for row in rows:
        classes.setdefault(row.get("label") or "", []).append(row)
    lines += [f"  {line(name or 'no class', own)}" for name, own in sorted(classes.items()) if len(classes) > 1]
    return "\n".join(lines + ([] if kept else ["warning: no image is accepted; a lower --threshold accepts more"]))


def copy(folder, rows, columns, into):
    """Copies of the images of `rows`, and of their masks, with their table, which make a data set of the folder `into`."""
    for row in rows:
        for name in (row[key] for key in FILES if row.get(key)):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, into / name)
    write_text(into / TABLE, table(rows, columns))
