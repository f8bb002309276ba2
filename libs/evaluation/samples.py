"""A folder of samples: images, a grid to look at, and the table that makes it a data set (libs/data/table.py).

The table is the manifest of the images: what each was asked for, its hash, the weights, seed, sampler, steps and guidance that
made it, and where a filter chose it its score and the number of the draw. What the filter rejected lies in rejected/, on request.
"""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from libs import files
from libs.engine.checkpoint import write_text
from libs.evaluation.filtering import OWN, acceptance, acceptance_told
from libs.evaluation.generation import facts_there, read_facts, save_png
from libs.evaluation.listing import TABLE, UNFINISHED, name_others, remove_others, write_table
from libs.evaluation.masks import FOLDER
from libs.evaluation.requests import REJECTED
from libs.pipeline import grid

ACCEPTANCE, SHOWN = "acceptance.json", 64
COMPARED, BESIDE = 16, 4  # masks in comparison.png, and images beside each


def samples_there(request):
    """The images of a `Request` that are there already, as {index: what their files say of them}."""
    apart = OWN if request.rejection else ()
    found = {index: facts_there(request.folder / name, request.facts(index), apart=apart)
             for index, name in enumerate(request.names)}
    return {index: facts for index, facts in found.items() if facts is not None}


def keep_draw(request, draw):
    """Write the images of a `filtering.Draw` that were taken, and where config.filter.keep_rejects is set the others."""
    for row, index in enumerate(draw.indices):
        own = dict(zip(OWN, (f"{float(draw.scores[row]):.6f}", draw.attempt))) if request.rejection else {}
        if draw.taken[row]:
            save_png(request.folder / request.names[index], draw.images[row], **request.facts(index), **own)
        elif request.rejection.keep_rejects:
            file = request.folder / REJECTED / _rejected_name(request.names[index], draw.attempt)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_png(file, draw.images[row], **request.facts(index), **own)


def _rejected_name(name, attempt):
    return f"{name.removesuffix('.png')}_draw{attempt}.png"


def finish_samples(request, *, before=()):
    """Write grid.png and metadata.csv beside the images of a `Request`, and delete the files `before` that are not among them.

    Where a filter chose, also acceptance.json, and of what is kept in rejected/ a table.

    Returns:
        (images, text): how many there are, and what the filter did, '' without one.

    Raises:
        ValueError: the filter accepted no image.
    """
    rows = [{"file_name": name, **request.facts(index)} for index, name in enumerate(request.names)]
    told, of_image = "", list(request.masks.of_image) if request.masks else []
    if request.rejection:
        facts = samples_there(request)
        attempts = {index: int(own["attempt"]) for index, own in facts.items()}
        kinds = [row["label"] or row["prompt"] for row in rows]
        found = acceptance(request.rejection, attempts, kinds)
        if request.texts and request.classes:
            found["per_prompt"] = acceptance(request.rejection, attempts, request.texts)["per_kind"]
        write_text(request.folder / ACCEPTANCE, json.dumps({**request.known, **found}, indent=1, default=str))
        told = acceptance_told(found)
        if not attempts:
            raise ValueError(f"the filter accepted none of the images; lower config.filter.threshold (here "
                             f"{request.rejection.threshold:.3g}) or raise config.filter.max_attempts\n{told}")
        if len(attempts) < len(rows):
            logging.warning("%d of %d images were never accepted and are not there", len(rows) - len(attempts), len(rows))
        of_image = [of_image[index] for index in attempts] if of_image else []
        rows = [{**rows[index], **{key: facts[index][key] for key in OWN}} for index in attempts]
    else:
        (request.folder / ACCEPTANCE).unlink(missing_ok=True)  # of another request
    _finish_rejected(request)
    _finish(request.folder, rows, before=before, masks=request.masks, of_image=of_image)
    return len(rows), told


def _finish_rejected(request):
    """The table of rejected/: of the files there that belong to this request; what an earlier one of ours left is deleted."""
    folder, rows = request.folder / REJECTED, []
    if not folder.is_dir():
        return
    wanted = {_rejected_name(name, attempt): index for index, name in enumerate(request.names)
              for attempt in range(request.rejection.drawn(None))} if request.rejection and request.rejection.keep_rejects else {}
    for file in sorted(folder.rglob("*.png")):
        name = str(file.relative_to(folder))
        facts = facts_there(file, request.facts(wanted[name]), apart=OWN) if name in wanted else None
        if facts is not None:
            rows.append({"file_name": name, **request.facts(wanted[name]), **{key: facts[key] for key in OWN}})
        elif {"rule", *OWN} <= set(read_facts(file) or {}):  # ours, of another request
            file.unlink()
    if rows:
        write_table(folder, rows)
    else:
        (folder / TABLE).unlink(missing_ok=True)


def _finish(folder, rows, *, before=(), masks=None, of_image=()):
    """Write grid.png and metadata.csv beside the images of `rows`, and delete the files `before` that are not among them.

    With masks also a copy of each, masks/<name>.png, and comparison.png: rows of a mask and of images made for it.

    Args:
        rows: a dict for each image, with file_name, label and prompt ('' where there is none), and further columns.
        before: files of an earlier request in this folder, see `listed_samples`.
        masks: `AskedMasks` of the images, or None. of_image: of each row the number of its mask.
    """
    from PIL import Image
    folder = Path(folder)
    remove_others(folder, rows, before=before)
    shown = _pictures(folder, [rows[i] for i in first_of_each([row["label"] for row in rows])])
    with files.disk_errors(folder / "grid.png"):
        Image.fromarray(grid(shown, 8)).save(folder / "grid.png")
    if masks is not None:
        _keep_masks(folder, masks)
        with files.disk_errors(folder / "comparison.png"):
            Image.fromarray(_comparison(folder, rows, masks, of_image)).save(folder / "comparison.png")
    write_table(folder, rows)
    (folder / UNFINISHED).unlink(missing_ok=True)  # of an evaluation that was stopped here
    name_others(folder, rows)


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


def _comparison(folder, rows, masks, of_image):
    """uint8 (rows*H, columns*W, 3): a row for each of the first masks, and beside it images made for it, of every class."""
    made = {}
    for row, number in zip(rows, of_image, strict=True):
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
