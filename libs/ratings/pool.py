"""A pool of images to be rated: what raters see, and what they must not see, in one folder.

    pool.json      the scale: axes, the meaning of each number, defect tags; seed and fingerprint
    items.jsonl    an item in each line, see `Item`
    images/        <item>.png: pixels alone, without what generators write into their files
    masks/         <item>.png, where the images were made from masks
    ratings.sqlite the answers, see `store`

The scale belongs to the pool, so that a number is never read by another legend than the one it was given under.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

FILE, ITEMS, RATINGS = "pool.json", "items.jsonl", "ratings.sqlite"
FORMAT = 1
REAL, SYNTHETIC = "real", "synthetic"
APART = 20  # items between an image and its repeat, where the pool has so many


@dataclass(frozen=True)
class Axis:
    """One question of the scale: higher is better.

    levels: the meaning of each number, {1: 'unusable', 2: ..., 3: ...}, from 1 without gaps. good: the least level that is good.
    """

    name: str
    question: str
    levels: dict
    good: int


@dataclass(frozen=True)
class Item:
    """One image of a pool.

    Raters see image, prompt and mask. The rest says where it is from: kind ('synthetic' or 'real'), the item that it repeats
    ('' for none), for a control that is known to be wrong how it was made so ('swapped' prompt, 'blurred' ...; '' for none),
    and `source`: of the folder that it was taken from its name, file and row of the table.

    item: opaque name. image, mask: images/<item>.png and masks/<item>.png ('' for no mask). sha256, mask_sha256: of these files.
    prompt: what is shown, `wording` of text, label and modality, which are those of the prompt shown.
    """

    item: str
    image: str
    sha256: str
    prompt: str
    text: str = ""
    label: str = ""
    modality: str = ""
    mask: str = ""
    mask_sha256: str = ""
    kind: str = SYNTHETIC
    repeat_of: str = ""
    control: str = ""
    source: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a rater said of an item; `scores` {axis: level}, `seconds` of looking, `at` UTC in ISO 8601."""

    number: int
    rater: str
    item: str
    scores: dict
    tags: tuple
    remark: str
    seconds: float
    at: str


class Pool:
    """The pool in a folder.

    Attributes:
        folder: Path. items: list of `Item`. by_name: {item: Item}. axes: list of `Axis`. tags: names of defects.
        guide: what raters are told, '' for nothing. fingerprint: sha256 (hex) over scale, prompts, images and masks.

    Raises:
        FileNotFoundError: no pool there. ValueError: its files do not belong together.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self._read_scale()
            self.items = list(_items(self.folder / ITEMS))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.folder} is no pool of ratings: {Path(error.filename).name} is not there; "
                                    "scripts/build_rating_pool.py makes one") from error
        self.by_name = {item.item: item for item in self.items}
        if fingerprint(self.axes, self.tags, self.items) != self.fingerprint:
            raise ValueError(f"{self.folder / ITEMS} or the scale in {FILE} was changed after the pool was built: its answers "
                             "would be taken for answers to other questions. Restore the files, or build a new pool")

    def _read_scale(self):
        file = self.folder / FILE
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            if told.get("format") == FORMAT:
                self.axes = [Axis(each["name"], each["question"], {int(level): text for level, text in each["levels"].items()},
                                  each["good"]) for each in told["axes"]]
                self.tags, self.guide, self.seed, self.fingerprint = (told[key] for key in ("tags", "guide", "seed", "fingerprint"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
        if told.get("format") != FORMAT:
            raise ValueError(f"{file}: format {told.get('format')!r}, expected {FORMAT}: build the pool anew")

    def order(self, rater):
        """The items in this rater's own order, fixed by the pool's seed and the name; a repeat comes at least `APART` items, or
        a quarter of the pool, after the image that it repeats."""
        digest = hashlib.sha256(f"{self.seed} {rater}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        names = [self.items[i].item for i in random.permutation(len(self.items)) if not self.items[i].repeat_of]
        apart = min(APART, len(names) // 4)
        repeats = [self.items[i] for i in random.permutation(len(self.items)) if self.items[i].repeat_of]
        for item in repeats:
            first = names.index(item.repeat_of) + 1 + apart
            if first > len(names):  # the original stands too late: it and its repeat change roles
                names[names.index(item.repeat_of)] = item.item
                at = int(random.integers(0, max(1, names.index(item.item) - apart + 1)))
                names.insert(at, item.repeat_of)
            else:
                names.insert(int(random.integers(first, len(names) + 1)), item.item)
        return names

    def missing(self):
        """Items whose image file is not there."""
        return [item for item in self.items if not (self.folder / item.image).is_file()]


def wording(text, label="", modality=""):
    """The prompt as people and filter read it: 'OCT: drusen', 'angioma: a large red lesion', or the class name alone; what the text
    says already is not said twice."""
    said = text.strip()
    for before in (label, modality):
        if before and not re.search(rf"(?<!\w){re.escape(before)}(?!\w)", said, re.IGNORECASE):
            said = f"{before}: {said}" if said else before
    return said


def _items(file):
    """Each `Item` of a file; ValueError names the line that is none, or that names other files than its own."""
    # a prompt may hold other separators of lines, which JSON leaves as they are
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = Item(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}:{number} cannot be read: {error}") from error
        if not re.fullmatch("[0-9A-Za-z_-]{1,64}", str(item.item)):
            raise ValueError(f"{file}:{number}: item {item.item!r}: a name has letters of a to z, digits, - and _, at most 64")
        for folder, given in (("images", item.image), ("masks", item.mask or f"masks/{item.item}.png")):
            if given != f"{folder}/{item.item}.png":
                raise ValueError(f"{file}:{number}: the file {given!r} of item {item.item}: expected {folder}/{item.item}.png")
        yield item


def fingerprint(axes, tags, items):
    """sha256 (hex) over what raters answered to: scale, prompts, images and masks."""
    digest = hashlib.sha256(json.dumps([[asdict(axis) for axis in axes], list(tags)], sort_keys=True).encode())
    for item in items:
        seen = [item.item, item.sha256, item.prompt, *filter(None, [item.mask_sha256])]
        digest.update(json.dumps(seen).encode() + b"\n")
    return digest.hexdigest()
