"""The folder that a bridge leaves: its settings, its images with a row of the table in each, and the table of all."""

import csv
import io
import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from libs import engine, tables
from libs.engine.checkpoint import write_text
from libs.evaluation.generation import save_png
from libs.evaluation.listing import remove_others, stays_inside

COLUMNS = ("file_name", "label", "source_file", "source_label", "latent_mean", "latent_std", "latent_correlation", "change")
BELIEFS = tuple(f"{when}_{what}" for when in ("before", "after") for what in ("class", "p_target", "entropy", "margin"))
# Settings in which a run may differ from the unguided one that it is compared with.
OF_GUIDANCE = ("measure", "scale", "on", "profile", "first", "last", "clip_norm", "reclip", "legacy_steps", "classifier", "maps")
LATENTS = ".latents"  # folder of the pictures of latents, for the page


def claim(folder, settings):
    """Note in `folder` what its images are made with, or find that it is the same; ValueError that names what differs."""
    folder, settings = Path(folder), json.loads(json.dumps(settings))
    before = engine.read_json(folder / "settings.json", None)
    if before is None:
        if folder.exists() and any(not each.name.startswith(".") for each in folder.iterdir()):
            raise ValueError(f"{folder} holds files already that are not of this script; choose another --output_path")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "settings.json", json.dumps(settings, indent=1))
    elif before != settings:
        raise ValueError(f"{folder} was made with {_differing(before, settings)}; choose another --output_path")


def unguided(folder, settings):
    """{(source file, source class, target class): path} of the results of an unguided run, to compare with.

    Raises:
        ValueError: it is no output of the bridge, is guided by a classifier, or differs in more than that.
    """
    folder = Path(folder)
    before = engine.read_json(folder / "settings.json", None)
    if before is None or not (folder / "metadata.csv").is_file():
        raise ValueError(f"--compare_path={folder}: no finished output of sample_dual_bridge.py (settings.json, metadata.csv)")
    if before.get("scale"):
        raise ValueError(f"--compare_path={folder} was guided by {before.get('measure')} {before['scale']:g}: compare with a run "
                         "of --config.sample.gradient.scale=0")
    differing = _differing(before, json.loads(json.dumps(settings)), OF_GUIDANCE)
    if differing:
        raise ValueError(f"--compare_path={folder} differs in more than the classifier's guidance: {differing}")
    _, rows = tables.read(folder / "metadata.csv", ("file_name", "source_file"))
    return {(row["source_file"], row.get("source_label", ""), row.get("label", "")): folder / row["file_name"]
            for _, row in rows}


def _differing(before, now, leave_out=()):
    """What differs between two settings, in words; ''."""
    names = [name for name in dict.fromkeys([*before, *now]) if name not in leave_out and before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)!r} (now {now.get(name)!r})" for name in names)


def read_row(path):
    """{name: text} in a finished PNG; None where there is none or it is damaged (which is logged)."""
    try:
        with Image.open(path) as image:
            image.load()
            return dict(image.info)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError) as error:
        logging.warning("%s is damaged and made again: %s", path, error)
        return None


def read_rows(folder, jobs):
    """The rows of those jobs whose image is there."""
    found = (read_row(Path(folder) / job.name) for job in jobs)
    return [row for row in found if row is not None and "source_sha256" in row]


def write_table(folder, rows):
    """metadata.csv of the rows: with it the folder is a data set. Results that the table of before lists and
    this one does not, of sources that are gone, are deleted."""
    folder = Path(folder)
    if (folder / "metadata.csv").is_file():
        with open(folder / "metadata.csv", newline="", encoding="utf-8") as stream:
            names = [row["file_name"] for row in csv.DictReader(stream)
                     if row.get("source_file") and row.get("file_name")]
        remove_others(folder, rows, before=[name for name in names if stays_inside(name)])
    columns = [name for name in (*COLUMNS, *BELIEFS) if any(row.get(name) for row in rows)]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    write_text(Path(folder) / "metadata.csv", text.getvalue())


def save(path, image, **text):
    """`save_png`, with the folder made first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, image, **text)


def load(path):
    """uint8 (C, H, W) of a PNG."""
    with Image.open(path) as image:
        array = np.asarray(image)
    return torch.from_numpy(array.copy()[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
