"""Weights of images: how many times the loss of each counts in a training, from the column `weight` of a table.

Reward-weighted fine-tuning (Lee et al. 2023, arXiv 2302.12192) trains on real pairs, which keep weight 1, and on generated ones,
weighted by what a judge of them says.
"""

import functools
import hashlib
import logging
import math

import torch

COLUMN = "weight"  # as a table has it by default
MOST = 10.0  # more is hardly meant: kilograms of a patient, percents
SHOWN = 3  # rows in one message
NONE_MEANT = "set dataset.weight_column='' if these are no weights of images"

log = logging.getLogger(__name__)


def number(text):
    """The weight that a cell of a table says, a float in [0, 10]; None where it says none."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if 0 <= value <= MOST else None


def fault(column, strange):
    """What is wrong with cells that are no weights, as one sentence; strange: [('table:line', what stands there)], not empty."""
    shown = ", ".join(f"{where}: {column} is {text!r}" for where, text in strange[:SHOWN])
    more = f" and {len(strange) - SHOWN} more rows" if len(strange) > SHOWN else ""
    return (f"{shown}{more}: the weight of an image is a number from 0 to {MOST:g} by which its loss is multiplied; "
            f"{NONE_MEANT}")


def of_rows(rows):
    """Weights float32 (N,) of `table.Row`s, or None where no row has one; a row of a table without the column weighs 1."""
    if all(row.weight is None for row in rows):
        return None
    return torch.tensor([1.0 if row.weight is None else row.weight for row in rows], dtype=torch.float32)


def tell(where, weights):
    """Log once how much images weigh: a warning where they are far from 1 on average, for that is a step of another size."""
    if weights is not None:
        low, mean, high = (f"{value:.4g}" for value in (weights.min(), weights.mean(), weights.max()))
        _say(f"{where}: {len(weights):,} images with weights {low} to {high}, mean {mean}, by which a training multiplies their "
             f"losses", not 0.5 <= weights.mean() <= 2)


def summary(weights):
    """What a run notes of the weights, so that it can tell when they have changed: {} for none."""
    if weights is None:
        return {}
    digest = hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()
    return {"weights": {"images": len(weights), "mean": round(float(weights.mean()), 6), "sha256": digest[:16]}}


@functools.cache
def _say(text, far):
    if far:
        log.warning("%s. Weights of 1 on average keep the size of a step; %s", text, NONE_MEANT)
    else:
        log.info("%s", text)
