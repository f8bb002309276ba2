"""Names that people give to classes, as names of files and folders: safe, short, distinct; the table keeps
the real ones."""

import csv
import os

import pytest
import torch
from PIL import Image

from libs import data
from libs.engine.file_names import cut, distinct_names, hash_of, safe_name, short_name
from libs.evaluation import requests
from libs.evaluation.bridge import planning

ODD = ["nevus", "..", ".", "/abs/x", "a/b", "a_b", "A_B", "CON", "con.txt", "lpt1", "x. ", "x", " "
                                                                                                "y", "a|b", 'q"?*<>', "tab\tnew\nline",
       "\u202ereversed", "é" * 200, "z" * 300, "~", "~root", ".hidden", "läsion", "la\u0308sion", "C:\\x", "\ud800", "grid.png", "-f"]


def test_ordinary_names_stay_as_they_are():
    for name in ("nevus", "actinic keratosis", "Grade 2+3 "
                                               "(mixed)", "läsion", "黑色素瘤", "a.b", "non-tumor_1", "50%"):
        assert safe_name(name) == name


def test_every_name_is_safe_short_and_its_own(tmp_path):
    found = distinct_names(ODD, reserved=("grid.png",))
    assert list(found) == ODD and found["a_b"] == "a_b" and found["nevus"] == "nevus" and found["x"] == "x"
    assert len({each.casefold() for each in found.values()}) == len(ODD) and "grid.png" not in found.values()
    for name, shown in found.items():
        assert 0 < len(shown.encode()) <= 80, name
        assert not set(shown) & set('/\\:*?"<>|') and not any(ord(letter) < 32 for letter in shown), name
        assert shown.strip(". ") == shown and not shown.startswith("~"), name
        assert shown.split(".")[0].lower() not in {"con", "lpt1"}, name
        folder = tmp_path / shown
        folder.mkdir()
        assert folder.resolve().parent == tmp_path.resolve(), "inside its folder"
        (folder / f"000000_{shown}.png").write_bytes(b"x")
    assert len(os.listdir(tmp_path)) == len(ODD)
    assert distinct_names(ODD, reserved=("grid.png",)) == found, "the same each time"


def test_names_are_cut_between_letters():
    assert cut("éé", 3) == "é" and short_name("a" * 10) == "a" * 10
    long = short_name("é" * 200 + ".x", 50)
    assert len(long.encode()) <= 50 and long.endswith(hash_of("é" * 200 + ".x"))
    assert safe_name("z" * 300) != safe_name("z" * 299)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A data set whose labels are odd; one image each, 8x8."""
    root = tmp_path_factory.mktemp("odd")
    labels = ["..", "/abs/x", "a/b", "a_b", "CON", "w" * 300]
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file_name", "label"])
        for i, label in enumerate(labels):
            Image.new("RGB", (64, 64), (20 * i, 100, 50)).save(root / f"{i}.png")
            rows.writerow([f"{i}.png", label])
    return root, labels


def test_exported_images_lie_in_their_folder_under_names_that_lead_to_them(inside, table, tmp_path):
    root, labels = table
    out = tmp_path / "O" / "data"
    inside("scripts/export_images.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={root}",
           "--config.dataset.holdout=0.", "--config.dataset.split=", f"--output={out}")
    assert sorted(os.listdir(tmp_path / "O")) == ["data"] and not os.path.exists("/abs")
    with open(out / "metadata.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["label"] for row in rows) == sorted(labels)
    assert all((out / row["file_name"]).is_file() for row in rows)
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "O")) == len(labels) + 1
    back = data.get("folder", path=str(out), resolution=64, channels=3)
    assert len(back) == len(labels) and sorted(back.classes) == sorted(labels)


@pytest.mark.parametrize("layout", ["classes", "flat"])
def test_samples_of_odd_classes(layout, tmp_path):
    kinds = [requests.class_names(ODD)[name] for name in ODD]
    names = requests._names(kinds, layout)
    assert len({name.casefold() for name in names}) == len(ODD)
    for name in names:
        path = tmp_path / name
        assert path.resolve().is_relative_to(tmp_path.resolve()) and len(path.name.encode()) < 128
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    named = requests._names_of_masks(["m" * 160] * len(ODD), kinds, layout)
    assert len({name.casefold() for name in named}) == len(ODD) and all(len(part.encode()) <= 210 for name in named
                                                                      for part in name.split("/"))


def test_a_class_is_a_sample_s_folder_by_the_whole_command_line(inside, table, tmp_path):
    root, labels = table
    tiny = ("--config=configs/folder64_uvit_label.py", f"--config.dataset.path={root}", "--config.dataset.holdout=0.",
            "--config.dataset.split=", "--config.train.validation_split=", "--config.train.validation_interval=0",
            "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2", "--config.nnet.patch_size=16",
            "--config.train.batch_size=4", "--config.train.n_steps=1", "--config.train.preview_interval=0", "--config.train.eval_interval=0",
            "--config.lr_scheduler.warmup_steps=0", "--config.train.workers=0", "--config.train.best_metric=")
    inside("train.py", *tiny, f"--workdir={tmp_path}/run")
    out = tmp_path / "deep" / "out"
    inside("sample.py", f"--workdir={tmp_path}/run", "--label=all", "--n_samples=1", "--layout=classes", "--config.sample.sample_steps=2",
           f"--config.sample.path={out}")
    assert os.listdir(tmp_path / "deep") == ["out"]
    with open(out / "metadata.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["label"] for row in rows) == sorted(labels) and all((out / row["file_name"]).is_file() for row in rows)
    assert sorted(data.get("folder", path=str(out), resolution=64, channels=3).classes) == sorted(labels)


def test_results_of_a_bridge_to_odd_classes():
    class Two(list):
        classes, labels, file_name = ODD, torch.tensor([1, 3]), list.__getitem__
    dataset = Two(["v" * 240 + ".png", "b.png"])
    found = {name: [(name, name)] for name in ODD}
    jobs = planning.plan(dataset, found, "unguided")
    assert len(jobs) == 2 and all(len(part.encode()) <= 210 for job in jobs for part in job.name.split("/"))
    assert all(not job.name.startswith(("/", "..")) for job in jobs) and jobs[0].target == ".."
