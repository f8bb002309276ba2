"""The class-conditional UNet of latent diffusion: the published sizes, its conditions, and what it refuses."""

import copy

import pytest
import torch

from libs import backbones, diffusion

SMALL = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
             norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))


def small(**more):
    torch.manual_seed(0)
    return backbones.get("unet_label", **SMALL | dict(num_classes=3) | more)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return backbones.get("unet_label", num_classes=8)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0.0, 401.0, 999.0]), torch.tensor([0, 2, 3])


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def test_the_published_network(published):
    """Diffusion-Model-SOTA's numbers, measured on the original code with 8 classes at 256 px."""
    assert count(published.unet) == 142_236_036 and len(published.unet.state_dict()) == 686
    assert count(published.class_embedder) == 6_912
    assert sum(weight.numel() for weight in published.parameters() if weight.requires_grad) == 142_242_948
    attentions = [module for module in published.modules() if type(module).__name__ == "Attention"]
    assert len(attentions) == 32 and {one.heads for one in attentions} == {8}
    assert {one.inner_dim // one.heads for one in attentions} == {16, 32, 64}
    assert {type(one.processor).__name__ for one in attentions} == {"AttnProcessor2_0"}
    assert published.takes == ("label",) and published.shape == (4, 32, 32) and not backbones.numbers_null("unet_label")


def test_its_operations_are_counted(published):
    assert round(backbones.flops_per_image(published) / 1e9, 1) == 30.1
    # each product once forward and twice backward, but the gradients of latents and time
    assert 2.99 < backbones.train_flops(published) / backbones.flops_per_image(published) < 3.0
    assert all(weight.grad is None and weight.is_meta for weight in published.parameters())


def test_it_is_diffusers_unet_with_the_class_as_its_only_token(batch):
    net, (x, t, label) = small(), batch
    token = net.class_embedder.embedding.weight[label][:, None]
    with torch.no_grad():
        out = net(x, t, label=label)
        assert torch.equal(out, net.unet(x, t, token).sample)
        assert out.shape == (3, 4, 8, 8) and not torch.equal(out[:2], net(x, t, torch.tensor([1, 1, 3]))[:2])
        # no label is the last row; images do not see each other, and the time of each is its own
        torch.testing.assert_close(net(x, t)[2], out[2], rtol=0, atol=1e-6)
        torch.testing.assert_close(net(x[1:2], t[1:2], label[1:2])[0], out[1], rtol=0, atol=1e-5)
        assert (net(x, t + 1, label=label) - out).abs().max() > 1e-6


def test_the_schedule_tells_it_step_numbers_from_0():
    """Step n of 1000 is n - 1 to it, with both schedules of the original and of Stable Diffusion."""
    for schedule in (diffusion.schedule("linear"), diffusion.schedule("sd", shift=-1)):
        assert [round(schedule.network_time(n / 1000)) for n in (1, 500, 1000)] == [0, 499, 999]
        assert (schedule.scale, schedule.shift) == (1000, -1)


@pytest.mark.parametrize("name, kept", [("linear", (0.99990, 0.52142, 0.0777967, 0.00330016, 4.03583e-5)),
                                        ("sd", (0.99915, 0.67379, 0.276332, 0.0561698, 0.0046601))])
def test_the_schedules_are_those_of_the_originals(name, kept):
    """alphas_cumprod of diffusers' DDPMScheduler at 0, 250, 500, 750, 999."""
    schedule = diffusion.schedule(name)
    for step, value in zip((0, 250, 500, 750, 999), kept):
        assert schedule.alpha((step + 1) / 1000) ** 2 == pytest.approx(value, rel=2e-5)


def test_min_snr_weights_of_the_linear_schedule():
    """min(SNR, 5) / SNR at steps 0, 100 and 250 (Hang et al. 2023), as measured on diffusers, whose tables are float32."""
    denoise = diffusion.Denoiser(None, diffusion.schedule("linear"))
    weights = diffusion.loss.weight(denoise, torch.tensor([1, 101, 251], dtype=torch.float64) / 1000, "min_snr")
    torch.testing.assert_close(weights, torch.tensor([0.00050013, 0.58571, 1.0]).double(), rtol=2e-4, atol=0)


def test_the_class_may_scale_and_shift_every_block(batch):
    """Where the class reaches nothing through attention, it still changes the output if norms adapt to it."""
    x, t, label = batch
    for adaptive in (False, True):
        net = small(adaptive_norm=adaptive, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        for name, weight in net.named_parameters():
            if "attentions" in name:  # of the middle block
                torch.nn.init.zeros_(weight)
        with torch.no_grad():
            assert torch.equal(net(x, t, label), net(x, t, label.flip(0))) != adaptive
        told = net.settings(net.state_dict())
        assert told["adaptive_norm"] == adaptive and told["num_classes"] == 3


def test_the_original_s_steps_of_unipc_are_our_linspace():
    """The ControlNet of the original samples by UniPC at 30 steps, whose first and last are these."""
    schedule = diffusion.schedule("linear")
    steps = [round(schedule.network_time(t)) for t in schedule.times(30, spacing="linspace").tolist()[:-1]]
    assert steps[:3] == [999, 966, 932] and steps[-2:] == [67, 33] and len(steps) == 30


def test_without_classes(batch):
    net, (x, t, label) = small(num_classes=-1), batch
    assert net.takes == () and net.class_embedder.embedding.weight.shape == (1, 12)
    assert net(x, t).shape == x.shape
    with pytest.raises(TypeError, match="without classes"):
        net(x, t, label=label)


def test_checkpointing_changes_no_gradient(batch):
    x, t, label = batch
    nets = [small(), small(use_checkpoint=True)]
    assert nets[1].unet.is_gradient_checkpointing and not nets[0].unet.is_gradient_checkpointing
    for net in nets:
        net.train()(x, t, label).square().mean().backward()
    for one, other in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_lower_precision_is_what_autocast_computes(batch):
    net, (x, t, label) = small().eval(), batch
    lowered = backbones.lower(copy.deepcopy(net), torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lowered(x, t, label), net(x, t, label))
    with torch.no_grad():
        exact = net(x, t, label)
        assert (lowered(x, t, label) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("wrong, problem", [
    (dict(sample_size=7), "sample_size=7 cannot be halved 1 times.*multiple of 2"),
    (dict(norm_num_groups=5), "norm_num_groups is 5, which does not divide every width"),
    (dict(attention_head_dim=3), "number of heads.* is 3"),
    (dict(block_out_channels=(8, 16, 16)), "down_block_types has 2 entries, block_out_channels"),
    (dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")), "level 0 is CrossAttnDownBlock2D on the way down and UpBlock2D"),
    (dict(down_block_types=("CrossDown", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D")), "CrossDown"),
])
def test_sizes_that_do_not_fit(wrong, problem):
    with pytest.raises(ValueError, match=problem):
        small(**wrong)


def test_batches_that_do_not_fit(batch):
    net, (x, t, label) = small(), batch
    for asked, problem in (((x[:, :3], t, label), r"\(N, 4, H, W\)"), ((x[..., :7], t, label), "multiples of 2"),
                           ((x, t[:1], label), "one time per image"), ((x, t, label[:1]), "integer labels"),
                           ((x, t, label.float()), "integer labels")):
        with pytest.raises(ValueError, match=problem):
            net(*asked)


def test_a_checkpoint_of_other_sizes_says_what_to_set():
    state = small(block_out_channels=(8, 24), num_classes=5).state_dict()
    with pytest.raises(ValueError) as error:
        backbones.load(small(), state)
    assert "set --config.nnet.block_out_channels=(8, 24)" in str(error.value)
    assert "set --config.nnet.num_classes=5" in str(error.value)
    assert backbones.load(small(), small(num_classes=3).state_dict())
