"""Floating-point operations of a network's matrix products: the numerator of model FLOPs utilization."""

import torch
from torch import nn

from libs.backbones import adm
from libs.backbones.dit import DiT
from libs.backbones.unet_label import LabelUNet
from libs.backbones.uvit import PrototypeUViT, UViT


def flops_per_image(net: nn.Module, *, with_losses: bool = False) -> int:
    """Operations (2 per multiply-add) of the matrix products and convolutions in one image's forward pass.

    A closed formula, or for the networks around diffusers' what torch counts; elementwise operations, normalizations and
    softmax are not counted. ValueError for a network without either.
    """
    if isinstance(net, LabelUNet):
        return _counted(net, backward=False)
    return sum(_terms(net, with_losses))


def train_flops(net: nn.Module) -> int:
    """Operations of forward + backward per image, auxiliary losses included.

    Each product appears once forward and twice backward, for its input's and its weight's gradient; what
    reads the data (patches, text, time) needs no gradient of its input. What gradient checkpointing computes
    again is not counted, nor are gradients of what is frozen.
    """
    if isinstance(net, LabelUNet):
        return _counted(net, backward=True)
    forward, first = _terms(net, True)
    return 3 * forward + 2 * first


def _counted(net: LabelUNet, *, backward: bool) -> int:
    """What torch counts for one image, on tensors that have shapes alone, so that it costs neither memory nor arithmetic."""
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device("meta"), torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        weights = {name: torch.empty_like(p, device="meta", requires_grad=p.requires_grad) for name, p in net.named_parameters()}
        out = torch.func.functional_call(net, weights, (torch.empty(net.shape)[None], torch.empty(1)), net.blank())
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def _terms(net: nn.Module, with_losses: bool) -> tuple[int, int]:
    """(operations behind the first layers, operations of the first layers) of one forward pass."""
    if isinstance(net, adm.Encoder):
        return _adm_terms(net)
    if isinstance(net, DiT):
        return _dit_terms(net)
    if not isinstance(net, UViT):
        raise ValueError(f"no formula for the operations of {type(net).__name__}; there are some for UViT, DiT and "
                         "ADM's networks; torch counts those of unet_label and controlnet")
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


def _dit_terms(net: DiT) -> tuple[int, int]:
    tokens, dim = net.pos_embed.shape[1:]
    square, hidden = 2 * dim * dim, net.blocks[0].mlp.fc1.out_features
    # of the tokens: qkv and proj, the attention's two products, the MLP; of the image as a whole: the six vectors of adaLN
    block = 4 * tokens * square + 4 * tokens ** 2 * dim + 4 * tokens * dim * hidden + 6 * square
    forward = block * len(net.blocks) + 2 * tokens * net.final_layer.linear.weight.numel()
    # the second layer of the time's MLP, and the two vectors of the last adaLN
    forward += 3 * square
    return forward, 2 * tokens * net.x_embedder.proj.weight.numel() + 2 * net.t_embedder.mlp[0].weight.numel()


def _adm_terms(net: adm.Encoder) -> tuple[int, int]:
    pixels, forward = net.image_size ** 2, 2 * net.time_embed[2].weight.numel()
    first = 2 * (net.time_embed[0].weight.numel() + pixels * net.input_blocks[0][0].weight.numel())
    decoder = net.output_blocks if isinstance(net, adm.UNet) else ()
    for layer in (layer for level in (*net.input_blocks[1:], net.middle_block, *decoder) for layer in level):
        operations, pixels = _adm_layer(layer, pixels)
        forward += operations
    return forward + _adm_out(net, pixels), first


def _adm_layer(layer: nn.Module, pixels: int) -> tuple[int, int]:
    """(operations, pixels behind it) of one layer before which there are `pixels`."""
    if isinstance(layer, adm.AttentionBlock):
        linears = layer.qkv.weight.numel() + layer.proj_out.weight.numel()
        return 2 * pixels * linears + 4 * pixels ** 2 * layer.proj_out.in_channels, pixels
    if isinstance(layer, adm.ResBlock):
        pixels = {"up": 4 * pixels, "down": pixels // 4, "": pixels}[layer.resample]
        convs = (layer.in_layers[2], layer.out_layers[3], layer.skip_connection)
        weights = sum(conv.weight.numel() for conv in convs if isinstance(conv, nn.Conv2d))
        return 2 * pixels * weights + 2 * layer.emb_layers[1].weight.numel(), pixels
    pixels, conv = (pixels // 4, layer.op) if isinstance(layer, adm.Downsample) else (4 * pixels, layer.conv)
    return 2 * pixels * conv.weight.numel() if isinstance(conv, nn.Conv2d) else 0, pixels


def _adm_out(net: adm.Encoder, pixels: int) -> int:
    last = net.out[-1]
    if isinstance(net, adm.UNet):
        return 2 * pixels * last.weight.numel()
    if isinstance(last, adm.AttentionPool):
        # keys and values of all pixels and their mean, the answer to the mean alone
        tokens, linear = pixels + 1, last.qkv_proj.weight.numel()
        return 2 * tokens * linear + 4 * tokens * last.c_proj.in_channels + 2 * last.c_proj.weight.numel()
    return 2 * sum(layer.weight.numel() for layer in net.out if isinstance(layer, (nn.Linear, nn.Conv2d)))
