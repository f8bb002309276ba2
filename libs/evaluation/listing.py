"""What a folder of generated images says of itself: the table of its images, and which of its files are ours
to delete.

The table, metadata.csv, makes the folder a data set and is its manifest: what each image was asked for, its
hash, and weights, seed and sampler that made it. Files that no table of ours lists are somebody else's: they
stay, and are named.
"""

import csv
import hashlib
import json
import logging
from pathlib import Path

from libs import tables
from libs.engine.checkpoint import write_text
from libs.evaluation import sorting

FILES = ("file_name", "mask_file_name")  # columns of files in this folder
TABLE = "metadata.csv"
# Files of images that are being made, so that those of a stopped evaluation can be told from others.
UNFINISHED = ".images.json"
BESIDE = ("grid.png", "comparison.png")  # pictures of ours that no table lists
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
NAMED = 5  # files in one message


def listed_samples(folder):
    """The files that an earlier request or evaluation wrote here, by its table; none where there is no table
    of ours."""
    folder, files = Path(folder), []
    if (folder / UNFINISHED).is_file():
        try:
            files += json.loads((folder / UNFINISHED).read_text())
        except ValueError:
            logging.warning("%s is damaged: images of a stopped evaluation are not told from "
                            "others", folder / UNFINISHED)
    if _is_ours(folder / TABLE):
        header, rows = tables.read_csv(folder / TABLE, [])  # of one that is torn, the rows that can be read
        files += [row[key] for _, row in rows for key in FILES if row.get(key)]
        files += ["comparison.png"] if FILES[1] in header else []
    return [file for file in dict.fromkeys(files) if stays_inside(file)]


def check_free(folder):
    """ValueError where a folder holds a table of somebody else, whose place that of our images would take."""
    if (Path(folder) / TABLE).is_file() and not _is_ours(Path(folder) / TABLE):
        raise ValueError(f"{folder} holds a {TABLE} that is not of generated images, which would be "
                         f"replaced: give another folder by "
                         "--config.sample.path=FOLDER")


def begin(folder, names, is_ours):
    """Note that the files `names` are about to be written to `folder`; returns those of earlier images of
    ours.

    Args:
        is_ours: path -> whether a file that no table lists was written here all the same.
    Raises:
        ValueError: a file of somebody else has one of the names, or there is a table of somebody else.
    """
    folder = Path(folder)
    check_free(folder)
    before = listed_samples(folder)
    earlier = set(before)
    wrong = [name for name in names if name not in earlier and (folder / name).is_file()
             and not is_ours(folder / name)]
    if wrong:
        raise ValueError(f"{folder} holds {_some(wrong)}, which no table of generated images lists and which "
                         f"would be replaced: give "
                         "another folder by --config.sample.path=FOLDER, or delete what is there")
    write_text(folder / UNFINISHED, json.dumps(list(dict.fromkeys([*before, *names]))))
    (folder / TABLE).unlink(missing_ok=True)  # of other images
    return before


def finish(folder, rows, *, before):
    """Write the table of the images `rows`, which are there, and delete the files `before` that are not among
    them."""
    folder = Path(folder)
    remove_others(folder, rows, before=before)
    write_table(folder, rows)
    (folder / UNFINISHED).unlink(missing_ok=True)
    name_others(folder, rows)


def remove_others(folder, rows, *, before):
    """Delete the files `before` that are not among those of `rows`."""
    for file in set(before) - {row[key] for row in rows for key in FILES if key in row}:
        (Path(folder) / file).unlink(missing_ok=True)


def name_others(folder, rows):
    """Log the images in a folder that its table does not list: whatever is computed over the folder counts
    them."""
    folder, own = Path(folder), {row[key] for row in rows for key in FILES if key in row} | set(BESIDE)
    others = sorted(str(file.relative_to(folder)) for file in folder.rglob("*")
                    if file.suffix.lower() in IMAGES and not file.name.startswith("."))
    others = [name for name in others if name not in own and not name.startswith("rejected/")]
    if others:
        logging.warning("%s holds %d images that %s does not list, such as %s: they stay, and whatever reads "
                        "the folder without the "
                        "table counts them", folder, len(others), TABLE, _some(others))


def write_table(folder, rows):
    """metadata.csv of images that are in `folder`, with the hash of each file.

    rows: a dict for each image, with file_name, label and prompt ('' where there is none), and further
    columns.
    """
    folder = Path(folder)
    rows = [{"file_name": row["file_name"], "label": row["label"], "text": row["prompt"], **row,
             "image_sha256": hashlib.sha256((folder / row["file_name"]).read_bytes()).hexdigest()}
            for row in rows]
    columns = [key for key in (rows[0] if rows else ("file_name",)) if key != "prompt"
               and (key not in ("label", "text") or rows[0][key])]
    write_text(folder / TABLE, sorting.table(rows, columns))


def stays_inside(name):
    """Whether the name of a file, as a table has it, cannot lead out of the folder of the table."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_ours(table):
    if not table.is_file():
        return False
    with open(table, newline="", encoding="utf-8", errors="replace") as stream:
        return "sampler" in next(csv.reader(stream), ())


def _some(names):
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
