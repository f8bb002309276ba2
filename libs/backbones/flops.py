"""Floating-point operations of a network's matrix products: the numerator of model FLOPs utilization."""

from torch import nn

from libs.backbones.uvit import PrototypeUViT, UViT


def flops_per_image(net: nn.Module, *, with_losses: bool = False) -> int:
    """Operations (2 per multiply-add) of the matrix products and convolutions in one image's forward pass.

    A closed formula; elementwise operations, normalizations and softmax are not counted. ValueError for a
    network without a formula.
    """
    return sum(_terms(net, with_losses))


def train_flops(net: nn.Module) -> int:
    """Operations of forward + backward per image, auxiliary losses included.

    Each product appears once forward and twice backward, for its input's and its weight's gradient; what
    reads the data (patches, text, time) needs no gradient of its input. What gradient checkpointing computes
    again is not counted.
    """
    forward, first = _terms(net, True)
    return 3 * forward + 2 * first


def _terms(net: nn.Module, with_losses: bool) -> tuple[int, int]:
    """(operations behind the first layers, operations of the first layers) of one forward pass."""
    if not isinstance(net, UViT):
        raise ValueError(f"no formula for the operations of {type(net).__name__}; there is one for UViT")
    tokens, dim = net.pos_embed.shape[1:]
    hidden, patches = net.mid_block.mlp.fc1.out_features, net.num_patches
    pixels = patches * net.decoder_pred.out_features

    square = 2 * dim * dim
    mlp = 4 * tokens * dim * hidden
    # qkv and proj; then q k^T and the weighted sum of v
    block = 4 * tokens * square + 4 * tokens ** 2 * dim + mlp
    skips = sum(block.skip_linear is not None for block in net.out_blocks)
    forward = block * (len(net.in_blocks) + 1 + len(net.out_blocks)) + skips * 2 * tokens * square
    forward += 2 * pixels * dim
    if isinstance(net.final_layer, nn.Conv2d):
        forward += 2 * pixels * net.in_chans * 9

    first = 2 * pixels * dim
    if net.context_embed is not None:
        first += 2 * net.text_shape[0] * net.text_shape[1] * dim
    if isinstance(net.time_embed, nn.Sequential):
        forward, first = forward + 4 * square, first + 4 * square

    if isinstance(net, PrototypeUViT):
        # keys and values of the 2 * patches prototypes, and the attention to them
        cross = 2 * (2 * patches) * square + 4 * tokens * (2 * patches) * dim
        forward += cross + 4 * tokens * square + mlp
        if with_losses:
            forward += cross + tokens * square
    return forward, first
