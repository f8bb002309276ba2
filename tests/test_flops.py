"""Operations of DiT by the closed formula: the published counts, and what torch counts; how its tokens lie in memory."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from libs import backbones

# Multiply-adds in billions of the original's forward pass for one image (its authors write 119 and 525 "Gflops" for XL/2 at 256 and
# 512 pixels): with the products of attention and adaLN, and the embeddings of time and patches
GMACS = {"XL/2": 118.62, "XL/4": 29.04, "XL/8": 7.39, "L/2": 80.70, "L/4": 19.70, "L/8": 5.01, "B/2": 23.01, "B/4": 5.57,
         "B/8": 1.42, "S/2": 6.06, "S/4": 1.41, "S/8": 0.36}


@pytest.mark.parametrize("name, side, published", [*((name, 32, gmacs) for name, gmacs in GMACS.items()), ("XL/2", 64, 524.54)])
def test_operations_of_the_published_sizes_of_dit(name, side, published):
    with torch.device("meta"):
        net = backbones.get("dit", model=f"DiT-{name}", input_size=side)
    assert round(backbones.flops_per_image(net) / 2e9, 2) == published


@pytest.mark.parametrize("kwargs", [dict(), dict(patch_size=4, mlp_ratio=3.0, learn_sigma=False, num_classes=0),
                                    dict(use_checkpoint=True)])
def test_operations_of_dit_are_those_that_torch_counts(kwargs, math_attention):
    net = backbones.get("dit", input_size=8, hidden_size=24, depth=2, num_heads=3, **{"num_classes": 5, **kwargs}).train()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, t)
    assert counter.get_total_flops() == 2 * backbones.flops_per_image(net)
    with FlopCounterMode(display=False) as counter:
        net(x, t).sum().backward()
    # checkpointing computes the blocks once more, and torch counts that: 16 tokens of width 24, 4 times that in the MLP
    blocks = 2 * (4 * 16 ** 2 * 24 + 2 * 16 * (4 + 2 * 4) * 24 ** 2 + 2 * 6 * 24 ** 2)
    assert counter.get_total_flops() == 2 * (backbones.train_flops(net) + (blocks if net.use_checkpoint else 0))


@pytest.mark.parametrize("autocast", [False, True])
def test_tokens_of_dit_lie_one_after_another(autocast):
    """As they come from the convolution every block would copy them; contiguous, a training step takes 4 % less on one core."""
    net = backbones.get("dit", input_size=8, hidden_size=24, depth=2, num_heads=3, num_classes=5)
    seen = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        net(torch.randn(3, 4, 8, 8), torch.tensor([3.0, 500.0, 7.0]))
    assert seen == [(16 * 24, 24, 1)] * 2
