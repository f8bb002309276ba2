"""A pool of images to be rated: what raters see, and what they must not see, in one folder.

    pool.json      the scale: axes, the meaning of each number, defect tags; seed and fingerprint
    items.jsonl    an item in each line, see `Item`
    images/        <item>.png: pixels alone, without what generators write into their files
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

    item: opaque name. image, mask: files below the pool's folder ('' for no mask). sha256: of the image file.
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
        guide: what raters are told, '' for nothing. fingerprint: sha256 (hex) over scale, prompts and pixels.

    Raises:
        FileNotFoundError: no pool there. ValueError: its files do not belong together.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            told = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
            lines = (self.folder / ITEMS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.folder} is no pool of ratings: {Path(error.filename).name} is not there; "
                                    "scripts/build_rating_pool.py makes one") from error
        except ValueError as error:
            raise ValueError(f"{self.folder / FILE} cannot be read: {error}") from error
        if told.get("format") != FORMAT:
            raise ValueError(f"{self.folder / FILE}: format {told.get('format')!r}, expected {FORMAT}: build the pool anew")
        self.axes = [Axis(each["name"], each["question"], {int(level): text for level, text in each["levels"].items()},
                          each["good"]) for each in told["axes"]]
        self.tags, self.guide, self.seed, self.fingerprint = told["tags"], told["guide"], told["seed"], told["fingerprint"]
        self.items = [Item(**json.loads(line)) for line in lines]
        self.by_name = {item.item: item for item in self.items}
        if fingerprint(self.axes, self.tags, self.items) != self.fingerprint:
            raise ValueError(f"{self.folder / ITEMS} or the scale in {FILE} was changed after the pool was built: its answers "
                             "would be taken for answers to other questions. Restore the files, or build a new pool")

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


def fingerprint(axes, tags, items):
    """sha256 (hex) over what raters answered to: scale, prompts, pixels."""
    digest = hashlib.sha256(json.dumps([[asdict(axis) for axis in axes], list(tags)], sort_keys=True).encode())
    for item in items:
        digest.update(json.dumps([item.item, item.sha256, item.prompt]).encode() + b"\n")
    return digest.hexdigest()
