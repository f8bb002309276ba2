"""Real images under their own prompts, which a filter is trained on beside rated ones: none that its ratings are tested on."""

import hashlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch

from libs import data, ratings
from libs.evaluation import references
from libs.pipeline import to_uint8
from libs.ratings import learning, training
from libs.ratings.pool import REAL

log = logging.getLogger(__name__)

MODALITY = ("modality", "modal")  # columns of a table
BATCH = 32


class Pairs(NamedTuple):
    """Real images that a filter may learn from.

    dataset: of all real images; None where there are none. unrated: those that are no image of the pool. rows: those of them whose
    prompts may be learned too. prompts, labels: of each image of `dataset`, worded as the pool words them; '' for none.
    left_out: {reason: number of images}.
    """

    dataset: object
    unrated: list
    rows: list
    prompts: list
    labels: list
    left_out: dict


def beside(options, pool, *, pictures=(), unseen=()):
    """The `Pairs` of a section config.pairs, which names no folder where there are none.

    Images of the pool are left out: they are rated, and some of them are in the test. So are prompts that are to stay unseen.

    Args:
        pool: `ratings.Pool`. pictures: its images, uint8 (C, H, W) each, against which pixels are compared.
        unseen: items whose prompts are held out.
    """
    if options.name != "phantoms" and not options.path:
        return Pairs(None, [], [], [], [], {})
    given = {key: value for key, value in options.to_dict().items() if value not in ("", ())}
    real = data.get(**given)
    data.preflight(real, window_option="config.pairs.window")
    prompts, others, labels = worded(real, pool)
    rated = pool_rows(real, given, pool, pictures)
    unrated = [i for i in range(len(real)) if i not in rated]
    held_out = {_key(said) for item in unseen for said in (item.prompt, ratings.wording(item.text, item.label))}
    asked = [i for i in unrated if prompts[i]]
    rows = [i for i in asked if not held_out & {_key(prompts[i]), _key(others[i])}]
    left_out = {"images of the pool": len(rated), "without text and label": len(unrated) - len(asked),
                "under prompts held out for calibration and test": len(asked) - len(rows)}
    told = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    log.log(logging.INFO if rows else logging.WARNING, "real pairs: %d of %d images%s", len(rows), len(real),
            told and f"; left out: {told}")
    return Pairs(real, unrated, rows, prompts, labels, left_out)


def worded(real, pool):
    """(prompts, the same of text and label alone, labels) of real images.

    Text, label and modality enter where items of the pool have them, so that a prompt of either kind reads like the other's; all
    enter where nothing would be left.
    """
    count, rows = len(real), getattr(real, "rows", None)
    labels = [""] * count if real.labels is None else [real.classes[int(label)] for label in real.labels]
    texts = [""] * count if real.captions is None else [text if isinstance(text, str) else text[i % len(text)]
                                                       for i, text in enumerate(real.captions)]
    kinds = [next((str(value).strip() for key, value in row.items() if key.lower() in MODALITY and value), "")
             for row in rows] if rows else [""] * count
    used = [any(getattr(item, name) for item in pool.items) for name in ("text", "label", "modality")]
    prompts = [ratings.wording(*(part if use else "" for part, use in zip(parts, used))) or ratings.wording(*parts)
               for parts in zip(texts, labels, kinds)]
    return prompts, [ratings.wording(*parts) for parts in zip(texts, labels)], labels


def pool_rows(real, options, pool, pictures=()):
    """Which of the real images are images of the pool: by their files, and by their pixels at the pool's resolution."""
    items = [item for item in pool.items if item.kind == REAL]
    if not items:
        return set()
    files = {_file(item.source.get("folder", ""), item.source["file_name"]) for item in items if item.source.get("file_name")}
    root = getattr(real, "root", None)
    found = {i for i in range(len(real)) if _file(root, real.file_name(i)) in files} if root is not None else set()
    shapes = {tuple(picture.shape[1:]) for picture in pictures}
    side, *other = next(iter(shapes)) if len(shapes) == 1 else (0, 0)
    if not side or other != [side]:
        return found
    known = {_pixels(picture) for picture in pictures}
    same = real if tuple(real.shape[1:]) == (side, side) else data.get(**options | {"resolution": side})
    try:
        for batch in data.in_order(same, range(len(same)), BATCH):
            found |= {int(i) for i, image in zip(batch["index"], to_uint8(batch["image"])) if _pixels(image) in known}
    except ValueError as error:  # smaller than the pool's images
        log.warning("real pairs: which of them are images of the pool is told by their files alone: %s", error)
    return found


def own_network(pairs, seed, device="cpu"):
    """The name of the small network that tells the classes of the real images apart; trained on `device` at the first call.

    Images of the pool are left out of it, rated or not: a network knows the images that it was trained on.
    """
    real = pairs.dataset
    if real is None or real.labels is None:
        raise ValueError("config.encoder.images has 'classifier', a network that is trained on config.pairs: give it real images "
                         "with labels (config.pairs.path), or name classifier:<folder> of scripts/train_feature_network.py, or "
                         "timm:<network>")
    if len(pairs.unrated) == len(real):
        return f"classifier:{references.feature_network(real, seed=seed, device=device)}"
    if len({pairs.labels[i] for i in pairs.unrated}) < 2:
        raise ValueError(f"config.encoder.images has 'classifier', and of the {len(real)} images of config.pairs the pool leaves "
                         f"{len(pairs.unrated)}, not of two classes: give more real images, or name another network")
    folder = references.trained_once(real, real.labels[torch.tensor(pairs.unrated)], real.classes, seed=seed, rows=pairs.unrated,
                                     of="unrated-images", device=device)
    return f"classifier:{folder}"


def embedded(pairs, encoder, axes, most):
    """`training.Examples` of at most so many of the pairs; None where there are none."""
    if not pairs.rows or not most:
        return None
    rows = [pairs.rows[i] for i in data.some(pairs.rows, most)]
    image = torch.cat([encoder.images(to_uint8(batch["image"])) for batch in data.in_order(pairs.dataset, rows, BATCH)])
    labels, prompts = [pairs.labels[i] for i in rows], [pairs.prompts[i] for i in rows]
    return training.real_examples(image, encoder.texts(prompts), axes, labels, prompts)


def _key(prompt):
    """Words of a prompt in any order: 'OCT: AMD: drusen' is no other prompt than 'AMD: OCT: drusen'."""
    return tuple(sorted(learning.plain(prompt).split()))


def _file(folder, name):
    folder = Path(folder).expanduser()
    return os.path.realpath((folder.parent if folder.is_file() else folder) / Path(name).expanduser())


def _pixels(image):
    return hashlib.sha256(image.expand(3, -1, -1).contiguous().numpy().tobytes()).hexdigest()
