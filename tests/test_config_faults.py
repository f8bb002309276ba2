"""Faults of a config, told whole and before data are opened; what train.mode=uncond implies (gap 10, F24)."""

import json
import re

import pytest
from PIL import Image

from tests.commands import call
from tests.test_cli import folder_of_images
from tests.test_configs import ALL, CONFIGS, NETWORKS
from tests.test_dataset_options import probe  # noqa: F401 (a fixture)

NARROW = ("--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2",
          "--config.train.batch_size=4",
          "--config.train.n_steps=2", "--config.train.preview_interval=0", "--config.train.eval_interval=0",
          "--config.train.workers=0",
          "--config.dataset.resolution=16")
UNLABELLED = [name for name in NETWORKS if name.startswith(("folder",
                                                            "phantom")) and "encoder" not in CONFIGS[name]]


def loose_images(folder, count=24):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 18), (10 * number, 90, 255 - 10 * number)).save(folder / f"{number}.png")
    return folder


def test_faults_of_every_section_are_told_in_one_message(inside, tmp_path):
    """The data do not exist: none of this needs them. Nothing is written."""
    run = tmp_path / "run"
    done = inside("train.py", "--config=configs/folder64_uvit_label.py", "--config.dataset.path=/not/there",
                  f"--workdir={run}",
                  "--config.lr_scheduler.name=cosine", "--config.train.n_steps=50",
                  "--config.sample.algorithm=ddimm",
                  "--config.metrics.algorithm=dpm", "--config.optimizer.name=adamm",
                  "--config.schedule.name=vp",
                  "--config.train.weighting=snr", "--config.denoiser.predicts=noise",
                  "--config.codec.name=pixel",
                  "--config.metrics.names=('fdd',)", "--config.train.typo=3", "--config.dataset.upscael=True",
                  fails=True)
    for words in ("settings are not right", "cannot begin with 2500 steps of warm-up", "'ddimm'", "'dpm'",
                  "'adamm'", "'vp'", "'snr'",
                  "'noise'", "'pixel'", "'fdd'", "config.train has no option 'typo'",
                  'Did you mean "upscale"?'):
        assert words in done.stderr, (words, done.stderr)
    assert "not/there" not in done.stderr and not run.exists()


def test_numbers_are_told_together(inside, tmp_path):
    done = inside("train.py", "--config=configs/folder64_uvit_label.py", "--config.dataset.path=/not/there",
                  f"--workdir={tmp_path}/run", "--config.train.batch_size=0", "--config.optimizer.lr=nan",
                  "--config.train.p_uncond=2.0", "--config.train.save_interval=-1",
                  "--config.dataset.window=(1,)",
                  "--config.optimizer.betas=(0.9,)", "--config.train.typo=3", fails=True)
    for words in ("batch_size is 0", "optimizer.lr is nan", "p_uncond is 2.0", "save_interval is -1",
                  "dataset.window is (1,)",
                  "optimizer.betas is (0.9,)", "'typo'"):
        assert words in done.stderr, (words, done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script, config, option, words", [
    ("train.py", "folder64_uvit_label", "nnet.num_heads=5", "num_heads"),
    ("train.py", "folder64_uvit_label", "nnet.depth=3", "depth"),
    ("train.py", "folder64_uvit_label", "nnet.patch_size=5", "--config.nnet.patch_size"),
    ("train_dit.py", "folder64_dit_label", "nnet.num_heads=7", "num_heads"),
    ("train_dit.py", "folder64_dit_label", "nnet.class_dropout_prob=0.0", "class_dropout_prob"),
    ("train_guided_diffusion.py", "folder64_adm", "nnet.out_channels=5", "out_channels is 5"),
    ("train_class_ldm.py", "folder64_unet_label", "nnet.block_out_channels=(64,128)", "block_out_channels"),
    ("train_class_ldm.py", "folder64_unet_label", "nnet.norm_num_groups=48", "48"),
    ("train_controlnet.py", "folder64_controlnet", "nnet.in_channels=4", "--config.nnet.in_channels=3"),
    ("train_t2i_discrete.py", "folder64_vap", "encoder.name=word", "words"),
])
def test_a_network_that_cannot_be_built_is_told_before_the_data_are_opened(inside, tmp_path, script, config,
                                                                           option, words):
    done = inside(script, f"--config=configs/{config}.py", "--config.dataset.path=/not/there",
                  f"--workdir={tmp_path}/run",
                  f"--config.{option}", fails=True)
    assert words in done.stderr and "not/there" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ALL)
def test_no_config_of_ours_has_a_fault(probe, name):  # noqa: F811
    assert probe(name)["seed"] == CONFIGS[name].seed


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_passes_the_checks_of_a_training(name):
    """The check that builds a network without memory accepts each config."""
    from libs import cli, config_checks, config_options
    config = cli.read_config(f"configs/{name}.py")
    config_options.restore_zeros(config)
    config_options.settle_sizes(config)
    assert config_checks._network_faults(config) == []


@pytest.mark.parametrize("name", UNLABELLED)
def test_uncond_implies_what_it_implies(probe, name):  # noqa: F811
    config = probe(name, "--config.train.mode=uncond")
    assert config["nnet"].get("num_classes", -1) == -1
    assert config["sample"].get("guidance", 1.0) == 1.0 and config["sample"].get("scale", 0.0) == 0.0
    assert not config["train"].get("balanced", False)


def test_uncond_of_published_configs_sets_their_scale(probe):  # noqa: F811
    config = probe("imagenet256_uvit_large", "--config.train.mode=uncond", "--config.dataset.path=/data")
    assert config["sample"]["scale"] == 0.0 and config["nnet"]["num_classes"] == -1


def test_uncond_is_logged_in_one_line(inside, tmp_path):
    data, run = loose_images(tmp_path / "data"), tmp_path / "run"
    readme = ("train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={data}", *NARROW,
              f"--workdir={run}")
    done = inside(*readme, fails=True)
    advice = re.findall(r"--config\.\S+", done.stderr)
    assert "--config.train.mode=uncond" in advice, done.stderr
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1
    assert not (run / "preflight.json").exists()  # before the images are decoded
    done = inside(*readme, "--config.train.mode=uncond")
    said = [line for line in done.stderr.splitlines() if "train.mode=uncond" in line]
    assert len(said) == 1 and "nnet.num_classes=-1" in said[0] and "sample.guidance=1.0" in said[0]
    kept = json.loads((run / "config.json").read_text())
    assert kept["nnet"]["num_classes"] == -1 and kept["sample"]["guidance"] == 1.0
    inside("sample.py", f"--workdir={run}", "--n_samples=2", "--config.sample.sample_steps=2",
           f"--config.sample.path={tmp_path}/s")


@pytest.mark.parametrize("option", ["nnet.num_classes=4", "sample.guidance=2.0"])
def test_uncond_against_what_was_typed_names_both(probe, option):  # noqa: F811
    answer = probe("folder64_uvit_label", "--config.train.mode=uncond", f"--config.{option}", fails=True)
    assert "--config.train.mode=uncond" in answer and f"--config.{option}" in answer
    assert "settings are" not in answer, "one message"


@pytest.mark.parametrize("options", [("--config.nnet.num_classes=-1", "--config.sample.guidance=1."),
                                     ("--config.sample.guidance=1.0",), ("--config.nnet.num_classes=-1",)])
def test_uncond_with_the_same_typed_is_accepted(probe, options):  # noqa: F811
    config = probe("folder64_uvit_label", "--config.train.mode=uncond", *options)
    assert (config["nnet"]["num_classes"], config["sample"]["guidance"]) == (-1, 1.0)


def test_a_network_of_classes_says_which_one_takes_texts_alone(probe, inside, tmp_path):  # noqa: F811
    vap = ("train_t2i_discrete.py", "--config=configs/folder64_vap.py", "--config.dataset.path=/not/there",
           "--config.train.mode=uncond",
           f"--workdir={tmp_path}/run")
    assert "--config.nnet.name=uvit_t2i" in inside(*vap, fails=True).stderr
    config = probe("folder64_vap", "--config.train.mode=uncond", "--config.nnet.name=uvit_t2i")
    assert "num_classes" not in config["nnet"]
    assert config["sample"]["guidance"] == 2.0, "texts are guided all the same"


def test_labels_left_out_are_named_as_they_are_typed(inside, tmp_path):
    """mode=cond and num_classes=-1: what is advised works when typed."""
    data = folder_of_images(tmp_path / "data", each=12)
    options = ("--config=configs/folder64_uvit_label.py", f"--config.dataset.path={data}", *NARROW,
               f"--workdir={tmp_path}/run",
               "--config.nnet.num_classes=-1")
    done = inside("train.py", *options, fails=True)
    assert "--config.nnet.num_classes=0" in done.stderr and "--config.train.mode=uncond" in done.stderr
    call("train.py", *options[:-1], "--config.nnet.num_classes=0")


@pytest.mark.parametrize("option, words", [
    ("train.attention=flash", "config.train.attention is 'flash'; known: auto, sdpa, math, xformers"),
    ("train.mixed_precision=bf8", "config.train.mixed_precision is 'bf8'"),
    ("metrics.features=('inceptio',)", "Did you mean 'inception'"),
    ("codec.name=pixel", "did you mean 'pixels'"),
    ("train.mode=Cond", "known: cond, uncond"), ("sample.labels=balancd", "known: data, balanced")])
def test_names_are_checked_before_the_data_are_opened(inside, tmp_path, option, words):
    done = inside("train.py", "--config=configs/folder64_uvit_label.py", "--config.dataset.path=/not/there",
                  f"--workdir={tmp_path}/run", f"--config.{option}", fails=True)
    assert words in done.stderr and "not/there" not in done.stderr and not (tmp_path / "run").exists()


def test_texts_without_labels_train_by_what_the_messages_say(inside, tmp_path):
    """A table of files and texts with folder64_vap: each message is followed until the training runs."""
    loose_images(tmp_path / "images")
    rows = [f"{tmp_path}/images/{number}.png,finding {number % 3}" for number in range(24)]
    (tmp_path / "table.csv").write_text("\n".join(["path,Text", *rows]))
    command = ["--config=configs/folder64_vap.py", "--config.dataset.name=path_text",
               f"--config.dataset.path={tmp_path}/table.csv",
               *NARROW, f"--config.features.path={tmp_path}/features", "--config.train.validation_interval=0",
               "--config.lr_scheduler.warmup_steps=1"]
    answer = inside("scripts/extract_feature.py", *command, fails=True).stderr
    assert "--config.dataset.require=\"('text',)\"" in answer, answer
    inside("scripts/extract_feature.py", *command, "--config.dataset.require=('text',)")
    command += [f"--workdir={tmp_path}/run"]
    answer = inside("train_t2i_discrete.py", *command, "--config.dataset.require=('text',)",
                    fails=True).stderr
    assert "--config.train.mode=uncond" in answer, answer
    answer = inside("train_t2i_discrete.py", *command, "--config.train.mode=uncond", fails=True).stderr
    assert "--config.nnet.name=uvit_t2i" in answer, answer
    done = inside("train_t2i_discrete.py", *command, "--config.train.mode=uncond",
                  "--config.nnet.name=uvit_t2i")
    assert "dataset.require=('text',)" in done.stderr and "train.balanced=False" in done.stderr
    inside("sample.py", f"--workdir={tmp_path}/run", "--prompt=finding 1", "--n_samples=1",
           "--config.sample.sample_steps=2",
           f"--config.sample.path={tmp_path}/s")
