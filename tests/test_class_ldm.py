"""Class folders to a latent diffusion model, then masks to a ControlNet on it, through the command lines a user types."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

import eval_class_ldm
import train_class_ldm
import train_controlnet
from configs import folder256_controlnet, folder256_unet_label, phantom32_unet_label
from libs import codecs, data, engine, evaluation, ratings
from libs.data import phantoms
from libs.engine import checkpoint

SMALL = dict(sample_size=8, block_out_channels=(16, 32), layers_per_block=1,
             down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
             cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8)
TRAIN = dict(n_steps=4, batch_size=4, log_interval=1, preview_interval=4, save_interval=2, validation_interval=2,
             validation_size=4, workers=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pairs/ (class folders of images/ and masks/, 16x16) and vae/ (an untrained autoencoder, half the size)."""
    root = tmp_path_factory.mktemp("class_ldm")
    for i in range(24):
        drawn = phantoms.draw(0, i, 16)
        folder = root / "pairs" / phantoms.CLASSES[i % 2]
        for kind, array in (("images", drawn.image), ("masks", drawn.mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{i:02d}.png")
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    for name in ("vae", "other"):
        AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                      up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4, sample_size=16,
                      scaling_factor=0.5).save_pretrained(root / name)
    (root / "moved").symlink_to(root / "vae")
    return root


def adapted(config, place, *, dataset="image_mask", **own):
    """A published config at a size that takes a second."""
    config.nnet.update({key: value for key, value in SMALL.items()})
    config.train.update({key: value for key, value in TRAIN.items()} | own)
    config.lr_scheduler.warmup_steps = 0
    config.codec.update(dict(path=f"{place}/vae", scale_factor=0.0))
    config.dataset.update(dict(name=dataset, path=f"{place}/pairs", resolution=16, holdout=0.3))
    config.sample.update(dict(sample_steps=2, mini_batch_size=8))
    config.metrics.update(dict(sample_steps=2, features=("classifier",)))
    return config


def options(config):
    """The same as options of a command line."""
    said = [f"--config.{section}.{key}={value!r}" if isinstance(value, tuple) else f"--config.{section}.{key}={value}"
            for section in ("nnet", "train", "lr_scheduler", "codec", "dataset", "sample", "metrics")
            for key, value in config[section].items() if not hasattr(value, "items") and value != ()]
    return said


@pytest.fixture(scope="module")
def ldm(script, place):
    config = adapted(folder256_unet_label.get_config(), place)
    script("train_class_ldm.py", "--config=configs/folder256_unet_label.py", f"--workdir={place}/ldm", *options(config))
    return place / "ldm"


def controlnet_config(place, ldm, **own):
    config = adapted(folder256_controlnet.get_config(), place, ldm=str(ldm), **own)
    config.nnet.conditioning_embedding_out_channels = (8, 16)
    config.dataset.mask_values, config.dataset.mask_names = (0, 255), ("skin", "lesion")
    return config


@pytest.fixture(scope="module")
def controlnet(place, ldm):
    train_controlnet.train(controlnet_config(place, ldm), f"{place}/controlnet")
    return place / "controlnet"


def test_the_ldm_s_run(ldm):
    assert json.loads((ldm / "classes.json").read_text()) == ["melanoma", "nevus"]
    counts = json.loads((ldm / "parameters.json").read_text())
    assert counts["class_embedder"] == {"total": 48, "trainable": 48, "frozen": 0}
    assert counts["codec"]["trainable"] == 0 < counts["codec"]["frozen"] and counts["unet"]["trainable"] > 0
    stored = data.Features(ldm / "features" / "train")
    assert stored.shape == (4, 8, 8) and len(stored) + len(data.Features(ldm / "features" / "val")) == 24
    record = checkpoint.read_latest(ldm / "ckpts")[2]
    assert record["best"]["metric"] == "validation_loss" and (ldm / "samples" / "4.png").is_file()
    index = json.loads((ldm / "pipeline" / "model_index.json").read_text())
    assert index["id2label"] == {"0": "melanoma", "1": "nevus"}
    assert all((ldm / "pipeline" / part / "config.json").is_file() for part in ("unet", "vae", "class_embedder"))


def test_the_controlnet_trains_nothing_else_and_needs_the_ldm_no_more(ldm, controlnet, monkeypatch):
    saved = checkpoint.read_latest(controlnet / "ckpts")[1]["nnet"]
    assert all(name.startswith("controlnet.") for name in saved)
    before = engine.load_weights(ldm)[0]
    weights = engine.load_weights(controlnet)[0]
    assert all(torch.equal(weights[name], before[name]) for name in before), "the UNet is that of the first stage"
    zeros = [name for name in saved if "controlnet_down_blocks" in name]
    assert any(saved[name].abs().max() > 0 for name in zeros), "the ControlNet learned"
    moved = controlnet_config(ldm.parent, ldm)
    moved.codec.path = f"{ldm.parent}/moved"  # the same autoencoder
    evaluation.base_weights(moved, ["melanoma", "nevus"], codecs.get(**moved.codec))
    ldm.rename(ldm.with_name("elsewhere"))
    try:  # four steps more
        train_controlnet.train(controlnet_config(ldm.parent, ldm, n_steps=6), str(controlnet))
    finally:
        ldm.with_name("elsewhere").rename(ldm)
    assert checkpoint.steps(controlnet / "ckpts")[-1] == 6


def test_masks_and_classes_are_asked_of_the_controlnet(inside, place, controlnet, tmp_path):
    masks = place / "pairs" / "melanoma" / "masks"
    done = inside("sample.py", f"--workdir={controlnet}", f"--mask_path={masks}", "--label=nevus", "--n_samples=2",
                  f"--config.sample.path={tmp_path}/made")
    assert "ms/step" in done.stdout and "s/image" in done.stdout
    with open(tmp_path / "made" / "metadata.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24 and {row["label"] for row in rows} == {"nevus"}
    assert (tmp_path / "made" / "comparison.png").is_file()
    first = Image.open(tmp_path / "made" / rows[0]["mask_file_name"])
    np.testing.assert_array_equal(np.asarray(first), np.asarray(Image.open(sorted(masks.iterdir())[0])))
    pairs = data.get("folder", path=tmp_path / "made", resolution=16, mask_values=(0, 255))
    assert pairs.masks_as.channels == 1 and data.preflight(pairs) == 24


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A folder to evaluate in, where the networks of the evaluations are then kept."""
    return tmp_path_factory.mktemp("evaluations")


def test_images_are_scored_against_their_masks(inside, controlnet, assets):
    done = inside("eval_controlnet.py", f"--workdir={controlnet}", "--config.sample.n_samples=12", "--config.metrics.bootstrap=10",
                  "--name=few", cwd=assets)
    scores = json.loads((controlnet / "eval" / "few" / "scores.json").read_text())
    assert {"dice", "dice_skin", "dice_lesion"} <= set(scores["scores"])
    assert 0 <= scores["scores"]["dice"]["value"] <= 1 and set(scores["following_of_real"]) >= {"dice", "dice_lesion"}
    assert f"12 images of {scores['masks']} different masks" in done.stdout and "  dice_lesion" in done.stdout
    assert "real images that were held out follow their own masks" in done.stdout


def test_a_filter_chooses_among_images_of_masks(inside, place, controlnet, assets, tmp_path, monkeypatch):
    class ByBrightness:
        """The score tells bright images from dark ones."""
        useful, fingerprint, folder, report = True, "0" * 20, "filter", {}
        threshold = 0.5

        def score(self, images, prompts):
            assert set(prompts) <= {"nevus", "melanoma"}
            return 0.2 + images.float().mean((1, 2, 3)) / 512

    monkeypatch.setattr(ratings, "load_filter", lambda path, device: ByBrightness())
    masks = place / "pairs" / "melanoma" / "masks"
    options = [f"--workdir={controlnet}", f"--mask_path={masks}", "--label=nevus", "--config.filter.path=there"]
    inside("sample.py", *options, "--config.filter.threshold=1e-6", f"--config.sample.path={tmp_path}/all")
    with open(tmp_path / "all" / "metadata.csv") as stream:
        middle = sorted(float(row["score"]) for row in csv.DictReader(stream))[6]
    chosen = [*options, f"--config.filter.threshold={middle}", "--config.filter.max_attempts=2"]
    inside("sample.py", *chosen, f"--config.sample.path={tmp_path}/some")
    pairs = data.get("folder", path=tmp_path / "some", resolution=16, mask_values=(0, 255))
    assert 5 <= len(pairs) < 12 and all(float(row["score"]) >= middle for row in pairs.rows)
    assert all(Path(row["mask_file_name"]).stem in row["file_name"] for row in rows_of(tmp_path / "some"))
    inside("eval_controlnet.py", f"--workdir={controlnet}", "--config.sample.n_samples=12", "--config.metrics.bootstrap=4",
           "--config.filter.path=there", f"--config.filter.threshold={middle}", "--config.filter.max_attempts=2", "--name=chosen",
           cwd=assets)
    found = json.loads((controlnet / "eval" / "chosen" / "scores.json").read_text())
    assert found["n"] == found["filter"]["acceptance"]["made"] < 12 and found["scores"]["dice"]["n"] == found["n"]


def rows_of(folder):
    with open(folder / "metadata.csv") as stream:
        return list(csv.DictReader(stream))


def test_the_classes_of_images_are_scored(ldm, assets, monkeypatch, capsys):
    monkeypatch.chdir(assets)
    config = ConfigDict(json.loads((ldm / "config.json").read_text()))
    config.sample.n_samples, config.metrics.bootstrap = 8, 0
    eval_class_ldm.evaluate(config, str(ldm), "", 1, "few")
    scores = json.loads((ldm / "eval" / "few" / "scores.json").read_text())
    assert scores["n"] == 8 and "dice" not in scores["scores"] and "  accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("change, message", [
    (dict(train=dict(ldm="")), "train one on the same images|Train one on the same images"),
    (dict(train=dict(ldm="/nowhere")), "no weights at /nowhere"),
    (dict(denoiser=dict(predicts="v")), "denoiser.predicts='eps', here it is 'v'"),
    (dict(nnet=dict(block_out_channels=(8, 16))), "config.nnet.block_out_channels"),
    (dict(codec=dict(path="{place}/other")), "latents of another autoencoder, KL .*/vae'; here config.codec gives KL .*/other'"),
    (dict(nnet=dict(conditioning_embedding_out_channels=(8,))), "one entry more than the codec halves images"),
    (dict(nnet=dict(conditioning_channels=3)), "the masks of the data have 1"),
    (dict(dataset=dict(name="phantoms")), "have no masks"),
    (dict(dataset=dict(mask_values=(0, 1))), "hold no value of mask_values"),
    (dict(dataset=dict(masks_folder="segs")), "segs"),
])
def test_a_controlnet_that_cannot_be_trained_says_why_and_leaves_nothing(place, ldm, tmp_path, change, message):
    config = controlnet_config(place, ldm)
    for section, entries in change.items():
        config[section].update(entries)
    config.codec.path = config.codec.path.format(place=place)
    if config.dataset.name == "phantoms":
        config.dataset = type(config.dataset)(dict(name="phantoms", resolution=16, size=8))
    with pytest.raises((ValueError, OSError), match=message):
        train_controlnet.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "ckpts").exists()


@pytest.mark.parametrize("folders, message", [
    ((), "no such folder or file"), (("a",), "one class only, 'a'"), (("",), "the data have no labels"),
])
def test_an_ldm_needs_class_folders(place, tmp_path, folders, message):
    for name in folders:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(phantoms.draw(0, i, 16).image).save(tmp_path / "images" / name / f"{i}.png")
    config = adapted(folder256_unet_label.get_config(), place, dataset="folder")
    config.dataset.path = f"{tmp_path}/images"
    with pytest.raises((ValueError, OSError), match=message):
        train_class_ldm.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "features").exists(), "said before anything is encoded"


def test_an_ldm_without_classes_and_of_grey_images(tmp_path):
    config = phantom32_unet_label.get_config()
    config.nnet.update(dict(SMALL, num_classes=-1, in_channels=1, sample_size=16))
    config.train.update(dict(TRAIN, mode="uncond", n_steps=2, validation_split="", mixed_precision=""))
    config.lr_scheduler.warmup_steps, config.sample.guidance, config.metrics.sample_steps = 0, 1.0, 2
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.fromarray(phantoms.draw(0, i, 16).image).convert("L").save(tmp_path / "images" / f"{i}.png")
    config.dataset = type(config.dataset)(dict(name="folder", path=f"{tmp_path}/images", resolution=16, channels=1))
    train_class_ldm.train(config, str(tmp_path / "run"))
    assert engine.load_weights(tmp_path / "run")[0]["unet.conv_in.weight"].shape[1] == 1
    assert json.loads((tmp_path / "run" / "pipeline" / "model_index.json").read_text())["_class_name"][0] == "pipeline"
