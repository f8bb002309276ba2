"""DiT against the published weights' outputs, sizes and numbers; its guidance; what training from others' weights needs."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.common import d
from libs import backbones, codecs, diffusion, pipeline
from libs.backbones.dit import MODELS, position_embedding
from libs.nn.embedding import timestep_embedding

LINEAR = diffusion.schedule("linear")
SMALL = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=32, depth=2, num_heads=4, num_classes=5)


def agree(ours, published, rtol=1e-4):
    assert (ours - published).abs().max() <= rtol * published.abs().max()


@pytest.fixture(scope="module")
def published():
    """(network with the original's weights, inputs and outputs by name)."""
    with safe_open(Path(__file__).parent / "parity" / "dit.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        net = backbones.get("dit", **json.loads(file.metadata()["kwargs"])).eval()
    net.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("state.")}, strict=True)
    return net, tensors


@pytest.fixture
def tiny():
    """A network whose outputs are not the zeros that it begins with."""
    torch.manual_seed(0)
    net = backbones.get("dit", **SMALL)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return net


def sampler_of(net, *, classes, **sample):
    """The pipeline of a DiT on latents of 4 channels, with learned variance."""
    config = d(nnet=d(input_size=net.shape[1], in_channels=4), denoiser=d(predicts="eps", learned_var=True),
               sample=d(algorithm="ddpm", sample_steps=250, **sample))
    return pipeline.Pipeline(net, config, codec=codecs.get("pixels", channels=4), schedule=LINEAR,
                             null={"label": torch.tensor(classes)})


def network_output(estimate):
    """An Estimate as the published code returns it: eps, then the variance head."""
    return torch.cat([estimate.eps, 2 * estimate.var - 1], 1)


def test_published_weights_give_published_outputs(published):
    net, tensors = published
    with torch.no_grad():
        agree(net(tensors["in.x"], tensors["in.t"], tensors["in.y"]), tensors["out.out"])


def test_published_guidance_is_that_of_three_channels(published):
    """The first half of the original's batch is its guided image; `all` guides the fourth channel, too."""
    net, tensors = published
    x, cond, t = tensors["in.cfg_x"][:2], {"label": tensors["in.cfg_y"][:2]}, (tensors["in.cfg_t"][0].item() + 1) / 1000
    with torch.no_grad():
        made = sampler_of(net, classes=10, guidance=4.0, guided_channels="first_three").denoise(cond)(x, t)
        agree(network_output(made), tensors["out.cfg_out"][:2])
        every = sampler_of(net, classes=10, guidance=4.0).denoise(cond)(x, t)
    torch.testing.assert_close(every.eps[:, :3], made.eps[:, :3])
    assert (every.eps[:, 3] - made.eps[:, 3]).abs().max() > 1e-3


COUNTS = {"DiT-XL/2": 675_129_632, "DiT-XL/4": 675_074_432, "DiT-XL/8": 675_683_072, "DiT-L/2": 458_102_816, "DiT-L/4": 458_053_760,
          "DiT-L/8": 458_594_816, "DiT-B/2": 130_512_416, "DiT-B/4": 130_475_648, "DiT-B/8": 130_881_536, "DiT-S/2": 32_963_360,
          "DiT-S/4": 32_945_024, "DiT-S/8": 33_148_160}


def test_published_sizes():
    with torch.device("meta"):
        nets = {name: backbones.get("dit", model=name) for name in MODELS}
        larger = backbones.get("dit", model="DiT-XL/2", input_size=64)
    assert {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()} == COUNTS
    assert sum(p.numel() for p in larger.parameters()) == 676_014_368
    state = nets["DiT-XL/2"].state_dict()
    assert len(state) == 292 and state["y_embedder.embedding_table.weight"].shape == (1001, 1152)
    assert state["pos_embed"].shape == (1, 256, 1152) and state["final_layer.linear.weight"].shape == (32, 1152)


def test_published_embeddings_of_place_and_time():
    places = position_embedding(1152, 16)
    assert [places[at].item() for at in ((1, 0), (1, 288), (1, 576), (16, 0), (16, 576))] == pytest.approx(
        [.84147096, .54030228, 0, 0, .84147096], abs=1e-7)
    assert places.double().sum().item() == pytest.approx(134598.948, abs=1e-2)
    times = timestep_embedding(torch.ones(1), 256)[0]
    assert times[[0, 1, 128, 129]].tolist() == pytest.approx([.54030234, .59737533, .84147096, .80196178], abs=1e-7)


def test_published_numbers_of_a_small_network():
    """DiT-S/2 in float64 with weights by formula, plain and guided."""
    net = backbones.get("dit", model="DiT-S/2").double().eval()
    with torch.no_grad():
        for i, (name, weight) in enumerate(sorted(net.named_parameters())):
            if name != "pos_embed":
                weight.copy_(0.05 * torch.sin(0.1 * torch.arange(weight.numel(), dtype=torch.float64) + i).view_as(weight))
        x = torch.sin(0.01 * torch.arange(8192, dtype=torch.float64)).reshape(2, 4, 32, 32)
        out = net(x, torch.tensor([0.0, 500.0]), torch.tensor([0, 1000]))
        assert [value.item() for value in (out.mean(), out.std(), out[0, 0, 0, 0], out[1, 7, 31, 31])] == pytest.approx(
            [-.022946945480670, .853876492108964, 1.329057994445906, -.184577341960607], rel=1e-7)
        # the original's second half, asked without a class, shares the guided channels
        sampler, label = sampler_of(net, classes=1000, guidance=4.0, guided_channels="first_three"), torch.tensor([7])
        first = network_output(sampler.denoise({"label": label})(x[:1], 0.501))
        second = network_output(sampler.denoise({"label": torch.tensor([1000])}, guidance=1.0)(x[:1], 0.501))
        second[:, :3] = first[:, :3]
        found = torch.cat([first, second]).mean(), first[0, 0, 5, 5], first[0, 3, 5, 5]
        assert [each.item() for each in found] == pytest.approx([.050243839486322, 5.443351749874861, -.765858355741012], rel=1e-6)


@pytest.mark.parametrize("output, expected", [
    (0.0, {0: 1.96222246, 1: .34101555, 500: .00397627, 999: .00736107, "mse": .50000572}),
    (0.5, {0: 2.20135379, 1: .46380571, 500: .00596397, 999: .01104317, "mse": .75011456})])
def test_published_hybrid_loss_of_latents(output, expected):
    x0, noise = torch.linspace(-1, 1, 4096).reshape(1, 4, 32, 32), torch.cos(torch.arange(4096.0)).reshape(1, 4, 32, 32)
    denoise = diffusion.Denoiser(lambda x, t: torch.full((len(x), 8, 32, 32), output), LINEAR, learned_var=True)
    for step in (0, 1, 500, 999):
        made = diffusion.loss.hybrid(denoise, x0, torch.tensor([(step + 1) / 1000], dtype=torch.float64), noise)
        assert made.vb.item() == pytest.approx(expected[step], rel=2e-5)
        assert made.mse.item() == pytest.approx(expected["mse"], rel=1e-6)
        assert made.loss.item() == pytest.approx(expected[step] + expected["mse"], rel=1e-5)


def test_published_noise_and_respacing():
    steps = torch.tensor([0, 1, 250, 500, 750, 999])
    assert LINEAR.alpha((steps + 1).double() / 1000).square().tolist() == pytest.approx(
        [.9999, .99978009, .52142303, .07779666, .00330016, 4.03583e-5], rel=2e-6)
    small = [LINEAR.posterior(0.002, 0.001).small]  # of the first step, whose own is 0, the published code takes the second's
    assert small[0] == pytest.approx(5.4531877e-5, rel=1e-7) and math.log(small[0]) == pytest.approx(-9.8167251, rel=1e-7)
    kept = {name: (LINEAR.times(name)[:-1].flip(0) * 1000 - 1).round().long().tolist() for name in ("250", "50", "ddim50")}
    assert [len(steps) for steps in kept.values()] == [250, 50, 50]
    assert kept["250"][:4] == [0, 4, 8, 12] and kept["250"][-2:] == [995, 999]
    assert kept["50"][:4] == [0, 20, 41, 61] and kept["50"][-2:] == [979, 999]
    assert kept["ddim50"] == list(range(0, 1000, 20))


def test_no_class_is_the_number_of_classes(tiny):
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 400.0, 999.0])
    nothing = tiny(x, t)
    assert torch.equal(nothing, tiny(x, t, torch.full((3,), 5))) and tiny.takes == ("label",)
    assert not torch.allclose(nothing, tiny(x, t, torch.tensor([0, 1, 2])), atol=1e-3)
    # labels are left out by the script alone, which knows the null; never by the network
    label = torch.tensor([0, 1, 2])
    assert torch.equal(tiny.train()(x, t, label), tiny.eval()(x, t, label))
    config = d(nnet=d(name="dit", **(SMALL | {"num_classes": 0})), denoiser=d(learned_var=True), train=d(mode="cond", p_uncond=0.1),
               sample=d(guidance=1.5))
    built = pipeline.build_net(config, ["a", "b", "c"])
    assert built.num_classes == 3 and pipeline.null_conditions(built, ["a", "b", "c"])["label"] == 3
    assert len(built.y_embedder.embedding_table.weight) == 4 and built.out_channels == 8
    config.denoiser.learned_var = False
    assert pipeline.build_net(config, ["a", "b", "c"]).out_channels == 4
    config.nnet.num_classes = 1000
    with pytest.raises(ValueError, match=r"num_classes is 1000, but the data have 3.*--config.train.init=WEIGHTS "
                                         r"--config.train.init_without=\"\('y_embedder',\)\""):
        pipeline.build_net(config, ["a", "b", "c"])


def test_no_class_needs_a_row():
    config = d(nnet=d(name="dit", **(SMALL | {"num_classes": 0}), class_dropout_prob=0.0), denoiser=d(learned_var=True),
               train=d(mode="cond", p_uncond=0.0), sample=d(guidance=1.0))
    assert len(pipeline.build_net(config, ["a", "b", "c"]).y_embedder.embedding_table.weight) == 3
    for config.train.p_uncond, config.sample.guidance in (0.1, 1.0), (0.0, 1.5):
        with pytest.raises(ValueError, match="class_dropout_prob is 0.0: .*set config.nnet.class_dropout_prob above 0"):
            pipeline.build_net(config, ["a", "b", "c"])


def test_a_network_without_classes():
    net = backbones.get("dit", **(SMALL | {"num_classes": -1})).eval()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    assert net.takes == () and len(net.y_embedder.embedding_table.weight) == 1 and net(x, t).shape == (2, 8, 8, 8)
    with pytest.raises(TypeError, match="without classes and takes no label"):
        net(x, t, torch.tensor([0, 0]))


def test_bad_input(tiny):
    x, t, label = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 5])
    for wrong in (x[:, :3], x[..., :4], x[0]):
        with pytest.raises(ValueError, match=r"shape \(N, 4, 8, 8\), got"):
            tiny(wrong, t, label)
    with pytest.raises(ValueError, match=r"one time per image, shape \(2,\), got \(\)"):
        tiny(x, torch.tensor(3.0), label)
    for wrong in (label.float(), label[:1], label[:, None]):
        with pytest.raises(ValueError, match=r"integer labels of shape \(2,\), got"):
            tiny(x, t, wrong)
    with pytest.raises(IndexError):
        tiny(x, t, torch.tensor([0, 6]))
    without = backbones.get("dit", **SMALL, class_dropout_prob=0.0)
    assert without(x, t, torch.tensor([0, 4])).shape == (2, 8, 8, 8)
    with pytest.raises(ValueError, match="without a row for no class"):
        without(x, t)
    for change, said in ((dict(input_size=9), "input_size=9 is no multiple of patch_size=2"), (dict(num_heads=5), "num_heads"),
                         (dict(hidden_size=30, num_heads=5), "hidden_size=30 must be a multiple of 4")):
        with pytest.raises(ValueError, match=said):
            backbones.get("dit", **(SMALL | change))
    with pytest.raises(ValueError, match="model='DiT-XL2'; known: DiT-S/2.*did you mean 'DiT-XL/2'"):
        backbones.get("dit", model="DiT-XL2")
    with pytest.raises(ValueError, match="DiT-B/4 has patch_size=4, not 2"):
        backbones.get("dit", model="DiT-B/4", patch_size=2)


def test_checkpointing_changes_no_gradient_and_is_off_when_sampling(tiny):
    x, t, label = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 5])
    calls, found = [], []
    tiny.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for tiny.use_checkpoint, training, expected in ((False, True, 1), (True, True, 2), (True, False, 1)):
        tiny.train(training).zero_grad()
        tiny(x, t, label).square().sum().backward()
        assert len(calls) == expected, "the second call is that of the backward pass"
        calls.clear()
        found.append({name: p.grad.clone() for name, p in tiny.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])
    assert all(grad.abs().max() > 0 for grad in found[0].values()) and "pos_embed" not in found[0]
