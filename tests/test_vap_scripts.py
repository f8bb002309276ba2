"""VAP-Diffusion and the latent scripts through their real command lines: features, training, samples, evaluation.

Features, training and an evaluation of one run are processes of their own; the rest is called in this one.
"""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from libs import engine
from tests.conftest import ROOT
from tests.test_scripts import losses

NARROW = ("--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2", "--config.train.workers=0",
          "--config.lr_scheduler.warmup_steps=1", "--config.metrics.sample_steps=2", "--config.sample.sample_steps=2",
          "--config.metrics.bootstrap=5", "--config.train.log_interval=1", "--config.sample.mini_batch_size=8")
VAP = ("--config=configs/phantom64_vap.py", "--config.dataset.resolution=32", "--config.nnet.img_size=32",
       "--config.dataset.size=80", "--config.train.batch_size=8", "--config.train.save_interval=2",
       "--config.train.preview_interval=4", "--config.train.validation_interval=4", "--config.train.validation_size=16",
       "--config.train.validation_split=test",
       "--config.sample.n_samples=12", *NARROW)


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """Features of 80 phantoms and a run of 4 steps."""
    folder = tmp_path_factory.mktemp("vap")
    options = (*VAP, f"--config.features.path={folder}/features")
    script("scripts/extract_feature.py", *options)
    script("train_t2i_discrete.py", *options, "--config.train.n_steps=4", f"--workdir={folder}/run")
    return folder / "run"


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_keeps_its_prompt_bank_and_both_losses(trained):
    bank = json.loads((trained / "bank.json").read_text())
    assert "nevus" in json.dumps(bank) and "lesion" in json.dumps(bank)
    lines = [line for line in engine.read_metrics(trained / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) == 4
    for line in lines:
        assert line["loss"] == pytest.approx(line["diffusion"] + 0.1 * line["prototype"], rel=1e-5)
    validation, = [line for line in engine.read_metrics(trained / "metrics.jsonl") if line["kind"] == "validation"]
    assert {"loss", "diffusion", "prototype"} <= set(validation)


def test_two_processes_train_resume_and_sample_the_same(script, inside, trained, tmp_path):
    options = (*VAP, f"--config.features.path={trained.parent}/features", "--config.train.n_steps=4",
               "--config.train.eval_interval=0")
    script("train_t2i_discrete.py", *options, f"--workdir={tmp_path}/whole", processes=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "ckpts" / "4.ckpt")
    script("train_t2i_discrete.py", *options, f"--workdir={tmp_path}/again", processes=2)
    assert losses(tmp_path / "again") == losses(tmp_path / "whole") and len(losses(tmp_path / "again")) == 4
    ask = ("sample.py", f"--workdir={trained}", "--label=all", "--n_samples=2")
    inside(*ask, f"--config.sample.path={tmp_path}/1")
    script(*ask, f"--config.sample.path={tmp_path}/2", processes=2)
    names = sorted(os.listdir(tmp_path / "1"))
    assert names == sorted(os.listdir(tmp_path / "2")) and len(names) == 10  # eight images, grid and table
    for name in names:
        if name.endswith(".png"):
            np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / one / name)) for one in "12"))


def test_samples_by_prompt_by_file_and_from_the_bank(inside, trained, tmp_path):
    ask = "a large red irregular lesion"
    inside("sample.py", f"--workdir={trained}", f"--prompt={ask}", "--label=melanoma", "--n_samples=3",
           f"--config.sample.path={tmp_path}/one")
    found = rows(tmp_path / "one" / "metadata.csv")
    assert [(row["text"], row["label"]) for row in found] == [(ask, "melanoma")] * 3
    image = Image.open(tmp_path / "one" / found[0]["file_name"])
    assert image.text["prompt"] == ask and image.text["label"] == "melanoma" and image.text["sha256"] == found[0]["sha256"]
    (tmp_path / "asked.csv").write_text('prompt,label\n"a small black lesion, round",nevus\na red lesion,angioma\n')
    inside("sample.py", f"--workdir={trained}", f"--input_path={tmp_path}/asked.csv", "--n_samples=1",
           f"--config.sample.path={tmp_path}/file")
    assert [row["label"] for row in rows(tmp_path / "file" / "metadata.csv")] == ["nevus", "angioma"]
    inside("sample.py", "--config=configs/from_run.py:" + str(trained / "config.json"), f"--nnet_path={trained}",
           "--label=angioma", "--n_samples=4", f"--workdir={tmp_path}/elsewhere", f"--config.sample.path={tmp_path}/bank")
    bank = json.loads((trained / "bank.json").read_text())
    drawn = [row["text"] for row in rows(tmp_path / "bank" / "metadata.csv")]
    assert len(set(drawn)) > 1 and all(text in json.dumps(bank) for text in drawn)


def test_a_published_file_of_weights_needs_no_run_and_no_data(inside, trained, tmp_path):
    weights, _, _ = engine.load_weights(trained)
    torch.save(weights, tmp_path / "vap.pth")
    inside("sample.py", *VAP, "--config.nnet.num_classes=5", f"--nnet_path={tmp_path}/vap.pth", "--prompt=a red lesion",
           "--label=2", "--n_samples=2", f"--workdir={tmp_path}/none", f"--config.sample.path={tmp_path}/out")
    inside("sample.py", f"--workdir={trained}", "--prompt=a red lesion", "--label=angioma", "--n_samples=2",
           f"--config.sample.path={tmp_path}/of_run")
    for one, other in (("000000_2.png", "000000_angioma.png"), ("000001_2.png", "000001_angioma.png")):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / one)),
                                      np.asarray(Image.open(tmp_path / "of_run" / other)))


@pytest.mark.parametrize("options, complaint", [
    (("--prompt=a red lesion",), "names no class: give one with --label; known: nevus"),
    (("--prompt=a red lesion", "--label=wart"), "label 'wart'"),
    (("--input_path=nowhere.txt",), "nowhere.txt: no such file")])
def test_what_cannot_be_asked_is_refused(inside, trained, tmp_path, options, complaint):
    failed = inside("sample.py", f"--workdir={trained}", *options, f"--config.sample.path={tmp_path}/out", fails=True)
    assert complaint in failed.stderr and "Traceback" not in failed.stderr and not (tmp_path / "out").exists()


def test_each_request_has_a_folder_of_its_own(inside, trained):
    for options in (("--label=nevus",), ("--prompt=a red lesion", "--label=nevus")):
        inside("sample.py", f"--workdir={trained}", *options, "--n_samples=1")
    assert {"images_nevus_seed0", "images_a_red_lesion_seed0"} <= set(os.listdir(trained))


def test_a_prompt_that_is_cut_is_named(inside, trained, tmp_path):
    done = inside("sample.py", f"--workdir={trained}", f"--prompt={'very ' * 30}large lesion", "--label=nevus", "--n_samples=1",
                  f"--config.sample.path={tmp_path}/out")
    assert "1 of 1 texts exceed the window of 20 tokens" in done.stderr


def test_evaluation_measures_agreement_on_seen_and_unseen_mixtures(script, inside, trained):
    for prompts, call in (("bank", script), ("unseen", inside)):
        call("eval_t2i_discrete.py", *VAP, f"--config.features.path={trained.parent}/features", f"--workdir={trained}",
             f"--name={prompts}", f"--config.sample.prompts={prompts}")
    bank, unseen = (json.loads((trained / "eval" / name / "scores.json").read_text()) for name in ("bank", "unseen"))
    assert {"agreement_size", "agreement_shape", "agreement_colour", "agreement_skin", "agreement_all"} <= set(bank["scores"])
    assert bank["scores"]["agreement_colour"]["n"] == 12 and bank["agreement_of_real"]["colour"] > 0.9
    known = (trained / "bank.json").read_text()
    assert all(text in known for text in bank["shown_texts"])
    assert any(text not in known for text in unseen["shown_texts"])
    inside("scripts/make_report.py", f"--workdir={trained}")
    page = (trained / "report.html").read_text()
    assert "Asked and obtained" in page and bank["shown_texts"][0] in page and "Agreement of real images" in page


@pytest.mark.parametrize("options, complaint", [
    (("--config.encoder.dim=32",), "encoder.fingerprint"),
    (("--config.dataset.seed=1",), "config.dataset.seed: stored 0, now 1"),
    (("--config.features.path=",), "config.features.path is ''"),
    (("--config.nnet.clip_dim=99",), "config.nnet.clip_dim is 99, but the text encoder gives 64"),
    (("--config.features.path=nowhere",), "no feature store there; make it with scripts/extract_feature.py")])
def test_features_that_do_not_fit_are_refused(inside, trained, tmp_path, options, complaint):
    failed = inside("train_t2i_discrete.py", *VAP, f"--config.features.path={trained.parent}/features", *options,
                    "--config.train.n_steps=2", f"--workdir={tmp_path}/run", fails=True)
    assert complaint in failed.stderr and "Traceback" not in failed.stderr


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A tiny KL autoencoder that shrinks images eightfold, as the published one does."""
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder")
    AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
                  block_out_channels=(8, 8, 8, 8), norm_num_groups=4, mid_block_add_attention=False).save_pretrained(folder)
    return folder


def imagenet(root):
    for i in range(8):
        path = root / "train" / f"n0{i % 2}" / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (80, 100, 3), np.uint8)).save(path)
    return root


@pytest.mark.parametrize("name, which", [("imagenet256_uvit_large", "ldm"), ("imagenet512_uvit_huge", "ldm_discrete")])
def test_published_latent_configs_from_images_to_scores(inside, tmp_path, autoencoder, name, which):
    """The published commands on stand-in data, the network narrowed and images of 64x64 in place of 256 and 512."""
    options = (f"--config=configs/{name}.py", f"--config.dataset.path={imagenet(tmp_path / 'data')}", *NARROW,
               "--config.dataset.resolution=64", "--config.nnet.img_size=8", f"--config.codec.path={autoencoder}",
               f"--config.features.path={tmp_path}/features", "--config.train.batch_size=4", "--config.train.n_steps=2",
               "--config.train.eval_interval=0", f"--workdir={tmp_path}/run")
    inside("scripts/extract_feature.py", *(option for option in options if not option.startswith("--workdir")))
    inside(f"train_{which}.py", *options)
    assert len(losses(tmp_path / "run")) == 2 and (tmp_path / "run" / "samples" / "2.png").is_file()
    done = inside(f"eval_{which}.py", *options, "--config.metrics.features=('classifier',)", "--config.sample.n_samples=6",
                  "--config.metrics.names=('fd',)")
    assert "fd_classifier" in done.stdout and "guidance 1." in done.stdout
    inside("sample.py", f"--workdir={tmp_path}/run", "--label=n01", "--n_samples=2", "--config.sample.sample_steps=2",
           f"--config.sample.path={tmp_path}/out")
    assert Image.open(tmp_path / "out" / "000001_n01.png").size == (64, 64)


def test_latents_are_encoded_on_the_fly_where_no_features_are_asked_for(script, tmp_path, autoencoder):
    script("train_ldm.py", "--config=configs/imagenet256_uvit_large.py", *NARROW,
           f"--config.dataset.path={imagenet(tmp_path / 'data')}", "--config.dataset.resolution=64", "--config.nnet.img_size=8",
           f"--config.codec.path={autoencoder}", "--config.features.path=", "--config.train.batch_size=4",
           "--config.train.n_steps=2", "--config.train.eval_interval=0", "--config.train.preview_interval=0",
           f"--workdir={tmp_path}/run", processes=2)
    assert len(losses(tmp_path / "run")) == 2


def test_a_continuous_schedule_is_no_discrete_one(inside, tmp_path):
    failed = inside("train_ldm_discrete.py", "--config=configs/imagenet256_uvit_large.py", f"--workdir={tmp_path}", fails=True)
    assert "has no discrete steps: use sd, linear or cosine" in failed.stderr


def coco(root):
    """Six images with captions in the format of MS-COCO 2014, for training and validation."""
    for split in ("train", "val"):
        (root / f"{split}2014").mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        names = [{"id": i, "file_name": f"{split}_{i}.jpg"} for i in range(6)]
        texts = [{"id": 10 * i + k, "image_id": i, "caption": f"a {split} picture number {i}, caption {k}"}
                 for i in range(6) for k in range(2)]
        (root / "annotations" / f"captions_{split}2014.json").write_text(json.dumps({"images": names, "annotations": texts}))
        for each in names:
            Image.new("RGB", (70, 90), (40 * each["id"], 9, 9)).save(root / f"{split}2014" / each["file_name"])
    return root


def test_ms_coco_trains_from_captions_and_is_evaluated_on_those_of_other_images(inside, tmp_path, autoencoder):
    words = tmp_path / "words.py"
    words.write_text((ROOT / "configs" / "mscoco_uvit_small.py").read_text().replace(
        'd(name="clip", path="openai/clip-vit-large-patch14", max_length=77)', 'd(name="words", max_length=77, dim=768)'))
    options = (f"--config={words}", f"--config.dataset.path={coco(tmp_path / 'coco')}", *NARROW,
               "--config.dataset.resolution=64", "--config.nnet.img_size=8", f"--config.codec.path={autoencoder}",
               f"--config.features.path={tmp_path}/features")
    inside("scripts/extract_mscoco_feature.py", *options)
    run = (*options, "--config.train.batch_size=4", "--config.train.n_steps=2", "--config.train.eval_interval=0",
           f"--workdir={tmp_path}/run")
    inside("train_t2i_discrete.py", *run)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == []
    inside("sample.py", f"--workdir={tmp_path}/run", "--prompt=a train picture", "--n_samples=2",
           f"--config.sample.path={tmp_path}/out")
    assert [row.get("label", "") for row in rows(tmp_path / "out" / "metadata.csv")] == ["", ""]
    inside("sample.py", f"--workdir={tmp_path}/run", "--n_samples=3", f"--config.sample.path={tmp_path}/val")
    assert all("a val picture" in row["text"] for row in rows(tmp_path / "val" / "metadata.csv"))


def test_the_whole_latent_line_with_an_autoencoder_of_ones_own(inside, tmp_path):
    """Autoencoder, features, training, samples: phantoms of 32x32 in latents of 4x16x16."""
    small = ("--config.dataset.resolution=32", "--config.dataset.size=40", "--config.train.batch_size=8",
             "--config.lr_scheduler.warmup_steps=1", "--config.train.n_steps=2", "--config.train.validation_size=8")
    inside("train_autoencoder.py", "--config=configs/phantom64_autoencoder.py", *small, "--config.nnet.block_out_channels=(8,8)",
           "--config.nnet.norm_num_groups=4", f"--workdir={tmp_path}/autoencoder")
    codec = json.loads((tmp_path / "autoencoder" / "autoencoder" / "config.json").read_text())
    options = ("--config=configs/phantom64_vap_latent.py", *NARROW, *small, f"--config.features.path={tmp_path}/features",
               f"--config.codec.path={tmp_path}/autoencoder/autoencoder")
    inside("scripts/extract_feature.py", *options)
    inside("train_t2i_discrete.py", *options, f"--workdir={tmp_path}/run")
    inside("sample.py", f"--workdir={tmp_path}/run", "--label=nevus", "--n_samples=2", f"--config.sample.path={tmp_path}/out")
    assert Image.open(tmp_path / "out" / "000000_nevus.png").size == (32, 32)
    scaled = inside("sample.py", f"--workdir={tmp_path}/run", "--label=nevus", "--n_samples=1",
                    f"--config.codec.scale_factor={10 * codec['scaling_factor']}", f"--config.sample.path={tmp_path}/other")
    assert scaled and (np.asarray(Image.open(tmp_path / "out" / "000000_nevus.png")) !=
                       np.asarray(Image.open(tmp_path / "other" / "000000_nevus.png"))).any(), "the codec's own factor was used"
