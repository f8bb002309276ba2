"""Fine-tuning a tiny Stable Diffusion from a CSV: through the command line, as LoRA, with its text encoder; what diffusers makes of
the result is what our own sampler makes."""

import importlib.util
import json
import shutil
import subprocess
import sys

import huggingface_hub
import ml_collections
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eval_sd_finetune
from configs.medical512_sd_finetune import get_config
from libs import backbones, data, engine, evaluation, metrics, pipeline
from libs.engine import optim
from libs.evaluation import references
from libs.pipeline import exporting, exporting_sd, stable_diffusion
from tests import tiny_sd
from tests.conftest import ROOT

PROMPTS = ["red cell", "a green, round cell"]
STEPS = 4
# Runs in a process of its own, where nothing of ours can be imported.
BY_DIFFUSERS = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
given, out = json.loads(sys.argv[1]), {}
for name, (base, lora, noise) in given.items():
    pipe = StableDiffusionPipeline.from_pretrained(base)
    if lora:
        pipe.load_lora_weights(lora)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    out[name] = pipe(["red cell", "a green, round cell"], latents=load_file(noise)["noise"], num_inference_steps=4,
                     guidance_scale=3.0, output_type="pt").images.contiguous()
    out[name + "/times"] = pipe.scheduler.timesteps
assert not any(name.split(".")[0] == "libs" for name in sys.modules)
save_file(out, "images.safetensors")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd.save(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV as users write it, of 12 images of 16 pixels; the last four are split 'val'."""
    root = tmp_path_factory.mktemp("pairs")
    (root / "images").mkdir()
    rng, rows = np.random.default_rng(0), ["path, Text, modality, split"]
    for i in range(12):
        pixels = rng.integers(0, 80, (16, 16, 3))
        pixels[..., i % 2] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{i}.png")
        text, split = ["red cell", '"a green, round cell"'][i % 2], "val" if i > 7 else "train"
        rows.append(f"images/{i}.png, {text}, OCT, {split}")
    (root / "data.csv").write_text("\n".join(rows) + "\n")
    return root / "data.csv"


def settings(folder, table, **more):
    return dict({"nnet.path": str(folder), "nnet.sample_size": 8, "encoder.max_length": tiny_sd.WINDOW, "dataset.path": str(table),
                 "dataset.resolution": 16, "dataset.split": "train", "train.batch_size": 4, "train.accumulation": 2,
                 "train.n_steps": STEPS, "train.workers": 0, "train.log_interval": 1, "train.mixed_precision": "no",
                 "sample.guidance": 3.0, "sample.sample_steps": 4, "metrics.sample_steps": 2, "optimizer.lr": 1e-2,
                 "train.ema_rate": 0.5}, **more)


def config_of(*args, **more):
    config = get_config()
    config.update_from_flattened_dict(settings(*args, **more))
    return config


def script_of(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(config, workdir):
    script_of(ROOT / "train_sd_finetune.py").train(config, str(workdir))


def opened(workdir, nnet_path="", **changed):
    """The best weights of a run, as sample.py opens them."""
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.update_from_flattened_dict(changed)
    run = engine.start(config, workdir, claim=False)
    trained = evaluation.open_trained(run, config, str(workdir), str(nnet_path), with_data=False, with_prompts=False)
    run.finish()
    return trained


def ours(sampler, encoder):
    """Images (2, 3, 16, 16) in [0, 1]."""
    return sampler({"text": encoder.encode(PROMPTS)}, seed=3, indices=[0, 1]) / 2 + 0.5


@pytest.fixture(scope="module")
def whole(folder, table, tmp_path_factory, script):
    """A run through the command line: UNet and text encoder, latents stored, captions as token numbers."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    options = settings(folder, table, **{
        "nnet.train_text_encoder": True, "nnet.use_checkpoint": True, "lr_scheduler.name": "cosine", "train.noise_offset": 0.1,
        "train.input_perturbation": 0.1, "train.validation_split": "val", "train.validation_interval": 2,
        "train.best_metric": "validation_loss", "train.preview_interval": STEPS,
        "sample.validation_prompts": "('red cell', 'green')"})
    done = script("train_sd_finetune.py", "--config=configs/medical512_sd_finetune.py", f"--workdir={workdir}",
                  *(f"--config.{key}={value}" for key, value in options.items()), env={"HF_HUB_OFFLINE": "1"})
    return workdir, done.stderr


@pytest.fixture(scope="module")
def lora(folder, table, tmp_path_factory):
    """A run in-process: LoRA with a frozen text encoder, latents and text states stored."""
    workdir = tmp_path_factory.mktemp("runs") / "lora"
    train(config_of(folder, table, **{"nnet.lora_rank": 2, "nnet.lora_alpha": 6.0}), workdir)
    return workdir


@pytest.fixture(scope="module")
def changed(folder, table, tmp_path_factory):
    """{name: (sampler, encoder, exported folder)} of weights changed by hand: a UNet alone, with DDIM; LoRA of both networks."""
    made, root = {}, tmp_path_factory.mktemp("exported")
    for name, options in {"ddim": {"sample.algorithm": "ddim", "sample.spacing": "leading"},
                          "both": {"nnet.train_text_encoder": True, "nnet.lora_rank": 2}}.items():
        config = config_of(folder, table, **options)
        encoder, net = pipeline.text_encoder(config), pipeline.build_net(config, [])
        torch.manual_seed(1)
        weights = {key: (p + 0.1 * torch.randn_like(p)).detach() for key, p in net.named_parameters() if p.requires_grad}
        sampler = pipeline.load(config, weights, classes=[], device="cpu", encoder=encoder)
        made[name] = sampler, encoder, exporting.export(root / name, sampler, [])
    return made


@pytest.fixture(scope="module")
def by_diffusers(folder, whole, lora, changed, tmp_path_factory):
    """{name: images} of all the above by plain diffusers, from the noise of ours; 'name/times' of its scheduler."""
    root = tmp_path_factory.mktemp("diffusers")
    noise = torch.stack([torch.randn(4, 8, 8, generator=pipeline.image_generator(3, i)) for i in (0, 1)])
    save_file({"noise": noise}, root / "noise.safetensors")
    jobs = {"whole": (whole[0] / "pipeline", ""), "lora": (folder, lora / "pipeline"), "ddim": (changed["ddim"][2], ""),
            "both": (folder, changed["both"][2])}
    jobs = {name: (str(base), str(own), str(root / "noise.safetensors")) for name, (base, own) in jobs.items()}
    done = subprocess.run([sys.executable, "-c", BY_DIFFUSERS, json.dumps(jobs)], cwd=root, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(root)})
    assert not done.returncode, done.stderr[-3000:]
    return load_file(root / "images.safetensors")


def test_both_make_equal_images_of_a_trained_network(whole, by_diffusers, folder):
    trained = opened(whole[0])
    assert torch.allclose(by_diffusers["whole"], ours(trained.sampler, trained.encoder), atol=1e-5)
    assert by_diffusers["whole/times"].tolist() == [999, 749, 500, 250]
    exported = whole[0] / "pipeline"
    assert {path.name for path in exported.iterdir()} == {"model_index.json", "unet", "vae", "text_encoder", "tokenizer",
                                                          "scheduler"}
    weights = engine.load_weights(whole[0])[0]
    for part, file in {"unet": "diffusion_pytorch_model", "text_encoder": "model"}.items():
        before, after = load_file(folder / part / f"{file}.safetensors"), load_file(exported / part / f"{file}.safetensors")
        prefix = "text_model." if part == "text_encoder" else ""  # as published, which transformers 4 reads too
        assert all(torch.equal(weights[f"{part}.{name}"], after[prefix + name]) for name in before)
        assert max((before[name] - after[prefix + name]).abs().max() for name in before) > 1e-3


def test_what_a_run_keeps(whole):
    workdir, said = whole
    assert "text_encoder" in said and "trainable" in said  # the table of parameters
    assert data.Features(workdir / "features" / "train").text_shape is None
    assert json.loads((workdir / "bank.json").read_text()) == {"": ["OCT: red cell", "OCT: a green, round cell"] * 4}
    assert Image.open(workdir / "samples" / f"{STEPS}.png").size == (8 * 18 + 2, 2 * 18 + 2)  # a row for each prompt
    lines = engine.read_metrics(workdir / "metrics.jsonl")
    assert [line["kind"] for line in lines].count("validation") == 2
    # accumulation does not slow the schedule down: it counts updates
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([1e-2 * optim.lr_factor(step, name="cosine", n_steps=STEPS) for step in range(STEPS)])


def test_lora_is_small_and_equal_in_diffusers(lora, by_diffusers, folder):
    trained = opened(lora)
    assert torch.allclose(by_diffusers["lora"], ours(trained.sampler, trained.encoder), atol=1e-5)
    exported = load_file(lora / "pipeline" / "pytorch_lora_weights.safetensors")
    assert [path.name for path in (lora / "pipeline").iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert any(value.any() for name, value in exported.items() if "lora_B" in name or "lora.up" in name)
    weights = engine.load_weights(lora)[0]
    assert len(weights) == len(exported) and all(".lora_" in name for name in weights)
    assert data.Features(lora / "features" / "train").text_shape == (tiny_sd.WINDOW, 16)
    (lora / "pipeline" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    config = ml_collections.ConfigDict(json.loads((lora / "config.json").read_text()))
    script_of(ROOT / "scripts" / "export_pipeline.py").export(config, str(lora), "", "")  # in place of the one that is there
    assert load_file(lora / "pipeline" / "pytorch_lora_weights.safetensors").keys() == exported.keys()


def test_lora_is_tied_to_the_weights_it_was_trained_on(lora, folder, table, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    first = opened(lora)
    second = opened(lora, **{"nnet.path": str(moved)})
    assert torch.equal(ours(first.sampler, first.encoder), ours(second.sampler, second.encoder))
    other, known = tiny_sd.save(tmp_path / "other", seed=5), engine.weights_hash(first.source)
    with pytest.raises(ValueError, match=r"other holds other weights .* than those that this LoRA was trained on"):
        opened(lora, **{"nnet.path": str(other)})
    with pytest.raises(ValueError, match="this LoRA was trained on"):
        train(config_of(other, table, **{"nnet.lora_rank": 2, "nnet.lora_alpha": 6.0, "train.n_steps": STEPS + 1}), lora)
    assert json.loads((lora / "base.json").read_text())["sha256"] == backbones.frozen_hash(first.sampler.net)
    copy = shutil.copytree(lora / "ckpts", tmp_path / "run" / "ckpts")
    (tmp_path / "run" / "base.json").write_text(json.dumps({"sha256": "another"}))
    assert engine.weights_hash(copy / first.source.name) != known


class Means:
    """In place of a feature network, none of which is here for images without classes: the mean of each channel."""

    name, dims, classes, fingerprint = "means", 3, None, "means"

    def both(self, images):
        return images.float().mean((2, 3)), None


@pytest.mark.parametrize("how", ["bank", "val"])
def test_an_evaluation_draws_descriptions(lora, monkeypatch, capsys, how):
    real = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    side = Means(), references.Reference(metrics.Gaussian(real.double().mean(0), real.double().T.cov(), 4, "means"), real, None,
                                         torch.arange(4), "4 images")
    monkeypatch.setattr(evaluation, "prepare", lambda *_, **__: [side])
    config = ml_collections.ConfigDict(json.loads((lora / "config.json").read_text()))
    config.sample.n_samples, config.sample.prompts, config.metrics.bootstrap, config.metrics.names = 4, how, 0, ("fd",)
    eval_sd_finetune.evaluate(config, str(lora), "", 1, "")
    result = json.loads(next((lora / "eval").glob("*_4" if how == "bank" else "*_4_val")).joinpath("scores.json").read_text())
    assert set(result["scores"]) == {"fd_means"} and result["prompts"] == how and "4 images, dpmpp_2m" in capsys.readouterr().out
    assert set(result["shown_texts"]) <= {f"OCT: {text}" for text in ("red cell", "a green, round cell")}


@pytest.mark.parametrize("name", ["ddim", "both"])
def test_other_ways_are_equal_in_diffusers(changed, by_diffusers, name):
    sampler, encoder, _ = changed[name]
    assert torch.allclose(by_diffusers[name], ours(sampler, encoder), atol=1e-5)
    assert by_diffusers[f"{name}/times"].tolist() == ([751, 501, 251, 1] if name == "ddim" else [999, 749, 500, 250])


def test_a_bare_unet_is_sampled_from(changed, lora, folder):
    """sample.py --nnet_path takes unet/ or a whole pipeline, beside the config of nnet.path for the other parts."""
    sampler, encoder, exported = changed["ddim"]
    for path in (exported / "unet", exported):
        trained = opened(lora, path, **{"nnet.lora_rank": 0, "sample.algorithm": "ddim", "sample.spacing": "leading"})
        assert torch.equal(ours(trained.sampler, trained.encoder), ours(sampler, encoder))


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_a_whole_pipeline_brings_its_text_encoder(whole, lora, train_text_encoder):
    """One that was trained with the UNet; that of the config's own pipeline would make other images, and nobody would know."""
    exported, expected = whole[0] / "pipeline", opened(whole[0])
    trained = opened(lora, exported, **{"nnet.lora_rank": 0, "nnet.train_text_encoder": train_text_encoder})
    assert torch.allclose(ours(trained.sampler, trained.encoder), ours(expected.sampler, expected.encoder), atol=1e-6)
    assert trained.sampler.config.nnet.path == str(exported)
    with pytest.raises(ValueError, match="set --config.nnet.lora_rank=0"):
        opened(lora, exported)


def test_files_of_a_tokenizer_on_the_hub(tmp_path, monkeypatch):
    def found(path, name, subfolder):
        if name.endswith(".txt"):
            raise huggingface_hub.errors.LocalEntryNotFoundError(name)
        return tmp_path / path / subfolder / name

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found)
    files = exporting_sd.tokenizer_files({"path": "CompVis/stable", "subfolder": "text_encoder"})
    assert files == [tmp_path / "CompVis/stable/tokenizer" / name for name in ("special_tokens_map.json", "vocab.json")]


def test_what_was_exported_is_trained_on(whole, table):
    config = config_of(whole[0] / "pipeline", table)
    stable_diffusion.check(config)
    net, encoder = pipeline.build_net(config, []), pipeline.text_encoder(config)
    stable_diffusion.check_fit(net, pipeline.image_codec(config), encoder)


def test_bad_input_is_said_before_training(folder, table, tmp_path):
    stray = table.parent / "stray.csv"
    stray.write_text(table.read_text().replace('"a green, round cell"', "a green, round cell", 1))
    lacking = tmp_path / "lacking"
    shutil.copytree(folder, lacking, ignore=shutil.ignore_patterns("vae", "tokenizer"))
    for options, message in [
            ({"dataset.path": str(stray)}, "stray.csv:3: 5 fields where the header has 4"),
            ({"nnet.path": str(lacking)}, "lacks vae/, tokenizer/"),
            ({"features.path": ""}, "config.features.path is ''"),
            ({"dataset.resolution": 32}, "config.nnet is built for"),
            ({"denoiser.predicts": "v"}, "--config.denoiser.predicts=eps"),
            ({"train.validation_split": "later"}, "later")]:
        with pytest.raises((ValueError, OSError), match=message):
            train(config_of(folder, table, **options), tmp_path / "run")
        assert not (tmp_path / "run" / "ckpts").exists()


def test_captions_as_token_numbers(table):
    class Plain(data.Dataset):
        name = "plain"

        def __len__(self):
            return 3

        def item(self, i, generator=None):
            return {"image": torch.zeros(1), "index": torch.tensor(i)}

    def lengths(texts):
        return torch.tensor([[len(text)] for text in texts])

    found = data.WithTokens(Plain(), ["a", ["bb", "ccc"], "a"], lengths)
    assert found.batch([2, 1, 0])["text"].tolist() == [[1], [2], [1]] and found.batch([0])["text"].dtype == torch.int64
    seeds = list(range(40))
    seen = found.batch([1] * 40, seeds)["text"][:, 0].tolist()
    assert set(seen) == {2, 3} and seen == found.batch([1] * 40, seeds)["text"][:, 0].tolist()
    assert [found.item(1, torch.Generator().manual_seed(seed))["text"].item() for seed in seeds] == seen
    with pytest.raises(ValueError, match="3 items, but no captions"):
        data.WithTokens(Plain(), None, lengths)
    with pytest.raises(ValueError, match=r"1 items have no caption, such as plain\[1\]"):
        data.WithTokens(Plain(), ["a", [], "b"], lengths)
