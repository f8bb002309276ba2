"""Features as U-ViT and VAP-Diffusion published them, one .npy per item, packed into a store."""

import logging
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .base import fail, fingerprint, one_of
from .restricted import read_npy
from .store import Writer
from .store.manifest import read, write_json
from .store.writing import caption_tables

log = logging.getLogger(__name__)
BLOCK = 256  # images after which their mirrored copies follow, in ImageNet's features
_FILE = re.compile(r"(\d+)(?:_(\d+))?\.npy")


def convert(path, output, *, split="", dtype="float16", mirrored=True, classes=0, class_names=(),
            progress=True):
    """Pack a folder of published features into the store `output`; resumes, and does nothing where it is finished.

    Known are U-ViT's ImageNet, `{i}.npy` (moments, label); its COCO, `{i}.npy` moments and `{i}_{k}.npy` the states of
    caption k; VAP's, where `{i}_{k}.npy` is a dict of states and label. `empty_context.npy` is looked for in the folder and
    above it. Neither codec nor encoder are told by such files: the store fits every codec and encoder of its shapes.

    Args:
        path: the folder; split: the folder below it, such as 'train'.
        dtype: float16 or float32, of what is stored.
        mirrored: in a folder without texts, 256 images are followed by their 256 mirrored copies, as U-ViT extracts.
        classes: how many there are; 0: the highest label and one.
        class_names: one for each, in the order of the labels; () calls them '0', '1', ... A finished store takes them, too.
    Raises:
        ValueError: files missing or not in one of these forms, naming them; something else at `output`.
    """
    one_of("dtype", dtype, ["float16", "float32"])
    class_names = list(class_names)
    fail("class_names", [f"{len(class_names)} names for classes={classes}"] * (0 < classes != len(class_names) > 0)
         + [f"{name!r} occurs {n} times" for name, n in Counter(class_names).items() if n > 1]
         + ["a name is empty"] * ("" in class_names))
    folder = Path(path) / split
    texts = _scan(folder)
    copies = 1 if not mirrored or any(texts) else 2
    if len(texts) % copies:
        raise ValueError(f"{folder}: {len(texts)} files, an odd number, cannot be images and mirrored copies: use "
                         "--nomirrored if they are images alone")
    count = len(texts) // copies
    pairs = [(i, k) for i, n in enumerate(texts) for k in range(n)]
    empty = next((_states(place / "empty_context.npy")[0] for place in (folder, folder.parent)
                  if (place / "empty_context.npy").is_file()), None)
    text = _text(folder, *pairs[0])[0] if pairs else empty
    unknown = {"name": "", "fingerprint": ""}
    identity = {"codec": unknown, "encoder": {} if text is None else {**unknown, "shape": list(text.shape)}}
    writer = Writer(output, {"identity": identity, "dtype": dtype, "flips": copies == 2,
                             "data": {"fingerprint": "", "images": count, "published": fingerprint(texts)}})
    if writer.finished:
        log.info("%s: the feature store is finished", output)
        _rename(output, class_names)
        return

    def layout():
        first, label = _image(folder, 0, texts)
        latents = ((copies, len(first) // 2, *first.shape[1:]), dtype)
        groups = {"images": {"mean": latents, "std": latents} | ({} if label is None else {"labels": ((), "int64")})}
        tables = {"file_names": [f"{_file_index(i, 0, count, copies)}.npy" for i in range(count)]}
        if pairs:
            groups["texts"] = {"text": (text.shape, dtype)}
            ends = np.cumsum(texts)
            tables |= caption_tables([range(end - n, end) for n, end in zip(texts, ends, strict=True)])
        if empty is not None:
            tables["empty"] = empty.astype(dtype)
        return {"name": Path(path).name, "classes": [], "groups": groups, "counts": {"images": count, "texts": len(pairs)},
                "about": {"converted from": str(folder), "command": "scripts/convert_features.py again"}}, tables

    with writer:
        writer.prepare(layout)
        for start, stop in tqdm(writer.missing("images"), f"{output}: images", disable=not progress):
            writer.put("images", start, _images(folder, range(start, stop), count, copies, texts))
        for start, stop in tqdm(writer.missing("texts"), f"{output}: texts", disable=not progress):
            writer.put("texts", start, {"text": _stack([_text(folder, *pair)[0] for pair in pairs[start:stop]],
                                                 [folder / f"{i}_{k}.npy" for i, k in pairs[start:stop]])})
        names = []
        if "labels" in writer.plan["groups"]["images"]:
            lowest, highest = int(writer.rows("labels").min()), int(writer.rows("labels").max())
            if lowest < 0 or 0 < classes <= highest:
                raise ValueError(f"{folder}: labels {lowest} .. {highest}, expected 0 .. {(classes or highest + 1) - 1}")
            names = [str(k) for k in range(classes or highest + 1)]
        writer.finish(classes=_named(folder, names, class_names))


def _named(folder, numbers, names):
    """`names` where they are given: one for each of the classes that are called by `numbers` otherwise."""
    if names and len(names) != len(numbers):
        raise ValueError(f"{folder}: {len(names)} class_names for {len(numbers)} classes of its labels: give one for each, "
                         "in the order of the labels, and --classes with it where the last classes have no image")
    return names or numbers


def _rename(output, names):
    """Give the classes of a finished store other names; its arrays stay as they are."""
    manifest = read(output)
    if names and names != manifest["classes"]:
        manifest["classes"] = _named(output, manifest["classes"], names)
        write_json(Path(output) / "manifest.json", manifest)


def _scan(folder):
    """How many text files each image has, a list over 0 .. N-1; ValueError that names what is missing."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    images, found = set(), defaultdict(set)
    for name in os.listdir(folder):
        if match := _FILE.fullmatch(name):
            image, text = match.groups()
            if text is None:
                images.add(int(image))
            else:
                found[int(image)].add(int(text))
    if not images:
        raise ValueError(f"{folder}: no features there, which are named 0.npy, 1.npy, ...")
    expected = range(max([*images, *found]) + 1)
    problems = [f"{i}.npy is missing" for i in expected if i not in images]
    for i in expected if found else ():
        problems += [f"{i}_{k}.npy is missing" for k in range(max(found[i], default=0) + 1) if k not in found[i]]
    fail(f"{folder}: published features", problems)
    return [len(found[i]) for i in expected]


def _file_index(i, copy, count, copies):
    """The file of a copy of image i: each block of images is followed by the mirrored copies of all of them."""
    block, place = divmod(i, BLOCK)
    return block * BLOCK * copies + copy * min(BLOCK, count - block * BLOCK) + place if copies > 1 else i


def _images(folder, indices, count, copies, texts):
    """Arrays of the group 'images' for these indices."""
    moments, labels = [], []
    for i in indices:
        files = [_file_index(i, copy, count, copies) for copy in range(copies)]
        found, told = zip(*(_image(folder, file, texts) for file in files), strict=True)
        if len(set(told)) > 1:
            raise ValueError(f"{folder}: {files[0]}.npy has label {told[0]}, {files[1]}.npy {told[1]}, so they are not an "
                             "image and its mirrored copy: use --nomirrored if the files are images alone")
        moments.append(_stack(found, [folder / f"{file}.npy" for file in files]))
        labels.append(told[0])
    names = [folder / f"{_file_index(i, 0, count, copies)}.npy" for i in indices]
    mean, logvar = np.split(_stack(moments, names), 2, axis=2)
    rows = {"mean": mean, "std": np.exp(np.clip(logvar, -30, 20) / 2)}
    fail(f"{folder}: published features", [f"{name}: without label, unlike others"
                                           for name, label in zip(names, labels, strict=True)
                                           if label is None and set(labels) != {None}])
    return rows if labels[0] is None else rows | {"labels": np.array(labels, np.int64)}


def _stack(arrays, names):
    for array, name in zip(arrays, names, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(f"{name}: shape {array.shape[-3:]}, but {names[0]} has {arrays[0].shape[-3:]}")
    return np.stack(arrays)


def _image(folder, i, texts):
    """(moments (2C, h, w), label or None) of a file; the label may be with the first text."""
    value, label = read_npy(folder / f"{i}.npy"), None
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value, label = value
    elif texts[i]:
        label = _text(folder, i, 0)[1]
    if not isinstance(value, np.ndarray) or value.ndim != 3 or len(value) % 2:
        raise ValueError(f"{folder / f'{i}.npy'}: expected moments (2C, h, w), perhaps with a label")
    return value, None if label is None else int(label)


def _text(folder, i, k):
    """(states (L, D), label or None) of a text file."""
    return _states(folder / f"{i}_{k}.npy")


def _states(path):
    value, label = read_npy(path), None
    if isinstance(value, dict):
        label, value = value.get("label"), value.get("text", value.get("caption"))
    if not isinstance(value, np.ndarray) or value.ndim != 2:
        raise ValueError(f"{path}: expected states (L, D), or a dict with 'text' or 'caption'")
    return value, label
