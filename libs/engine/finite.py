"""Weights that are not numbers: looked for where they are read, so that one message names them."""

import torch


def check_finite(weights, path):
    """`weights`, {name: Tensor}, as they are.

    Raises:
        ValueError: a value is nan or infinite; names the first tensor, how many there are, and the file or
            folder `path`.
    """
    wrong = [name for name, value in weights.items()
             if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if wrong:
        value = weights[wrong[0]]
        count = int((~torch.isfinite(value)).sum())
        more = f", and {len(wrong) - 1} more of {len(weights)} tensors" if len(wrong) > 1 else ""
        raise ValueError(f"{path} holds weights that are not finite: {wrong[0]} ({count} of {value.numel()} "
                         f"values are nan or infinite)"
                         f"{more}. Such a network makes no images: take another checkpoint, or get the file "
                         f"anew")
    return weights
