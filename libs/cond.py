"""Conditions are dicts of tensors with a fixed vocabulary; where there is none, the empty condition stands.

    label (N,) int64 · text (N, L, D) · text_mask (N, L) · mask (N, C, H, W), a map such as a segmentation
"""

import torch
from torch import Tensor

KEYS = ("label", "text", "text_mask", "mask")

Cond = dict[str, Tensor]


def take(batch: Cond) -> Cond:
    """The conditions in a batch: the entries of it that the vocabulary knows, as they are."""
    return {key: batch[key] for key in KEYS if key in batch}


def null(null: Cond, like: Cond) -> Cond:
    """The empty conditions for classifier-free guidance, with keys, batch size, device and type as in `like`.

    `null` holds them without batch axis (a data set's `null`). They are expanded, which copies nothing where
    they already lie on the right device. A `mask` without an empty one stays as it is: guidance then keeps
    the map. Raises ValueError for another key without an empty condition, and for a shape that is not that of
    one item.
    """
    _known(like)
    return {key: _empty(key, null, value).expand(value.shape) if _has_empty(key, null) else value
            for key, value in like.items()}


def drop(cond: Cond, null: Cond, p: float, *, generator: torch.Generator | None = None) -> Cond:
    """Replace the conditions of each item by the empty ones with probability p, all keys of an item together.

    So one network learns the conditional and the unconditional score (Ho and Salimans 2022, algorithm 1).
    `generator` decides which items (None: torch's default generator of the conditions' device). A `mask`
    without an empty one is kept. Raises ValueError for p outside [0, 1], and as `null` does.
    """
    _known(cond)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the probability to drop the conditions is {p}; it must lie in [0, 1]")
    if p == 0.0 or not cond:
        return dict(cond)
    first = next(iter(cond.values()))
    device = first.device if generator is None else generator.device
    dropped = (torch.rand(len(first), generator=generator, device=device) < p).to(first.device)

    def thinned(key: str, value: Tensor) -> Tensor:
        which = dropped.view(-1, *[1] * (value.ndim - 1))
        return torch.where(which, _empty(key, null, value), value) if _has_empty(key, null) else value

    return {key: thinned(key, value) for key, value in cond.items()}


def _has_empty(key: str, null: Cond) -> bool:
    if key not in null and key != "mask":
        raise ValueError(f"no empty condition for {key!r}: the data set's null has "
                         f"{', '.join(map(repr, null)) or 'no keys'}")
    return key in null


def _empty(key: str, null: Cond, like: Tensor) -> Tensor:
    if null[key].shape != like.shape[1:]:
        raise ValueError(f"the empty {key} has shape {tuple(null[key].shape)}, "
                         f"one item's has {tuple(like.shape[1:])}")
    return null[key].to(like.device, like.dtype)


def _known(cond: Cond) -> None:
    for key in cond:
        if key not in KEYS:
            raise ValueError(f"unknown condition {key!r}; known: {', '.join(KEYS)}")
