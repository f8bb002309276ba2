"""guided-diffusion's UNet and classifier: outputs, parameters and layouts as published, gradients, precision, operations."""

import copy
import json
import logging
import pathlib

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from libs import backbones
from libs.backbones import adm
from libs.backbones.precision import lower
from libs.diffusion import guidance

PARITY = pathlib.Path(__file__).parent / "parity"
FILM = dict(use_scale_shift_norm=True, resblock_updown=True)
UNET = dict(name="adm_unet", image_size=16, model_channels=32, out_channels=6, num_res_blocks=1, attention_resolutions=(2,),
            channel_mult=(1, 2), num_classes=4, num_head_channels=16, **FILM)
PLAIN = UNET | dict(use_scale_shift_norm=False, resblock_updown=False, num_head_channels=-1, num_heads=2,
                    num_heads_upsample=4, use_new_attention_order=True)
CLASSIFIER = dict(name="adm_classifier", image_size=16, model_channels=32, out_channels=3, num_res_blocks=1,
                  attention_resolutions=(2,), channel_mult=(1, 2), num_head_channels=16, **FILM)


def parity(name: str) -> tuple[torch.nn.Module, dict]:
    """(network with the original's weights, the other tensors of the file)."""
    with safe_open(PARITY / f"{name}.safetensors", "pt") as file:
        net = backbones.get(name, **json.loads(file.metadata()["kwargs"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    backbones.load(net, {key[6:]: value for key, value in tensors.items() if key.startswith("state.")})
    return net.eval(), tensors


def built(kwargs: dict, seed: int = 0) -> torch.nn.Module:
    """A network whose zero-initialized layers are random too."""
    torch.manual_seed(seed)
    net = backbones.get(**kwargs)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any() and p.ndim > 1:
                torch.nn.init.kaiming_uniform_(p.view(len(p), -1), a=5 ** 0.5)
    return net


def example(kwargs: dict, n: int = 2, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, kwargs.get("in_channels", 3), kwargs["image_size"], kwargs["image_size"], generator=g)
    t = torch.rand(n, generator=g) * 999
    return (x, t, torch.randint(kwargs["num_classes"], (n,), generator=g)) if "num_classes" in kwargs else (x, t)


def close(out: torch.Tensor, expected: torch.Tensor, share: float = 1e-4) -> bool:
    return ((out.float() - expected.float()).abs().max() < share * expected.float().abs().max()).item()


def test_the_unet_agrees_with_the_published_implementation():
    net, tensors = parity("adm_unet")
    x, t, label = (tensors[f"in.{key}"] for key in ("x", "timesteps", "y"))
    with torch.no_grad():
        assert close(net(x, t, label), tensors["out.out"])
        assert close(net(x, t), tensors["out.out_uncond"])


def test_the_classifier_and_its_guidance_agree_with_the_published_implementation():
    net, tensors = parity("adm_classifier")
    net.requires_grad_(False)
    x, t, label = (tensors[f"in.{key}"] for key in ("x", "timesteps", "y"))
    assert close(net(x, t), tensors["out.logits"])
    for ours, theirs in (("log_probability", "classifier"), ("entropy", "entropy"), ("margin", "margin"),
                         ("least_confidence", "least_confidence")):
        y = x.clone().requires_grad_()
        measure = guidance.energy(ours, lambda x, _: net(x, t), label)
        grad, = torch.autograd.grad(measure(y, 0.5).sum(), y)
        assert close(grad, tensors[f"out.grad_{theirs}"]), ours


def sines(net: torch.nn.Module) -> torch.nn.Module:
    """Weights 0.05 sin(0.37 j + i) for the i-th key in order, 1 + that for norms' weights."""
    state = net.state_dict()
    for i, key in enumerate(sorted(state)):
        value = 0.05 * torch.sin(0.37 * torch.arange(state[key].numel(), dtype=torch.float64) + i).view(state[key].shape)
        state[key] = (value + (key.endswith("weight") and value.ndim == 1)).float()
    return backbones.load(net, state).eval()


SINE_X = torch.sin(0.01 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)).float().view(2, 3, 64, 64)
SINE_T = torch.tensor([10.0, 500.0])
GOLDEN_UNET = dict(name="adm_unet", image_size=64, model_channels=32, out_channels=6, num_res_blocks=1, num_classes=2,
                   attention_resolutions=(4, 8), channel_mult=(1, 2, 3, 4))
# parameters, then mean, standard deviation, the first five and the last three values with the labels 0, 1 and with none
GOLDEN = {
    "four heads": (dict(num_heads=4, **FILM), 4_474_918,
                   (0.0205617, 0.1253069, -0.000917, -0.000539, -0.015291, -0.006472, -0.003327, -0.049529, -0.047555, 0.044134),
                   (0.0182662, 0.0861446, 0.018298, 0.04605, 0.03695, 0.037398, 0.030848, 0.180926, 0.166451, 0.107761)),
    "new order": (dict(num_head_channels=16, use_new_attention_order=True, **FILM), 4_474_918,
                  (0.0203852, 0.1277028, -0.004516, -0.010146, -0.027114, -0.020087, -0.022084, 0.003013, -0.002138, 0.068212),
                  (0.0185111, 0.0831412, 0.017042, 0.038454, 0.023322, 0.020787, 0.010564, 0.184743, 0.165445, 0.106701)),
    "plain": (dict(), 3_795_526,
              (0.0331148, 0.1011379, 0.137786, 0.164847, 0.089797, -0.022917, -0.092055, 0.008932, 0.004635, 0.012221),
              (0.0345806, 0.0835611, 0.067571, 0.095672, 0.113254, 0.118125, 0.115949, 0.034973, 0.025147, 0.021105)),
}


@pytest.mark.parametrize("variant", GOLDEN)
def test_golden_values_of_the_unet(variant):
    options, parameters, *expected = GOLDEN[variant]
    net = sines(backbones.get(**GOLDEN_UNET, **options))
    assert sum(p.numel() for p in net.parameters()) == parameters
    for label, values in zip((torch.tensor([0, 1]), None), expected, strict=True):
        with torch.no_grad():
            out = net(SINE_X, SINE_T, label)
        flat = out.flatten()
        found = torch.cat([torch.stack([out.mean(), out.std()]), flat[:5], flat[-3:]])
        torch.testing.assert_close(found, torch.tensor(values), atol=5e-6, rtol=0)


# parameters, logits, entropy (sum over the two images) and the norm of its gradient
GOLDEN_POOLS = {
    "attention": (7_127_875, [[-0.340647, -0.290344, -0.180029], [-0.33965, -0.289209, -0.179005]], 2.1926482, 3.600958e-6),
    "adaptive": (6_913_859, [[-0.281315, -0.242493, -0.154132], [-0.279448, -0.2412, -0.153697]], 2.1943831, 1.839410e-5),
    "spatial": (9_673_283, [[-1.241587, 0.962956, -0.454689], [-1.240526, 0.961262, -0.453025]], 1.4724537, 1.559078e-4),
    "spatial_v2": (9_677_379, [[-1.130401, 0.816224, -0.03756], [-1.133886, 0.826065, -0.049906]], 1.7135909, 8.217142e-4),
}


@pytest.mark.parametrize("pool", GOLDEN_POOLS)
def test_golden_values_of_the_classifier(pool):
    parameters, logits, entropy, norm = GOLDEN_POOLS[pool]
    net = sines(backbones.get("adm_classifier", image_size=64, model_channels=64, out_channels=3, num_res_blocks=1,
                              attention_resolutions=(4, 8), channel_mult=(1, 2, 3, 4), num_head_channels=64, pool=pool, **FILM))
    assert sum(p.numel() for p in net.parameters()) == parameters
    net.requires_grad_(False)
    x = SINE_X.clone().requires_grad_()
    found = net(x, SINE_T)
    torch.testing.assert_close(found.detach(), torch.tensor(logits), atol=3e-6, rtol=0)
    value = guidance.energy("entropy", lambda x, _: net(x, SINE_T))(x, 0.0).sum()
    grad, = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(entropy, abs=1e-6)
    assert grad.norm().item() == pytest.approx(norm, rel=1e-3)


MULT = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}


def published(name: str, size: int, **options) -> dict:
    own = dict(model_channels=256, out_channels=6, num_classes=1000) if name == "adm_unet" else \
        dict(model_channels=128, out_channels=1000)
    return dict(name=name, image_size=size, channel_mult=MULT[size], num_res_blocks=2, **FILM,
                attention_resolutions=tuple(size // resolution for resolution in (32, 16, 8))) | own | options


UPSAMPLER = published("adm_unet", 512, model_channels=192, in_channels=6, num_head_channels=64, channel_mult=MULT[256],
                      attention_resolutions=(16, 32))
PUBLISHED = {
    "64x64_diffusion": (published("adm_unet", 64, model_channels=192, num_res_blocks=3, num_head_channels=64,
                                  use_new_attention_order=True), 295_904_454, 541),
    "128x128_diffusion": (published("adm_unet", 128, num_heads=4), 421_529_606, 493),
    "256x256_diffusion": (published("adm_unet", 256, num_head_channels=64), 553_838_086, 567),
    "256x256_diffusion_uncond, lsun": (published("adm_unet", 256, num_head_channels=64, num_classes=None), 552_814_086, 566),
    "512x512_diffusion": (published("adm_unet", 512, num_head_channels=64), 558_997_638, 645),
    "64_256_upsampler": (published("adm_unet", 256, model_channels=192, in_channels=6, num_heads=4), 311_795_910, 567),
    "128_512_upsampler": (UPSAMPLER, 308_835_270, 537),
    "64x64_classifier": (published("adm_classifier", 64, num_res_blocks=4), 65_438_568, 307),
    "128x128_classifier": (published("adm_classifier", 128), 42_568_040, 221),
    "256x256_classifier": (published("adm_classifier", 256), 54_096_360, 249),
    "512x512_classifier": (published("adm_classifier", 512), 54_448_360, 281),
    "MGDM": (published("adm_unet", 128, num_heads=4, num_classes=2), 420_507_654, 493),
    "MGDM, 4 classes": (published("adm_unet", 128, num_heads=4, num_classes=4), 420_509_702, 493),
    "MGDM classifier": (published("adm_classifier", 128, out_channels=2), 42_056_066, 221),
    "MGDM classifier 32": (published("adm_classifier", 64, image_size=32, channel_mult=(2, 3, 4), attention_resolutions=(1, 2, 4),
                                     out_channels=2), 39_759_746, 159),
}
UNTOLD = {"name", "num_heads", "num_head_channels", "use_new_attention_order"}


@pytest.mark.parametrize("config", PUBLISHED)
def test_parameters_of_the_published_networks_and_what_they_tell(config):
    kwargs, parameters, entries = PUBLISHED[config]
    with torch.device("meta"):
        net = backbones.get(**kwargs)
    assert sum(p.numel() for p in net.parameters()) == parameters
    state = net.state_dict()
    assert len(state) == entries and not list(net.buffers())
    unet = kwargs["name"] == "adm_unet"
    told = (adm.unet_arguments if unet else adm.classifier_arguments)(state)
    expected = kwargs | dict(in_channels=kwargs.get("in_channels", 3), **{} if unet else {"pool": "attention"})
    if unet:
        expected["num_classes"] = kwargs["num_classes"] or -1
        expected.pop("image_size")
    assert told == {key: value for key, value in expected.items() if key not in UNTOLD}


def layout(blocks) -> str:
    """The notation in which the published layouts are noted: R in>out, u/d where it resamples, A width h heads."""
    def shown(layer):
        if isinstance(layer, adm.ResBlock):
            return f"R{layer.in_layers[2].in_channels}>{layer.out_layers[3].out_channels}{'u/d' * bool(layer.resample)}"
        if isinstance(layer, adm.AttentionBlock):
            return f"A{layer.proj_out.in_channels}h{layer.num_heads}"
        return type(layer).__name__
    return " ".join(f"{i}:{'+'.join(map(shown, level))}" for i, level in enumerate(blocks))


LAYOUTS = {
    "64x64_diffusion": (
        "0:Conv2d 1:R192>192 2:R192>192 3:R192>192 4:R192>192u/d 5:R192>384+A384h6 6:R384>384+A384h6 7:R384>384+A384h6 "
        "8:R384>384u/d 9:R384>576+A576h9 10:R576>576+A576h9 11:R576>576+A576h9 12:R576>576u/d 13:R576>768+A768h12 "
        "14:R768>768+A768h12 15:R768>768+A768h12",
        "0:R1536>768+A768h12 1:R1536>768+A768h12 2:R1536>768+A768h12 3:R1344>768+A768h12+R768>768u/d 4:R1344>576+A576h9 "
        "5:R1152>576+A576h9 6:R1152>576+A576h9 7:R960>576+A576h9+R576>576u/d 8:R960>384+A384h6 9:R768>384+A384h6 "
        "10:R768>384+A384h6 11:R576>384+A384h6+R384>384u/d 12:R576>192 13:R384>192 14:R384>192 15:R384>192"),
    "128x128_diffusion": (
        "0:Conv2d 1:R256>256 2:R256>256 3:R256>256u/d 4:R256>256 5:R256>256 6:R256>256u/d 7:R256>512+A512h4 8:R512>512+A512h4 "
        "9:R512>512u/d 10:R512>768+A768h4 11:R768>768+A768h4 12:R768>768u/d 13:R768>1024+A1024h4 14:R1024>1024+A1024h4",
        "0:R2048>1024+A1024h4 1:R2048>1024+A1024h4 2:R1792>1024+A1024h4+R1024>1024u/d 3:R1792>768+A768h4 4:R1536>768+A768h4 "
        "5:R1280>768+A768h4+R768>768u/d 6:R1280>512+A512h4 7:R1024>512+A512h4 8:R768>512+A512h4+R512>512u/d 9:R768>256 "
        "10:R512>256 11:R512>256+R256>256u/d 12:R512>256 13:R512>256 14:R512>256"),
    "256x256_diffusion": (
        "0:Conv2d 1:R256>256 2:R256>256 3:R256>256u/d 4:R256>256 5:R256>256 6:R256>256u/d 7:R256>512 8:R512>512 9:R512>512u/d "
        "10:R512>512+A512h8 11:R512>512+A512h8 12:R512>512u/d 13:R512>1024+A1024h16 14:R1024>1024+A1024h16 15:R1024>1024u/d "
        "16:R1024>1024+A1024h16 17:R1024>1024+A1024h16",
        "0:R2048>1024+A1024h16 1:R2048>1024+A1024h16 2:R2048>1024+A1024h16+R1024>1024u/d 3:R2048>1024+A1024h16 "
        "4:R2048>1024+A1024h16 5:R1536>1024+A1024h16+R1024>1024u/d 6:R1536>512+A512h8 7:R1024>512+A512h8 "
        "8:R1024>512+A512h8+R512>512u/d 9:R1024>512 10:R1024>512 11:R768>512+R512>512u/d 12:R768>256 13:R512>256 "
        "14:R512>256+R256>256u/d 15:R512>256 16:R512>256 17:R512>256"),
    "512x512_diffusion": (
        "0:Conv2d 1:R128>128 2:R128>128 3:R128>128u/d 4:R128>256 5:R256>256 6:R256>256u/d 7:R256>256 8:R256>256 9:R256>256u/d "
        "10:R256>512 11:R512>512 12:R512>512u/d 13:R512>512+A512h8 14:R512>512+A512h8 15:R512>512u/d 16:R512>1024+A1024h16 "
        "17:R1024>1024+A1024h16 18:R1024>1024u/d 19:R1024>1024+A1024h16 20:R1024>1024+A1024h16",
        "0:R2048>1024+A1024h16 1:R2048>1024+A1024h16 2:R2048>1024+A1024h16+R1024>1024u/d 3:R2048>1024+A1024h16 "
        "4:R2048>1024+A1024h16 5:R1536>1024+A1024h16+R1024>1024u/d 6:R1536>512+A512h8 7:R1024>512+A512h8 "
        "8:R1024>512+A512h8+R512>512u/d 9:R1024>512 10:R1024>512 11:R768>512+R512>512u/d 12:R768>256 13:R512>256 "
        "14:R512>256+R256>256u/d 15:R512>256 16:R512>256 17:R384>256+R256>256u/d 18:R384>128 19:R256>128 20:R256>128"),
    "64x64_classifier": (
        "0:Conv2d 1:R128>128 2:R128>128 3:R128>128 4:R128>128 5:R128>128u/d 6:R128>256+A256h4 7:R256>256+A256h4 "
        "8:R256>256+A256h4 9:R256>256+A256h4 10:R256>256u/d 11:R256>384+A384h6 12:R384>384+A384h6 13:R384>384+A384h6 "
        "14:R384>384+A384h6 15:R384>384u/d 16:R384>512+A512h8 17:R512>512+A512h8 18:R512>512+A512h8 19:R512>512+A512h8", ""),
    "128x128_classifier": (
        "0:Conv2d 1:R128>128 2:R128>128 3:R128>128u/d 4:R128>128 5:R128>128 6:R128>128u/d 7:R128>256+A256h4 8:R256>256+A256h4 "
        "9:R256>256u/d 10:R256>384+A384h6 11:R384>384+A384h6 12:R384>384u/d 13:R384>512+A512h8 14:R512>512+A512h8", ""),
}


@pytest.mark.parametrize("config", LAYOUTS)
def test_layout_of_the_published_networks(config):
    with torch.device("meta"):
        net = backbones.get(**PUBLISHED[config][0])
    assert (layout(net.input_blocks), layout(getattr(net, "output_blocks", ()))) == LAYOUTS[config]
    if config == "128x128_classifier":
        assert {key: tuple(p.shape) for key, p in net.out.named_parameters()} == {
            "0.weight": (512,), "0.bias": (512,), "2.positional_embedding": (512, 65), "2.qkv_proj.weight": (1536, 512, 1),
            "2.qkv_proj.bias": (1536,), "2.c_proj.weight": (1000, 512, 1), "2.c_proj.bias": (1000,)}


@pytest.mark.parametrize("change", [
    {}, dict(num_res_blocks=3), dict(channel_mult=(1, 1, 2), image_size=32), dict(resblock_updown=False),
    dict(resblock_updown=False, conv_resample=False, num_res_blocks=2), dict(use_scale_shift_norm=False),
    dict(attention_resolutions=()), dict(channel_mult=(1,), attention_resolutions=(1,)), dict(in_channels=1, num_classes=-1)])
def test_arguments_read_off_the_shapes_build_the_same_network(change):
    kwargs = UNET | change
    state = built(kwargs).state_dict()
    told = adm.unet_arguments(state)
    options = {key: kwargs[key] for key in ("image_size", "num_head_channels")}
    assert told == {key: kwargs.get(key, told[key]) for key in told}
    backbones.load(backbones.get("adm_unet", **told, **options), state)


@pytest.mark.parametrize("pool", adm.POOLS)
@pytest.mark.parametrize("change", [{}, dict(resblock_updown=False), dict(resblock_updown=False, conv_resample=False),
                                    dict(channel_mult=(1, 1, 2), num_res_blocks=2)])
def test_arguments_read_off_the_shapes_build_the_same_classifier(pool, change):
    kwargs = CLASSIFIER | dict(pool=pool) | change
    state = built(kwargs).state_dict()
    told = adm.classifier_arguments(state)
    assert ("image_size" in told) == (pool == "attention")
    assert told == {key: kwargs.get(key, told[key]) for key in told}
    backbones.load(backbones.get("adm_classifier", **dict(image_size=16) | told, num_head_channels=16), state)


def test_weights_that_tell_no_arguments():
    with pytest.raises(ValueError, match="no weights of adm_unet: time_embed.0.weight"):
        adm.unet_arguments(built(CLASSIFIER).state_dict())
    with pytest.raises(ValueError, match="no weights of adm_classifier: a"):
        adm.classifier_arguments({"a": torch.zeros(1)})
    alike = CLASSIFIER | dict(attention_resolutions=(), channel_mult=(1, 1), num_res_blocks=2)
    with pytest.raises(ValueError, match="how many blocks"):
        adm.classifier_arguments(built(alike).state_dict())


def test_load_tells_what_would_fit():
    net = backbones.get(**UNET)
    for key, value in dict(model_channels=64, num_res_blocks=2, num_classes=7, out_channels=3, in_channels=1, channel_mult=(1, 3),
                           resblock_updown=False, use_scale_shift_norm=False, attention_resolutions=(1, 2)).items():
        with pytest.raises(ValueError) as error:
            backbones.load(net, backbones.get(**UNET | {key: value}).state_dict())
        assert f"--config.nnet.{key}={value}" in str(error.value)
    with pytest.raises(ValueError, match="--config.nnet.pool=spatial"):
        backbones.load(backbones.get(**CLASSIFIER), backbones.get(**CLASSIFIER, pool="spatial").state_dict())
    with pytest.raises(ValueError, match="--config.nnet.name=adm_classifier"):
        backbones.load(net, backbones.get(**CLASSIFIER).state_dict())


def test_a_fresh_network_predicts_zero_and_a_uniform_class():
    """The last layer of every block starts at zero, as published."""
    x, t, label = example(UNET)
    assert not backbones.get(**UNET)(x, t, label).any()
    logits = backbones.get(**CLASSIFIER, pool="adaptive")(x, t)
    assert logits.shape == (2, 3) and not logits.any()


@pytest.mark.parametrize("kwargs", [UNET, PLAIN])
def test_labels_are_read_item_by_item_and_the_number_of_classes_means_none(kwargs):
    net = built(kwargs).eval()
    assert net.takes == ("label",)
    x, t, _ = example(kwargs, n=3)
    with torch.no_grad():
        mixed = net(x, t, torch.tensor([1, 4, 3]))
        alone = [net(x[i:i + 1], t[i:i + 1], label) for i, label in enumerate((torch.tensor([1]), None, torch.tensor([3])))]
        shifted = net(x, t, torch.tensor([2, 4, 3]))
    assert close(mixed, torch.cat(alone), 1e-5)
    assert not close(mixed[:1], shifted[:1], 1e-2) and torch.equal(mixed[1:], shifted[1:])
    net.zero_grad()
    net(x, t, torch.tensor([1, 4, 3])).square().mean().backward()
    assert net.label_emb.weight.grad.abs().sum(1).bool().tolist() == [False, True, False, True]
    with pytest.raises(IndexError):
        net(x, t, torch.tensor([1, 5, 0]))


@pytest.mark.parametrize("num_classes", [None, -1])
def test_without_classes(num_classes):
    net = backbones.get(**UNET | dict(num_classes=num_classes))
    x, t, label = example(UNET)
    assert net.takes == () and "label_emb.weight" not in net.state_dict()
    assert net(x, t).shape == (2, 6, 16, 16)
    with pytest.raises(TypeError, match="num_classes > 0"):
        net(x, t, label)


def test_one_channel_and_other_sizes():
    kwargs = UNET | dict(in_channels=1, out_channels=2)
    net = built(kwargs)
    assert net(*example(kwargs)).shape == (2, 2, 16, 16)
    assert net(torch.zeros(1, 1, 8, 24), torch.zeros(1)).shape == (1, 2, 8, 24)
    grey = built(CLASSIFIER | dict(in_channels=1, pool="spatial"))
    assert grey(torch.zeros(2, 1, 32, 32), torch.zeros(2)).shape == (2, 3) and grey.takes == ()


def test_batch_items_do_not_see_each_other():
    """Scale and shift are folded into a normalization over the whole batch at once."""
    net = built(UNET).eval()
    x, t, label = example(UNET, n=3)
    with torch.no_grad():
        together = net(x, t, label)
        alone = torch.cat([net(x[i:i + 1], t[i:i + 1], label[i:i + 1]) for i in range(3)])
    assert close(together, alone, 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalization_with_scale_and_shift_is_the_formula(layout):
    g = torch.Generator().manual_seed(0)
    x, change, weights = (torch.randn(*shape, dtype=torch.float64, generator=g)
                          for shape in ((3, 64, 4, 2), (3, 128, 1, 1), (2, 64)))
    x = x.contiguous(memory_format=layout).requires_grad_()
    change.requires_grad_()
    norm, plain = adm.Norm(64).double(), torch.nn.GroupNorm(32, 64).double()
    for each in (norm, plain):
        each.load_state_dict({"weight": weights[0], "bias": weights[1]})
    scale, shift = change.chunk(2, dim=1)
    expected, found = plain(x) * (1 + scale) + shift, norm(x, change)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=g)
    for a, b in zip(torch.autograd.grad(found, (x, change, *norm.parameters()), direction),
                    torch.autograd.grad(expected, (x, change, *plain.parameters()), direction), strict=True):
        torch.testing.assert_close(a, b)


def test_resampling_is_torch_s():
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adm._halved(x), torch.nn.functional.avg_pool2d(x, 2))
    assert torch.equal(adm._doubled(x), torch.nn.functional.interpolate(x, scale_factor=2))


@pytest.mark.parametrize("change, named", [
    (dict(image_size=17), "image_size=17 cannot be halved 1 times.*multiple of 2"),
    (dict(image_size=36, channel_mult=(1, 2, 2, 2)), "image_size=36.*multiple of 8"), (dict(image_size=0), "image_size=0"),
    (dict(model_channels=48), "width of 48 channels is no multiple of 32"), (dict(channel_mult=(1, 0.25)), "width of 8 channels"),
    (dict(channel_mult=(1, 0)), "leaves no channel"), (dict(channel_mult=()), r"channel_mult=\(\)"),
    (dict(num_head_channels=24), "num_head_channels=24 does not divide the width 64"),
    (dict(num_head_channels=-1, num_heads=3), "num_heads=3 does not divide the width 64"),
    (dict(num_head_channels=-1, num_heads_upsample=5), "num_heads=5"), (dict(num_res_blocks=0), "num_res_blocks=0"),
    (dict(out_channels=0), "out_channels=0"), (dict(in_channels=0), "in_channels=0")])
def test_sizes_that_do_not_fit(change, named):
    with pytest.raises(ValueError, match=named):
        backbones.get(**UNET | change)


def test_options_of_the_classifier_that_do_not_exist():
    with pytest.raises(ValueError, match="pool='max'; known: attention, adaptive, spatial, spatial_v2"):
        backbones.get(**CLASSIFIER, pool="max")
    with pytest.raises(ValueError, match="num_head_channels=24"):
        backbones.get(**CLASSIFIER | dict(num_head_channels=24))
    with pytest.raises(TypeError, match="num_classes"):
        backbones.get(**CLASSIFIER, num_classes=3)


def test_attention_at_resolutions_in_place_of_factors_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        backbones.get(**UNET)
        assert not caplog.records
        backbones.get(**UNET | dict(attention_resolutions=(16, 8)))
    assert "factors 1 to 2" in caplog.text and "[16, 8]" in caplog.text


@pytest.mark.parametrize("given, message", [
    (dict(x=torch.zeros(2, 1, 16, 16)), r"\(N, 3, H, W\), got \(2, 1, 16, 16\)"), (dict(x=torch.zeros(3, 16, 16)), "got"),
    (dict(x=torch.zeros(2, 3, 16, 17)), "multiples of 2"), (dict(t=torch.zeros(3)), r"\(2,\), got \(3,\)"),
    (dict(label=torch.zeros(2)), "integer labels"),
    (dict(label=torch.zeros(3, dtype=torch.long)), r"\(2,\), got torch.int64 \(3,\)")])
def test_inputs_of_the_wrong_shape(given, message):
    x, t, label = example(UNET)
    with pytest.raises(ValueError, match=message):
        backbones.get(**UNET)(**dict(x=x, t=t, label=label) | given)


def test_the_attention_pool_knows_its_size():
    with pytest.raises(ValueError, match="images of 16 px"):
        backbones.get(**CLASSIFIER)(torch.zeros(1, 3, 32, 32), torch.zeros(1))


@pytest.mark.parametrize("kwargs", [UNET, PLAIN, CLASSIFIER, CLASSIFIER | dict(pool="spatial_v2")])
def test_every_parameter_receives_a_gradient(kwargs):
    net = built(kwargs)
    net(*example(kwargs)).square().mean().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("kwargs", [UNET | dict(dropout=0.3), PLAIN, CLASSIFIER])
def test_checkpointing_gives_equal_gradients(kwargs):
    results = []
    for use_checkpoint in (False, True):
        net = built(kwargs | dict(use_checkpoint=use_checkpoint))
        saved = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda a: saved.append(a.numel()) or a, lambda a: a):
            net(*example(kwargs)).square().mean().backward()
        results.append(([p.grad for p in net.parameters()], sum(saved)))
    (plain, kept), (checkpointed, kept_less) = results
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert kept_less < 0.5 * kept


def test_dropout_only_in_training():
    net = built(UNET | dict(dropout=0.5))
    inputs = example(UNET)
    with torch.no_grad():
        assert not torch.equal(net(*inputs), net(*inputs))
        net.eval()
        assert torch.equal(net(*inputs), net(*inputs))
        assert torch.equal(net(*inputs), built(UNET).eval()(*inputs))


def test_inference_neither_changes_its_input_nor_differs_from_training():
    net = built(UNET)
    x, t, label = example(UNET)
    kept = x.clone()
    with torch.no_grad():
        out = net(x, t, label)
    assert torch.equal(x, kept)
    assert torch.equal(net(x, t, label), out)


@pytest.mark.parametrize("kwargs", [UNET, CLASSIFIER])
def test_compiles_into_one_graph(kwargs):
    net, inputs = built(kwargs).eval(), example(kwargs)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert close(compiled(*inputs), net(*inputs), 1e-6)


@pytest.mark.parametrize("kwargs", [UNET, PLAIN, CLASSIFIER])
def test_copies_and_strict_loading(kwargs):
    net, other = built(kwargs), built(kwargs, seed=1)
    inputs = example(kwargs)
    with torch.no_grad():
        expected = net(*inputs)
        assert torch.equal(copy.deepcopy(net)(*inputs), expected)
        other.load_state_dict(net.state_dict(), strict=True)
        assert torch.equal(other(*inputs), expected)
        assert close(net.to(memory_format=torch.channels_last)(*inputs), expected, 1e-5)


@pytest.mark.parametrize("kwargs", [UNET, PLAIN, CLASSIFIER, *(CLASSIFIER | dict(pool=pool) for pool in adm.POOLS[1:])])
def test_bfloat16_by_autocast_and_by_lowered_weights(kwargs):
    net, inputs = built(kwargs).eval(), example(kwargs)
    with torch.no_grad():
        expected = net(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            cast = net(*inputs)
        low = lower(copy.deepcopy(net), torch.bfloat16)
        alone = low(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            both = low(*inputs)
    assert close(cast, expected, 0.03) and alone.dtype == torch.bfloat16
    assert close(alone, cast, 1e-3) and close(both, cast, 1e-3)
    norm, _, conv = low.middle_block[0].in_layers
    assert (norm.weight.dtype, conv.weight.dtype) == (torch.float32, torch.bfloat16)
    assert list(low.state_dict()) == list(net.state_dict())


def test_lowered_weights_of_another_network():
    kwargs = dict(name="uvit", img_size=8, patch_size=2, embed_dim=32, depth=4, num_heads=4, in_chans=3, num_classes=3)
    net = backbones.get(**kwargs)
    x, t, label = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 2])
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            cast = net(x, t, label=label)
        low = lower(net, torch.bfloat16)
        assert close(low(x, t, label=label), cast, 1e-3)
    assert lower(low, torch.bfloat16) is low and low.pos_embed.dtype == low.norm.weight.dtype == torch.float32


def test_bfloat16_training():
    net = built(UNET)
    inputs = example(UNET)
    net(*inputs).square().mean().backward()
    exact = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(*inputs)
    out.float().square().mean().backward()
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.999


@pytest.mark.parametrize("kwargs", [
    UNET, PLAIN, UNET | dict(channel_mult=(1, 2, 1), num_res_blocks=2, attention_resolutions=(2, 4)),
    PLAIN | dict(conv_resample=False), *(CLASSIFIER | dict(pool=pool) for pool in adm.POOLS)])
def test_closed_formula_of_operations(kwargs, math_attention):
    net, inputs = built(kwargs), example(kwargs)
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    assert counter.get_total_flops() == 2 * backbones.flops_per_image(net)
    with FlopCounterMode(display=False) as counter:
        net(*inputs).sum().backward()
    assert counter.get_total_flops() == 2 * backbones.train_flops(net)


def test_operations_of_the_published_size():
    """102 M parameters at 64 px and 128 channels: 234.7 GFLOP per image in training."""
    with torch.device("meta"):
        net = backbones.get(**published("adm_unet", 64, model_channels=128, num_head_channels=64, num_classes=None))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(102e6, rel=0.01)
    assert backbones.train_flops(net) / 1e9 == pytest.approx(234.7, rel=0.01)


class Masks(TorchDispatchMode):
    """For each backward of a convolution or normalization, which gradients it computes: input, weight, bias."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution_backward.default, torch.ops.aten.native_group_norm_backward.default):
            self.seen.append(tuple(args[-1]))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_guidance_computes_the_gradient_of_the_image_alone(frozen, use_checkpoint):
    net = built(CLASSIFIER | dict(use_checkpoint=use_checkpoint)).eval().requires_grad_(not frozen)
    x, t = example(CLASSIFIER)
    x.requires_grad_()
    with Masks() as masks:
        grad, = torch.autograd.grad(net(x, t).log_softmax(1)[:, 0].sum(), x)
    blocks, skips, attentions = 5, 1, 2
    assert len(masks.seen) == (1 + 2 * blocks + skips) + (2 * blocks + attentions + 1)
    # scale and shift depend on the time alone: no gradient of theirs is asked for either
    assert set(masks.seen) == {(True, False, False)}
    assert grad.any() and all(p.grad is None for p in net.parameters())
