"""Every config: its sections and their order, the published numbers, and one training step of its network at tiny width."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import torch

import train_dit
from libs import backbones, cli, cond as conditions, diffusion, engine, pipeline
from tests.conftest import ROOT

ORDER = ["seed", "train", "optimizer", "lr_scheduler", "nnet", "schedule", "denoiser", "codec", "encoder", "features", "dataset",
         "colour", "sample", "filter", "metrics"]
ALL = {path.stem: importlib.import_module(f"configs.{path.stem}") for path in sorted((ROOT / "configs").glob("*.py"))
       if path.stem not in ("common", "from_run")}
CONFIGS = {name: module.get_config() for name, module in ALL.items()}
NETWORKS = {name: config for name, config in CONFIGS.items() if "denoiser" in config}
# U-ViT's and VAP's published configs: parameters, heads, seed, batch size, steps, warm-up, betas, p_uncond, schedule, sampler,
# scale, images, mini batch, autoencoder. Learning rate, weight decay, EMA and sampling steps are the same in all.
ADAM, KL = (0.99, 0.99), "autoencoder_kl"
PUBLISHED = {
    "imagenet256_uvit_large": (286_763_172, 16, 1234, 1024, 300_000, 5000, ADAM, .15, "vpsde", "dpm_solver", .4, 50_000, 50, KL),
    "imagenet256_uvit_huge": (500_832_016, 16, 1234, 1024, 500_000, 5000, ADAM, .1, "sd", "dpmpp_fast",
                              .4, 50_000, 50, f"{KL}_ema"),
    "imagenet512_uvit_large": (286_861_524, 16, 1234, 1024, 500_000, 5000, ADAM, .15, "vpsde", "dpm_solver", .7, 50_000, 50, KL),
    "imagenet512_uvit_huge": (500_942_656, 16, 1234, 1024, 500_000, 5000, ADAM, .1, "sd", "dpmpp_fast",
                              .7, 50_000, 50, f"{KL}_ema"),
    "mscoco_uvit_small": (44_692_644, 8, 1234, 256, 1_000_000, 5000, (.9, .9), .1, "sd", "dpmpp_fast", 1.0, 30_000, 50, KL),
    "COT_ISIC256_uvit_text_label": (64_998_564, 8, 1234, 256, 500_000, 5000, (.9, .9), .1, "sd", "dpmpp_fast", 1.0, 10_000, 50, KL),
    "COT_ChestXray256_uvit_text_label": (67_104_420, 8, 42, 32, 100_000, 5, (.9, .9), .1, "sd", "dpmpp_fast", 1.0, 10_000, 50, KL),
}


@pytest.mark.parametrize("name", ALL)
def test_every_config_is_valid_and_says_how_it_is_run(name):
    config = CONFIGS[name]
    cli.check(config)
    assert f"configs/{name}.py" in ALL[name].__doc__
    assert "seed" in config


@pytest.mark.parametrize("name", NETWORKS)
def test_sections_stand_in_their_order(name):
    found = re.findall(r"^    config\.(\w+) =", Path(ALL[name].__file__).read_text(), re.M)
    assert found == [section for section in ORDER if section in found] and set(found) == set(CONFIGS[name])
    diffusion.schedule(**CONFIGS[name].schedule)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        net = backbones.get(**config.nnet)
    train, sample = config.train, config.sample
    found = (sum(p.numel() for p in net.parameters()), config.nnet.num_heads, config.seed, train.batch_size, train.n_steps,
             config.lr_scheduler.warmup_steps, tuple(config.optimizer.betas), train.p_uncond, config.schedule.name,
             sample.algorithm, sample.scale, sample.n_samples, sample.mini_batch_size, Path(config.codec.path).stem)
    assert found == PUBLISHED[name]
    assert (config.optimizer.lr, config.optimizer.weight_decay, train.ema_rate, sample.sample_steps) == (2e-4, 0.03, 0.9999, 50)
    assert config.codec.scale_factor == (0.23010 if "coco" in name else 0.18215)
    assert config.denoiser.predicts == "eps" and train.weighting == "eps" and config.metrics.algorithm == sample.algorithm
    assert pipeline.guidance_scale(sample) == 1 + sample.scale


# guided-diffusion's: parameters, batch size, steps, learning rate, dropout, schedule, heads or channels of one, new attention order
PUBLISHED_ADM = {
    "imagenet64_adm": (295_904_454, 2048, 540_000, 3e-4, 0.1, "cosine", 64, True),
    "imagenet128_adm": (421_529_606, 256, 4_360_000, 1e-4, 0.0, "linear", 4, False),
    "imagenet256_adm": (553_838_086, 256, 1_980_000, 1e-4, 0.0, "linear", 64, False),
    "imagenet512_adm": (558_997_638, 256, 1_940_000, 1e-4, 0.0, "linear", 64, False),
}


@pytest.mark.parametrize("name", PUBLISHED_ADM)
def test_published_numbers_of_guided_diffusion(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        net = pipeline.build_net(config, [str(k) for k in range(1000)])
    nnet, train = config.nnet, config.train
    heads = nnet.num_head_channels if nnet.num_head_channels > 0 else nnet.num_heads
    found = (sum(p.numel() for p in net.parameters()), train.batch_size, train.n_steps, config.optimizer.lr, nnet.dropout,
             config.schedule.name, heads, nnet.use_new_attention_order)
    assert found == PUBLISHED_ADM[name]
    assert (train.ema_rate, config.optimizer.weight_decay, train.weighting, train.respacing) == (0.9999, 0.0, "eps", "")
    assert config.denoiser.learned_var and config.sample.algorithm == "ddpm" and config.sample.sample_steps == 250


# DiT's: parameters, steps, side of the latents, guidance, resolution
PUBLISHED_DIT = {
    "imagenet256_dit_xl2": (675_129_632, 7_000_000, 32, 1.5, 256),
    "imagenet512_dit_xl2": (676_014_368, 3_000_000, 64, 1.5, 512),
    "imagenet256_dit_b4": (130_475_648, 400_000, 32, 1.0, 256),
}


@pytest.mark.parametrize("name", PUBLISHED_DIT)
def test_published_numbers_of_dit(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        net = pipeline.build_net(config, [str(k) for k in range(1000)])
    train, sample, optimizer = config.train, config.sample, config.optimizer
    assert (sum(p.numel() for p in net.parameters()), train.n_steps, net.shape[1], sample.guidance,
            config.dataset.resolution) == PUBLISHED_DIT[name]
    assert (optimizer.lr, optimizer.weight_decay, tuple(optimizer.betas)) == (1e-4, 0.0, (0.9, 0.999))
    assert (train.batch_size, train.ema_rate, train.p_uncond, train.grad_clip, train.tf32) == (256, 0.9999, 0.1, 0.0, True)
    assert (train.weighting, train.rescale_learned_sigmas, train.use_kl, train.time_sampler) == ("eps", False, False, "uniform")
    assert config.denoiser.learned_var and not config.denoiser.clip and config.lr_scheduler.warmup_steps == 0
    assert (sample.algorithm, sample.sample_steps, sample.spacing, sample.guided_channels) == ("ddpm", 250, "", "first_three")
    assert (config.codec.path, config.codec.scale_factor) == ("stabilityai/sd-vae-ft-ema", 0.18215)
    assert pipeline.guidance_options(sample, 4) == {"channels": 3, "interval": (0.0, 1.0)}


@pytest.mark.parametrize("name", [name for name, config in NETWORKS.items() if config.nnet.name == "dit"])
def test_commands_of_dit(name):
    """What the docstring says to type are scripts that are there and options that the config has."""
    engine.check_settings(CONFIGS[name].train, train_dit.SETTINGS)
    said = re.sub(r"\\\n", " ", ALL[name].__doc__)
    for line in said.splitlines():
        assert not line.startswith("    ") or (ROOT / re.search(r"(\S+\.py)", line)[1]).is_file(), line
        for section, key in re.findall(r"--config\.(\w+)\.(\w+)=", line):
            assert key in CONFIGS[name][section], line
    for left_out in re.findall(r"--config.train.init_without=\"(.+?)\"", said):
        net = backbones.get("dit", input_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=2)
        pipeline.start_from(net, net.state_dict(), without=ast.literal_eval(left_out))


def test_mgdm_s_numbers():
    config = CONFIGS["folder128_adm"]
    with torch.device("meta"):
        count = [sum(p.numel() for p in pipeline.build_net(config, names).parameters()) for names in ("ab", "abcd")]
    assert count == [420_507_654, 420_509_702]
    assert (config.train.weighting, config.train.respacing, config.sample.spacing, config.optimizer.weight_decay) == (
        "mgdm", "ddim250", "stride", 1e-5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "path" not in CONFIGS[name].nnet])  # others begin with weights
def test_one_step_at_tiny_width(name):
    config = CONFIGS[name].copy_and_resolve_references()
    for key, value in dict(embed_dim=32, depth=2, num_heads=2, model_channels=32, num_res_blocks=1, num_head_channels=-1).items():
        if key in config.nnet:
            config.nnet[key] = value
    if config.nnet.name == "dit":
        config.nnet.update(dict(model="", patch_size=config.nnet.input_size // 4, hidden_size=32, depth=2, num_heads=2))
    classes, text_shape = ["a", "b"], None
    if config.nnet.name in ("adm_unet", "dit"):
        classes = [str(k) for k in range(config.nnet.num_classes)] or classes
    if config.nnet.name == "adm_unet":
        config.nnet.channel_mult = tuple(1 for _ in config.nnet.channel_mult)
        config.nnet.image_size = min(config.nnet.image_size, 64)
    if "block_out_channels" in config.nnet:
        config.nnet.update(dict(block_out_channels=tuple(32 for _ in config.nnet.block_out_channels), cross_attention_dim=16))
    if config.train.mode == "uncond" or "num_classes" not in config.nnet:
        classes = []
    if "num_clip_token" in config.nnet:
        text_shape = (config.nnet.num_clip_token or 5, config.nnet.clip_dim or 8)
    torch.manual_seed(0)
    net = pipeline.build_net(config, classes, text_shape, mask_channels=2)
    null = pipeline.null_conditions(net, classes, None if text_shape is None else torch.zeros(text_shape))
    schedule = diffusion.schedule(**config.schedule)
    denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
    batch = {"label": torch.tensor([0, 1]), "text": torch.randn(2, *(text_shape or (1, 1)))}
    x0 = torch.randn(2, *pipeline.latent_shape(config.nnet))
    if "mask" in net.takes:
        batch["mask"] = torch.rand(2, 2, *(side * net.shrink for side in x0.shape[2:]))
    cond = conditions.drop({key: batch[key] for key in net.takes}, null, config.train.p_uncond)
    t, own = schedule.sample_times(2), {}
    if denoise.learned_var:
        loss = diffusion.loss.hybrid(denoise, x0.clamp(-1, 1), t, weighting=config.train.weighting, **cond).loss
    else:
        with_losses = config.nnet.name.startswith("uvit")
        loss = diffusion.loss.simple(denoise, x0, t, weighting=config.train.weighting, **cond,
                                     **({"with_losses": True} if with_losses else {}))
        loss, own = loss if with_losses else (loss, {})
    (loss.mean() + sum(own.values())).backward()
    assert loss.isfinite().all()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
