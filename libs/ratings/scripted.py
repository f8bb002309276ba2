"""Raters that are programs and know the truth: a rehearsal of a rating before people spend hours on it.

How many images does it take until a filter learns from raters who err in one of seven? A `Scripted` rater answers as a person
would, through the store, with errors, bias and carelessness that are known. Its name begins with 'scripted', so that nobody takes
it for a person.
"""

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from .building import SWAPPED
from .store import clean_name, fold, new_token

PREFIX = "scripted "


@dataclass(frozen=True)
class Scripted:
    """How a scripted rater answers.

    noise: chance that a score is another level than meant, any of them alike. bias: shift in levels on the scale on which the truth
    lies, at whose ends there is no room for it: -0.5 lowers every second score above the lowest by one. careless: share of the
    items that get the best scores without a look. share: of the pool that is answered, from the beginning of the rater's order.
    """

    name: str
    noise: float = 0.0
    bias: float = 0.0
    careless: float = 0.0
    share: float = 1.0

    def __post_init__(self):
        for name in ("noise", "careless", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rater {self.name!r}: {name}={getattr(self, name)}; expected a share between 0 and 1")
        if not abs(self.bias) <= 10:
            raise ValueError(f"rater {self.name!r}: bias={self.bias}; expected levels, such as -0.5")
        if not self.name.strip():
            raise ValueError("a scripted rater needs a name: 'anna:noise=0.15'")

    def scores(self, pool, item, truth, *, seed=0):
        """{axis: level} for an item whose true levels are `truth`; the same for the same seed, rater and item."""
        digest = hashlib.sha256(f"{seed} {self.name} {item.item}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        careless, found = random.random() < self.careless, {}
        for axis in pool.axes:
            top, jitter, erring = max(axis.levels), random.uniform(-0.5, 0.5), random.random() < self.noise
            level = int(np.clip(np.floor(truth[axis.name] + jitter + self.bias + 0.5), 1, top))
            others = [other for other in axis.levels if other != level]
            slip = others[random.integers(len(others))]
            found[axis.name] = top if careless else slip if erring else level
        return found


def is_scripted(rater):
    return rater.casefold().startswith(PREFIX)


def parse(text):
    """The raters of 'anna:noise=0.15;bob:noise=0.15,bias=-0.5'.

    Raises:
        ValueError: what is not written so, with what can be said of a rater.
    """
    known, found = [each.name for each in fields(Scripted) if each.name != "name"], []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, _, options = part.partition(":")
        try:
            given = {key.strip(): float(value) for key, value in (each.split("=") for each in options.split(",") if each.strip())}
        except ValueError as error:
            raise ValueError(f"rater {part!r}: expected NAME:option=number,option=number") from error
        strange = sorted(set(given) - set(known))
        if strange:
            raise ValueError(f"rater {part!r}: no option {strange[0]!r}; known: {', '.join(known)}")
        found.append(Scripted(name.strip(), **given))
    names = [rater.name.casefold() for rater in found]
    if not found or len(set(names)) < len(names):
        raise ValueError(f"raters {text!r}: give one or more, each name once: 'anna:noise=0.15;bob:noise=0.15,bias=-0.5'")
    return found


def truths(pool, seen=None):
    """{item: {axis: level}}: the best levels, but for what is known to be wrong.

    A swapped prompt lowers the last axis, which asks for the fit to the prompt, to 1, and damage the first axis, which asks for the
    image itself. seen: item -> {axis: level} of further faults that were found in the image; the lower level counts.
    """
    found = {}
    for item in pool.items:
        levels = {axis.name: max(axis.levels) for axis in pool.axes}
        if item.control:
            levels[pool.axes[-1 if item.control == SWAPPED else 0].name] = 1
        for name, level in (seen(item) if seen else {}).items():
            levels[name] = min(levels[name], level)
        found[item.item] = levels
    return found


def rate(pool, store, rater, truth, *, seed=0):
    """Answer the pool as `rater`, in the rater's own order, beginning where an earlier call ended; returns how many were answered.

    truth: of `truths`. The rater is added to the store where it is new; its access code is thrown away.
    """
    name = clean_name(PREFIX + rater.name)
    if fold(name) not in {fold(each["name"]) for each in store.raters()}:
        store.add_rater(name)
    done = store.answered(name)
    order = pool.order(name)
    asked = [item for item in order[:round(rater.share * len(order))] if item not in done]
    for item in asked:
        scores = rater.scores(pool, pool.by_name[item], truth[item], seed=seed)
        store.answer(name, item, scores=scores, token=new_token())
    return len(asked)
