"""The command line and the configs: what is accepted, what is refused and with which words."""

import importlib
import math
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from libs import backbones, cli, codecs, diffusion

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*_*.py") if path.stem != "from_run")
SECTIONS = ["seed", "train", "optimizer", "lr_scheduler", "nnet", "schedule", "denoiser", "codec", "dataset", "sample",
            "metrics"]


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_and_ordered(name):
    config = load(name)
    cli.check(config)
    assert [key for key in config if key in SECTIONS] == sorted(config, key=SECTIONS.index)
    diffusion.schedule(**config.schedule)
    codecs.get(**config.codec)
    source = (Path(__file__).parent.parent / "configs" / f"{name}.py").read_text()
    assert f"configs/{name}.py" in source.split('"""')[1], "the docstring gives the exact command"


def test_configs_are_the_published_ones():
    """Table 1.2 of the specification (U-ViT's own files)."""
    rows = {
        "cifar10_uvit_small": (32, 2, 512, 12, 8, -1, False, 128, 500_000, 2e-4, (.99, .999), 2500, 1000, 500),
        "celeba64_uvit_small": (64, 4, 512, 12, 8, -1, False, 128, 500_000, 2e-4, (.99, .99), 5000, 1000, 500),
        "imagenet64_uvit_mid": (64, 4, 768, 16, 12, 1000, True, 1024, 300_000, 3e-4, (.99, .99), 5000, 50, 200),
        "imagenet64_uvit_large": (64, 4, 1024, 20, 16, 1000, True, 1024, 300_000, 3e-4, (.99, .99), 5000, 50, 200)}
    for name, expected in rows.items():
        c = load(name)
        n = c.nnet
        found = (n.img_size, n.patch_size, n.embed_dim, n.depth, n.num_heads, n.num_classes, n.use_checkpoint,
                 c.train.batch_size, c.train.n_steps, c.optimizer.lr, c.optimizer.betas, c.lr_scheduler.warmup_steps,
                 c.sample.sample_steps, c.sample.mini_batch_size)
        assert found == expected, name
        assert (c.seed, c.optimizer.weight_decay, c.train.ema_rate, c.sample.n_samples) == (1234, 0.03, 0.9999, 50_000)
        assert c.sample.algorithm == ("dpm_solver" if "imagenet" in name else "euler_maruyama_sde")


def test_published_networks_have_their_published_size():
    import torch
    with torch.device("meta"):
        for name, millions in (("cifar10_uvit_small", 44.255328), ("celeba64_uvit_small", 44.292228),
                               ("imagenet64_uvit_mid", 130.940292), ("imagenet64_uvit_large", 286.827652)):
            net = backbones.get(**load(name).nnet)
            assert sum(p.numel() for p in net.parameters()) == round(millions * 1e6)


@pytest.mark.parametrize("path, value, words", [
    ("optimizer.lr", math.nan, "config.optimizer.lr is nan"), ("optimizer.lr", -1.0, "must be greater than 0"),
    ("train.n_steps", -5, "config.train.n_steps is -5; it must be greater than 0"), ("train.batch_size", 0, "greater than 0"),
    ("train.p_uncond", 1.5, "must lie between 0 and 1"), ("train.log_interval", -1, "must not be negative"),
    ("optimizer.weight_decay", math.inf, "a finite number is needed")])
def test_numbers_that_no_run_can_mean(path, value, words):
    config = load("phantom32_uvit_label")
    section, key = path.split(".")
    config[section][key] = value
    with pytest.raises(ValueError, match=re.escape(words)):
        cli.check(config)


def test_none_is_refused():
    with pytest.raises(ValueError, match="config.a.b is None.*use '' or 0 for off"):
        cli.check(ConfigDict({"a": {"b": None}}))


TINY = ("--config.train.n_steps=2", "--config.train.eval_interval=0", "--config.train.preview_interval=0",
        "--config.train.validation_split=", "--config.dataset.size=64")


@pytest.mark.parametrize("options, words", [
    (("--config.trian.lr=3",), 'Did you mean "train"'),
    (("--config.train.typo=3",), "typo"),
    (("--config.optimizer.lr=abc",), "optimizer.lr"),
    (("--config.train.n_steps=1.5",), "n_steps"),
    (("--config.optimizer.lr=nan",), "config.optimizer.lr is nan"),
    (("--config.nnet.name=uvitt",), "did you mean 'uvit'"),
    (("--config.nnet.num_heads=5",), "num_heads"),
    (("--config.nnet.img_size=30",), "patch_size"),
    (("--config.nnet.img_size=64",), "64"),
    (("--config.dataset.name=phantom",), "phantoms"),
    (("--config.dataset.split=tset",), "test"),
    (("--config.schedule.name=vp",), "vpsde"),
    (("--config.train.batch_size=100", "--config.dataset.size=64"), "batch_size=100, but the data set"),
    (("--config.train.mode=condition",), "known: cond, uncond"),
    (("--config.nnet.num_classes=3",), "4 classes"),
    (("--config.sample.algorithm=ddimm",), "ddim"),
    (("stray",), "unexpected argument 'stray'"),
])
def test_mistakes_end_before_training_with_one_message(script, tmp_path, options, words):
    done = script("train.py", "--config=configs/phantom32_uvit_label.py", f"--workdir={tmp_path}", *TINY, *options,
                  fails=True)
    assert words in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / "ckpts").exists()


def test_a_missing_config_says_what_to_give(script, tmp_path):
    done = script("train.py", f"--workdir={tmp_path}", fails=True)
    assert "--config=FILE is missing" in done.stderr
