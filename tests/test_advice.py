"""What a message advises works when it is typed: every option that a message names is set through the command line."""

import ast
import importlib
import inspect
import re

import pytest

from libs.config_options import UNLISTED, called, name_options
from tests.command_lines import config_of
from tests.conftest import ROOT

SOURCES = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "libs").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
FULL = re.compile(r"config\.([a-z_0-9]+(?:\.[a-z_0-9]+)+)")
BARE = re.compile(r"\b(?:set|or|give|by|use|see)\s+(?:([a-z_]+)\.)?([a-z_]+)=")
PLACES = ("config.json", "config.yaml")  # files, which are no options
PYTHON = {"weights", "name"}  # metrics.features names the first, see below; the one message of the second says config.dataset.name


def texts(path):
    """The texts of a file that are no docstrings, those of an f-string in one piece with {} for what is computed."""
    tree = ast.parse(path.read_text())
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and node.body and isinstance(node.body[0], ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inner:
            yield node.value


def named():
    """({dotted options}, {bare options}) of all messages, each with one text that names it."""
    full, bare = {}, {}
    for path in SOURCES:
        for text in texts(path):
            if " " in text:
                full |= {each: text for each in FULL.findall(text) if f"config.{each}" not in PLACES and "*" not in each}
                bare |= {(section, option): text for section, option in BARE.findall(text) if section != "config"}
    return full, bare


CONFIGS = {path.stem: importlib.import_module(f"configs.{path.stem}").get_config() for path in sorted((ROOT / "configs").glob("*.py"))
           if path.stem not in ("common", "from_run")}
SETTINGS = tuple({key for path in ROOT.glob("train*.py") for key in getattr(importlib.import_module(path.stem), "SETTINGS", ())})


def fitting(path):
    """(name of a config, value to type) where the option may be set, the configs of own images first."""
    parts = path.split(".")
    for name in sorted(CONFIGS, key=lambda each: not each.startswith("folder")):
        section = CONFIGS[name]
        for depth, key in enumerate(parts):
            if not hasattr(section, "keys"):
                break
            call = called(parts[0], section) if depth == 1 else None
            default = (call.options if call else UNLISTED.get(parts[0], {}) if depth == 1 else {}).get(key, inspect.Parameter.empty)
            if key not in section and default is inspect.Parameter.empty:
                break
            section = section[key] if key in section else default
        else:
            yield name, section


def accepted(path):
    """Whether some config takes `--config.<path>=<its value>`."""
    reasons = []
    for name, value in fitting(path):
        if hasattr(value, "keys"):
            return ""
        text = repr(tuple(value)) if isinstance(value, (tuple, list)) else str(value)
        try:
            config_of(f"configs/{name}.py", f"--config.{path}={text}", settings=SETTINGS if "denoiser" in CONFIGS[name] else ())
            return ""
        except ValueError as error:
            reasons.append(f"{name}: {error}")
    return f"config.{path}: " + (reasons[0] if reasons else "no config has it")


FULL_NAMES, BARE_NAMES = named()


@pytest.mark.parametrize("path", sorted(FULL_NAMES))
def test_every_option_that_a_message_names_can_be_set(path):
    assert not accepted(path), FULL_NAMES[path]


@pytest.mark.parametrize("section, option", sorted(BARE_NAMES))
def test_options_that_libs_name_in_python_are_named_as_one_types_them(section, option):
    if option in PYTHON:
        return
    advice = f"set {section}.{option}=1" if section else f"set {option}=1"
    for name in sorted(CONFIGS, key=lambda each: not each.startswith("folder")):
        typed = re.fullmatch(r"set --config\.([\w.]+)=1", name_options(advice, CONFIGS[name]))
        if typed and not accepted(typed[1]):
            return
    raise AssertionError(f"{advice}: no config has it; the message is {BARE_NAMES[section, option]!r}")


def test_the_collection_sees_messages():
    assert {"dataset.path", "train.mode", "nnet.num_classes", "sample.guidance", "filter.threshold"} <= set(FULL_NAMES)
    assert len(FULL_NAMES) > 80 and {"upscale", "follow_links", "lora_rank"} <= {option for _, option in BARE_NAMES}


@pytest.mark.parametrize("config", ["folder64_uvit_label", "folder64_adm", "folder128_adm_classifier", "folder256_autoencoder",
                                    "folder64_vap", "folder64_downstream", "folder64_controlnet"])
@pytest.mark.parametrize("advice, typed", [
    ("20x20 pixels are smaller than resolution=64: remove it, lower the resolution, or set upscale=True",
     "--config.dataset.upscale=True"),
    ("x is a link out of the data folder: copy what it points to, or set follow_links=True", "--config.dataset.follow_links=True"),
    ("class 'c' has 0 images, 1 needed: add images, leave it out by drop_classes=('c',), or set min_per_class=0",
     "--config.dataset.min_per_class=0"),
    ("keep one of them, or set doubled_files='keep'", "--config.dataset.doubled_files=keep"),
    ("2:3: text is empty (missing_captions='skip' leaves it out)", "--config.dataset.missing_captions=skip"),
    ("the data have a split 'val' of their own: set holdout=0", "--config.dataset.holdout=0"),
    ("set dataset.weight_column='' if these are no weights of images", "--config.dataset.weight_column="),
    ("give window=(0, 200)", '--config.dataset.window="(0, 200)"')])
def test_messages_of_data_name_options_of_every_config(config, advice, typed):
    message = name_options(advice, CONFIGS[config])
    assert typed in message and "smaller than --config" not in message
    config_of(f"configs/{config}.py", typed.replace('"', ""))


def test_a_message_that_a_user_meets_can_be_followed(inside, tmp_path):
    from PIL import Image
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (12, 40), (9 * number, 50, 9)).save(tmp_path / "data" / name / f"{number}.png")
    command = ["train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={tmp_path / 'data'}",
               "--config.dataset.resolution=16", "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2",
               "--config.train.n_steps=1", "--config.train.batch_size=2", "--config.train.workers=0", f"--workdir={tmp_path / 'run'}"]
    done = inside(*command, fails=True)
    options = re.findall(r"set (--config\S+)", done.stderr)
    assert set(options) == {"--config.dataset.upscale=True"}, done.stderr
    inside(*command, options[0])


def test_a_filter_names_its_own_section_and_synthetic_images_theirs():
    advice = "or set upscale=True"
    assert name_options(advice, CONFIGS["filter_words"]) == "or set --config.pairs.upscale=True"
    assert name_options(advice, CONFIGS["isic_captions"]) == "or set --config.input.upscale=True"
    message = name_options(f"config.synthetic: 3.png is small, {advice}", CONFIGS["folder64_downstream"])
    assert message.endswith("or set --config.synthetic.upscale=True")
    config_of("configs/folder64_downstream.py", "--config.synthetic.upscale=True", "--config.synthetic.crop=pad")
    config_of("configs/filter_words.py", "--config.pairs.upscale=True")


def test_weights_of_feature_networks_are_given_by_metrics_features():
    advice = "the weights pt_inception-2015-12-05-6726825d.pth are missing; give weights=/path/to/pt_inception-2015-12-05-6726825d.pth."
    message = name_options(advice, CONFIGS["folder64_uvit_label"])
    assert message.endswith("give --config.metrics.features=\"('inception@/path/to/pt_inception-2015-12-05-6726825d.pth',)\".")
