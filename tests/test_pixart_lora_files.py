"""Files of LoRA for PixArt: Med-Art's own are read, ours are opened by peft and diffusers, which make the same images."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.common import d
from libs import engine, pipeline
from libs.engine import foreign, foreign_lora
from libs.pipeline import exporting, stable_diffusion
from tests import tiny_pixart

WINDOW = 12
TEXTS = ["A red lesion", "green tissue with a polyp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pixart.save(tmp_path_factory.mktemp("models") / "pixart")


@pytest.fixture
def config(folder):
    return d(nnet=d(name="pixart", path=str(folder), sample_size=8, in_channels=4, lora_rank=4, lora_alpha=8.0, use_rslora=False,
                    use_dora=False, train_text_encoder=True, text_targets="published", base_dtype=""),
             schedule=d(name="linear"), denoiser=d(predicts="eps", clip=False),
             codec=d(name="kl", path="", subfolder="vae", scale_factor=0.0),
             encoder=d(name="t5", path="", subfolder="text_encoder", max_length=WINDOW),
             train=d(mode="cond", p_uncond=0.1), sample=d(algorithm="dpmpp_2m", sample_steps=5, spacing="linspace", guidance=4.5))


@pytest.fixture(scope="module")
def medart(folder, tmp_path_factory):
    """A folder as medart.py leaves it: peft's layout, diffusers' with `unet.` before everything, and one of a checkpoint."""
    from diffusers import PixArtTransformer2DModel, StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import T5EncoderModel
    from libs.backbones.pixart import TARGETS, TEXT_TARGETS
    home = tmp_path_factory.mktemp("medart")
    torch.manual_seed(3)
    for kind, part, targets, names in (
            (PixArtTransformer2DModel, "transformer", TARGETS["medart"], ("transformer_lora", "trans_lora")),
            (T5EncoderModel, "text_encoder", TEXT_TARGETS["published"], ("text_encoder_lora", "text_lora"))):
        model = get_peft_model(kind.from_pretrained(folder / part), LoraConfig(
            r=4, init_lora_weights="gaussian", target_modules=list(targets), use_dora=False, use_rslora=False))
        for step, where in ((1, home / "checkpoint-900"), (2, home / "checkpoint-12800"), (3, home)):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if ".lora_B." in name:
                        weight.normal_().mul_(0.1)
            model.save_pretrained(where / names[0])
            StableDiffusionPipeline.save_lora_weights(where / names[1], get_peft_model_state_dict(model))
    return home


def seeded(net, seed=0):
    """LoRA that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return {name: weight.detach().clone() for name, weight in net.named_parameters() if weight.requires_grad}


def sampler_of(config, weights):
    encoder = pipeline.text_encoder(config)
    return pipeline.load(config, weights, classes=[], device="cpu", encoder=encoder), encoder


def stock(part, folder, adapter=None):
    """A network of diffusers or transformers, with an adapter that peft loads."""
    from diffusers import PixArtTransformer2DModel
    from peft import PeftModel
    from transformers import T5EncoderModel
    kind = PixArtTransformer2DModel if part == "transformer" else T5EncoderModel
    model = kind.from_pretrained(folder / part)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


def noise_of(transformer, text_encoder, numbers):
    mask, x = numbers != 0, torch.linspace(-2, 2, 2 * 4 * 64).reshape(2, 4, 8, 8)
    states = text_encoder(input_ids=numbers, attention_mask=mask)[0]
    return transformer(x, encoder_hidden_states=states, timestep=torch.tensor([10.0, 900.0]), encoder_attention_mask=mask)[0][:, :4]


def noise_of_ours(net, numbers):
    return net(torch.linspace(-2, 2, 2 * 4 * 64).reshape(2, 4, 8, 8), torch.tensor([10.0, 900.0]), text=numbers)


def images_of_diffusers(pipe, sampler, texts):
    """Of the same starting noise as images 0, 1, ... of seed 7 of ours."""
    latents = torch.stack([torch.randn(sampler.shape, generator=pipeline.image_generator(7, i)) for i in range(len(texts))])
    pipe.set_progress_bar_config(disable=True)
    images = pipe(texts, latents=latents, num_inference_steps=5, guidance_scale=4.5, use_resolution_binning=False,
                  clean_caption=False, max_sequence_length=WINDOW, output_type="pt").images
    return 2 * images - 1


@torch.no_grad()
def test_the_original_s_folders_are_read(config, folder, medart):
    """Every layout of them holds the same, and computes what peft computes from it."""
    net, numbers = pipeline.build_net(config, []).eval(), pipeline.text_encoder(config).encode(TEXTS)
    for home, step in ((medart, 3), (medart / "checkpoint-12800", 2)):
        weights, none, source = engine.load_weights(home)
        assert (none, source) == (None, home)
        bare = {}
        for name in ("trans_lora", "text_lora"):
            bare |= engine.load_weights(home / name)[0]
        files = engine.load_weights(home / "transformer_lora" / "adapter_model.safetensors")[0] | engine.load_weights(
            home / "text_lora" / "pytorch_lora_weights.safetensors")[0]
        assert weights.keys() == bare.keys() == files.keys() == {n for n, p in net.named_parameters() if p.requires_grad}
        assert all(torch.equal(weights[name], bare[name]) and torch.equal(weights[name], files[name]) for name in weights)
        pipeline.start_from(net, weights)
        expected = noise_of(stock("transformer", folder, home / "transformer_lora"),
                            stock("text_encoder", folder, home / "text_encoder_lora"), numbers)
        assert torch.allclose(noise_of_ours(net, numbers), expected, atol=1e-5)
    assert engine.adapter_settings(medart) == {"lora_rank": 4, "lora_alpha": 8.0, "use_rslora": False, "use_dora": False}
    assert engine.adapter_settings(medart / "text_lora") == {"lora_rank": 4}  # which says nothing of alpha
    stable_diffusion.check_adapter(config, engine.adapter_settings(medart))


def test_the_latest_checkpoint_and_single_parts(config, medart, tmp_path, caplog):
    home = tmp_path / "stopped"
    shutil.copytree(medart, home, ignore=lambda where, names: [] if "checkpoint" in where else [n for n in names if "lora" in n])
    latest = foreign.read(medart / "checkpoint-12800")
    assert all(torch.equal(value, latest[name]) for name, value in foreign.read(home).items())  # not 900, which sorts after
    caplog.clear()
    only = foreign.read(medart / "transformer_lora")
    assert {name.split(".")[0] for name in only} == {"transformer"} and "LoRA of transformer alone; give" in caplog.text
    sampler, _ = sampler_of(config, only)
    assert "no LoRA of text_encoder" in caplog.text
    assert all(torch.equal(weight, torch.zeros_like(weight)) for name, weight in sampler.net.named_parameters()
               if name.startswith("text_encoder.") and ".lora_B." in name)
    both = foreign.read(f"{medart / 'transformer_lora'},{medart / 'text_encoder_lora'}")
    assert both.keys() == latest.keys()


def test_what_weights_are_used_is_told_apart(medart, tmp_path):
    """The hash that results are kept under covers every file that is read, and no other."""
    home = tmp_path / "medart"
    shutil.copytree(medart, home)
    before = engine.weights_hash(home)
    assert before == engine.weights_hash(medart) != engine.weights_hash(medart / "checkpoint-12800")
    for name, counts in (("text_encoder_lora/adapter_model.safetensors", True),
                         ("text_lora/pytorch_lora_weights.safetensors", False)):
        held = load_file(home / name)
        save_file({key: value + 1 for key, value in held.items()}, home / name)
        assert (engine.weights_hash(home) != before) is counts
        save_file(held, home / name, metadata={"format": "pt"})


def test_lora_that_does_not_fit_is_said(config, medart, folder, tmp_path):
    weights = foreign.read(medart)
    wrong = copy.deepcopy(config)
    wrong.nnet.lora_rank = 8
    with pytest.raises(ValueError, match="with lora_rank=4; here config.nnet has lora_rank=8: set --config.nnet.lora_rank=4"):
        stable_diffusion.check_adapter(wrong, engine.adapter_settings(medart))
    with pytest.raises(ValueError, match="--config.nnet.lora_rank=4"):
        sampler_of(wrong, weights)
    other = tiny_pixart.save(tmp_path / "wider", heads=3)
    wrong = copy.deepcopy(config)
    wrong.nnet.path = str(other)
    with pytest.raises(ValueError, match="another network than that of config.nnet.path.*size"):
        sampler_of(wrong, weights)
    wrong = copy.deepcopy(config)
    wrong.nnet.text_targets = "all"
    with pytest.raises(ValueError, match="--config.nnet.text_targets=published"):
        sampler_of(wrong, weights)
    wrong = copy.deepcopy(config)
    wrong.nnet.train_text_encoder = False
    with pytest.raises(ValueError, match="--config.nnet.train_text_encoder=True"):
        sampler_of(wrong, weights)


@pytest.mark.parametrize("change,message", [
    ({"peft_type": "LOHA"}, "is of LOHA, not of LORA"), ({"rank_pattern": {"to_q": 8}}, "rank_pattern=.*no words"),
    ({"r": 8, "lora_alpha": 16}, "lora_alpha=8.0, the other part of this LoRA 16.0")])
def test_adapters_of_other_kinds(medart, tmp_path, change, message):
    home = tmp_path / "medart"
    shutil.copytree(medart, home)
    file = home / "transformer_lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        foreign.read(home) and engine.adapter_settings(home)


def test_lora_of_other_networks(tmp_path):
    for name in ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "transformer.transformer_blocks.0.attn1.to_q.weight"):
        save_file({name: torch.zeros(4, 8)}, tmp_path / "pytorch_lora_weights.safetensors")
        with pytest.raises(ValueError, match="no LoRA of PixArt's transformer.*or of T5"):
            foreign.read(tmp_path)
    assert not foreign_lora.holds(tmp_path / "nowhere") and engine.adapter_settings(tmp_path / "nowhere") == {}


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"text_targets": "all", "use_dora": True, "use_rslora": True},
                                     {"train_text_encoder": False}])
def test_others_compute_the_same_from_our_lora(config, folder, tmp_path, options):
    """peft and diffusers upon the published parts: the same noise and, with our sampler's settings, the same images."""
    from diffusers import PixArtAlphaPipeline
    for key, value in options.items():
        config.nnet[key] = value
    weights = seeded(pipeline.build_net(config, []))
    sampler, encoder = sampler_of(config, weights)
    written = exporting.export(tmp_path / "pipeline", sampler, [])
    assert exporting.fault(sampler) == ""
    parts = {name: stock(name, folder, written / f"{name}_lora")
             for name in ("transformer", "text_encoder") if (written / f"{name}_lora").is_dir()}
    assert ("text_encoder" in parts) is config.nnet.train_text_encoder
    pipe = PixArtAlphaPipeline.from_pretrained(folder, **parts)
    if config.nnet.train_text_encoder:
        numbers = encoder.encode(TEXTS)
        ours = noise_of_ours(sampler.net, numbers)
        assert torch.allclose(ours, noise_of(pipe.transformer, pipe.text_encoder, numbers), atol=1e-5)
    images = sampler({"text": encoder.encode(TEXTS)}, seed=7, indices=[0, 1])
    assert (images - images_of_diffusers(pipe, sampler, TEXTS)).abs().max() < 1e-4
    assert (images - images_of_diffusers(PixArtAlphaPipeline.from_pretrained(folder), sampler, TEXTS)).abs().max() > 0.05
    # and back, from each of the two layouts
    for again in (written, *([tmp_path / "bare"] if len(parts) == 1 else [])):
        if again.name == "bare":
            shutil.copytree(written / "trans_lora", again)
        read = engine.load_weights(again)[0]
        assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)
        stable_diffusion.check_adapter(config, engine.adapter_settings(again))
    loading = (written / "README.md").read_text()
    assert str(folder) in loading and ("T5EncoderModel" in loading) is config.nnet.train_text_encoder


@torch.no_grad()
@pytest.mark.parametrize("own_text", [True, False])
def test_a_whole_network_as_a_pipeline(config, tmp_path, own_text):
    """lora_rank=0: diffusers opens it by itself and makes the same images; so do we, by --nnet_path."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline
    config.nnet.lora_rank, config.nnet.train_text_encoder = 0, own_text
    weights = seeded(pipeline.build_net(config, []))
    sampler, encoder = sampler_of(config, weights)
    images = sampler({"text": encoder.encode(TEXTS)}, seed=7, indices=[0, 1])
    written = exporting.export(tmp_path / "pipeline", sampler, [])
    pipe = PixArtAlphaPipeline.from_pretrained(written)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler) and pipe.scheduler.config.beta_schedule == "linear"
    assert (images - images_of_diffusers(pipe, sampler, TEXTS)).abs().max() < 1e-4
    again, _, source = engine.load_weights(written)
    assert engine.weights_hash(source)
    stable_diffusion.start_from_folder(config, source)
    assert config.nnet.path == str(written)
    reopened, _ = sampler_of(config, again)
    assert torch.equal(reopened({"text": encoder.encode(TEXTS)}, seed=7, indices=[0, 1]), images)


def test_lora_is_tied_to_its_base(config, tmp_path):
    """What an exported folder says of its base is asked where it is opened."""
    sampler, _ = sampler_of(config, seeded(pipeline.build_net(config, [])))
    written = exporting.export(tmp_path / "run" / "pipeline", sampler, [])
    base = engine.base_of(written)
    for each in ("transformer_lora", "text_lora/pytorch_lora_weights.safetensors"):
        assert engine.base_of(written / each) == base != {}
    stable_diffusion.check_base(base, sampler.net, config)
    other = tiny_pixart.save(tmp_path / "other", seed=1)
    config.nnet.path = str(other)
    with pytest.raises(ValueError, match="other weights .* than those that this LoRA was trained on"):
        pipeline.load(config, engine.load_weights(written)[0], classes=[], device="cpu", encoder=pipeline.text_encoder(config),
                      base=base)
