"""A folder of images of an evaluation: exactly its images and their table; what earlier ones left goes, what
is foreign stays."""

import csv
import hashlib
import json
import os

import pytest
import torch
from PIL import Image

from libs.evaluation import listing
from libs.evaluation.bridge import files
from tests.test_weights_used import TINY


@pytest.fixture(scope="module")
def run(inside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "run"
    inside("train.py", *TINY, "--config.train.n_steps=4", "--config.train.save_interval=2", f"--workdir={folder}")
    return folder


def rows_of(folder):
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def evaluate(inside, run, folder, n, *more, **how):
    return inside("eval.py", f"--workdir={run}", f"--config.sample.n_samples={n}", f"--config.sample.path={folder}",
                  "--config.metrics.features=('colour',)", *more, **how)


def test_twenty_images_then_ten_of_other_weights(inside, run, tmp_path):
    folder = tmp_path / "images"
    evaluate(inside, run, folder, 12)
    assert len(rows_of(folder)) == 12
    Image.new("RGB", (8, 8)).save(folder / "mine.png")
    (folder / "notes.txt").write_text("mine")
    second = evaluate(inside, run, folder, 6, f"--nnet_path={run}/ckpts/2.ckpt")
    rows = rows_of(folder)
    assert [row["file_name"] for row in rows] == [f"{i:06d}.png" for i in range(6)]
    assert sorted(os.listdir(folder)) == sorted([row["file_name"] for row in rows] + ["metadata.csv", "mine.png", "notes.txt"])
    assert "1 images that metadata.csv does not list" in second.stderr and "mine.png" in second.stderr
    assert all(hashlib.sha256((folder / row["file_name"]).read_bytes()).hexdigest() == row["image_sha256"] for row in rows)
    assert {row["step"] for row in rows} == {"2"} and all(row["sha256"] and row["sampler"] and row["label"] for row in rows)
    inside("sample.py", f"--workdir={run}", "--n_samples=2", f"--config.sample.path={folder}")  # samples take the place of an evaluation's
    assert not (folder / "000005.png").exists() and len(rows_of(folder)) == 2 and (folder / "mine.png").is_file()


def test_what_belongs_to_somebody_else_is_not_replaced(inside, run, tmp_path):
    (tmp_path / "theirs").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs" / "000002.png")
    before = (tmp_path / "theirs" / "000002.png").read_bytes()
    failed = evaluate(inside, run, tmp_path / "theirs", 4, fails=True)
    assert "000002.png" in failed.stderr and (tmp_path / "theirs" / "000002.png").read_bytes() == before
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text("file_name,label\nx.png,nevus\n")
    for script in ("eval.py", "sample.py"):
        more = ("--config.metrics.features=('colour',)",) if script == "eval.py" else ()
        failed = inside(script, f"--workdir={run}", "--config.sample.n_samples=4", f"--config.sample.path={tmp_path}/data", *more, fails=True)
        assert "metadata.csv" in failed.stderr and "--config.sample.path" in failed.stderr
        assert (tmp_path / "data" / "metadata.csv").read_text().endswith("x.png,nevus\n")


def test_a_stopped_evaluation_leaves_a_list(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    names = [f"{number}.png" for number in range(4)]
    before = listing.begin(tmp_path, names, lambda path: True)
    assert before == [] and listing.listed_samples(tmp_path) == names and not (tmp_path / "metadata.csv").exists()
    again = listing.begin(tmp_path, ["0.png"], lambda path: False)  # what the stopped one had listed is ours
    assert again == names
    listing.finish(tmp_path, [{"file_name": "0.png", "label": "", "prompt": "", "sampler": "ddim"}], before=again)
    assert sorted(os.listdir(tmp_path)) == ["0.png", "metadata.csv"]
    (tmp_path / "metadata.csv").write_text("file_name,sampler\n../out.png,ddim\n/abs.png,ddim\n0.png,ddim\n")
    assert listing.listed_samples(tmp_path) == ["0.png"], "a table cannot lead out of its folder"


def test_a_bridge_drops_results_of_sources_that_are_gone(tmp_path):
    def row(name):
        return {"file_name": f"{name}.png", "label": "", "source_file": f"{name}.jpg"}
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    files.write_table(tmp_path, [row("a"), row("b")])
    files.write_table(tmp_path, [row("a")])
    assert sorted(os.listdir(tmp_path)) == ["a.png", "c.png", "metadata.csv"], "c.png was never listed"


def test_scores_say_the_weights(inside, run, tmp_path):
    evaluate(inside, run, "", 4, "--name=x")
    scores = json.loads((run / "eval" / "x" / "scores.json").read_text())
    assert len(scores["sha256"]) == 16 and torch.tensor([score["n"] for score in scores["scores"].values()]).unique().tolist() == [4]
