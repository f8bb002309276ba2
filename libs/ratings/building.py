"""Building a pool: which images are shown under which prompt, which are known to be wrong, and files that tell nothing more.

Raters must not guess what an image is from anything but its pixels. So files have opaque names and no metadata, stand in an
order drawn by the seed, are all of one size, and real images are asked about in the form in which generated ones are.
"""

import hashlib
import json
import logging
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .pool import FILE, FORMAT, ITEMS, RATINGS, REAL, SYNTHETIC, Axis, Item, Pool, fingerprint, wording

SWAPPED, FEWEST, LISTED = "swapped", 4, 5
ASKED = ("text", "label", "modality")  # what prompts are made of
COLOURS = ((0, 0, 0), (255, 255, 255), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
           (204, 121, 167))  # of background and classes in masks; Okabe and Ito's, which the colour-blind tell apart
RESERVED = {"rater", "item", "tags", "remark", "seconds", "at", "prompt", "text", "label", "modality", "kind", "control",
            "repeat_of", "model", "file_name", "token", "replaces"}  # names of other columns and fields


@dataclass(frozen=True)
class Candidate:
    """An image that may go into a pool.

    pixels: () -> uint8 (H, W, 3); may raise ValueError that names the file. mask: () -> uint8 (H, W) or (H, W, 3), or None.
    source: where it is from, with 'folder', 'file_name' and 'model'.
    """

    pixels: Callable
    text: str = ""
    label: str = ""
    modality: str = ""
    kind: str = SYNTHETIC
    mask: Callable | None = None
    source: dict = field(default_factory=dict)

    @property
    def prompt(self):
        return wording(self.text, self.label, self.modality)


@dataclass(frozen=True)
class Shown:
    """A candidate as raters get it: under the prompt of `asked`, and damaged or swapped as `control` says ('' for neither)."""

    candidate: Candidate
    asked: Candidate
    control: str = ""


def scale(axes, order=()):
    """The list of `Axis` of {name: {'question', 'levels': (meaning of 1, of 2, ...), 'good'}}, those of `order` where it is given.

    Raises:
        ValueError: an axis that nobody could answer on.
    """
    found = []
    for name in order or axes:
        if name not in axes:
            raise ValueError(f"scale.order: {name!r} is no axis; known: {', '.join(axes)}")
        each = axes[name]
        levels = {number: str(meaning) for number, meaning in enumerate(each["levels"], 1)}
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
            raise ValueError(f"axis {name!r}: a name has small letters, digits and _, and is none of {', '.join(sorted(RESERVED))}")
        if len(levels) < 2 or not all(meaning.strip() for meaning in levels.values()):
            raise ValueError(f"axis {name!r}: levels={tuple(levels.values())}; give the meaning of 1, 2, ..., two or more")
        if each["good"] not in range(2, len(levels) + 1):
            raise ValueError(f"axis {name!r}: good={each['good']}; the least good level is one of 2 .. {len(levels)}")
        found.append(Axis(name, str(each["question"]), levels, int(each["good"])))
    if not found:
        raise ValueError("the scale has no axis: raters would have nothing to answer")
    return found


def check_free(folder):
    """ValueError where a new pool in `folder` would destroy ratings or raters' access codes, or files that are no pool."""
    folder = Path(folder)
    if (folder / RATINGS).exists():
        answers, raters = _written(folder / RATINGS)
        if answers:
            raise ValueError(f"{folder} holds ratings ({answers} answers in {RATINGS}): a new pool would make them worthless. "
                             "Choose another folder, or move that one away")
        if raters:
            raise ValueError(f"{folder} has raters ({raters} in {RATINGS}) who have not answered yet: with a new pool they would "
                             f"lose their access codes. Choose another folder, or delete {RATINGS} and add them again")
    if folder.exists() and not (folder.is_dir() and ((folder / FILE).is_file() or not any(folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no pool: choose another folder")


def _written(file):
    """How many answers and raters a file of ratings has."""
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as db:
            return [db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("answers", "raters")]
    except sqlite3.Error as error:
        raise ValueError(f"{file} cannot be read, so it may hold ratings, which a new pool would make worthless ({error}). Choose "
                         "another folder, or move that one away") from error


def build(folder, synthetic, real=(), *, axes, tags=(), guide="", size=0, real_share=0.0, repeat_share=0.0, controls=None,
          resolution=0, seed=0):
    """Write a pool into an empty folder and open it.

    Args:
        synthetic, real: lists of `Candidate`.
        axes: list of `Axis`. tags: names of defects. guide: what raters are told.
        size: different images in the pool; 0 takes all of `synthetic`, and real ones by their share.
        real_share, repeat_share: real images, and images shown a second time, per image of the pool. Each number is rounded.
        controls: {'swapped': share, 'blurred': share, ...}, images made wrong on purpose; see `DAMAGES`.
        resolution: side to which images are brought, at most the smallest of theirs; 0 leaves them as they are.
        seed: of all that is drawn.
    Raises:
        ValueError: too few images for what is asked; images that cannot be read, or whose size tells where they are from.
    """
    random = np.random.default_rng(seed)
    chosen = choose(list(synthetic), list(real), size=size, real_share=real_share, controls=dict(controls or {}), random=random)
    right = [number for number, shown in enumerate(chosen) if not shown.control]
    again = _share("repeat_share", repeat_share, len(chosen))
    if again > len(right):
        raise ValueError(f"repeat_share={repeat_share} asks for {again} repeats, and {len(right)} images are no controls")
    repeated = random.permutation(right)[:again].tolist()
    numbers = random.permutation(np.array([*range(len(chosen)), *repeated])).tolist()
    folder = Path(folder)
    items = _write_images(folder, chosen, numbers, resolution=resolution, seed=seed)
    (folder / ITEMS).write_text("".join(f"{json.dumps(asdict(item), ensure_ascii=False)}\n" for item in items), encoding="utf-8")
    told = {"format": FORMAT, "axes": [asdict(axis) for axis in axes], "tags": list(tags), "guide": guide, "seed": seed,
            "fingerprint": fingerprint(axes, tags, items),
            "built": {"size": size, "real_share": real_share, "repeat_share": repeat_share, "controls": dict(controls or {}),
                      "resolution": resolution}}
    (folder / FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return Pool(folder)


def choose(synthetic, real, *, size, real_share, controls, random):
    """The images of a pool, as a list of `Shown`: models and prompts take turns, no image twice."""
    one_of = {SWAPPED, *DAMAGES}
    unknown = sorted(set(controls) - one_of)
    if unknown:
        raise ValueError(f"controls: {unknown[0]!r} is unknown; known: {', '.join([SWAPPED, *DAMAGES])}")
    real_share = _checked_share("real_share", real_share) if real else 0.0
    total = size or round(len(synthetic) / (1 - real_share))
    n_real = _share("real_share", real_share, total)
    n_of = {name: _share(f"controls.{name}", share, total) for name, share in controls.items()}
    n_synthetic = total - n_real
    if total < FEWEST or n_synthetic <= sum(n_of.values()):
        raise ValueError(f"a pool of {total} images, {n_real} of them real and {sum(n_of.values())} wrong on purpose, is too "
                         f"small: give {FEWEST} images or more, and shares that leave some generated ones as they are")
    if n_synthetic > len(synthetic):
        raise ValueError(f"the pool needs {n_synthetic} generated images, and there are {len(synthetic)}: lower pool.size, or "
                         "give more images")
    silent = [each for each in synthetic if not each.prompt]
    if silent:
        raise ValueError(f"{_called(silent[0])} has no text and no label (so have {len(silent) - 1} more): raters need a prompt to "
                         "compare the image with")
    synthetic = _by_turns(synthetic, n_synthetic, random)
    alike = _asked_alike(real, synthetic) if n_real else []
    if n_real > len(alike):
        raise ValueError(f"the pool needs {n_real} real images, and there are {len(alike)}"
                         + (f" of {len(real)} with labels and prompts like those of generated ones" * (len(alike) < len(real)))
                         + ": lower pool.size or pool.real_share, or give more images")
    wrong = _by_turns(synthetic, sum(n_of.values()), random)
    left = {id(each) for each in wrong}
    kinds = [name for name, n in n_of.items() for _ in range(n)]
    shown = [Shown(each, each) for each in synthetic if id(each) not in left]
    for each, kind in zip(wrong, random.permutation(kinds).tolist() if kinds else []):
        shown.append(Shown(each, _other(each, synthetic, random) if kind == SWAPPED else each, kind))
    return shown + [Shown(each, each) for each in _by_turns(alike, n_real, random)]


def _checked_share(name, share):
    if not 0 <= share < 1:
        raise ValueError(f"{name}={share}: a share is at least 0 and below 1")
    return share


def _share(name, share, total):
    """How many of `total` a share is, rounded; the log says where it is none."""
    found = round(_checked_share(name, share) * total)
    if share and not found:
        logging.warning("%s=%g of %d images is less than one: the pool has none", name, share, total)
    return found


def _by_turns(candidates, n, random):
    """n of them: models in turn, and of each model the labels, of each label the prompts; which image of a prompt is drawn.

    Prompts come in one order for all models, so that models are compared on the same ones.
    """
    prompts = {}
    for number in random.permutation(len(candidates)):
        prompts.setdefault(candidates[number].label, {})[candidates[number].prompt] = None
    order = {prompt: place for place, prompt in enumerate(_in_turns([list(each) for each in prompts.values()]))}
    models = {}
    for number in random.permutation(len(candidates)).tolist():
        each = candidates[number]
        models.setdefault(each.source.get("model", ""), {}).setdefault(each.prompt, []).append(each)
    return _in_turns([_in_turns([of[prompt] for prompt in sorted(of, key=order.get)]) for of in models.values()])[:n]


def _in_turns(groups):
    """The first of each group, the second of each group, and so on."""
    most = max(map(len, groups), default=0)
    return [group[turn] for turn in range(most) for group in groups if turn < len(group)]


def _other(candidate, candidates, random):
    """One whose prompt is wrong for this image: of another label, or where there are none of another wording; of the same
    modality if there is one, as a chest film is no test of who knows an OCT."""
    fits = [each for each in candidates if each.prompt.casefold() != candidate.prompt.casefold()
            and (each.label != candidate.label or not candidate.label)]
    fits = [each for each in fits if each.modality == candidate.modality] or fits
    if not fits:
        raise ValueError(f"swapped prompts need another one than {candidate.prompt!r}, and all images have this one: set "
                         "pool.controls.swapped=0")
    return fits[random.integers(len(fits))]


def _asked_alike(real, synthetic):
    """Real images that can be asked about just as the generated ones are.

    They have text, label and modality only where generated ones have them, all that some generated image has and no more, and one
    of the generated ones' labels, in their spelling. Any other would be known as real by its prompt.
    """
    used = {name: any(getattr(each, name) for each in synthetic) for name in ASKED}
    cut = [replace(each, **{name: "" for name, is_used in used.items() if not is_used}) for each in real]
    for name in ASKED:
        if used[name] and not any(getattr(each, name) for each in cut):
            raise ValueError(f"the generated images have a {name} and the real ones none: raters would know them by their prompts. "
                             f"Give real images with a column {name}")
    forms = {_filled(each) for each in synthetic}
    alike = [each for each in cut if _filled(each) in forms]
    if not alike:
        raise ValueError(f"the generated images have {_forms(synthetic)}, and the real ones {_forms(cut)}: raters would know them "
                         "by their prompts. Give real images with the same columns filled")
    spelling = {each.label.casefold(): each.label for each in synthetic}
    known = [replace(each, label=spelling[each.label.casefold()]) for each in alike if each.label.casefold() in spelling]
    if not known:
        raise ValueError(f"no real image has a label of the generated ones: they have {_names(synthetic)}, and the real ones "
                         f"{_names(alike)}. Raters would know them by it: give both the same names")
    if len(known) < len(real):
        logging.warning("%d of %d real images are left out: their labels or prompts are unlike those of generated ones",
                        len(real) - len(known), len(real))
    return known


def _filled(candidate):
    return tuple(name for name in ASKED if getattr(candidate, name))


def _forms(candidates):
    return " or ".join(" and ".join(each) or "nothing" for each in sorted({_filled(each) for each in candidates}))


def _names(candidates):
    names = sorted({each.label for each in candidates})
    return ", ".join(map(repr, names[:LISTED])) + " ..." * (len(names) > LISTED)


def _write_images(folder, chosen, numbers, *, resolution, seed):
    """Write image (and mask) of each place in `numbers`, and return its `Item`; the second of a number repeats the first."""
    masked = all(shown.candidate.mask is not None for shown in chosen)
    if not masked and any(shown.candidate.mask is not None for shown in chosen):
        logging.warning("masks are not shown: some images have none, and raters would tell the images apart by them")
    for name in ("images", *(["masks"] if masked else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = [np.random.default_rng([seed, number]) for number in range(len(chosen))]
    items, first, sizes, smallest, pixels_of, faults = [], {}, {}, (math.inf, ""), {}, []
    for place, number in enumerate(numbers):
        name, shown = hashlib.sha256(f"{seed} {place}".encode()).hexdigest()[:12], chosen[number]
        if number in first:
            items.append(_repeat(folder, name, first[number]))
            continue
        try:
            pixels = shown.candidate.pixels()
            smallest = min(smallest, (min(pixels.shape[:2]), _called(shown.candidate)))
            array = _sized(pixels, resolution)
            mask = _mask(shown.candidate.mask(), array.shape[:2]) if masked else None
        except (OSError, ValueError) as error:
            faults += [str(error)] if str(error) not in faults else []
            continue
        array = DAMAGES[shown.control](array, random[number]) if shown.control in DAMAGES else array
        sizes.setdefault(array.shape[:2], shown.candidate)
        pixels_of.setdefault(hashlib.sha256(array.tobytes()).hexdigest(), []).append(_called(shown.candidate))
        first[number] = _write(folder, name, array, mask, shown)
        items.append(first[number])
    if faults:
        raise ValueError(f"{len(faults)} images cannot be used: {'; '.join(faults[:LISTED])}{' ...' * (len(faults) > LISTED)}")
    if smallest[0] < resolution:
        raise ValueError(f"pool.resolution={resolution}, and {smallest[1]} has a side of {smallest[0]}: raters would tell enlarged "
                         f"images apart, for they are blurred. Set pool.resolution={smallest[0]} or less")
    if len(sizes) > 1:
        told = ", ".join(f"{_called(each)} {width}x{height}" for (height, width), each in sizes.items())
        raise ValueError(f"images of different sizes ({told}): raters would tell them apart by it. Bring all to the smallest "
                         f"side: pool.resolution={smallest[0]}")
    same = [names for names in pixels_of.values() if len(names) > 1]
    if same:
        logging.warning("%d images are in the pool more than once, pixel for pixel: %s", len(same), " = ".join(same[0]))
    return items


def _write(folder, name, array, mask, shown):
    file = folder / "images" / f"{name}.png"
    Image.fromarray(array).save(file)
    masked = {}
    if mask is not None:
        beside = folder / "masks" / f"{name}.png"
        Image.fromarray(mask).save(beside)
        masked = {"mask": f"masks/{name}.png", "mask_sha256": hashlib.sha256(beside.read_bytes()).hexdigest()}
    asked = shown.asked
    return Item(item=name, image=f"images/{name}.png", sha256=hashlib.sha256(file.read_bytes()).hexdigest(), prompt=asked.prompt,
                text=asked.text, label=asked.label, modality=asked.modality, **masked, kind=shown.candidate.kind,
                control=shown.control, source=shown.candidate.source)


def _repeat(folder, name, item):
    """The item that shows the image of another one again, in files of its own."""
    for file in filter(None, (item.image, item.mask)):
        (folder / file).with_name(f"{name}.png").write_bytes((folder / file).read_bytes())
    return replace(item, item=name, image=f"images/{name}.png", mask=item.mask and f"masks/{name}.png", repeat_of=item.item)


def _sized(array, resolution):
    if not resolution or array.shape[:2] == (resolution, resolution):
        return np.ascontiguousarray(array)
    return np.asarray(ImageOps.fit(Image.fromarray(array), (resolution, resolution), Image.Resampling.LANCZOS))


def _mask(array, shape):
    """A mask at the image's size; numbers of classes, which look black, become colours."""
    if array.ndim == 2 and array.max(initial=0) < 64:
        array = np.array(COLOURS, np.uint8)[np.where(array > 0, 1 + (array.astype(int) - 1) % (len(COLOURS) - 1), 0)]
    return np.asarray(ImageOps.fit(Image.fromarray(array), shape[::-1], Image.Resampling.NEAREST))


def _called(candidate):
    return "/".join(filter(None, (candidate.source.get("folder", ""), candidate.source.get("file_name", "")))) or candidate.prompt


def _blurred(array, random):
    return np.asarray(Image.fromarray(array).filter(ImageFilter.GaussianBlur(min(array.shape[:2]) / 9)))


def _noisy(array, random):
    return (array + random.normal(0, 70, array.shape)).clip(0, 255).astype(np.uint8)


def _occluded(array, random):
    """A black rectangle over half the width and height, around the middle, where findings are."""
    array, (height, width) = array.copy(), array.shape[:2]
    top, left = (int(side * random.uniform(0.2, 0.3)) for side in (height, width))
    array[top:top + height // 2, left:left + width // 2] = 0
    return array


def _cast(array, random):
    """A lamp of one colour: one channel is kept, the others are dimmed; grey images lose their greyness too."""
    factors = np.full(3, 0.35)
    factors[random.integers(1, 3)] = 1.0  # green or blue: red light is found on real skin and mucosa
    return (array * factors).round().astype(np.uint8)


DAMAGES = {"blurred": _blurred, "noisy": _noisy, "occluded": _occluded, "cast": _cast}


def distinct(folders):
    """A name for each folder: as many of its last parts as it takes to tell it from the others."""
    parts = [each.resolve().parts for each in folders]
    twice = next((str(folder) for folder, each in zip(folders, parts) if parts.count(each) > 1), "")
    if twice:
        raise ValueError(f"--models: {twice} is there twice")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names


def contents(items):
    """What is in a pool, in words: '40 generated (a 20, b 20), 10 real, 4 controls (swapped 2, ...), 5 repeats'."""
    own = [item for item in items if not item.repeat_of]
    parts = [("generated", Counter(item.source.get("model", "") for item in own if item.kind == SYNTHETIC and not item.control)),
             ("real", Counter(item.source.get("model", "") for item in own if item.kind == REAL)),
             ("wrong on purpose", Counter(item.control for item in own if item.control))]
    said = [f"{sum(each.values())} {name} ({', '.join(f'{key} {n}' for key, n in sorted(each.items()))})" for name, each in parts
            if each]
    return ", ".join(said + [f"{len(items) - len(own)} shown again"])
