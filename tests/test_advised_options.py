"""Messages about data name options as they are typed; typed, they mend it (issue 15: F17, gap 2)."""

import ast
import csv
import os
import re

import numpy as np
import pytest
from PIL import Image

from libs import data
from libs.config_options import name_options
from tests.commands import call
from tests.conftest import ROOT
from tests.test_configs import CONFIGS

NARROW = ("--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2",
          "--config.train.batch_size=2",
          "--config.train.n_steps=1", "--config.train.preview_interval=0", "--config.train.eval_interval=0",
          "--config.train.workers=0", "--config.train.validation_interval=0",
          "--config.dataset.resolution=16")
TYPED = re.compile(r"--config\.[a-z_]+\.[a-z_.]+=(?:\"[^\"]*\"|[^\s,;)]*)")
ADVICE = re.compile(r"\b(?:set|give|use|try|by|mean)\s+([a-z_]+)=", re.I)


def write_images(root, names=("a", "b"), each=8, size=(20, 18), levels=256, dtype=np.uint8):
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(each):
            shape = size[::-1] if dtype == np.uint16 else (*size[::-1], 3)
            Image.fromarray(rng.integers(0, levels, shape).astype(dtype)).save(root / name / f"{number}.png")
    return root


def write_table(root, rows, columns=("file_name", "label")):
    with open(root / "metadata.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


def small(root):
    write_images(root, size=(14, 30))
    return (), {"dataset.upscale"}


def linked(root):
    write_images(root.with_name("elsewhere"), names=("c",))
    write_images(root)
    os.symlink(root.with_name("elsewhere") / "c" / "1.png", root / "a" / "link.png")
    return (), {"dataset.follow_links"}


def empty_class(root):
    write_images(root)
    (root / "c").mkdir()
    return (), {"dataset.drop_classes", "dataset.min_per_class"}


def doubled(root):
    write_images(root)
    rows = [(f"{name}/{number}.png", name) for name in "ab" for number in range(8)]
    write_table(root, [*rows, rows[0]])
    return (), {"dataset.doubled_files"}


def unlisted(root):
    write_images(root)
    write_table(root, [(f"{name}/{number}.png", name) for name in "ab" for number in range(7)])
    return ("--config.dataset.unlisted_files=error",), {"dataset.unlisted_files"}


def given_split(root):
    for split in ("train", "val"):
        write_images(root / split)
    return (), {"dataset.holdout"}


def unlabelled(root):
    write_images(root, names=("",), each=16)
    return (), {"train.mode"}


def weights_of_none(root):
    write_images(root)
    write_table(root, [(f"{name}/{number}.png", name, -1) for name in "ab" for number in range(8)],
                ("file_name", "label", "weight"))
    return (), {"dataset.weight_column"}


def beside_classes(root):
    write_images(root)
    Image.new("RGB", (20, 20), "red").save(root / "loose.png")
    return (), {"dataset.label_column"}


def sizes(root):
    write_images(root)
    return ("--config.nnet.img_size=24",), {"nnet.img_size"}


def split_of_another_name(root):
    write_images(root)
    return ("--config.dataset.split=val2", "--config.train.validation_split="), {"dataset.split"}


CASES = (small, linked, empty_class, doubled, unlisted, given_split, unlabelled, weights_of_none,
         beside_classes, sizes,
         split_of_another_name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_a_message_advises_is_typed_and_mends_it(tmp_path, case):
    """Each of the advised options is typed, and the training runs."""
    root = tmp_path / "data"
    more, expected = case(root)
    command = ["train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={root}",
               *NARROW, *more,
               f"--workdir={tmp_path}/run"]
    answer = call(*command, fails=True).stderr
    advised = [option.strip('"').replace('="', "=").replace('"', "") for option in TYPED.findall(answer)]
    names = {option.removeprefix("--config.").split("=")[0] for option in advised}
    assert expected <= names, answer
    for option in dict.fromkeys(advised):
        name = option.removeprefix("--config.").split("=")[0]
        if name not in expected:
            continue
        typed = [option] if name != "dataset.label_column" else [option, "--config.train.mode=uncond"]
        done = call(*command, *typed, f"--workdir={tmp_path}/{name}", "--config.dataset.cache_gb=1")
        assert "Traceback" not in done.stderr


def messages(path):
    """The texts of a file that are no docstrings, with 1 for what is computed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.FunctionDef | ast.ClassDef
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "1" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inner:
            yield node.value


@pytest.mark.parametrize("path", sorted((ROOT / "libs" / "data").rglob("*.py")), ids=lambda path: path.stem)
@pytest.mark.parametrize("config", ["folder64_uvit_label", "folder64_vap", "folder64_controlnet"])
def test_no_advice_of_the_data_stays_in_the_form_of_python(config, path):
    """What the command line prints of each message: no option that is advised stays bare."""
    takes = {option for name in data.NAMES for option in data.list_options(name)} | set(CONFIGS[config].train)
    for text in messages(path):
        shown = name_options(text, CONFIGS[config])
        bare = [option for option in ADVICE.findall(shown) if option in takes]
        foreign = [option for option in bare if option not in data.list_options(CONFIGS[config].dataset.name)
                   and option not in CONFIGS[config].train]
        assert set(bare) <= set(foreign), shown


@pytest.mark.parametrize("said, typed", [
    ("give config.dataset.classes in the order of the features",
     "give --config.dataset.classes in the order"),
    ("use config.features.dtype='float32'", "use --config.features.dtype=float32"),
    ("set config.codec.path to that one", "set --config.codec.path to that one"),
    ("config.dataset.path is '': set config.dataset.path",
     "config.dataset.path is '': set --config.dataset.path"),
    ("the table has no column 'label', only ['dx']; did you mean label_column='dx'?",
     "did you mean --config.dataset.label_column=dx?"),
    ("balanced=True needs labels; the data set 'x' has none: set balanced=False",
     "balanced=True needs labels; the data set 'x' has none: set --config.train.balanced=False"),
    ("holdout=0.1 with split='test': expected split='train' or 'val': set split='train'",
     "holdout=0.1 with split='test': expected split='train' or 'val': set --config.dataset.split=train")])
def test_advice_is_told_as_it_is_typed_and_facts_stay(said, typed):
    assert typed in name_options(said, CONFIGS["folder64_vap"])
