"""Which rows are training data: given splits, a held-out share, and no patient on both sides."""

import hashlib
import os
from collections import defaultdict

from .base import did_you_mean


def hold_out(rows, share, seed):
    """Move about `share` of the training rows of each class to split 'val', whole groups at a time.

    Which ones follows from (seed, group) alone, so that neither the order of the rows nor added images move
    others. A class keeps at least one group. A group is a row's `group`, or its file where it has none.
    """
    groups = defaultdict(list)
    for row in rows:
        if row.split in ("", "train"):
            groups[row.group or row.name].append(row)
    by_class = defaultdict(list)
    for group, members in groups.items():
        by_class[members[0].label].append(group)
    for names in by_class.values():
        names.sort(key=lambda name: hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest())
        wanted, taken = round(share * sum(len(groups[name]) for name in names)), 0
        for name in names[:-1]:
            if taken < wanted and taken + len(groups[name]) <= 2 * wanted:
                taken += len(groups[name])
                for row in groups[name]:
                    row.split = "val"
    for row in rows:
        row.split = row.split or "train"


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
    """(rows of one split, '' or what is wrong with asking for it); split '' is all of them."""
    if not split:
        return rows, ""
    there = sorted({row.split for row in rows} - {""})
    if split not in there:
        have = f"have {there}{did_you_mean(split, there)}" if there else "have none: use holdout=0.1"
        return [], f"no split {split!r} in the data; they {have}"
    return [row for row in rows if row.split == split], ""
