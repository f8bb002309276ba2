"""Which rows are training data: given splits, a held-out share, and no patient on both sides."""

import hashlib
import os
from collections import Counter, defaultdict

from libs import names

from .base import did_you_mean

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # of held-out images, tried for advice


def hold_out(rows, share, seed):
    """Move about `share` of the training rows of each class to split 'val', whole groups at a time.

    Which ones follows from (seed, group) alone, so that neither the order of the rows nor added images move
    others. A group is a row's `group`, or its file where it has none; it counts for the class of its first
    row. A class keeps at least one group, and where groups hold several classes, each class keeps a training
    image where it had one.
    """
    taken = _held_out(rows, share, seed)
    for row in rows:
        if row.split in ("", "train"):
            row.split = "val" if (row.group or row.name) in taken else "train"


def advise_holdout(rows, share, seed):
    """Why `hold_out` moves no row to 'val', and what to type, in a sentence."""
    sizes = defaultdict(set)
    for row in rows:
        if row.split in ("", "train"):
            sizes[row.label].add(row.group or row.name)
    images = sum(row.split in ("", "train") for row in rows)
    grouped = any(row.group for row in rows)
    classes = f" in {len(sizes)} classes" if len(sizes) > 1 else ""
    groups = f" of {len(set().union(*sizes.values()))} groups (patients)" if grouped else ""
    fault = f"holdout={share:g} of {images} image{'s' * (images != 1)}{groups}{classes} holds out none"
    none = "train without held-out images, --config.dataset.holdout=0 --config.train.validation_split="
    best = _enough(rows, seed, SHARES)
    if not best:
        what = "groups (patients)" if grouped else "images"
        return f"{fault}, as a class needs 2 {what} for one to be held out: {none}, or add some"
    return f"{fault}: hold out a larger share, --config.dataset.holdout={best:g}; or {none}"


def _enough(rows, seed, shares):
    """The smallest of `shares` that holds out an image of as many classes as any of them; 0 where none holds
    out one."""
    reached = {share: _classes_held_out(rows, share, seed) for share in shares}
    best = max(shares, key=lambda share: (reached[share], -share))
    return best if reached[best] else 0


def _classes_held_out(rows, share, seed):
    """Share of the classes that could have a held-out image and do, in [0, 1]."""
    groups = defaultdict(set)
    for row in rows:
        if row.split in ("", "train"):
            groups[row.label].add(row.group or row.name)
    possible = {label for label, members in groups.items() if len(members) > 1}
    taken = _held_out(rows, share, seed)
    reached = {row.label for row in rows if row.split in ("", "train") and (row.group or row.name) in taken}
    return len(reached & possible) / max(1, len(possible)) if reached else 0.0


def _held_out(rows, share, seed):
    """The groups that `hold_out` moves."""
    groups = defaultdict(list)
    for row in rows:
        if row.split in ("", "train"):
            groups[row.group or row.name].append(row)
    by_class, held = defaultdict(list), set()
    for group, members in groups.items():
        by_class[members[0].label].append(group)
    for order in by_class.values():
        order.sort(key=lambda name: _drawn(name, seed))
        wanted, taken = round(share * sum(len(groups[name]) for name in order)), 0
        for name in order[:-1]:
            if taken < wanted and taken + len(groups[name]) <= 2 * wanted:
                taken += len(groups[name])
                held.add(name)
    return held - _given_back(groups, held, seed)


def _given_back(groups, held, seed):
    """The held-out groups that return to the training, so that no class loses all of its training images."""
    count = Counter(row.label for name, members in groups.items() if name not in held for row in members)
    back = set()
    for label in sorted({row.label for members in groups.values() for row in members}):
        if count[label]:
            continue
        having = [name for name in held - back if any(row.label == label for row in groups[name])]
        chosen = max(having, key=lambda name: _drawn(name, seed))
        back.add(chosen)
        count.update(row.label for row in groups[chosen])
    return back


def _drawn(name, seed):
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()


def leaks(rows):
    """Files and groups (patients) that are in more than one split, as sentences."""
    problems = []
    for what, key in (("file", lambda row: row.name), ("group", lambda row: row.group)):
        first, clashes = {}, defaultdict(dict)
        for row in rows:
            before = first.setdefault(key(row), row)
            if key(row) and before.split != row.split:
                clashes[key(row)] |= {before.split: before.where, row.split: row.where}
        problems += [f"{what} {name!r} is in more than one split: "
                     + ", ".join(f"{split!r} ({where})" for split, where in places.items())
                     for name, places in clashes.items()]
    return problems


def choose(rows, split):
    """(rows of one split, '' or what is wrong with asking for it); split '' is all of them, and so is 'train'
    where the data are not divided."""
    if not split:
        return rows, ""
    there = sorted({row.split for row in rows} - {""})
    split = names.match(split, there)
    if not there and split == "train":
        return rows, ""
    if split in there:
        return [row for row in rows if row.split == split], ""
    if there:
        return [], f"no split {split!r} in the data; they have {there}{did_you_mean(split, there)}"
    share = _enough(rows, 0, [share for share in SHARES if share >= 0.1]) if split == "val" else 0
    return [], f"no split {split!r} in the data; they have none" + (
        f": --config.dataset.holdout={share:g} makes 'train' and 'val'" if share else "")
