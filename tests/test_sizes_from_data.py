"""Image size and channels are given once, as options of the data (issue 15: gap 11, F24).

0 in the sizes of a network and in the channels of a codec means those of the data. The run keeps numbers, so
that it is sampled where its data are not.
"""

import json

import numpy as np
import pytest
from PIL import Image

from libs import backbones
from tests.commands import call
from tests.test_configs import ALL, CONFIGS, NETWORKS
from tests.test_dataset_options import probe  # noqa: F401 (a fixture)

OWN = [name for name in NETWORKS if name.startswith("folder")]
LOOP = ("--config.train.batch_size=4", "--config.train.n_steps=2", "--config.lr_scheduler.warmup_steps=1",
        "--config.train.workers=0",
        "--config.train.preview_interval=0", "--config.train.eval_interval=0",
        "--config.train.validation_interval=2",
        "--config.train.save_interval=2", "--config.dataset.unlisted_files=ignore")
TRUNK = ("--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2")
UNET = ("--config.nnet.block_out_channels=(16,16,32,32)", "--config.nnet.norm_num_groups=8",
        "--config.nnet.cross_attention_dim=16",
        "--config.nnet.attention_head_dim=2")
ADM = ("--config.nnet.model_channels=32", "--config.nnet.channel_mult=(1,1)",
       "--config.nnet.attention_resolutions=(2,)")
# family: script, config, its options at tiny width, names of side and channels
FAMILIES = {
    "uvit": ("train.py", "folder64_uvit_label", TRUNK, "img_size", "in_chans"),
    "vap": ("train_t2i_discrete.py", "folder64_vap", TRUNK, "img_size", "in_chans"),
    "adm": ("train_guided_diffusion.py", "folder64_adm", ADM, "image_size", "in_channels"),
    "dit": ("train_dit.py", "folder64_dit_label", ("--config.nnet.hidden_size=32", *TRUNK[1:]), "input_size",
            "in_channels"),
    "ldm": ("train_class_ldm.py", "folder64_unet_label", UNET, "sample_size", "in_channels"),
    "controlnet": ("train_controlnet.py", "folder64_controlnet",
                   (*UNET, "--config.dataset.mask_values=(0,255)"), "sample_size",
                   "in_channels"),
}


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A folder of 24 grey images of 40 x 40 pixels with labels, texts and masks, and where runs go."""
    root, rng = tmp_path_factory.mktemp("sizes"), np.random.default_rng(0)
    (root / "data").mkdir()
    rows = ["file_name,label,text,mask_file_name"]
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (40, 40)).astype("uint8")).save(root / "data" / f"{number}.png")
        Image.fromarray((rng.integers(0, 2,
                                      (40,
                                       40)) * 255).astype("uint8")).save(root / "data" / f"{number}_mask.png")
        colour = "red" if number % 3 else "blue"
        rows.append(f"{number}.png,{'ab'[number % 2]},a {colour} thing,{number}_mask.png")
    (root / "data" / "metadata.csv").write_text("\n".join(rows))
    return root


def train(root, family, *options, fails=False, workdir=""):
    script, config, narrow, *_ = FAMILIES[family]
    options = (f"--config=configs/{config}.py", f"--config.dataset.path={root}/data", *narrow, *LOOP,
               *options)
    if family == "vap":
        options = (*options, f"--config.features.path={root}/features")
        if not fails and not (root / "features").exists():
            call("scripts/extract_feature.py", *options)
    if family == "controlnet":
        options = (*options, f"--config.train.ldm={root}/ldm")
    return call(script, *options, f"--workdir={workdir or root / family}", fails=fails)


@pytest.mark.parametrize("family", FAMILIES)
def test_resolution_and_channels_are_enough_for_each_family(grey, family):
    """Two options train; the run is sampled where its data are gone, at that size, in grey."""
    if family == "controlnet" and not (grey / "ldm" / "ckpts").is_dir():
        train(grey, "ldm", "--config.dataset.resolution=32", "--config.dataset.channels=1")
    run, (*_, side, channels) = grey / family, FAMILIES[family]
    if not (run / "ckpts").is_dir():
        train(grey, family, "--config.dataset.resolution=32", "--config.dataset.channels=1")
    config = json.loads((run / "config.json").read_text())
    assert (config["nnet"][side], config["nnet"][channels]) == (32, 1)
    assert config["codec"].get("channels", 1) == 1
    more = {"vap": ("--prompt=a red thing", "--label=a"),
            "controlnet": ("--label=a", f"--mask_path={grey}/gone/0_mask.png")}
    (grey / "data").rename(grey / "gone")
    try:
        call("sample.py", f"--workdir={run}", "--n_samples=2", "--config.sample.sample_steps=2",
             f"--config.sample.path={run}/samples",
             *more.get(family, ("--label=a",)))
    finally:
        (grey / "gone").rename(grey / "data")
    images = [Image.open(path) for path in (run / "samples").rglob("*.png")]
    assert sum(image.size == (32, 32) and image.mode == "L" for image in images) >= 2


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("size, channels", [(64, 1), (128, 1), (256, 3)])
def test_every_config_of_own_images_follows_its_data(probe, name, size, channels):  # noqa: F811
    config = probe(name, f"--config.dataset.resolution={size}", f"--config.dataset.channels={channels}",
                   "--config.dataset.path=/x")
    latents = CONFIGS[name].codec.name != "pixels"
    side = next(value for key,
                value in config["nnet"].items() if key in ("img_size", "image_size", "input_size",
                                                           "sample_size"))
    depth = next(value for key, value in config["nnet"].items() if key in ("in_chans", "in_channels"))
    assert (side, depth) == ((size // 8, 4) if latents else (size, channels))
    assert config["codec"].get("channels", channels) == channels


@pytest.mark.parametrize("name", NETWORKS)
def test_a_config_opened_as_a_module_has_numbers(name):
    """Notebooks call get_config() and build the network of it: no 0 is left there."""
    nnet = CONFIGS[name].nnet
    assert all(nnet[key] > 0 for key in ("img_size", "image_size", "input_size", "sample_size", "in_chans",
                                         "in_channels")
               if key in nnet)
    assert name not in OWN or "path" in nnet or nnet.name in backbones.NAMES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_that_does_not_fit_ends_with_the_line_to_type(grey, tmp_path, family):
    """Before a run folder is written; typed, the line trains (uvit), or is what the config holds."""
    *_, side, channels = FAMILIES[family]
    options = ("--config.dataset.resolution=32", "--config.dataset.channels=1", f"--config.nnet.{side}=16")
    answer = train(grey, family, *options, fails=True, workdir=tmp_path / "run").stderr
    assert f"--config.nnet.{side}=32" in answer and "--config.dataset.resolution=16" in answer
    options = ("--config.dataset.resolution=32", "--config.dataset.channels=1", f"--config.nnet.{channels}=3")
    answer = train(grey, family, *options, fails=True, workdir=tmp_path / "run").stderr
    assert f"--config.nnet.{channels}=1" in answer and "--config.dataset.channels=3" in answer
    assert not (tmp_path / "run").exists()
    if family == "uvit":
        train(grey, family, *options, f"--config.nnet.{channels}=1", workdir=tmp_path / "run")


def test_a_published_config_with_own_images_says_both_sizes(grey, tmp_path):
    done = call("train.py", "--config=configs/celeba64_uvit_small.py", "--config.dataset.name=folder", *LOOP,
                f"--config.dataset.path={grey}/data", "--config.dataset.resolution=32",
                "--config.dataset.channels=1", *TRUNK,
                f"--workdir={tmp_path}/run", fails=True)
    assert "--config.nnet.img_size=32" in done.stderr and "--config.nnet.in_chans=1" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config, script",
                         [("phantom32_uvit_label", "train.py"), ("phantom32_dit_label", "train_dit.py"),
                                            ("phantom32_adm", "train_guided_diffusion.py")])
def test_phantoms_of_another_size_need_one_option(probe, config, script):  # noqa: F811
    nnet = probe(config, "--config.dataset.resolution=64")["nnet"]
    assert next(nnet[key] for key in ("img_size", "image_size", "input_size") if key in nnet) == 64


def test_latents_follow_the_autoencoder_in_use(probe, tmp_path):  # noqa: F811
    """An autoencoder of three widths halves images twice and gives latents of its own channels."""
    (tmp_path / "config.json").write_text(json.dumps({"block_out_channels": [8, 8, 16],
                                                      "latent_channels": 6}))
    nnet = probe("folder256_unet_label", f"--config.codec.path={tmp_path}", "--config.dataset.path=/x",
                 "--config.dataset.resolution=128")["nnet"]
    assert (nnet["sample_size"], nnet["in_channels"]) == (32, 6)


def test_a_number_that_is_typed_stays(probe):  # noqa: F811
    answer = probe("folder64_uvit_label", "--config.nnet.img_size=32", fails=True)
    assert "--config.nnet.img_size=64" in answer and "--config.dataset.resolution=32" in answer
    assert probe("folder64_uvit_label", "--config.nnet.img_size=0",
                 "--config.dataset.resolution=96")["nnet"]["img_size"] == 96


def test_zero_works_with_any_config(probe):  # noqa: F811
    nnet = probe("celeba64_uvit_small", "--config.nnet.img_size=0", "--config.nnet.in_chans=0",
                 "--config.dataset.resolution=32",
                 "--config.dataset.channels=1")["nnet"]
    assert (nnet["img_size"], nnet["in_chans"]) == (32, 1)


@pytest.mark.parametrize("name", ALL)
def test_sizes_settle_once(probe, name, tmp_path):  # noqa: F811
    """The config.json of a run, read again, is itself."""
    config = probe(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert probe(f"configs/from_run.py:{tmp_path}/config.json") == config
