"""The command line and the configs: what is accepted, what is refused and with which words."""

import importlib
import math
import re

import pytest
from ml_collections import ConfigDict

from libs import backbones, cli


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


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


TINY = ("--config.lr_scheduler.warmup_steps=1", "--config.train.n_steps=2", "--config.train.eval_interval=0",
        "--config.train.preview_interval=0", "--config.train.validation_split=", "--config.dataset.size=64")


@pytest.mark.parametrize("options, words", [
    (("--config.trian.lr=3",), 'Did you mean "train"'),
    (("--config.train.typo=3",), "error: config.train has no option 'typo'; it has "),
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
    (("--config.metrics.names=('fidd',)", "--config.train.eval_interval=2"), "unknown metrics ['fidd']"),
    (("--config.metrics.features=('inceptoin',)", "--config.train.eval_interval=2"), "Did you mean 'inception'"),
    (("--config.sample.labels=balancd",), "known: data, balanced"),
    (("--config.train.attention=flash",), "sdpa"),
    (("--config.metrics.bootstrap=1",), "config.metrics.bootstrap is 1"),
    (("--config.nnet.embed_dim=-32",), "config.nnet.embed_dim is -32"),
    (("--config.lr_scheduler.warmup_steps=50",), "cannot begin with 50 steps of warm-up"),
    (("stray",), "unexpected argument 'stray'"),
])
def test_mistakes_end_before_training_with_one_message(inside, tmp_path, options, words):
    done = inside("train.py", "--config=configs/phantom32_uvit_label.py", f"--workdir={tmp_path}", *TINY, *options,
                  fails=True)
    assert words in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / "ckpts").exists()


def test_a_missing_config_says_what_to_give(script, tmp_path):
    done = script("train.py", f"--workdir={tmp_path}", fails=True)
    assert "--config=FILE is missing" in done.stderr


FOLDER = ("--config=configs/folder64_uvit_label.py", "--config.train.batch_size=2", "--config.dataset.resolution=16",
          "--config.nnet.img_size=16", "--config.train.workers=0", "--config.train.n_steps=2")


def folder_of_images(root, names=("a", "b"), each=6, size=20):
    from PIL import Image
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (size, size), (40 * number, 10 * i, 0)).save(root / name / f"{i}.png")
    return root


def spoil(kind, root):
    from PIL import Image
    if kind == "missing":
        return root / "nowhere", "nowhere"
    folder_of_images(root)
    if kind == "empty path":
        return "", "--config.dataset.path="
    if kind == "empty class":
        (root / "c").mkdir()
        return root, "class 'c' has 0 images"
    if kind == "truncated":
        content = (root / "a" / "1.png").read_bytes()
        (root / "a" / "1.png").write_bytes(content[:len(content) // 2])
        (root / "b" / "2.png").write_bytes(b"")
        return root, "a/1.png"
    if kind == "small":
        Image.new("RGB", (12, 40)).save(root / "b" / "3.png")
        return root, "b/3.png: 12x40 pixels are smaller than resolution=16"
    rows = {"no column": "file,label\na/0.png,a\n", "missing row": "file_name,label\na/0.png,a\nb/77.png,b\n",
            "outside": "file_name,label\na/0.png,a\n../../secret.png,b\n"}
    (root / "metadata.csv").write_text(rows[kind])
    return root, {"no column": "file_name", "missing row": "metadata.csv:3", "outside": "metadata.csv:3"}[kind]


@pytest.mark.parametrize("kind", ["missing", "empty path", "empty class", "truncated", "small", "no column", "missing row",
                                  "outside"])
def test_bad_data_end_before_training_with_one_message(inside, tmp_path, kind):
    path, words = spoil(kind, tmp_path / "data")
    done = inside("train.py", *FOLDER, f"--config.dataset.path={path}", f"--workdir={tmp_path}/run", fails=True)
    assert words in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    if kind == "truncated":
        assert "b/2.png" in done.stderr, "every bad file is named at once"
    assert not (tmp_path / "run" / "ckpts").exists() and not (tmp_path / "run" / "config.json").exists()
