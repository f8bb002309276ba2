"""Stable Diffusion's UNet from a pipeline: its size, what is trained of it, what a config must agree with, and what is said where a
pipeline cannot be used."""

import copy
import json
import shutil

import pytest
import torch

from configs.medical512_sd_finetune import get_config
from libs import backbones, codecs, diffusion, encoders, engine, pipeline
from libs.backbones.unet_sd import StableDiffusionUNet
from libs.engine import optim
from libs.pipeline import stable_diffusion
from tests import tiny_sd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd.save(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture
def config(folder):
    config = get_config()
    config.nnet.path, config.nnet.sample_size, config.encoder.max_length = str(folder), 8, tiny_sd.WINDOW
    return config


def net_of(folder, **options):
    return backbones.get(name="unet_sd", path=str(folder), sample_size=8, **options)


def test_the_published_size():
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        net = StableDiffusionUNet(UNet2DConditionModel(cross_attention_dim=768))
    assert sum(p.numel() for p in net.parameters()) == 859_520_964
    assert net.takes == ("text",)


def test_the_network_is_that_of_the_pipeline(folder):
    made = tiny_sd.parts()
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([0.0, 981.0]), torch.randn(2, tiny_sd.WINDOW, 16)
    expected = made["unet"](x, t, text).sample
    assert torch.equal(net_of(folder)(x, t, text=text), expected)
    assert torch.equal(backbones.get(name="unet_sd", path=str(folder / "unet"), sample_size=8)(x, t, text=text), expected)
    # by LoRA nothing changes before the first step; a text encoder of its own takes numbers
    assert torch.equal(net_of(folder, lora_rank=2)(x, t, text=text), expected)
    tokens = encoders.get(name="tokens", path=str(folder), subfolder="tokenizer", max_length=tiny_sd.WINDOW)
    states = encoders.get(name="clip", path=str(folder), subfolder="text_encoder", max_length=tiny_sd.WINDOW)
    texts = ["a red cell", "green, with a very long tail of words"]
    assert tokens.encode(texts).dtype == torch.int64 and tokens.empty.shape == tokens.shape == (tiny_sd.WINDOW,)
    assert torch.allclose(net_of(folder, train_text_encoder=True)(x, t, text=tokens.encode(texts)),
                          net_of(folder)(x, t, text=states.encode(texts)), atol=1e-6)
    assert tokens.cut(texts) == states.cut(texts) and "loses" in tokens.cut(texts)
    assert tokens.mask(texts).equal(states.mask(texts)) and tokens.encode([]).shape == (0, tiny_sd.WINDOW)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_what_is_trained(folder, text_encoder):
    """Everything, or LoRA's matrices beside attention alone; gradients reach all of it, through checkpoints too."""
    for rank in (0, 2):
        net = net_of(folder, lora_rank=rank, train_text_encoder=text_encoder, use_checkpoint=True).train()
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        parts = {name.split(".")[0] for name in trained}
        assert parts == ({"unet", "text_encoder"} if text_encoder else {"unet"})
        if rank:
            assert all(".lora_" in name for name in trained)
            blocks = sum(name.endswith("attn1.to_q.lora_A.default.weight") for name in trained)
            # of each: self and cross-attention, four maps, two matrices
            assert sum(name.startswith("unet.") for name in trained) == blocks * 2 * 4 * 2
        else:
            assert len(trained) == len(list(net.parameters()))
        text = torch.randint(0, 80, (2, tiny_sd.WINDOW)) if text_encoder else torch.randn(2, tiny_sd.WINDOW, 16)
        net(torch.randn(2, 4, 8, 8), torch.tensor([3.0, 999.0]), text=text).square().mean().backward()
        assert all(p.grad is not None for p in trained.values())


def test_sizes_that_contradict_the_pipeline(folder):
    with pytest.raises(ValueError, match="sample_size is 64.*trained at sample_size 8.*any_size=True"):
        backbones.get(name="unet_sd", path=str(folder))
    assert backbones.get(name="unet_sd", path=str(folder), sample_size=16, any_size=True).unet.config.sample_size == 16
    with pytest.raises(ValueError, match="in_channels is 3.*takes 4 channels"):
        net_of(folder, in_channels=3)
    with pytest.raises(ValueError, match="multiple of 2"):
        backbones.get(name="unet_sd", path=str(folder), sample_size=9, any_size=True)
    with pytest.raises(ValueError, match="lora_targets=.*to_z"):
        net_of(folder, lora_rank=2, lora_targets=("to_z",))


def test_what_is_no_pipeline_is_said(folder, config, tmp_path, monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config.nnet.path = "CompVis/no-such-model"
    with pytest.raises(OSError, match="CompVis/no-such-model.*no folder here.*hub.*Give the folder"):
        stable_diffusion.check(config)
    with pytest.raises(OSError, match="UNet2DConditionModel.*no folder here.*config.nnet.path"):
        backbones.get(name="unet_sd", path="CompVis/no-such-model")
    config.nnet.path = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder.*nowhere.*Stable Diffusion pipeline"):
        stable_diffusion.check(config)
    config.nnet.path = ""
    with pytest.raises(ValueError, match="config.nnet.path is missing"):
        stable_diffusion.check(config)
    for part in ("vae", "tokenizer", "text_encoder", "unet"):
        lacking = tmp_path / part
        shutil.copytree(folder, lacking, ignore=shutil.ignore_patterns(part))
        config.nnet.path = str(lacking)
        with pytest.raises(FileNotFoundError, match=f"lacks {part}/"):
            stable_diffusion.check(config)
    with pytest.raises(FileNotFoundError, match="no UNet in"):
        net_of(lacking)
    empty = tmp_path / "no_weights"
    shutil.copytree(folder, empty, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
    with pytest.raises(ValueError, match="unet cannot be read as a UNet2DConditionModel"):
        net_of(empty)
    with pytest.raises(ValueError, match="holds AutoencoderKL, not UNet2DConditionModel"):
        backbones.get(name="unet_sd", path=str(folder / "vae"), sample_size=8)


def test_one_path_stands_for_all_parts(folder, config, tmp_path):
    assert stable_diffusion.part(config, "codec")["path"] == str(folder)
    assert stable_diffusion.part(config, "encoder") == dict(name="clip", path=str(folder), subfolder="text_encoder",
                                                            max_length=tiny_sd.WINDOW)
    config.codec.path = "elsewhere"
    assert stable_diffusion.part(config, "codec")["path"] == "elsewhere"
    config.nnet.train_text_encoder = True
    assert stable_diffusion.part(config, "encoder") == dict(name="tokens", path=str(folder), subfolder="tokenizer",
                                                            max_length=tiny_sd.WINDOW)
    assert pipeline.text_encoder(config).shape == (tiny_sd.WINDOW,)
    config.codec.path = ""
    net, codec = pipeline.build_net(config, []), pipeline.image_codec(config)
    assert isinstance(codec, codecs.KL) and codec.scale_factor == 0.3
    stable_diffusion.check_fit(net, codec, pipeline.text_encoder(config))
    net.unet.register_to_config(cross_attention_dim=1024)
    with pytest.raises(ValueError, match="width 1024, the text encoder gives 16"):
        stable_diffusion.check_fit(net, codec, pipeline.text_encoder(config))


def test_the_scheduler_and_the_config_must_agree(config, folder, tmp_path, caplog):
    stable_diffusion.check(config)
    for section, key, value, message in [
            ("schedule", "shift", 0, "shift=-1"),
            ("schedule", "beta_end", 0.02, "other noise levels.*beta_end=0.012"),
            ("denoiser", "predicts", "v", "predict epsilon.*--config.denoiser.predicts=eps")]:
        wrong = copy.deepcopy(config)
        wrong[section][key] = value
        with pytest.raises(ValueError, match=message):
            stable_diffusion.check(wrong)
    other = tiny_sd.save(tmp_path / "v", prediction_type="v_prediction")
    config.nnet.path = str(other)
    with pytest.raises(ValueError, match="predict v_prediction.*--config.denoiser.predicts=v"):
        stable_diffusion.check(config)
    file = other / "scheduler" / "scheduler_config.json"
    said = json.loads(file.read_text()) | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    file.write_text(json.dumps(said))
    config.denoiser.predicts = "v"
    with pytest.raises(ValueError, match="other noise levels.*--config.schedule.name=linear"):
        stable_diffusion.check(config)
    shutil.rmtree(other / "scheduler")
    with pytest.raises(FileNotFoundError, match="lacks scheduler/"):
        stable_diffusion.check(config)
    config.nnet.path, config.codec.path, config.encoder.path = str(other / "unet"), str(folder), str(folder)
    stable_diffusion.check(config)
    assert "says nothing of its noise schedule" in caplog.text


def test_schedule_times_and_weights_as_published():
    schedule = diffusion.schedule(name="sd", shift=-1)

    def steps(times):
        return schedule.network_time(times[:-1]).round(decimals=6).tolist()

    ddim, dpm = steps(schedule.times(50, spacing="leading")), steps(schedule.times(20, spacing="linspace"))
    assert ddim[:3] == [981, 961, 941] and ddim[-2:] == [21, 1] and len(ddim) == 50
    assert dpm[:2] == [999, 949] and dpm[9:11] == [549, 500] and dpm[-1] == 50 and len(dpm) == 20
    bars = [schedule.alpha((n + 1) / 1000) ** 2 for n in (0, 250, 500, 750, 999)]
    assert bars == pytest.approx([.99915, .67379, .276332, .0561698, .0046601], rel=2e-5)
    denoise = diffusion.Denoiser(None, schedule)
    t = (torch.tensor([0, 100, 250, 900], dtype=torch.float64) + 1) / 1000
    assert diffusion.loss.weight(denoise, t, "min_snr").tolist() == pytest.approx([.0042537, .591446, 1, 1], rel=5e-5)


def test_offset_noise_and_input_perturbation():
    """By their variances: the offset is one number per image and channel; the perturbation is in x_t and not in the target."""
    torch.manual_seed(0)
    x0 = torch.zeros(400, 4, 16, 16)
    noise = diffusion.loss.draw_noise(x0, offset=0.5)
    assert noise.mean((2, 3)).var().item() == pytest.approx(0.25 + 1 / 256, rel=0.1)
    assert (noise - noise.mean((2, 3), keepdim=True)).var().item() == pytest.approx(1 - 1 / 256, rel=0.02)
    schedule, seen = diffusion.schedule(name="sd", shift=-1), []

    def echo(x, t):  # claims that x_t is all noise
        seen.append(x)
        return x / schedule.sigma(1.0)

    t = torch.ones(400, dtype=torch.float64)
    loss = diffusion.loss.simple(diffusion.Denoiser(echo, schedule), x0, t, noise, input_perturbation=0.1)
    assert loss.mean().item() == pytest.approx(0.01, rel=0.05)
    plain = diffusion.loss.simple(diffusion.Denoiser(echo, schedule), x0, t, noise)
    assert plain.mean().item() == pytest.approx(0.0, abs=1e-10)


def test_eight_bit_adam(monkeypatch, tmp_path):
    """Where bitsandbytes is missing the message names the alternative; an optimizer that cannot skip a step never sees a nan."""
    import sys
    import types
    weight = torch.nn.Parameter(torch.ones(3))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="adamw_8bit.*bitsandbytes.*--config.optimizer.name=adamw"):
        optim.make([weight], name="adamw_8bit", lr=0.1)
    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = lambda parameters, **options: torch.optim.AdamW(parameters, fused=False, **options)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    update = optim.Update(optim.make([weight], name="adamw_8bit", lr=0.1), grad_clip=1.0)
    weight.grad = torch.full((3,), 4.0)
    norm, _ = update(torch.tensor(1.0))
    assert norm.item() == pytest.approx(48 ** 0.5) and not torch.equal(weight, torch.ones(3))
    # clipped to norm 1 before the moments see it
    assert update.optimizer.state[weight]["exp_avg"].norm().item() == pytest.approx(0.1, rel=1e-5)
    before = weight.detach().clone()
    for bad in (float("nan"), 1.0):  # once bad, for good
        weight.grad = torch.full((3,), bad)
        assert update(torch.tensor(1.0))[1].isfinite() == (bad == 1.0)
        assert torch.equal(weight, before)


def test_buffers_outside_a_state_dict_are_not_in_checkpoints(folder, tmp_path):
    """Of a text encoder's position numbers: a checkpoint holds what `load` asks for."""
    run = engine.Run(tmp_path, seed=0)
    options = dict(optimizer={"name": "adamw", "lr": 1e-3}, lr_scheduler={"name": "constant", "warmup_steps": 0}, n_steps=1)
    state = engine.State(run, net_of(folder, train_text_encoder=True), **options)
    state.save(tmp_path / "ckpts", keep=1)
    weights, _, _ = engine.load_weights(tmp_path)
    backbones.load(net_of(folder, train_text_encoder=True), weights)
    assert engine.State(run, net_of(folder, train_text_encoder=True), **options).resume(tmp_path / "ckpts") == {}
    lora = engine.State(run, net_of(folder, lora_rank=2), **options)
    lora.save(tmp_path / "lora" / "ckpts", keep=1)
    assert all(".lora_" in name for name in engine.load_weights(tmp_path / "lora")[0])
    run.finish()
