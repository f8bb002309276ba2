"""Making the store of a data set from its images and captions."""

import logging
from itertools import chain

import numpy as np
import torch
from tqdm import tqdm

from ..base import fail, fingerprint, one_of
from ..loader import in_order
from .manifest import WEIGHTS
from .writer import CHUNK, Writer

log = logging.getLogger(__name__)


def write(path, dataset, *, encode_images, encode_texts=None, empty=None, identity, dtype="float16", flips=False,
          batch_size=64, rank=0, world=1, workers=0, barrier=lambda: None, progress=True, about=None):
    """Make the store of a data set at the folder `path`; nothing is done where it is finished, else it is resumed.

    Killed at any moment it goes on with the chunks that are missing, and ends in the same bytes. Each of `world` processes
    calls this with its `rank`; all see the same file system.

    Args:
        dataset: `base.Dataset`; shown without augmentation. Its weights are kept, where it has them, but are no part of what a
            store is compared by. Its captions (a string or a list of strings per image) are
            stored where `encode_texts` is given, each distinct one once; its masks, where it has them, as classes or grey levels.
        encode_images: images (n, C, H, W) in [-1, 1] -> (mean, std or None) of the latents, (n, c, h, w).
        encode_texts: list of n strings -> states (n, L, D).
        empty: (L, D), the states of the empty text.
        identity: JSON dict {'codec': {...}, 'encoder': {...}}: what decides the content beside the data; see `check`.
        dtype: float16 or float32, of latents and states.
        flips: store the mirrored copy of each image too.
        batch_size: most images or texts per call; the largest power of two up to it and 256 is used.
        workers: processes that read images.
        barrier: waits for all processes.
        about: JSON dict for readers, never compared; its 'command' is named where a store is found unfinished.
    Raises:
        ValueError: another store is in the way (naming what differs), values that `dtype` cannot hold, a disk too small,
            no images, images without caption, an image that cannot be read.
    """
    one_of("features dtype", dtype, ["float16", "float32"])
    if not len(dataset):
        raise ValueError(f"{path}: the data set {dataset.name!r} has no images")
    captions = _captions(dataset) if encode_texts else []
    writer = Writer(path, {"identity": identity, "dtype": dtype, "flips": bool(flips),
                           "data": {"fingerprint": dataset.fingerprint, "images": len(dataset),
                                    "captions": fingerprint(captions) if captions else "none"}},
                    rank=rank, world=world, barrier=barrier)
    if writer.finished:
        log.info("%s: the feature store is finished", path)
        return
    distinct = list(dict.fromkeys(chain.from_iterable(captions)))
    size = min(CHUNK, 1 << (max(1, batch_size).bit_length() - 1))  # chunks are whole batches, for the same bytes always
    copies, masks_as = 2 if flips else 1, dataset.masks_as

    def layout():
        first = next(in_order(dataset, [0], 1))
        mean, std = encode_images(first["image"])
        latents = ((copies, *mean.shape[1:]), dtype)
        images = {"mean": latents} | ({} if std is None else {"std": latents})
        images |= {} if masks_as is None else {"mask": (tuple(first["mask"].shape[2:]), "uint8")}
        plan = {"name": dataset.name, "classes": list(dataset.classes), "about": about or {},
                **({} if masks_as is None else {"masks": masks_as.settings}),
                "groups": {"images": images | ({} if dataset.labels is None else {"labels": ((), "int64")})},
                "counts": {"images": len(dataset), "texts": len(distinct)}}
        tables = {"file_names": [dataset.file_name(i) for i in range(len(dataset))]}
        tables |= {} if dataset.weights is None else {WEIGHTS: dataset.weights.numpy().astype("<f4")}
        if distinct:
            plan["groups"]["texts"] = {"text": (tuple(encode_texts(distinct[:1]).shape[1:]), dtype)}
            row = {text: k for k, text in enumerate(distinct)}
            tables |= {"captions": distinct, **caption_tables([[row[text] for text in texts] for texts in captions])}
        if empty is not None:
            tables["empty"] = empty.float().numpy(force=True).astype(dtype)
        return plan, tables

    def encode(batch):
        images = batch["image"]
        latents = [encode_images(x) for x in (images, images.flip(-1))[:copies]]
        found = {name: torch.stack(parts, 1) for name, parts in zip(("mean", "std"), zip(*latents, strict=True), strict=True)
                 if parts[0] is not None}
        return found | ({"mask": masks_as.levels(batch["mask"])} if "mask" in writer.plan["groups"]["images"] else {})

    with writer, torch.no_grad():
        writer.prepare(layout)
        chunks = writer.missing("images")
        batches = in_order(dataset, chain.from_iterable(range(*chunk) for chunk in chunks), size, workers)
        for start, stop in tqdm(chunks, f"{path}: images", disable=not progress or rank > 0):
            parts = [encode(next(batches)) for _ in range(start, stop, size)]
            labels = {} if dataset.labels is None else {"labels": dataset.labels[start:stop]}
            writer.put("images", start, {name: torch.cat([part[name] for part in parts]) for name in parts[0]} | labels)
        for start, stop in tqdm(writer.missing("texts"), f"{path}: texts", disable=not progress or rank > 0):
            writer.put("texts", start, {"text": torch.cat([encode_texts(distinct[i:min(i + size, stop)])
                                                           for i in range(start, stop, size)])})
        writer.finish()


def caption_tables(rows):
    """{'caption_starts', 'caption_rows'} for lists, one per image, of rows of text.npy."""
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return {"caption_starts": starts, "caption_rows": np.fromiter(chain.from_iterable(rows), np.int64, starts[-1])}


def _captions(dataset):
    """The captions of each image as lists; ValueError that names the images without."""
    if dataset.captions is None:
        raise ValueError(f"the data set {dataset.name!r} has no captions, but a text encoder is set: name where they are "
                         "in config.dataset, or leave out config.encoder")
    captions = [[texts] if isinstance(texts, str) else list(texts) for texts in dataset.captions]
    fail(f"{dataset.name}: images without caption",
         [dataset.file_name(i) for i, texts in enumerate(captions) if not texts])
    return captions
