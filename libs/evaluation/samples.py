"""A folder of samples: images, a grid to look at, and the table that makes it a data set (libs/data/table.py)."""

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from libs.engine.checkpoint import write_text
from libs.evaluation.generation import save_png
from libs.evaluation.masks import FOLDER
from libs.pipeline import grid

FILES = ("file_name", "mask_file_name")  # columns of files in this folder
TABLE, SHOWN = "metadata.csv", 64
COMPARED, BESIDE = 16, 4  # masks in comparison.png, and images beside each


def finish_samples(folder, rows, *, before=(), masks=None):
    """Write grid.png and metadata.csv beside the images of `rows`, and delete the files `before` that are not among them.

    With masks also a copy of each, masks/<name>.png, and comparison.png: rows of a mask and of images made for it.

    Args:
        rows: a dict for each image, with file_name, label and prompt ('' where there is none), and further columns.
        before: files of an earlier request in this folder, see `listed_samples`.
        masks: `AskedMasks` of the images, or None.
    """
    from PIL import Image
    folder = Path(folder)
    for file in set(before) - {row[key] for row in rows for key in FILES if key in row}:
        (folder / file).unlink(missing_ok=True)
    shown = _pictures(folder, [rows[i] for i in first_of_each([row["label"] for row in rows])])
    Image.fromarray(grid(shown, 8)).save(folder / "grid.png")
    if masks is not None:
        _keep_masks(folder, masks)
        Image.fromarray(_comparison(folder, rows, masks)).save(folder / "comparison.png")
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
        table = csv.DictReader(stream)
        files = [row[key] for row in table if "sampler" in row for key in FILES if row.get(key)]
        files += ["comparison.png"] if FILES[1] in table.fieldnames else []
    return [file for file in dict.fromkeys(files) if not Path(file).is_absolute() and ".." not in Path(file).parts]


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


def _pictures(folder, rows):
    """The images of these rows, uint8 Tensor (N, 3, H, W)."""
    from PIL import Image
    pixels = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def _keep_masks(folder, masks):
    """Copy the masks beside the images, at their size and in the values of the run, so that the folder is a data set."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for number, name in enumerate(masks.names):
        stored = torch.from_numpy(np.atleast_3d(masks.stored(number))).permute(2, 0, 1)
        save_png(folder / FOLDER / f"{name}.png", stored)


def _comparison(folder, rows, masks):
    """uint8 (rows*H, columns*W, 3): a row for each of the first masks, and beside it images made for it, of every class."""
    made = {}
    for row, number in zip(rows, masks.of_image, strict=True):
        made.setdefault(number, []).append(row)
    numbers = list(made)
    shown = [numbers[i] for i in first_of_each([made[number][0]["label"] for number in numbers], COMPARED)]
    beside = {number: [made[number][i] for i in first_of_each([row["label"] for row in made[number]], BESIDE)] for number in shown}
    columns, parts = max(map(len, beside.values())), []
    for number, own in beside.items():
        images = _pictures(folder, own)
        white = torch.full((columns - len(own), *images.shape[1:]), 255, dtype=torch.uint8)
        parts += [masks.picture(number)[None], images, white]
    return grid(torch.cat(parts), 1 + columns)
