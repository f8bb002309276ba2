"""Med-Art on a tiny PixArt: training with the loss of colours, whose gradient reaches both LoRAs; resume, bad samples, captions."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from configs.kvasir512_pixart_lora import get_config
from libs import data, diffusion, engine, extraction, pipeline
from libs.pipeline import colour
from tests import tiny_pixart
from tests.conftest import ROOT
from tests.test_sd_finetune import script_of

LONG = "red " * 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pixart.save(tmp_path_factory.mktemp("models") / "pixart")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 8 images of 16 pixels with metadata.csv; the last two are split 'val', one text exceeds the window."""
    root, rows, rng = tmp_path_factory.mktemp("images"), ["file_name,text,split"], np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 80, (16, 16, 3))
        pixels[..., i % 2] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        rows.append(f"{i}.png,{[LONG if i == 2 else 'red cell', 'a large green lesion'][i % 2]},{'val' if i > 5 else 'train'}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def config_of(folder, images, **more):
    config = get_config()
    config.update_from_flattened_dict({
        "nnet.path": str(folder), "nnet.sample_size": 8, "nnet.base_dtype": "", "encoder.dtype": "", "dataset.path": str(images),
        "dataset.resolution": 16, "dataset.split": "train", "train.batch_size": 2, "train.n_steps": 4, "train.workers": 0,
        "train.log_interval": 1, "train.mixed_precision": "no", "optimizer.name": "adamw", "optimizer.lr": 1e-2, "colour.every": 2,
        "colour.steps": 3, "sample.sample_steps": 2, "metrics.sample_steps": 2, **more})
    return config


def train(config, workdir):
    script_of(ROOT / "train_pixart_lora.py").train(config, str(workdir))
    return engine.load_weights(workdir)[0], [line for line in engine.read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def own():
    """Options of the run below: all that may come together."""
    return {"train.accumulation": 2, "train.p_uncond": 0.5, "train.noise_offset": 0.1, "train.validation_split": "val",
            "train.validation_interval": 4, "nnet.use_checkpoint": True, "nnet.text_targets": "all", "colour.last": 2}


@pytest.fixture(scope="module")
def whole(folder, images, own, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    weights, lines = train(config_of(folder, images, **own, **{"train.preview_interval": 4,
                                                               "sample.validation_prompts": ("red cell",)}), workdir)
    return workdir, weights, lines


@pytest.fixture(scope="module")
def parts(folder, images):
    """(config, network, its sampler) with a frozen average, as within a training."""
    config = config_of(folder, images)
    torch.manual_seed(0)
    net, encoder = pipeline.build_net(config, []), pipeline.text_encoder(config)
    sampler = pipeline.Pipeline(net, config, codec=pipeline.image_codec(config), schedule=diffusion.schedule(**config.schedule),
                                null=pipeline.null_conditions(net, [], encoder.empty))
    return config, net, sampler, encoder


def test_every_second_step_has_the_loss_of_colours_as_a_term_of_its_own(whole):
    workdir, weights, lines = whole
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained if "colour" in line] == [1, 3]
    for line in trained:
        assert line["loss"] == pytest.approx(line["denoising"] + line.get("colour", 0.0) / 3, rel=1e-5)
        assert line.get("colour", 1.0) > 1e-3 and line.get("colour_left_out", 0.0) == 0.0
    validated, = (line for line in lines if line["kind"] == "validation")
    assert set(validated) == {"step", "kind", "loss", "denoising"} and validated["loss"] == validated["denoising"]
    changed = {name.split(".")[0] for name, weight in weights.items() if ".lora_B" in name and weight.any()}
    assert changed == {"transformer", "text_encoder"} and all(".lora_" in name for name in weights)
    assert (workdir / "samples" / "4.png").is_file() and (workdir / "pipeline").is_dir()
    assert data.Features(workdir / "features" / "train").text_shape is None


def test_a_resumed_run_is_the_undisturbed_one_and_says_what_is_cut_off(whole, folder, images, own, tmp_path, caplog):
    """Stopped before a step with the loss of colours, which then draws the same noise."""
    caplog.set_level(logging.INFO)
    train(config_of(folder, images, **own, **{"train.n_steps": 2}), tmp_path)
    weights, lines = train(config_of(folder, images, **own), tmp_path)
    assert all(torch.equal(weights[name], weight) for name, weight in whole[1].items())
    kept = [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines if line["step"] > 2]
    assert kept == [{key: value for key, value in line.items() if key != "images_per_second"}
                    for line in whole[2] if line["step"] > 2]
    said = [each.message for each in caplog.records if each.levelno == logging.WARNING and "exceed the window" in each.message]
    assert len(said) == 2 and "1 of 3 texts exceed the window of 120 tokens" in said[0] and "needs 131" in said[0]


def test_a_frozen_t5_reads_texts_once_for_all(folder, images, tmp_path):
    weights, lines = train(config_of(folder, images, **{"nnet.train_text_encoder": False, "train.n_steps": 1}), tmp_path)
    assert lines[0]["colour"] > 1e-3 and {name.split(".")[0] for name in weights} == {"transformer"}
    assert data.Features(tmp_path / "features" / "train").text_shape == (120, 16)


@pytest.mark.parametrize("source", ["pipeline", "ckpts"])
def test_a_training_begins_with_other_lora(whole, folder, images, tmp_path, source):
    """As it was exported, or from the run itself: with a rate of almost nothing it is that still. What counts otherwise is said
    before any work."""
    more = {"nnet.text_targets": "all", "train.init": str(whole[0] / source), "train.n_steps": 1, "colour.every": 0}
    weights, _ = train(config_of(folder, images, **more, **{"optimizer.lr": 1e-12}), tmp_path / "run")
    assert weights.keys() == whole[1].keys()
    assert all(torch.allclose(weights[name], weight, atol=1e-9) for name, weight in whole[1].items())
    with pytest.raises(ValueError, match="trained with lora_alpha=8.0; here config.nnet has lora_alpha=4.0"):
        train(config_of(folder, images, **more, **{"nnet.lora_alpha": 4.0}), tmp_path / "other")
    assert not (tmp_path / "other" / "features").exists()


def test_what_cannot_be_is_said_before_images_are_encoded(folder, images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extraction, "ready", lambda *_: pytest.fail("images are encoded"))
    with pytest.raises(pytest.fail.Exception):
        train(config_of(folder, images), tmp_path / "run")
    assert "1 of 3 texts exceed the window" in caplog.text
    monkeypatch.setattr(data, "check_batch", lambda size, world, own=data.check_batch: own(size, 4))
    with pytest.raises(ValueError, match="train.batch_size=1 cannot be shared by 4 processes: use a multiple, such as 4"):
        train(config_of(folder, images, **{"train.batch_size": 1}), tmp_path / "four")


def test_a_training_survives_a_sample_that_is_not_finite(folder, images, tmp_path, monkeypatch, caplog):
    """Of images that are cut at random and encoded at every step."""
    monkeypatch.setattr(colour, "generate", lambda sampler, cond, options, net: torch.full((2, 3, 16, 16), torch.nan))
    more = {"features.path": "", "dataset.crop": "random", "train.n_steps": 1}
    weights, lines = train(config_of(folder, images, **more), tmp_path)
    assert lines[0]["colour_left_out"] == 1 and "colour" not in lines[0] and lines[0]["loss"] == lines[0]["denoising"]
    assert all(weight.isfinite().all() for weight in weights.values())
    said, = (record.message for record in caplog.records if "left out" in record.message)
    assert said.startswith("step 1, ") and said.count(".png") == 2 and "the colour loss is nan" in said


def test_gradients_reach_every_lora(parts):
    config, net, sampler, encoder = parts
    reads = []
    hook = net.text_encoder.register_forward_hook(lambda module, given, out: reads.append(len(out.last_hidden_state)))
    batch = {"text": encoder.encode(["red cell", "a large green lesion"]), "image": torch.zeros(2, 3, 16, 16)}
    found = colour.distance(sampler, batch, config.colour, net=net)
    found.backward()
    hook.remove()
    assert reads == [2, 1]  # both texts once, and the empty one, whatever the number of steps
    lacking = [name for name, weight in net.named_parameters() if ".lora_B" in name and not weight.grad.any()]
    assert not lacking, lacking
    assert all(weight.grad is None for weight in net.parameters() if not weight.requires_grad)
    net.zero_grad()


@pytest.mark.parametrize("changed", [{"checkpoint_steps": False}, {"checkpoint_decoder": False}])
def test_checkpoints_change_no_gradient(parts, changed):
    config, net, sampler, encoder = parts
    batch = {"text": encoder.encode(["red cell", "green"]), "image": torch.zeros(2, 3, 16, 16)}
    found = []
    for options in (config.colour, config.copy_and_resolve_references().colour):
        if found:
            options.update(changed)
        torch.manual_seed(5)
        colour.distance(sampler, batch, options, net=net).backward()
        found.append({name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None})
        net.zero_grad()
    assert all(torch.allclose(found[0][name], found[1][name], rtol=1e-3, atol=1e-6) for name in found[0])


def test_real_colours_come_from_the_images(parts):
    config, net, sampler, encoder = parts
    images = data.get(**config.dataset)
    text = encoder.encode(["red cell", "green"])
    batches = [{"image": images.batch([3, 1])["image"]}, {"index": torch.tensor([3, 1])},
               {"mean": torch.randn(2, 4, 8, 8), "index": torch.tensor([3, 1])}]
    found = []
    for batch, own in zip(batches, (None, images, None)):
        torch.manual_seed(5)
        found.append(colour.distance(sampler, batch | {"text": text}, config.colour, net=net, images=own).item())
    assert found[0] == found[1] != found[2]
    torch.manual_seed(5)
    made = colour.generate(sampler, {"text": text}, config.colour, net=net)
    decoded = sampler.codec.decode(batches[2]["mean"] * sampler.codec.scale_factor)
    assert found[2] == pytest.approx(diffusion.colour.colour_loss(made, decoded, reduction="mean").mean().item())


def test_what_is_generated_is_what_the_sampler_makes(parts):
    """Where it is asked for the same steps and guidance, and clamps."""
    config, net, sampler, encoder = parts
    own = config.copy_and_resolve_references()
    own.sample.sample_steps, own.sample.guidance = own.colour.steps, own.colour.guidance
    same = pipeline.Pipeline(net, own, codec=sampler.codec, schedule=sampler.schedule, null=sampler.null)
    cond = {"text": encoder.encode(["red cell"])}
    noise = torch.randn(sampler.shape, generator=pipeline.image_generator(3, 0))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, device: noise[None])
        made = colour.generate(same, cond, own.colour, net=net)
    assert torch.allclose(made.clamp(-1, 1), same(cond, seed=3, indices=[0]), atol=1e-5)


def test_a_distance_that_is_not_finite_is_left_out_and_said(caplog):
    options = get_config().colour
    weight = torch.ones((), requires_grad=True)
    loss, terms = colour.add(2 * weight, weight * torch.nan, options, "step 7, a.png, b.png")
    loss.backward()
    assert loss.item() == weight.grad.item() == 2 and terms == {"colour_left_out": 1}
    assert "step 7, a.png, b.png: the colour loss is nan and is left out" in caplog.text
    caplog.clear()
    loss, terms = colour.add(2 * weight, weight * 3, options, "step 8, a.png")
    assert loss.item() == pytest.approx(2 + 3 / 20) and terms["colour"] == 3 and terms["colour_left_out"] == 0 and not caplog.text


@pytest.mark.parametrize("name, value, message", [
    ("every", -1, "config.colour.every is -1"), ("steps", 1000, r"config.colour.steps is 1000; the solver takes 1 \.\. 999"),
    ("steps", 0, "config.colour.steps is 0"), ("last", 4, "config.colour.last is 4; give how many of the 3 steps"),
    ("reduction", "max", "config.colour.reduction is 'max'; known: sum, mean"), ("weight", -1.0, "config.colour.weight is -1")])
def test_options_that_cannot_be_are_refused(folder, images, tmp_path, name, value, message):
    config = config_of(folder, images, **{f"colour.{name}": value})
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    config.colour.every = 0 if name != "every" else 1
    colour.check(config)


def test_the_config_has_the_published_numbers():
    config = json.loads(get_config().to_json_best_effort())
    own = config["colour"]
    found = [config["train"][key] for key in ("n_steps", "batch_size", "save_interval", "ema_rate", "grad_clip")]
    assert found == [15 * 6400, 1, 12800, 0.0, 1.0]
    assert (config["nnet"]["lora_rank"], config["nnet"]["lora_alpha"], config["encoder"]["max_length"]) == (8, 8.0, 120)
    assert (own["every"], own["steps"], own["guidance"], own["reduction"], own["last"]) == (500, 20, 4.5, "mean", 0)
    assert (config["optimizer"]["lr"], config["optimizer"]["weight_decay"]) == (1e-4, 0.01)
