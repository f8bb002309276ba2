"""The network of any config at tiny width, and a pipeline around it: what several test files need of every config."""

import torch

from libs import codecs, diffusion, pipeline
from tests import tiny_pixart, tiny_sd

NARROW = dict(embed_dim=32, depth=2, num_heads=2, model_channels=32, num_res_blocks=1, num_head_channels=-1)


def shrink(config, folder=None):
    """A copy of a config whose network is small, of few pixels and quick on a CPU; published arguments else.

    folder: of a pipeline as others publish it (`save_pipeline`), for networks that begin with one.
    """
    config = config.copy_and_resolve_references()
    nnet = config.nnet
    for key, value in NARROW.items():
        if key in nnet:
            nnet[key] = value
    if nnet.name.startswith("uvit"):
        nnet.img_size = 4 * nnet.patch_size
    elif nnet.name == "dit":
        nnet.update(dict(model="", input_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=2))
    elif nnet.name in ("adm_unet", "adm_classifier"):
        nnet.channel_mult = tuple(1 for _ in nnet.channel_mult)
        nnet.image_size = 2 ** len(nnet.channel_mult)
    elif "block_out_channels" in nnet:
        nnet.update(dict(block_out_channels=tuple(32 for _ in nnet.block_out_channels), cross_attention_dim=16,
                         sample_size=2 ** len(nnet.block_out_channels)))
    elif "path" in nnet:
        nnet.update(dict(path=str(folder), sample_size=8))
        if "base_dtype" in nnet:
            nnet.base_dtype = ""
    return config


def save_pipeline(config, folder):
    """The folder of a tiny pipeline with which the network of `config` begins."""
    return (tiny_pixart if config.nnet.name == "pixart" else tiny_sd).save(folder)


def build(config, algorithm="", steps=0):
    """The pipeline of a config that `shrink` made, over pixels in place of its codec, with random weights, and its conditions."""
    classes, text_shape = ["a", "b"], None
    if config.nnet.name in ("adm_unet", "dit"):
        classes = [str(k) for k in range(config.nnet.num_classes)] or classes
    if config.train.mode == "uncond" or "num_classes" not in config.nnet:
        classes = []
    if "num_clip_token" in config.nnet:
        text_shape = (config.nnet.num_clip_token or 5, config.nnet.clip_dim or 8)
    torch.manual_seed(0)
    net = pipeline.build_net(config, classes, text_shape, mask_channels=2).eval()
    with torch.no_grad():
        for weight in net.parameters():  # those that begin at zero, of which nothing would be seen
            if not weight.any():
                weight.add_(torch.randn(weight.shape), alpha=0.02)
    if "text" in net.takes and text_shape is None:
        text_shape = (6, 16)  # of tiny_sd and tiny_pixart
    null = pipeline.null_conditions(net, classes, None if text_shape is None else torch.zeros(text_shape))
    shape = pipeline.latent_shape(config.nnet)
    made = pipeline.Pipeline(net, config, codec=codecs.get("pixels", channels=shape[0]),
                             schedule=diffusion.schedule(**config.schedule), null=null, algorithm=algorithm, steps=steps)
    cond = {"label": torch.tensor([1]), "text": torch.randn(1, *(text_shape or (1, 1)))}
    if "mask" in net.takes:
        cond["mask"] = torch.rand(1, 2, *(side * net.shrink for side in shape[1:]))
    return made, {key: cond[key] for key in net.takes}
