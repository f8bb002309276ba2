"""A pool of images to rate, small and drawn on the spot, for tests of the page, the agreement and the filter."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from libs.ratings.pool import FILE, FORMAT, ITEMS, REAL, SYNTHETIC, Axis, Item, Pool, fingerprint, wording

AXES = (Axis("quality", "Could this picture be a photograph?", {1: "unusable", 2: "usable", 3: "as a photograph"}, good=2),
        Axis("congruence", "Does it show what the prompt says?", {1: "something else", 2: "in part", 3: "all of it"}, good=2))
TAGS = ("blurred", "cut off", "artefact")
CLASSES = {"nevus": (120, 80, 60), "melanoma": (60, 40, 40), "angioma": (180, 50, 60)}
SIZES = {"small": 0.2, "middle": 0.3, "large": 0.42}


def tiny_pool(folder, n=12, repeats=2, *, controls=2, real=2, masks=False, axes=AXES, tags=TAGS, guide="Judge at 100 %.",
              side=24, seed=0):
    """Write a pool of n different images and `repeats` shown again into `folder`, and open it.

    The first `controls` images stand under the prompt of another class ('swapped'), the last `real` ones count as real. The
    prompts are those of three classes and three sizes, 'a large lesion, no. 3': each image has its own. Returns a `Pool`.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(seed)
    names, items = list(CLASSES), []
    for i in range(n + repeats):
        first = i - n if i >= n else None  # the image that this one repeats
        if first is None:
            drawn, size = names[i % len(names)], list(SIZES)[i // len(names) % len(SIZES)]
            label = names[(i + 1) % len(names)] if i < controls else drawn
            text, control, kind = f"a {size} lesion, no. {i}", "swapped" * (i < controls), REAL if i >= n - real else SYNTHETIC
            name = _name(seed, i)
            sha256, masked = _draw(folder, name, CLASSES[drawn], SIZES[size], side, random, masks)
            items.append(Item(name, f"images/{name}.png", sha256, wording(text, label), text, label, **masked, kind=kind,
                              control=control, source={"folder": "run" if kind == SYNTHETIC else "atlas", "model": "run",
                                                       "file_name": f"{i:06d}.png"}))
        else:
            of, name = items[first], _name(seed, i)
            for file in filter(None, (of.image, of.mask)):
                (folder / file).with_name(f"{name}.png").write_bytes((folder / file).read_bytes())
            items.append(Item(**{**asdict(of), "item": name, "image": f"images/{name}.png",
                                 "mask": of.mask and f"masks/{name}.png", "repeat_of": of.item}))
    items.sort(key=lambda item: item.item)
    told = {"format": FORMAT, "axes": [asdict(axis) for axis in axes], "tags": list(tags), "guide": guide, "seed": seed,
            "fingerprint": fingerprint(axes, tags, items)}
    (folder / ITEMS).write_text("".join(f"{json.dumps(asdict(item))}\n" for item in items))
    (folder / FILE).write_text(json.dumps(told))
    return Pool(folder)


def _name(seed, number):
    return hashlib.sha256(f"tiny {seed} {number}".encode()).hexdigest()[:10]


def _draw(folder, name, colour, radius, side, random, masks):
    """A disc on skin, written as PNG; returns the hash of the file and what an item says of its mask."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5 + random.uniform(-0.05, 0.05, (2, 1, 1))
    inside = np.hypot(x, y) < radius
    picture = np.where(inside[..., None], colour, (214, 170, 150)) + random.integers(-12, 12, (side, side, 3))
    file = folder / "images" / f"{name}.png"
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file)
    sha256, mask = hashlib.sha256(file.read_bytes()).hexdigest(), folder / "masks" / f"{name}.png"
    if not masks:
        return sha256, {}
    mask.parent.mkdir(exist_ok=True)
    Image.fromarray(inside.astype(np.uint8) * 255).save(mask)
    return sha256, {"mask": f"masks/{name}.png", "mask_sha256": hashlib.sha256(mask.read_bytes()).hexdigest()}
