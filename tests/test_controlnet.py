"""ControlNet on the class-conditional UNet: it begins as nothing, learns alone, and knows the original's checkpoints."""

import pytest
import torch
from ml_collections import ConfigDict

from libs import backbones, codecs, diffusion
from libs.pipeline import Pipeline

SMALL = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
             norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), conditioning_embedding_out_channels=(4, 8))


def small(**more):
    torch.manual_seed(0)
    return backbones.get("controlnet", **SMALL | dict(num_classes=3, conditioning_channels=2) | more)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return backbones.get("controlnet", num_classes=8, conditioning_channels=3)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return dict(x=torch.randn(3, 4, 8, 8, generator=generator), t=torch.tensor([0.0, 401.0, 999.0]), label=torch.tensor([0, 2, 3]),
                mask=torch.rand(3, 2, 16, 16, generator=generator))


def count(weights):
    return sum(weight.numel() for weight in weights)


def trained(net):
    return [weight for weight in net.parameters() if weight.requires_grad]


def test_the_published_network(published):
    assert count(published.controlnet.parameters()) == 60_449_872 == count(trained(published))
    assert len(published.controlnet.state_dict()) == 340
    assert published.takes == ("label", "mask")
    assert round((backbones.flops_per_image(published)) / 1e9, 1) == 42.8  # 30.1 of the UNet, 12.7 of the ControlNet
    with torch.device("meta"):
        legacy = backbones.get("controlnet", conditioning_channels=3, legacy=True)
    assert count(trained(legacy)) == 60_450_640 and count(legacy.dummy_encoder.parameters()) == 768
    assert legacy.takes == ("mask",) and legacy.dummy_encoder.embedding.shape == (1, 1, 768)
    assert not any(name.startswith("class_embedder") for name in legacy.state_dict())


def test_what_it_adds_at_256_pixels(published):
    x, t, context, mask = (torch.empty(shape, device="meta") for shape in ((1, 4, 32, 32), (1,), (1, 1, 768), (1, 3, 256, 256)))
    down, mid = published.controlnet(x, t, context, mask, return_dict=False)
    assert [tuple(each.shape[1:3]) for each in down] == (
        [(128, 32)] * 3 + [(128, 16)] + [(256, 16)] * 2 + [(256, 8)] + [(512, 8)] * 2 + [(512, 4)] * 3)
    assert mid.shape == (1, 512, 4, 4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_before_training_the_unet_is_unchanged_to_the_bit(batch, adaptive):
    net = small(adaptive_norm=adaptive)
    plain = backbones.get("unet_label", **{key: value for key, value in SMALL.items() if "embedding_out" not in key}, num_classes=3,
                          adaptive_norm=adaptive)
    with torch.no_grad():
        for weight in net.unet.parameters():
            weight.add_(0.1)
        plain.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("controlnet.")})
        assert not torch.equal(net.controlnet.conv_in.weight, net.unet.conv_in.weight)
        net.copy_unet()
        wanted = plain(batch["x"], batch["t"], batch["label"])
        assert torch.equal(net(**batch), wanted)
        for part in ("conv_in", "time_embedding", "down_blocks", "mid_block", *(["class_embedding"] if adaptive else [])):
            own, its = (getattr(each, part).state_dict() for each in (net.controlnet, net.unet))
            assert own.keys() == its.keys() and all(torch.equal(own[name], its[name]) for name in own)
        net.controlnet.controlnet_mid_block.bias.fill_(1.0)
        assert not torch.equal(net(**batch), wanted)
        net.conditioning_scale = 0.0
        assert torch.equal(net(**batch), wanted)


def test_what_begins_at_zero():
    """Of the published four levels 28 tensors: weights and biases of 12 + 1 convolutions and of the mask's last."""
    widths = dict(block_out_channels=(8, 8, 8, 8), sample_size=8, layers_per_block=2,
                  down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                  up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    net = small(**widths)
    untouched = [name for name, value in net.controlnet.state_dict().items() if not value.any()
                 and name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out"))]
    assert len(untouched) == 28


def test_the_mask_is_followed_and_scaled_once_it_is_trained(batch):
    net = small()
    with torch.no_grad():
        for name, weight in net.controlnet.named_parameters():
            if "controlnet_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        out = net(**batch)
        assert not torch.equal(out, net(**batch | {"mask": 1 - batch["mask"]}))
        assert not torch.equal(out, net(**batch | {"label": torch.tensor([1, 1, 1])}))
        net.conditioning_scale = 0.5
        assert (net(**batch) - out).abs().max() > 1e-4


def test_only_the_controlnet_learns_unless_asked(batch):
    net = small()
    net(**batch).square().mean().backward()
    learned = {name.split(".")[0] for name, weight in net.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert learned == {"controlnet"}  # through convolutions that are zero, whose own gradient is not
    assert {name.split(".")[0] for name, weight in small(freeze_unet=False).named_parameters() if weight.requires_grad} == {
        "unet", "class_embedder", "controlnet"}


def test_checkpointing_changes_no_gradient(batch):
    nets = [small(), small(use_checkpoint=True)]
    for net in nets:
        net.train()(**batch).square().mean().backward()
    for one, other in zip(*map(trained, nets)):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_the_original_s_checkpoints_see_three_channels_and_one_token(batch):
    net, x, t = small(conditioning_channels=3, legacy=True), batch["x"], batch["t"]
    assert {weight.shape for name, weight in net.named_parameters() if weight.requires_grad and "dummy" in name} == {(1, 1, 12)}
    mask = batch["mask"][:, :1].round()
    with torch.no_grad():
        for weight in net.controlnet.parameters():
            weight.add_(0.01)
        context = net.dummy_encoder.embedding.expand(3, 1, 12)
        down, mid = net.controlnet(x, t, context, (mask * 2 - 1).repeat(1, 3, 1, 1), return_dict=False)
        wanted = net.unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        assert torch.equal(net(x, t, mask=mask), wanted)
    with pytest.raises(TypeError, match="takes no label"):
        net(x, t, batch["label"], mask)


@pytest.mark.parametrize("wrong, problem", [
    (dict(conditioning_channels=0), "conditioning_channels=0: a mask has at least one"),
    (dict(legacy=True), "legacy networks show the mask as 3 channels, not conditioning_channels=2"),
    (dict(conditioning_embedding_out_channels=()), "conditioning_embedding_out_channels is empty"),
    (dict(sample_size=9), "sample_size=9"),
])
def test_sizes_that_do_not_fit(wrong, problem):
    with pytest.raises(ValueError, match=problem):
        small(**wrong)


def test_masks_that_do_not_fit(batch):
    net, mask = small(), batch["mask"]
    for wrong in (mask[..., :8, :8], mask[:, :1], mask[:1], mask.long()):
        with pytest.raises(ValueError, match=r"expected float masks of shape \(3, 2, 16, 16\) for latents \(3, 4, 8, 8\)"):
            net(**batch | {"mask": wrong})
    with pytest.raises(ValueError, match="takes a mask, and none was given"):
        net(batch["x"], batch["t"], batch["label"])


def test_a_checkpoint_of_other_masks_says_what_to_set():
    with pytest.raises(ValueError, match=r"set --config.nnet.conditioning_channels=4"):
        backbones.load(small(), small(conditioning_channels=4).state_dict())


def test_the_scale_of_samples_changes_no_loss(batch):
    """sample.controlnet_scale is for images; in a training the network is the one whose loss is taken."""
    net = small().eval()
    with torch.no_grad():
        for weight in net.controlnet.controlnet_mid_block.parameters():
            weight.fill_(0.1)
        before, made = net(**batch), []
        for scale in (1.0, 0.0):
            config = ConfigDict({"nnet": dict(sample_size=8, in_channels=4), "denoiser": dict(predicts="eps", clip=False),
                                 "sample": dict(algorithm="ddim", sample_steps=2, guidance=2.0, controlnet_scale=scale)})
            sampler = Pipeline(net, config, codec=codecs.get("pixels", channels=4), schedule=diffusion.schedule("linear"),
                               null={"label": torch.tensor(3)})
            assert torch.equal(net(**batch), before)
            made.append(sampler(batch, seed=0, indices=range(3)))
            assert torch.equal(net(**batch), before) and net.conditioning_scale == 1.0
        assert not torch.equal(*made)
        net.conditioning_scale = 0.0
        assert not torch.equal(net(**batch), before)
