"""Options that config files do not list, other data sets by name, sizes said once, what train.mode=uncond implies."""

import importlib
import json
import re

import numpy as np
import pytest
from PIL import Image

import train
import train_class_ldm
import train_dit
import train_guided_diffusion
from libs import data
from libs.config_options import called, codec_shape, expand_home
from tests.command_lines import config_of
from tests.conftest import ROOT

FOLDERS = sorted(path.name for path in (ROOT / "configs").glob("folder*.py"))
OWN = ("folder", "image_mask", "path_text")
TINY = ("--config.train.n_steps=2", "--config.train.batch_size=2", "--config.train.workers=0", "--config.train.eval_interval=0",
        "--config.train.preview_interval=0", "--config.train.validation_size=2", "--config.nnet.embed_dim=32",
        "--config.nnet.depth=2", "--config.nnet.num_heads=2", "--config.dataset.resolution=16", "--config.lr_scheduler.warmup_steps=1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of eight images, and a folder of 16 loose ones."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(16):
        for name in ("classes/" + "ab"[number % 2], "loose"):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def typed(value):
    """An option's value as one types it."""
    return repr(tuple(value)) if isinstance(value, (tuple, list)) else str(value)


@pytest.mark.parametrize("file", FOLDERS)
def test_every_option_of_a_data_set_can_be_given_with_every_config_of_own_images(file):
    listed = importlib.import_module(f"configs.{file.removesuffix('.py')}").get_config().dataset
    for name in OWN:
        defaults = data.list_options(name)
        options = [key for key, value in defaults.items() if isinstance(value, (str, bool, int, float, tuple))]
        assert {"upscale", "follow_links", "min_per_class", "unlisted_files", "doubled_files", "classes", "crop"} <= set(options)
        given = [f"--config.dataset.{key}={typed(defaults[key])}" for key in options]
        config = config_of(f"configs/{file}", f"--config.dataset.name={name}", *given)
        assert {key: config.dataset[key] for key in options} == {key: defaults[key] for key in options}
        assert config.dataset.resolution == listed.resolution
        beside = set(listed) if name == listed.name else set()  # which data.get lets be, at their defaults
        assert set(config.dataset) <= {"name", *defaults} | beside


def test_values_have_the_type_of_the_default_and_names_are_suggested():
    def with_option(text):
        return config_of("configs/folder64_uvit_label.py", f"--config.dataset.{text}")

    assert with_option("upscale=True").dataset.upscale is True
    assert with_option("classes=('b','a')").dataset.classes == ("b", "a")
    assert with_option("cache_gb=0.5").dataset.cache_gb == 0.5
    for text, words in (("upscal=True", "config.dataset has no option 'upscal'.*Did you mean \"upscale\""),
                        ("min_per_class=few", "min_per_class=few.*a whole number is needed"),
                        ("image_prefix=a", "config.dataset has no option 'image_prefix'")):
        with pytest.raises(ValueError, match=words):
            with_option(text)


@pytest.mark.parametrize("file", [name for name in FOLDERS if "downstream" not in name and "segmentation" not in name])
@pytest.mark.parametrize("name", ["isic2018", "isic2019", "chestxray14", "path_text", "image_mask"])
def test_another_data_set_by_its_name_alone(file, name):
    takes = set(data.list_options(name))
    config = config_of(f"configs/{file}", f"--config.dataset.name={name}", "--config.dataset.path=x")
    assert set(config.dataset) <= {"name", *takes} and config.dataset.name == name
    assert config.dataset.path == "x" and config.dataset.split == "train"


def test_an_option_of_another_data_set_is_dropped_at_its_default_and_refused_where_it_is_typed():
    with pytest.raises(ValueError, match="config.dataset.holdout=0.2: the data set 'isic2018' has no option 'holdout'"):
        config_of("configs/folder64_uvit_label.py", "--config.dataset.name=isic2018", "--config.dataset.holdout=0.2")
    kept = config_of("configs/folder64_uvit_label.py", "--config.dataset.name=chestxray14", "--config.dataset.single_label=True")
    assert (kept.dataset.holdout, kept.dataset.single_label) == (0.1, True)
    vap = config_of("configs/folder64_vap.py", "--config.dataset.name=path_text")
    assert vap.dataset.doubled_files == "keep", "an image may have several texts there"


def test_sections_that_are_calls_take_what_they_call():
    """What train_autoencoder.py says to type works with a config on pixels, and so do networks, encoders and schedules."""
    config = config_of("configs/folder64_unet_label.py", "--config.codec.name=kl", "--config.codec.path=some/autoencoder")
    assert dict(config.codec) == {"name": "kl", "path": "some/autoencoder"}
    assert (config.nnet.sample_size, config.nnet.in_channels) == (8, 4), "as of Stable Diffusion's, where nothing is there to read"
    config = config_of("configs/folder64_vap.py", "--config.encoder.name=hf", "--config.encoder.path=a/b", "--config.encoder.dtype=bf16")
    assert set(config.encoder) == {"name", "path", "max_length", "dtype"}
    config = config_of("configs/folder64_uvit_label.py", "--config.nnet.skip=False", "--config.schedule.beta_max=10",
                       "--config.denoiser.learned_var=False")
    assert (config.nnet.skip, config.schedule.beta_max, config.denoiser.learned_var) == (False, 10.0, False)
    config = config_of("configs/folder64_uvit_label.py", "--config.schedule.name=linear", "--config.schedule.steps=500")
    assert dict(config.schedule) == {"name": "linear", "steps": 500}
    assert config_of("configs/folder64_uvit_label.py", "--config.optimizer.eps=1e-6").optimizer.eps == 1e-6
    assert config_of("configs/folder64_uvit_label.py", "--config.sample.ema_rate=0.9").sample.ema_rate == 0.9
    assert "encoder" not in config and called("nnet", {"name": "nothing"}) is None


def test_a_config_of_an_earlier_run_takes_the_same_options(tmp_path):
    content = json.loads(config_of("configs/folder64_uvit_label.py").to_json())
    del content["dataset"]["drop_classes"], content["dataset"]["window"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = config_of("", f"--workdir={tmp_path}", "--config.dataset.window=(1,200)", "--config.dataset.crop=pad")
    assert (config.dataset.window, config.dataset.crop) == ((1, 200), "pad") and "drop_classes" not in config.dataset


# name of the config, what its script reads, and the fields of size and of channels
FAMILIES = {"folder64_uvit_label": (train, "img_size", "in_chans"), "folder64_vap": (None, "img_size", "in_chans"),
            "folder64_adm": (train_guided_diffusion, "image_size", "in_channels"),
            "folder64_unet_label": (train_class_ldm, "sample_size", "in_channels"),
            "folder64_dit_label": (train_dit, "input_size", "in_channels"),
            "folder64_controlnet": (None, "sample_size", "in_channels"),
            "folder64_adm_classifier": (None, "image_size", "in_channels")}


@pytest.mark.parametrize("name", FAMILIES)
def test_size_and_channels_are_said_once(name):
    script, side, channels = FAMILIES[name]
    assert re.search(rf"\b{side}=0\b", (ROOT / "configs" / f"{name}.py").read_text())
    fresh = importlib.import_module(f"configs.{name}").get_config()
    assert (fresh.nnet[side], fresh.nnet[channels]) == (64, 3), "who opens the file reads numbers"
    config = config_of(f"configs/{name}.py", "--config.dataset.resolution=128", "--config.dataset.channels=1",
                       settings=script.SETTINGS if script else ())
    assert (config.nnet[side], config.nnet[channels], config.get("codec", {}).get("channels", 1)) == (128, 1, 1)
    again = config_of(f"configs/{name}.py", f"--config.nnet.{side}=0", f"--config.nnet.{channels}=0")
    assert (again.nnet[side], again.nnet[channels]) == (64, 3)
    with pytest.raises(ValueError, match=rf"config.nnet.{side} is 32, but the images have 64 pixels a side: set "
                                         rf"--config.nnet.{side}=64 .* or --config.dataset.resolution=32"):
        config_of(f"configs/{name}.py", f"--config.nnet.{side}=32")
    with pytest.raises(ValueError, match=rf"config.nnet.{channels} is 1, but the images have 3 channels: set "
                                         rf"--config.nnet.{channels}=3 .* or --config.dataset.channels=1"):
        config_of(f"configs/{name}.py", f"--config.nnet.{channels}=1")


def test_latents_have_the_size_of_the_data_by_the_codec(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"latent_channels": 16, "block_out_channels": [8, 16, 32]}))
    options = (f"--config.codec.path={tmp_path}", "--config.dataset.resolution=128")
    config = config_of("configs/folder256_unet_label.py", *options)
    assert codec_shape(config) == ((16, 4), True) and (config.nnet.sample_size, config.nnet.in_channels) == (32, 16)
    with pytest.raises(ValueError, match=r"config.nnet.sample_size is 16.*latents of 32.*--config.nnet.sample_size=32"):
        config_of("configs/folder256_unet_label.py", *options, "--config.nnet.sample_size=16")
    hub = config_of("configs/folder256_controlnet.py", "--config.dataset.resolution=512")
    assert (hub.nnet.sample_size, hub.nnet.in_channels) == (64, 4)


def test_published_configs_say_their_sizes_and_a_mismatch_ends_before_the_run_folder(inside, tmp_path):
    done = inside("train.py", "--config=configs/cifar10_uvit_small.py", f"--workdir={tmp_path / 'run'}", "--config.nnet.img_size=64",
                  "--config.nnet.in_chans=1", fails=True)
    assert "config.nnet.img_size is 64, but the images have 32 pixels a side: set --config.nnet.img_size=32" in done.stderr
    assert "--config.dataset.resolution" not in done.stderr, "CIFAR-10 has one size"
    assert "--config.nnet.in_chans=3" in done.stderr and not (tmp_path / "run").exists()


def test_a_grey_run_of_another_size_trains_and_samples_without_its_data(inside, tmp_path, pictures):
    inside("train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={pictures / 'classes'}", *TINY,
           "--config.dataset.channels=1", "--config.dataset.crop=pad", f"--workdir={tmp_path}")
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["nnet"]["img_size"], content["nnet"]["in_chans"], content["dataset"]["crop"]) == (16, 1, "pad")
    assert list(content["nnet"])[:4] == ["name", "img_size", "patch_size", "in_chans"]
    inside("sample.py", f"--workdir={tmp_path}", "--label=a", "--n_samples=1", "--config.sample.sample_steps=2",
           "--config.dataset.path=nowhere")
    image = next((tmp_path / "images_a_seed0").glob("*a*.png"))
    assert Image.open(image).size == (16, 16) and Image.open(image).mode == "L"


def test_unlabelled_images_and_the_readme_s_first_command(inside, tmp_path, pictures):
    """One message, before anything is decoded, that names one option; typed, it trains."""
    command = ["train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={pictures / 'loose'}", *TINY,
               f"--workdir={tmp_path / 'run'}"]
    done = inside(*command, fails=True)
    message = done.stderr.strip().splitlines()[-1]
    options = re.findall(r"--config\S+", message)
    assert options == ["--config.train.mode=uncond"] and not (tmp_path / "run" / "preflight.json").exists()
    done = inside(*command, *options)
    assert "train.mode=uncond: nnet.num_classes=-1, sample.guidance=1.0" in done.stderr
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (content["nnet"]["num_classes"], content["sample"]["guidance"]) == (-1, 1.0)
    inside("sample.py", f"--workdir={tmp_path / 'run'}", "--n_samples=1", "--config.sample.sample_steps=2")


@pytest.mark.parametrize("name", ["folder64_adm", "folder64_dit_label", "folder64_unet_label", "folder64_controlnet",
                                  "imagenet64_uvit_mid"])
def test_uncond_implies_no_labels_and_no_guidance_in_every_family(name):
    config = config_of(f"configs/{name}.py", "--config.train.mode=uncond")
    assert config.nnet.num_classes == -1
    assert config.sample.get("guidance", 1.0) == 1.0 and config.sample.get("scale", 0.0) == 0.0
    with pytest.raises(ValueError, match="--config.train.mode=uncond trains without labels, which .*--config.nnet.num_classes=3"):
        config_of(f"configs/{name}.py", "--config.train.mode=uncond", "--config.nnet.num_classes=3")
    guidance = "scale=1.5" if "scale" in config.sample else "guidance=2.5"
    with pytest.raises(ValueError, match=rf"--config.train.mode=uncond .*--config.sample.{guidance}"):
        config_of(f"configs/{name}.py", "--config.train.mode=uncond", f"--config.sample.{guidance}")


def test_guidance_of_texts_stays_without_labels():
    config = config_of("configs/mscoco_uvit_small.py", "--config.train.mode=uncond")
    assert config.sample.scale == importlib.import_module("configs.mscoco_uvit_small").get_config().sample.scale > 0


def test_faults_of_a_config_are_told_together():
    with pytest.raises(ValueError) as caught:
        config_of("configs/folder64_uvit_label.py", "--config.lr_scheduler.name=cosine", "--config.train.n_steps=100",
                  "--config.sample.algorithm=ddimm", "--config.metrics.names=('fidd',)", "--config.nnet.img_size=30",
                  "--config.schedule.name=vp", "--config.train.mode=condition", settings=train.SETTINGS)
    for words in ("settings are not right", "cannot begin with 2500 steps of warm-up", "unknown sampling algorithm 'ddimm'",
                  "unknown metrics ['fidd']", "config.nnet.img_size is 30", "patch_size", "vpsde", "known: cond, uncond"):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="(?s)2 settings.*train.batch_size is 0.*optimizer.betas is"):
        config_of("configs/folder64_uvit_label.py", "--config.train.batch_size=0", "--config.optimizer.betas=0.9")
    with pytest.raises(ValueError, match="config.train has no option 'typo'"):
        config_of("configs/folder64_uvit_label.py", "--config.train.typo=1", settings=train.SETTINGS)


def test_settings_that_a_script_does_not_read_are_refused_and_those_that_it_reads_are_taken():
    config = config_of("configs/folder64_uvit_label.py", "--config.train.validation_split=test", settings=train.SETTINGS)
    assert config.train.validation_split == "test"
    with pytest.raises(ValueError, match="config.train has no option 'init_without'"):
        config_of("configs/folder64_uvit_label.py", "--config.train.init_without=('a',)", settings=train.SETTINGS)
    assert config_of("configs/cifar10_uvit_small.py", "--config.train.init=x", settings=train.SETTINGS).train.init == "x"


@pytest.mark.parametrize("option, words", [
    ("--config.optimizer.betas=0.9", r"config.optimizer.betas is \(0.9,\); it must be two numbers in \[0, 1\)"),
    ("--config.optimizer.betas=(0.9,1.5)", "two numbers in"), ("--config.optimizer.betas=high", "two numbers in"),
    ("--config.dataset.window=40", r"config.dataset.window is \(40,\); it must be \(low, high\)"),
    ("--config.sample.guidance_interval=0.5", "guidance_interval is .*from, to"),
    ("--config.nnet.channel_mult=wide", "config.nnet.channel_mult is .*numbers"),
    ("--config.nnet.attention_resolutions=('a','b')", "config.nnet.attention_resolutions is .*numbers"),
    ("--config.metrics.features=3", "config.metrics.features is .*texts")])
def test_tuples_of_another_length_or_type_name_the_option(option, words):
    with pytest.raises(ValueError, match=words):
        config_of("configs/folder64_adm.py", option)
    config_of("configs/folder64_adm.py", "--config.nnet.channel_mult=2", "--config.dataset.window=(0,9)")


def test_widths_and_blocks_go_together():
    with pytest.raises(ValueError, match=r"block_out_channels is \(64,\) and config.nnet.down_block_types has 4 entries"):
        config_of("configs/folder64_unet_label.py", "--config.nnet.block_out_channels=64")


@pytest.mark.parametrize("text, expected", [
    ("~", "H"), ("~/x", "H/x"), ("a,~/b, ~/c", "a,H/b, H/c"), ("inception@~/w.pth", "inception@H/w.pth"),
    ("classifier:~/c", "classifier:H/c"), ("a~/b", "a~/b"), ("about ~5 mm", "about ~5 mm"), ("x/~/y", "x/~/y"), ("", "")])
def test_home_folders(text, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand_home(text) == expected.replace("H", "/home/someone")


def test_home_folders_of_every_kind_of_option(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    config = config_of("configs/folder64_vap.py", "--config.dataset.path=~/d", "--config.train.init=~/i", "--config.sample.path=~/s",
                       "--config.sample.npz=~/n.npz", "--config.filter.path=~/f", "--config.metrics.fid_stat=~/m.npz",
                       "--config.metrics.features=('inception@~/w.pth','colour')", "--config.features.path=~/t",
                       "--config.encoder.name=hf", "--config.encoder.path=~/e", "--config.dataset.classes=('a',)")
    assert (config.dataset.path, config.train.init, config.sample.path, config.sample.npz) == ("/h/d", "/h/i", "/h/s", "/h/n.npz")
    assert (config.filter.path, config.metrics.fid_stat, config.features.path, config.encoder.path) == ("/h/f", "/h/m.npz", "/h/t", "/h/e")
    assert config.metrics.features == ("inception@/h/w.pth", "colour")
    adm = config_of("configs/folder64_adm.py", "--config.sample.gradient.classifier=~/c")
    assert adm.sample.gradient.classifier == "/h/c"


def test_home_folders_of_scripts(inside, tmp_path, monkeypatch, pictures):
    home = tmp_path / "home"
    home.mkdir()
    env = {"HOME": str(home)}
    inside("train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={pictures / 'classes'}", *TINY,
           "--workdir=~/run", env=env, cwd=tmp_path)
    inside("sample.py", "--workdir=~/run", "--label=a", "--n_samples=1", "--config.sample.sample_steps=2",
           "--config.sample.path=~/made", "--nnet_path=~/run", env=env, cwd=tmp_path)
    inside("scripts/make_report.py", "--workdir=~/run", env=env, cwd=tmp_path)
    inside("scripts/export_images.py", "--config=configs/phantom32_dit_label.py", "--config.dataset.size=4", "--output=~/out",
           env=env, cwd=tmp_path)
    assert (home / "run" / "report.html").is_file() and list((home / "made").glob("*.png")) and (home / "out").is_dir()
    assert not (tmp_path / "~").exists()
