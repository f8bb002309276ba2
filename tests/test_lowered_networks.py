"""Every family of networks with its weights in half precision, as sampling from a run has them: forward on a device that is no CPU.

The meta device computes shapes and types alone; a type that does not fit its layer is refused there as on a GPU.
"""

import copy

import pytest
import torch
from torch import nn

from libs import backbones, diffusion
from libs.diffusion.schedule import grid_on
from tests import tiny_pixart, tiny_sd

UVIT = dict(img_size=8, patch_size=2, in_chans=4, embed_dim=32, depth=2, num_heads=2, mlp_time_embed=True)
TEXT = dict(clip_dim=16, num_clip_token=6)
ADM = dict(image_size=8, model_channels=32, num_res_blocks=1, attention_resolutions=(2,), channel_mult=(1, 2), num_heads=2)
FILM = dict(use_scale_shift_norm=True, resblock_updown=True)
CLASSIFIER = ADM | dict(name="adm_classifier", out_channels=3, num_head_channels=32)
LABEL = dict(sample_size=8, block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4)
CONTROL = LABEL | dict(name="controlnet", conditioning_embedding_out_channels=(4, 8))
PIXART = dict(name="pixart", sample_size=8, lora_rank=2)
NETWORKS = {
    "uvit": dict(name="uvit", **UVIT),
    "uvit of classes": dict(name="uvit", num_classes=3, conv=False, qkv_bias=True, **UVIT),
    "uvit_t2i": dict(name="uvit_t2i", **UVIT, **TEXT),
    "uvit_t2i_label": dict(name="uvit_t2i_label", num_classes=3, **UVIT, **TEXT),
    "prototypes": dict(name="uvit_t2i_prototype", num_classes=3, qkv_bias=True, **UVIT, **TEXT),
    "prototypes of the paper": dict(name="uvit_t2i_prototype", num_classes=3, mechanism="paper", **UVIT, **TEXT),
    "dit": dict(name="dit", input_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=3),
    "adm_unet": ADM | FILM | dict(name="adm_unet", out_channels=6, num_classes=3),
    "adm_unet, added": ADM | dict(name="adm_unet", out_channels=3, use_new_attention_order=True),
    **{f"adm_classifier, {pool}": CLASSIFIER | FILM | dict(pool=pool) for pool in ("attention", "adaptive", "spatial", "spatial_v2")},
    "unet_label": LABEL | dict(name="unet_label", num_classes=3),
    "unet_label, adaptive": LABEL | dict(name="unet_label", num_classes=3, adaptive_norm=True),
    "controlnet": CONTROL | dict(num_classes=3, conditioning_channels=2),
    "controlnet, legacy": CONTROL | dict(conditioning_channels=3, legacy=True),
    "unet_sd": dict(name="unet_sd", sample_size=8),
    "unet_sd, LoRA with CLIP": dict(name="unet_sd", sample_size=8, lora_rank=2, train_text_encoder=True),
    "pixart": PIXART | dict(train_text_encoder=False),
    "pixart, whole": PIXART | dict(train_text_encoder=False, lora_rank=0),
    "pixart with T5": PIXART,
    "pixart with T5, DoRA": PIXART | dict(use_dora=True, text_targets="all"),
    "pixart with T5, base in bf16": PIXART | dict(base_dtype="bfloat16"),
    "pixart of sizes": PIXART | dict(train_text_encoder=False, micro_conditions=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"unet_sd": tiny_sd.save(root / "sd"), "pixart": tiny_pixart.save(root / "pixart"),
            "sized": tiny_pixart.save(root / "sized", micro_conditions=True)}


def build(name, folders):
    """(network, example of its inputs) on the CPU."""
    kwargs, torch_state = dict(NETWORKS[name]), torch.Generator().manual_seed(0)
    if kwargs["name"] in folders:
        kwargs["path"] = str(folders["sized" if kwargs.pop("micro_conditions", False) else kwargs["name"]])
    torch.manual_seed(0)
    net = backbones.get(**kwargs).eval()
    classifier = kwargs["name"] == "adm_classifier"
    channels = 3 if "model_channels" in kwargs else 4
    x = torch.randn(2, channels, 8, 8, generator=torch_state)
    cond = {"label": torch.tensor([0, 2]), "text": torch.randn(2, 6, 16, generator=torch_state)}
    if getattr(net, "text_encoder", None) is not None:
        cond["text"] = torch.tensor([[5, 6, 7, 1, 0, 0], [5, 6, 7, 8, 9, 1]])
    if "mask" in net.takes:
        cond["mask"] = torch.rand(2, net.mask_channels, 16, 16, generator=torch_state)
    return net, (x, torch.tensor([3.0, 700.0]), {} if classifier else {key: cond[key] for key in net.takes})


def on(device, x, t, cond):
    return x.to(device), t.to(device), {key: value.to(device) for key, value in cond.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_lowered_network_runs_on_a_device_that_is_no_cpu(name, dtype, folders):
    net, example = build(name, folders)
    lowered = backbones.lower(net, dtype).to("meta")
    assert any(weight.dtype == dtype for weight in lowered.parameters())
    x, t, cond = on("meta", *example)
    with torch.no_grad():
        out = lowered(x, t, **cond)
    assert not out.is_cpu and len(out) == 2 and out.shape[2:] == (() if "classifier" in name else (8, 8))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lowered_network_computes_what_autocast_does(name, folders):
    net, (x, t, cond) = build(name, folders)
    lowered = backbones.lower(copy.deepcopy(net), torch.bfloat16)
    with torch.no_grad():
        exact, bare = net(x, t, **cond), lowered(x, t, **cond)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, under = net(x, t, **cond), lowered(x, t, **cond)
    scale = exact.abs().max().clamp(min=1e-3)
    assert (under.float() - rounded.float()).abs().max() <= 0.03 * scale
    assert (bare.float() - exact).abs().max() <= 0.08 * scale


@pytest.mark.parametrize("layer", [nn.LayerNorm(8, elementwise_affine=False), nn.GroupNorm(2, 8, affine=False), nn.LayerNorm(8),
                                   nn.LayerNorm(8, bias=False), nn.GroupNorm(2, 8)], ids=str)
def test_norms_with_and_without_weights(layer):
    net = backbones.lower(nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 8)), torch.bfloat16).to("meta")
    assert net(torch.zeros(2, 8, device="meta")).dtype == torch.bfloat16


def test_t5_s_mask_says_what_is_padded_without_asking_the_device(folders):
    """gpu.md, C4: states are equal to the bit to those under transformers' own mask, in a batch with and without padding."""
    net, (_, _, cond) = build("pixart with T5", folders)
    for text in (cond["text"], cond["text"][1:]):
        mask = text != net.pad
        with torch.no_grad():
            theirs = net.text_encoder(input_ids=text, attention_mask=mask).last_hidden_state
            assert torch.equal(net.states(text), theirs.masked_fill(~mask[..., None], 0.0))


def test_a_grid_of_times_is_copied_to_a_device_once():
    """gpu.md, C4: respaced training draws from the same times at every step."""
    grid = diffusion.schedule("linear").times("ddim250")
    first, again = (grid_on(grid, "meta") for _ in range(2))
    assert first is again and first.is_meta and first.shape == (251,)
    assert torch.equal(grid_on(grid, "cpu"), grid)
