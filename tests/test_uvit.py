"""U-ViT and VAP-Diffusion's networks: outputs and parameters as published, gradients, operations."""

import json
import math
import pathlib

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from libs import backbones

PARITY = pathlib.Path(__file__).parent / "parity"
TINY = dict(img_size=8, patch_size=2, embed_dim=32, depth=4, num_heads=4)
TEXT = dict(clip_dim=24, num_clip_token=7)
VARIANTS = {
    "uncond": dict(name="uvit", in_chans=3, **TINY),
    "class": dict(name="uvit", in_chans=4, num_classes=11, conv=False, mlp_time_embed=True, **TINY),
    "t2i": dict(name="uvit_t2i", in_chans=4, **TINY, **TEXT),
    "t2i_label": dict(name="uvit_t2i_label", in_chans=4, num_classes=8, **TINY, **TEXT),
    "t2i_prototype": dict(name="uvit_t2i_prototype", in_chans=4, num_classes=8, **TINY, **TEXT),
}


def example(kwargs: dict, n: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Random (x, t, conditions) for a network of these arguments."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, kwargs["in_chans"], kwargs["img_size"], kwargs["img_size"], generator=g)
    cond = {}
    if kwargs.get("num_classes", -1) > 0:
        cond["label"] = torch.randint(kwargs["num_classes"], (n,), generator=g)
    if "num_clip_token" in kwargs:
        cond["text"] = torch.randn(n, kwargs["num_clip_token"], kwargs["clip_dim"], generator=g)
    return x, torch.rand(n, generator=g) * 999, cond


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_published_implementation(variant):
    with safe_open(PARITY / f"uvit_{variant}.safetensors", "pt") as file:
        kwargs = json.loads(file.metadata()["kwargs"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    name = VARIANTS[variant]["name"]
    net = backbones.get(name=name, **kwargs)
    backbones.load(net, {key[6:]: value for key, value in tensors.items() if key.startswith("state.")})
    cond = {ours: tensors[f"in.{theirs}"] for ours, theirs in (("label", "y"), ("text", "context"))
            if f"in.{theirs}" in tensors}
    with torch.no_grad():
        out, losses = net(tensors["in.x"], tensors["in.timesteps"], **cond, with_losses=True)
        alone = net(tensors["in.x"], tensors["in.timesteps"], **cond)
    expected = tensors["out.out"]
    assert (out - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(out, alone)
    assert set(losses) == ({"prototype"} if variant == "t2i_prototype" else set())
    if losses:
        assert losses["prototype"].item() == pytest.approx(tensors["out.recon_loss"].item(), rel=1e-4)


# Sum, first and last value of the published networks' output where weights and inputs are sines.
GOLDEN = {
    "uncond": dict(sum=12.446634, first=0.041595, last=0.015663),
    "class": dict(sum=2.057267, abs=18.739972, first=-0.036409, last=-0.043660),
    "t2i": dict(sum=-22.991409, first=-0.038015, last=-0.045350),
    "t2i_label": dict(sum=-22.830532, first=-0.038148, last=-0.044711),
    "t2i_prototype": dict(sum=9.830615, abs=11.204547, first=0.041528, last=-0.006239, loss=0.01756094),
}


@pytest.mark.parametrize("variant", GOLDEN)
def test_golden_values(variant):
    kwargs = VARIANTS[variant]
    net = backbones.get(**kwargs)
    state = net.state_dict()
    for j, key in enumerate(sorted(state)):
        state[key] = 0.05 * torch.sin(0.37 * torch.arange(state[key].numel()) + j).view_as(state[key])
    backbones.load(net, state)
    shape = (2, kwargs["in_chans"], 8, 8)
    cond = {}
    if "num_classes" in kwargs:
        cond["label"] = torch.tensor([3, 10 if variant == "class" else 7])
    if "num_clip_token" in kwargs:
        cond["text"] = torch.cos(0.11 * torch.arange(2 * 7 * 24) + 1).view(2, 7, 24)
    x = torch.cos(0.11 * torch.arange(math.prod(shape))).view(shape)
    with torch.no_grad():
        out, losses = net(x, torch.tensor([0.5, 999.0]), **cond, with_losses=True)
    found = dict(sum=out.sum(), abs=out.abs().sum(), first=out.flatten()[0], last=out.flatten()[-1],
                 loss=losses.get("prototype"))
    for key, value in GOLDEN[variant].items():
        assert found[key].item() == pytest.approx(value, abs=2e-6 if key in ("first", "last") else 2e-4), key
    if losses:
        assert losses["prototype"].item() == pytest.approx(GOLDEN[variant]["loss"], abs=1e-7)


SMALL = dict(embed_dim=512, depth=12, num_heads=8)
LARGE = dict(embed_dim=1024, depth=20, num_heads=16)
HUGE = dict(embed_dim=1152, depth=28, num_heads=16, conv=False)
LATENT32, LATENT64 = (dict(img_size=size, patch_size=patch, in_chans=4) for size, patch in ((32, 2), (64, 4)))
PIXELS64 = dict(img_size=64, patch_size=4, in_chans=3)
COCO = dict(**LATENT32, clip_dim=768, num_clip_token=77, embed_dim=512, num_heads=8)
VAP = COCO | dict(num_clip_token=256, depth=16, num_classes=8)
PUBLISHED = {
    "cifar10_uvit_small": (dict(name="uvit", **LATENT32 | dict(in_chans=3), **SMALL), 44_255_328, 164),
    "celeba64_uvit_small": (dict(name="uvit", **PIXELS64, **SMALL), 44_292_228, 164),
    "imagenet64_uvit_mid": (dict(name="uvit", **PIXELS64, embed_dim=768, depth=16, num_heads=12,
                                 num_classes=1000), 130_940_292, 213),
    "imagenet64_uvit_large": (dict(name="uvit", **PIXELS64, **LARGE, num_classes=1000), 286_827_652, 261),
    "imagenet256_uvit_large": (dict(name="uvit", **LATENT32, **LARGE, num_classes=1001), 286_763_172, 261),
    "imagenet256_uvit_huge": (dict(name="uvit", **LATENT32, **HUGE, num_classes=1001), 500_832_016, 355),
    "imagenet512_uvit_large": (dict(name="uvit", **LATENT64, **LARGE, num_classes=1001), 286_861_524, 261),
    "imagenet512_uvit_huge": (dict(name="uvit", **LATENT64, **HUGE, num_classes=1001), 500_942_656, 355),
    "mscoco_uvit_small": (dict(name="uvit_t2i", **COCO, depth=12), 44_692_644, 166),
    "mscoco_uvit_small deep": (dict(name="uvit_t2i", **COCO, depth=16), 58_345_636, 214),
    "VAP without prototypes": (dict(name="uvit_t2i_label", **VAP), 58_441_892, 215),
    "COT_ISIC256": (dict(name="uvit_t2i_prototype", **VAP), 64_998_564, 238),
    "with 16 classes": (dict(name="uvit_t2i_prototype", **VAP | dict(num_classes=16)), 67_095_716, 238),
    "chest X-ray, with a label token": (dict(name="uvit_t2i_prototype", label_token=True, **VAP | dict(num_classes=16)),
                                        67_104_420, 239),
}


@pytest.mark.parametrize("config", PUBLISHED)
def test_parameters_of_the_published_configurations(config):
    kwargs, parameters, entries = PUBLISHED[config]
    with torch.device("meta"):
        net = backbones.get(**kwargs)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == entries
    assert not list(net.buffers())
    # what can be read off the shapes is what the network was built with
    settings = net.settings(net.state_dict())
    assert settings == {key: kwargs.get(key, settings[key]) for key in settings}
    assert set(kwargs) - set(settings) <= {"num_heads", "img_size", "num_clip_token"}


def test_initialization():
    torch.manual_seed(0)
    state = backbones.get(**VARIANTS["t2i_prototype"] | dict(embed_dim=256)).state_dict()
    for key in ("pos_embed", "in_blocks.0.attn.qkv.weight", "q.weight", "Q_former.z1.weight",
                "Q_former.z2.weight"):
        assert state[key].std().item() == pytest.approx(0.02, rel=0.05), key
        assert state[key].mean().abs() < 2e-3
    assert state["prototype.weight"].std().item() == pytest.approx(1, rel=0.02)
    assert not state["mid_block.mlp.fc1.bias"].any() and torch.equal(state["norm.weight"], torch.ones(256))
    # convolutions as torch does: uniform within 1 / sqrt(fan in)
    assert 0.9 * 16 ** -0.5 < state["patch_embed.proj.weight"].abs().max() <= 16 ** -0.5


def test_zero_init_leaves_the_prototypes_without_influence():
    kwargs = VARIANTS["t2i_prototype"]
    net = backbones.get(**kwargs, zero_init=True)
    x, t, cond = example(kwargs)
    other = cond | {"label": (cond["label"] + 1) % 8}
    published = backbones.get(**kwargs)
    with torch.no_grad():
        assert torch.equal(net(x, t, **cond), net(x, t, **other))
        assert not torch.allclose(published(x, t, **cond), published(x, t, **other), atol=1e-6)


def test_the_prototypes_of_the_paper_start_without_influence_and_learn_to_rebuild_the_tokens():
    kwargs = VARIANTS["t2i_prototype"] | dict(mechanism="paper")
    torch.manual_seed(0)
    net = backbones.get(**kwargs)
    x, t, cond = example(kwargs)
    other = cond | {"label": (cond["label"] + 1) % 8}
    with torch.no_grad():
        assert torch.equal(net(x, t, **cond), net(x, t, **other))
    first = net(x, t, **cond, with_losses=True)[1]["prototype"]
    own = [p for name, p in net.named_parameters() if name.startswith(("prototype", "Q_former.cross"))]
    optimizer = torch.optim.Adam(own, lr=0.01)
    for _ in range(30):
        loss = net(x, t, **cond, with_losses=True)[1]["prototype"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first.item()


def test_the_ablation_without_prototypes_is_the_network_with_a_label_token():
    kwargs = VARIANTS["t2i_prototype"]
    ablated = backbones.get(**kwargs, mechanism="none", label_token=False)
    label = backbones.get(**kwargs | dict(name="uvit_t2i_label"))
    assert list(ablated.state_dict()) == list(label.state_dict()) and ablated.takes == ("label", "text")


def test_an_unknown_mechanism_is_refused():
    with pytest.raises(ValueError, match="mechanism='papers'; known: code, paper, none"):
        backbones.get(**VARIANTS["t2i_prototype"], mechanism="papers")


@pytest.mark.parametrize("options", [{}, {"mechanism": "paper"}, {"label_token": True}])
def test_the_shapes_of_a_prototype_network_tell_its_settings(options):
    kwargs = VARIANTS["t2i_prototype"] | options
    net = backbones.get(**kwargs)
    found = net.settings(net.state_dict())
    assert {key: found[key] for key in kwargs if key in found} == {key: kwargs[key] for key in kwargs if key in found}
    assert found["mechanism"] == options.get("mechanism", "code") and net.takes == ("label", "text")


@pytest.mark.parametrize("variant", [*VARIANTS, "paper", "label_token"])
def test_every_trainable_parameter_receives_a_gradient(variant):
    """What DistributedDataParallel needs to work without searching for unused parameters."""
    kwargs = VARIANTS.get(variant) or VARIANTS["t2i_prototype"] | {
        "paper": {"mechanism": "paper"}, "label_token": {"label_token": True}}[variant]
    net = backbones.get(**kwargs)
    x, t, cond = example(kwargs)
    out, losses = net(x, t, **cond, with_losses=True)
    (out.square().mean() + sum(losses.values())).backward()
    without = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    frozen = {name.rsplit(".", 1)[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert not without
    assert frozen == ({"Q_former.norm1", "Q_former.normp"} if variant in ("t2i_prototype", "label_token") else set())


@pytest.mark.parametrize("variant", ["class", "t2i_prototype"])
def test_checkpointing_gives_equal_gradients(variant):
    kwargs = VARIANTS[variant]
    gradients = []
    x, t, cond = example(kwargs)
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        net = backbones.get(**kwargs, use_checkpoint=use_checkpoint)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda a: saved.append(a.numel()) or a, lambda a: a):
            out, losses = net(x, t, **cond, with_losses=True)
        (out.square().mean() + sum(losses.values())).backward()
        gradients.append(([p.grad for p in net.parameters() if p.requires_grad], sum(saved)))
    (plain, kept), (checkpointed, kept_less) = gradients
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert kept_less < 0.5 * kept


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_autocast(variant):
    kwargs = VARIANTS[variant]
    torch.manual_seed(0)
    net = backbones.get(**kwargs)
    x, t, cond = example(kwargs)
    with torch.no_grad():
        expected, expected_losses = net(x, t, **cond, with_losses=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, losses = net(x, t, **cond, with_losses=True)
    (out.float().square().mean() + sum(losses.values())).backward()
    assert (out.float() - expected).abs().max() < 0.03 * expected.abs().max()
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(losses[key].item() == pytest.approx(expected_losses[key].item(), rel=0.03) for key in losses)
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_bfloat16_weights_and_half_precision_text():
    kwargs = VARIANTS["t2i_label"]
    net = backbones.get(**kwargs)
    x, t, cond = example(kwargs)
    with torch.no_grad():
        expected = net(x, t, **cond)
        half = net(x, t, label=cond["label"], text=cond["text"].half())
        low = net.bfloat16()(x.bfloat16(), t, **cond)
    assert torch.allclose(half, expected, atol=1e-3)
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_without_long_skips_and_convolution():
    net = backbones.get(**VARIANTS["uncond"], skip=False, conv=False)
    assert not any("skip_linear" in key or "final_layer" in key for key in net.state_dict())
    x, t, _ = example(VARIANTS["uncond"])
    assert net(x, t).shape == x.shape


@pytest.mark.parametrize("change, named", [
    (dict(img_size=9), "img_size=9.*patch_size=2"), (dict(patch_size=0), "patch_size=0"),
    (dict(depth=5), "depth=5"), (dict(depth=0), "depth=0"), (dict(num_heads=5), "num_heads=5.*32")])
def test_sizes_that_do_not_divide(change, named):
    with pytest.raises(ValueError, match=named):
        backbones.get(**VARIANTS["uncond"] | change)


def test_unknown_names_and_arguments():
    with pytest.raises(ValueError, match="did you mean 'uvit_t2i_label'"):
        backbones.get(name="uvit_t2i_lable")
    with pytest.raises(ValueError, match="known: uvit, uvit_t2i"):
        backbones.get(name="resnet")
    with pytest.raises(TypeError, match="depht"):
        backbones.get(**VARIANTS["uncond"], depht=4)
    with pytest.raises(TypeError, match="num_clip_token"):
        backbones.get(**VARIANTS["uncond"], num_clip_token=7)
    with pytest.raises(TypeError, match="num_classes"):
        backbones.get(**VARIANTS["t2i"], num_classes=7)
    for variant in ("t2i_label", "t2i_prototype"):
        with pytest.raises(ValueError, match="num_classes >= 1, got 0"):
            backbones.get(**VARIANTS[variant] | dict(num_classes=0))
        with pytest.raises(ValueError, match="num_clip_token >= 1, got 0"):
            backbones.get(**VARIANTS[variant] | dict(num_clip_token=0))


def test_conditions_that_do_not_belong():
    x, t, cond = example(VARIANTS["t2i_label"])
    uncond = backbones.get(**VARIANTS["uncond"] | dict(in_chans=4))
    for key in cond:
        with pytest.raises(TypeError, match=f"no {key}="):
            uncond(x, t, **{key: cond[key]})
    with pytest.raises(TypeError, match="mask"):
        uncond(x, t, mask=x)
    for variant in ("t2i_label", "t2i_prototype"):
        net = backbones.get(**VARIANTS[variant])
        for key in cond:
            with pytest.raises(ValueError, match=f"pass {key}="):
                net(x, t, **{other: cond[other] for other in cond if other != key})
    with pytest.raises(ValueError, match="pass label="):
        backbones.get(**VARIANTS["class"])(x, t)


@pytest.mark.parametrize("wrong, message", [
    (dict(x=torch.zeros(2, 3, 8, 8)), r"\(N, 4, 8, 8\), got \(2, 3, 8, 8\)"),
    (dict(x=torch.zeros(2, 4, 16, 8)), r"\(N, 4, 8, 8\), got \(2, 4, 16, 8\)"),
    (dict(t=torch.zeros(3)), r"\(2,\), got \(3,\)"), (dict(t=torch.tensor(1.0)), r"\(2,\), got \(\)"),
    (dict(label=torch.zeros(3, dtype=torch.long)), r"\(2,\), got torch.int64 \(3,\)"),
    (dict(label=torch.zeros(2)), "integer labels.*float32"),
    (dict(text=torch.zeros(2, 6, 24)), r"\(2, 7, 24\), got \(2, 6, 24\)")])
def test_inputs_of_the_wrong_shape(wrong, message):
    x, t, cond = example(VARIANTS["t2i_label"])
    given = dict(x=x, t=t, **cond) | wrong
    with pytest.raises(ValueError, match=message):
        backbones.get(**VARIANTS["t2i_label"])(**given)


def test_load_tells_what_would_fit():
    kwargs = VARIANTS["class"]
    net = backbones.get(**kwargs)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for key, value in dict(depth=8, embed_dim=64, patch_size=4, num_classes=8, img_size=16, conv=True,
                           mlp_time_embed=False).items():
        other = backbones.get(**kwargs | {key: value}).state_dict()
        with pytest.raises(ValueError, match=f"--config.nnet.{key}={value}"):
            backbones.load(net, other)
    with pytest.raises(ValueError, match="--config.nnet.name=uvit_t2i_label"):
        backbones.load(net, backbones.get(**VARIANTS["t2i_label"]).state_dict())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_load_lists_all_differences_in_one_error():
    net = backbones.get(**VARIANTS["class"])
    state = net.state_dict()
    del state["norm.bias"]
    state["extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(5)
    with pytest.raises(ValueError) as error:
        backbones.load(net, state)
    message = str(error.value)
    assert "1 missing from the checkpoint: norm.bias" in message
    assert "1 unknown to the network: extra" in message
    assert "1 of another shape: norm.weight: checkpoint (5,), network (32,)" in message
    assert "--config" not in message
    with pytest.raises(ValueError, match=r"67 more.*\n.*\n.*no key in common.*begin with model"):
        backbones.load(net, {f"model.{key}": value for key, value in net.state_dict().items()})


def test_load_returns_the_loaded_network():
    net, other = (backbones.get(**VARIANTS["t2i"]) for _ in range(2))
    assert backbones.load(net, other.state_dict()) is net
    assert torch.equal(net.pos_embed, other.pos_embed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_closed_formula_of_operations(variant, math_attention):
    kwargs = VARIANTS[variant]
    net = backbones.get(**kwargs)
    x, t, cond = example(kwargs)
    for with_losses in (False, True):
        with FlopCounterMode(display=False) as counter:
            net(x, t, **cond, with_losses=with_losses)
        assert counter.get_total_flops() == pytest.approx(
            2 * backbones.flops_per_image(net, with_losses=with_losses), rel=0.01)
    with FlopCounterMode(display=False) as counter:
        out, losses = net(x, t, **cond, with_losses=True)
        (out.sum() + sum(losses.values())).backward()
    assert counter.get_total_flops() == pytest.approx(2 * backbones.train_flops(net), rel=0.01)


def test_operations_of_published_sizes():
    """Training arithmetic of U-ViT-S/2 and L/2 on 32 x 32 latents: 73.5 and 458.7 GFLOP per image."""
    for size, gflop in ((SMALL, 73.5), (LARGE, 458.7)):
        with torch.device("meta"):
            net = backbones.get(name="uvit", **LATENT32, **size, num_classes=1001)
        assert backbones.train_flops(net) / 1e9 == pytest.approx(gflop, rel=0.01)
    with pytest.raises(ValueError, match="Linear"):
        backbones.flops_per_image(torch.nn.Linear(2, 2))


class Kernels(TorchDispatchMode):
    """Counts the operations that compute or copy; views are free."""

    VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice",
             "select", "unbind", "split", "detach", "alias"}
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.__name__.split(".")[0] not in self.VIEWS
        return func(*args, **kwargs or {})


def test_operations_dispatched_forward_and_backward():
    """At depth 12 the published way takes 499 kernels (`PlainUViT` of benchmarks/train_step.py), this 427."""
    kwargs = VARIANTS["uncond"] | dict(depth=12)
    net = backbones.get(**kwargs)
    x, t, _ = example(kwargs)
    net(x, t)
    with Kernels() as kernels:
        net(x, t).square().mean().backward()
    assert kernels.count <= 430
