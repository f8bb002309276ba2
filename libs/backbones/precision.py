"""Weights in a lower precision for sampling: what autocast does at every call, done once."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

HALF = (torch.bfloat16, torch.float16)


def lower(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Round the weights of convolutions and linear maps to `dtype`, in place, and return `net`; for sampling, not training.

    The same rounding that autocast repeats at every call; norms and embeddings stay as they are. The network then works with
    and without autocast, since each of these layers takes its input in its own precision; norms without weights (PixArt's)
    have none and take any. What a base in the other half precision leaves behind is widened to float32, since the two do
    not mix. Layers with the attribute `overflows_float16` set (T5's) stay as they are where that would be their precision.
    """
    for module in net.modules():
        if dtype == torch.float16 and getattr(module, "overflows_float16", False):
            continue
        if isinstance(module, (nn.Linear, _ConvNd)):
            module.to(dtype)
        else:
            for weight in module.parameters(recurse=False):
                if weight.dtype in HALF and weight.dtype != dtype:
                    weight.data = weight.data.float()
            if not isinstance(module, nn.LayerNorm) and type(module) is not nn.GroupNorm:  # ADM's own takes any precision
                continue
        if _in_own_precision not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_in_own_precision)
    return net


def _in_own_precision(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The input of a layer in the precision of its weight; norms take any on the CPU, or where they have no weight."""
    x, = inputs
    if module.weight is None or isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and x.is_cpu:
        return inputs
    return (x.to(module.weight.dtype),)
