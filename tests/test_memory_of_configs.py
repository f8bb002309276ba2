"""Every published config fits, with the images of one step in parts by its own accumulation, on the GPUs that its docstring names.

Bytes are counted by tests/memory.py at full width on the meta device; the tables that they are held against were measured on fake
CUDA tensors by others (ADM in half precision, MiB of activations an image).
"""

import re

import pytest
import torch

from libs import backbones, pipeline
from tests import memory
from tests.test_configs import ALL, CONFIGS

FAMILIES = ("uvit", "uvit_t2i", "uvit_t2i_label", "uvit_t2i_prototype", "dit", "adm_unet", "adm_classifier", "unet_label", "controlnet")
NAMES = [name for name, config in CONFIGS.items() if config.get("nnet", {}).get("name") in FAMILIES
         and not name.startswith(("phantom", "folder64"))]  # which are small
MEASURED = {"imagenet64_adm": 250, "imagenet128_adm": 635, "imagenet256_adm": 2379, "imagenet512_adm": 5933,
            "imagenet512_adm_classifier": 862, "cifar10_uvit_small": 63, "COT_ISIC256_uvit_text_label": 177, "mscoco_uvit_small": 81,
            "folder256_unet_label": 118, "folder256_controlnet": 124, "imagenet256_dit_b4": 28}


def network_of(config):
    """The network of a config at its full width, on the meta device."""
    nnet, text = dict(config.nnet), None
    with torch.device("meta"):
        if nnet["name"] == "adm_classifier":
            return backbones.get(**{**nnet, "out_channels": nnet["out_channels"] or 7}).train()
        if "num_clip_token" in nnet:
            text = nnet["num_clip_token"] or 256, nnet["clip_dim"] or 768
        named = nnet.get("num_classes", -1)
        classes = [str(k) for k in range(named - backbones.numbers_null(nnet["name"]) if named > 0 else 7)]
        if config.train.mode == "uncond" or named < 0:
            classes = []
        net = pipeline.build_net(config, classes, text, mask_channels=2)
    return net.to("meta").train()


def inputs_of(net, nnet):
    """What makes the inputs of n images on the meta device."""
    def make(n):
        side = pipeline.latent_shape(nnet)[1]
        x = torch.empty(n, nnet.get("in_chans") or nnet.in_channels, side, side, device="meta")
        cond = {"label": torch.zeros(n, dtype=torch.int64, device="meta")}
        if getattr(net, "text_shape", None):
            cond["text"] = torch.empty(n, *net.text_shape, device="meta")
        if "mask" in net.takes:
            cond["mask"] = torch.empty(n, net.mask_channels, side * net.shrink, side * net.shrink, device="meta")
        return x, torch.empty(n, device="meta"), {key: cond[key] for key in net.takes}
    return make


def command_of(name):
    """(processes, whether it computes in half precision) of the command that trains, as the docstring of a config gives it."""
    lines = re.sub(r"\\\n", " ", ALL[name].__doc__).splitlines()
    line = next(line for line in lines if re.match(r"    .*\btrain\w*\.py\b", line))
    processes = int((re.search(r"--num_processes (\d+)", line) or (0, 1))[1])
    half = re.search(r"--mixed_precision (fp16|bf16)", line) or CONFIGS[name].train.mixed_precision in ("bf16", "fp16", "auto")
    return processes, bool(half)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_the_gpus_of_its_docstring(name):
    config = CONFIGS[name].copy_and_resolve_references()
    promised = re.search(r"(\d+) GPUs? of (\d+) GB", ALL[name].__doc__)
    assert promised, "say the number of GPUs and how large they are"
    processes, half = command_of(name)
    assert int(promised[1]) == processes, "the number of GPUs is not that of the command"
    assert config.train.batch_size % (processes * config.train.accumulation) == 0
    images = config.train.batch_size // (processes * config.train.accumulation)
    net = network_of(config)
    per_image = memory.bytes_per_image(net, inputs_of(net, config.nnet), half)
    needed = memory.gib_per_gpu(net, per_image, images, half)
    assert needed <= int(promised[2]) * 1e9 / memory.GIB, f"{needed:.1f} GiB for {images} images at once"
    for size, accumulation in re.findall(r"on (\d+) GB --config.train.accumulation=(\d+)", ALL[name].__doc__):
        images = config.train.batch_size // (processes * int(accumulation))
        assert memory.gib_per_gpu(net, per_image, images, half) <= int(size) * 1e9 / memory.GIB


@pytest.mark.parametrize("name", MEASURED)
def test_activations_are_those_that_were_measured_elsewhere(name):
    config = CONFIGS[name].copy_and_resolve_references()
    net = network_of(config)
    measured = memory.bytes_per_image(net, inputs_of(net, config.nnet), True) / 2 ** 20
    assert measured == pytest.approx(MEASURED[name], rel=0.08)


def test_what_is_counted_of_a_small_network():
    """Closed forms: a linear map saves its input once, and in half precision of half the size; a checkpoint its input alone."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)).to("meta")

    class Called(torch.nn.Module):
        takes = ()

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    for half, size in ((False, 4), (True, 2)):
        count = memory.bytes_per_image(Called(), lambda n: (torch.empty(n, 8, device="meta"), None, {}), half)
        assert count == (8 + 4) * size
    assert memory.gib_per_gpu(net, 2 ** 30, 3, False) == pytest.approx(1.07 * (3 + (36 + 10) * 20 / 2 ** 30) + 1.5)
    net[0].requires_grad_(False)
    assert memory.gib_per_gpu(net, 0, 3, True) == pytest.approx(1.07 * (10 * 22 + 36 * 6) / 2 ** 30 + 1.5)


@pytest.mark.parametrize("name, least", [("imagenet512_adm", 2.5), ("imagenet256_dit_xl2", 5), ("imagenet256_uvit_huge", 5)])
def test_checkpointing_keeps_less(name, least):
    measured = {}
    for checkpointed in (False, True):
        config = CONFIGS[name].copy_and_resolve_references()
        config.nnet.use_checkpoint = checkpointed
        net = network_of(config)
        measured[checkpointed] = memory.bytes_per_image(net, inputs_of(net, config.nnet), True)
    assert measured[False] > least * measured[True]


def test_what_docstrings_say_of_other_cards():
    """imagenet512_adm with checkpointing in 4 parts on 40 GB; VAP on one GPU of 80 GB, and in two parts on one of 40 or two of 24."""
    config = CONFIGS["imagenet512_adm"].copy_and_resolve_references()
    config.nnet.use_checkpoint = True
    net = network_of(config)
    per_image = memory.bytes_per_image(net, inputs_of(net, config.nnet), True)
    assert memory.gib_per_gpu(net, per_image, 256 // 8 // 4, True) <= 40e9 / memory.GIB
    config = CONFIGS["COT_ISIC256_uvit_text_label"]
    net = network_of(config)
    per_image = memory.bytes_per_image(net, inputs_of(net, config.nnet), True)
    for gpus, size, accumulation in ((1, 80, 1), (1, 40, 2), (2, 24, 2)):
        assert memory.gib_per_gpu(net, per_image, 256 // gpus // accumulation, True) <= size * 1e9 / memory.GIB
    assert memory.gib_per_gpu(net, per_image, 256, True) > 40e9 / memory.GIB
