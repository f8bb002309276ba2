"""Which trainings a study consists of, and which images each sees: a function of the data, the seeds and the settings.

    real             a fraction of the real images
    synthetic        all synthetic images and no real one; the same training stands beside every fraction
    real + r         the same fraction of the real images, n of them, and r * n synthetic ones
    real + all       the same fraction of the real images and all synthetic ones

A fraction is drawn by (seed, group), in every class, whole groups (patients) together, at least one group with each
class; the images of a smaller fraction are among those of a larger one. Synthetic images are drawn by seed in the
proportions that their folder has, and a smaller number is likewise among a larger one.
"""

import hashlib
import json
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

VERSION = 1  # of how trainings are done: a change that alters their results counts it up


class Arm(NamedTuple):
    """What a classifier is trained on; `ratio` is the synthetic images per real one, inf for all, nan for no real ones."""

    name: str
    ratio: float


class Training(NamedTuple):
    """One classifier to train. real, synthetic: indices of its images. asked: how many synthetic images were wanted."""

    arm: Arm
    fraction: float  # of the real images; 0 for the arm without any
    seed: int
    real: list
    synthetic: list
    asked: int
    key: str


def arms(ratios, with_all=True):
    """The `Arm`s of a study, 'real' first."""
    mixed = [Arm(f"real + {ratio:g} synthetic", float(ratio)) for ratio in ratios]
    return [Arm("real", 0.0), Arm("synthetic", math.nan), *mixed, *([Arm("real + all synthetic", math.inf)] if with_all else [])]


def check(fractions, ratios, seeds):
    """ValueError for fractions, ratios or seeds that no study can have."""
    for what, values in (("fractions", fractions), ("ratios", ratios), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise ValueError(f"config.study.{what}={tuple(values)}: one occurs twice")
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"config.study.fractions={tuple(fractions)}: expected shares of the real images in (0, 1]")
    if not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"config.study.ratios={tuple(ratios)}: expected numbers of synthetic images per real one > 0")
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"config.study.seeds={tuple(seeds)}: expected one or more whole numbers >= 0")


def fractions_of(labels, groups, names, fractions, seed):
    """{fraction: rising indices}: the real images of each fraction.

    Args:
        labels: (N,) of ints. groups: N strings or None. names: N strings; an image without a group is one by itself.
    """
    labels, members = [int(label) for label in labels], defaultdict(list)
    for i, group in enumerate(names if groups is None else groups):
        members[group].append(i)
    order = sorted(members, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode(errors="surrogateescape")).digest())
    by_class = defaultdict(list)
    for group in order:
        by_class[labels[members[group][0]]].append(group)
    found, chosen = {}, set()
    for fraction in sorted(fractions):
        for of_class in by_class.values():
            sums = np.cumsum([len(members[group]) for group in of_class])
            nearest = int(np.abs(sums - fraction * sums[-1]).argmin())
            chosen.update(of_class[:len(of_class) if fraction == 1 else nearest + 1])
        there = {labels[i] for group in chosen for i in members[group]}
        for label in sorted(set(labels) - there):  # it occurs only in groups that another class leads
            chosen.add(next(group for group in order if any(labels[i] == label for i in members[group])))
        found[fraction] = sorted(i for group in chosen for i in members[group])
    return found


def in_proportion(labels, names, seed):
    """An order of all images, drawn by seed, of which every beginning has about the classes' proportions."""
    labels = np.asarray(labels)
    drawn = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{seed}/{names[i]}".encode(errors="surrogateescape")).digest())
    place, seen = np.zeros(len(labels)), defaultdict(int)
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    for i in drawn:
        place[i] = (seen[labels[i]] + 0.5) / counts[labels[i]]
        seen[labels[i]] += 1
    return sorted(drawn, key=lambda i: place[i])


def trainings(real, synthetic, test, *, fractions, ratios, seeds, with_all, settings):
    """All `Training`s of a study. Those with equal keys are one and the same: it is done once.

    Args:
        real, synthetic, test: `images.Images`.
        settings: what else decides the outcome, as JSON can hold it.
    """
    check(fractions, ratios, seeds)
    found = []

    def add(arm, fraction, seed, chosen, order, asked):
        added = sorted(order[:asked])
        parts = {"version": VERSION, "settings": settings, "seed": seed, "classes": real.classes,
                 "real": _contents(real, chosen), "synthetic": _contents(synthetic, added),
                 "test": _contents(test, range(len(test)))}
        if real.masks is not None:
            parts |= {"task": "segmentation", "masks": list(real.mask_names)}
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
        found.append(Training(arm, fraction, seed, list(chosen), added, asked, key))

    for seed in seeds:
        subsets = fractions_of(real.labels, real.groups, real.names, fractions, seed)
        order = in_proportion(synthetic.labels, synthetic.names, seed)
        for arm in arms(ratios, with_all):
            if math.isnan(arm.ratio):
                add(arm, 0.0, seed, [], order, len(order))
                continue
            for fraction in fractions:
                chosen = subsets[fraction]
                add(arm, fraction, seed, chosen, order, _asked(arm.ratio, len(chosen), len(order)))
    return found


def shortfalls(found):
    """Warnings about arms that ask for more synthetic images than there are."""
    lacking = defaultdict(list)
    for training in found:
        if training.asked > len(training.synthetic):
            lacking[training.arm.name, training.fraction].append(training)
    return [f"{name} at {100 * fraction:.4g} % of the real images: {max(t.asked for t in group)} synthetic images are asked for, "
            f"{len(group[0].synthetic)} are there and are used; {max(t.asked for t in group) - len(group[0].synthetic)} are "
            "missing" for (name, fraction), group in lacking.items()]


def _asked(ratio, real, synthetic):
    """How many synthetic images an arm wants beside so many real ones: one at least, where it wants any."""
    return synthetic if math.isinf(ratio) else max(1, round(ratio * real)) if ratio else 0


def _contents(images, indices):
    """One hash of what these images show and which classes or masks they have, wherever they lie."""
    digest = hashlib.sha256()
    for i in indices:
        mask = "" if images.masks is None else f" {images.mask_hashes[i]}"
        digest.update(f"{images.hashes[i]} {int(images.labels[i])}{mask}\n".encode())
    return digest.hexdigest()
