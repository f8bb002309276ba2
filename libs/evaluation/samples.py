"""A folder of samples: images, a grid to look at, and the table that makes it a data set (libs/data/table.py)."""

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from libs.engine.checkpoint import write_text
from libs.pipeline import grid

TABLE, SHOWN = "metadata.csv", 64


def finish_samples(folder, rows, *, before=()):
    """Write grid.png and metadata.csv beside the images of `rows`, and delete the files `before` that are not among them.

    Args:
        rows: a dict for each image, with file_name, label and prompt ('' where there is none), and further columns.
        before: files of an earlier request in this folder, see `listed_samples`.
    """
    from PIL import Image
    folder = Path(folder)
    for file in set(before) - {row["file_name"] for row in rows}:
        (folder / file).unlink(missing_ok=True)
    shown = [rows[i]["file_name"] for i in first_of_each([row["label"] for row in rows])]
    shown = [np.asarray(Image.open(folder / file).convert("RGB")) for file in shown]
    Image.fromarray(grid(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2), 8)).save(folder / "grid.png")
    rows = [{"file_name": row["file_name"], "label": row["label"], "text": row["prompt"], **row} for row in rows]
    columns = [key for key in rows[0] if key != "prompt" and (key not in ("label", "text") or rows[0][key])]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(folder / TABLE, text.getvalue())


def listed_samples(folder):
    """The files that an earlier request wrote here, by its table; none where there is no table of ours."""
    table = Path(folder) / TABLE
    if not table.is_file():
        return []
    with open(table, newline="", encoding="utf-8") as stream:
        files = [row["file_name"] for row in csv.DictReader(stream) if "sampler" in row]
    return [file for file in files if not Path(file).is_absolute() and ".." not in Path(file).parts]


def first_of_each(labels, most=SHOWN):
    """Indices of the images for the grid: all of them, or where they are more than `most` the first ones of every label."""
    if len(labels) <= most:
        return list(range(len(labels)))
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    seen, share = Counter(), max(1, most // len(order))
    found = []
    for index, label in enumerate(labels):
        seen[label] += 1
        found += [index] if seen[label] <= share else []
    return sorted(found, key=lambda index: order[labels[index]])[:most]
