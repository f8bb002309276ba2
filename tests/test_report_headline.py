"""The page opens with the main evaluation of a run, says what its scores can tell, against which images, and what was learned from."""

import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from libs import data, report
from libs.data import summary
from libs.report import comparison
from libs.report.evaluations import rank, specialities
from libs.report.meanings import explain
from tests.test_report import Page, read

CONFIG = {"seed": 1, "train": {"batch_size": 8, "n_steps": 40}, "nnet": {"name": "uvit_t2i_prototype"},
          "dataset": {"name": "phantoms", "resolution": 8, "split": "train"},
          "sample": {"algorithm": "ddim", "sample_steps": 20, "guidance": 1.5, "prompts": "bank"}}
SAMPLING = {"algorithm": "ddim", "steps": 20, "guidance": 1.5}
TEXT = "ddim, 20 steps, guidance 1.5"
ORDINARY = {"n": 600, "prompts": "bank", "sampler": TEXT, "sampling": SAMPLING, "nnet": "run/ckpts/40.ckpt", "reference_split": "train"}
SPECIAL = {  # what an evaluation has beside an ordinary one, and what the page calls it
    "unseen": ({"prompts": "unseen", "n": 2000}, "combinations of attributes that no training text has"),
    "texts of a split": ({"prompts": "val", "n": 2000}, "texts of split val"),
    "filter": ({"filter": {"path": "f", "rule": "r", "acceptance": {"made": 9, "asked": 9, "drawn": 12}}, "n": 2000}, "images chosen by a filter"),
    "guidance": ({"sampling": SAMPLING | {"guidance": 4.0}, "n": 2000}, "guidance 4"),
    "steps": ({"sampling": SAMPLING | {"steps": 5}, "n": 2000}, "5 sampling steps"),
    "sampler": ({"sampling": SAMPLING | {"algorithm": "ddpm"}, "n": 2000}, "sampler ddpm"),
    "gradient": ({"sampler": TEXT + ", gradient of entropy, scale 2", "n": 2000}, "gradient of a classifier"),
    "interval": ({"sampler": TEXT + " for t in [0.2, 0.8]", "n": 2000}, "guidance within an interval"),
    "channels": ({"sampler": TEXT + " of the first 3 channels", "n": 2000}, "guidance of some channels"),
    "split": ({"reference_split": "val", "n": 2000}, "compared with split &#39;val&#39;"),
    "raw": ({"nnet": "run/ckpts/40.ckpt/nnet.safetensors", "n": 2000}, "weights without averaging"),
    "older, by its text": ({"sampler": "ddim, 50 steps", "sampling": None, "n": 2000}, "50 sampling steps; guidance 1"),
}


def write(folder, value, made, **content):
    """An evaluation that scores `value`, written at the time `made`."""
    folder.mkdir(parents=True)
    entry = {"value": value, "low": value - 0.01, "high": value + 0.01, "n": content.get("n", 600)}
    content = ORDINARY | {"step": 40, "seed": 1, "features": "clf", "reference": "240 images of phantoms (x.npz)", "warnings": [],
                          "scores": {"accuracy_clf": entry}} | content
    (folder / "scores.json").write_text(json.dumps({key: each for key, each in content.items() if each is not None}))
    np.savez(folder / "shown.npz", np.full((2, 8, 8, 3), made % 251, np.uint8))
    os.utime(folder / "scores.json", (made, made))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_newer_and_larger_special_evaluation_does_not_take_the_headline(run, kind):
    content, words = SPECIAL[kind]
    write(run / "eval" / "main", 0.81, 1000)
    write(run / "eval" / "special", 0.38, 2000, **content)
    text, page = read(run)
    header = text[text.index("<header>"):text.index("</header>")]
    assert "0.81" in header and "0.38" not in header and "From the evaluation <i>main</i>" in header
    assert text.index("Evaluation <i>main</i>") < text.index("Further evaluation: special, step 40, 2,000 images (")
    assert words in text[text.index("Further evaluation: special"):]
    assert [e["name"] for e in report.contents(run)["evaluations"]] == ["main", "special"]


@pytest.mark.parametrize("order", list(itertools.permutations(("small", "large", "newer", "unseen"))))
def test_in_any_order_the_most_images_lead_and_of_equal_ones_the_newest(run, order):
    sizes = {"small": {"n": 100}, "large": {}, "newer": {}, "unseen": {"n": 5000, "prompts": "unseen"}}
    for made, name in enumerate(order):
        write(run / "eval" / name, 0.5, 1000 + made, **sizes[name])
    main, *others = (e["name"] for e in report.contents(run)["evaluations"])
    assert main == max(("large", "newer"), key=order.index)
    assert others == [name for name in reversed(order) if name != main]


def test_where_all_are_special_the_page_says_so_and_scores_come_before_none(run):
    write(run / "eval" / "unseen", 0.38, 2000, prompts="unseen")
    write(run / "eval" / "both", 0.30, 3000, prompts="unseen", sampling=SAMPLING | {"steps": 5}, n=9000)
    write(run / "eval" / "unscored", 0.5, 4000, scores={})
    text, page = read(run)
    header = text[text.index("<header>"):text.index("</header>")]
    assert "0.38" in header and "no ordinary evaluation is in this run" in header
    assert "Not an ordinary evaluation: prompts: combinations" in text


def test_the_settings_of_the_config_are_ordinary_whatever_they_are():
    config = {"sample": {"algorithm": "dpm_fast", "sample_steps": 50, "scale": 0.4, "prompts": "val", "guidance_interval": [0, 0.5],
                         "gradient": {"scale": 1.0}}, "dataset": {"split": "all"}}
    scores = {"prompts": "val", "sampling": {"algorithm": "dpm_fast", "steps": 50, "guidance": 1.4}, "reference_split": "all",
              "sampler": "dpm_fast, 50 steps, guidance 1.4 for t in [0, 0.5], gradient of entropy, scale 1"}
    assert specialities(scores, config) == [] == specialities({}, {}) == specialities({"sampler": 3, "sampling": 4}, {"sample": 5})
    assert specialities(scores | {"prompts": "bank"}, config) == []
    assert rank({"n": "x", "scores": {}}, [], 1) < rank({"n": 2, "scores": {"a": 1}}, ["special"], 0)


def test_only_the_main_and_the_newest_other_bring_pictures(run):
    write(run / "eval" / "main", 0.8, 1000)
    for made in range(3):
        write(run / "eval" / f"unseen{made}", 0.4, 2000 + made, prompts="unseen")
    found = report.contents(run)["evaluations"]
    assert [(e["name"], e["side_by_side"] is not None) for e in found] == [
        ("main", True), ("unseen2", True), ("unseen1", False), ("unseen0", False)]


def test_a_comparison_takes_the_main_evaluations_of_all_and_says_where_it_has_special_ones_only(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write(folder / "eval" / "main", 0.8, 1000)
        write(folder / "eval" / "unseen", 0.4, 2000, prompts="unseen", n=2000)
        write(folder / "eval" / "few", 0.6, 3000, n=50)
        write(folder / "eval" / "steps", 0.7, 4000, sampling=SAMPLING | {"steps": 5})
    assert [run.evaluation["folder"] for run in comparison.contents(folders)["runs"]] == ["main", "main"]
    for folder in folders:
        for name in ("main", "few", "steps"):
            (folder / "eval" / name / "scores.json").unlink()
    found = comparison.contents(folders)
    assert [run.evaluation["folder"] for run in found["runs"]] == ["unseen", "unseen"]
    assert any("Special evaluations are compared" in text and "no training text has" in text for text in found["remarks"])


def test_the_split_of_the_reference_stands_with_the_scores(run):
    write(run / "eval" / "main", 0.8, 1000, reference="247 images of cxr (y.npz)")
    page = read(run)[1]
    assert "reference: train split, 247 images of cxr" in page.text
    write(run / "eval" / "old", 0.8, 2000, reference_split=None, reference="9 images of old (z.npz)")
    assert "reference: 9 images of old" in read(run)[1].text


def colours(run, features="colour"):
    scores = {f"{name}_{features.split(', ')[0]}": {"value": 1.0, "low": 0.9, "high": 1.0, "n": 600} for name in ("precision", "fd")}
    write(run / "eval" / "main", 1.0, 1000, features=features, scores=scores)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 8, 8, 3), dtype=np.uint8)
    np.savez(run / "eval" / "main" / "shown.npz", images[0], np.zeros(4, int), images[1], np.array([0.0, 1.0, 2.0, 3.0]), np.arange(4),
             images[2], np.zeros(4, int), np.linspace(2, 6, 101))
    os.utime(run / "eval" / "main" / "scores.json", (1000, 1000))
    return read(run)


def test_scores_of_colours_alone_claim_nothing_of_sharpness_shapes_or_copies(run):
    text, page = colours(run)
    assert "are they plausible" not in text and "blurred images can reach 1" in text
    assert text.count("cannot tell whether images are sharp") == 2, "in the headline and with the scores"
    assert "copies of training images cannot be told by it" in text and "would stand beside its twin" not in text
    assert 'class="close"' not in text and "are closer than 95" not in page.text and "close real no." not in page.text


def test_scores_of_a_network_are_explained_as_before(run):
    text, page = colours(run, "clf, colour")
    assert "are they plausible" in text and "cannot tell whether images are sharp" not in text
    assert 'class="close"' in text and "3 of 4 samples are closer than 95" in page.text.replace("\xa0", " ")
    assert explain("precision_colour") != explain("precision_clf") == explain("precision") and explain("strange") == ""
    assert explain("accuracy_colour") == explain("accuracy")


def images_of(run, classes):
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (run.parent / "data" / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).save(run.parent / "data" / name / f"{i}.png")
    dataset = data.get(name="folder", path=str(run.parent / "data"), resolution=16)
    data.preflight(dataset)
    return summary.summarise(dataset, {"crop": "center"})


def test_the_page_shows_what_was_learned_from(run):
    content = images_of(run, {"<b>scar": 3, "nevus": 5})
    earlier = [{"images": 6, "held_out": 0, "fingerprint": "x"}]
    (run / "data.json").write_text(json.dumps(content | {"earlier": earlier}))
    Image.new("RGB", (60, 40), (1, 2, 3)).save(run / "data.png")
    text, page = read(run)
    section = Page("<body>" + text[text.index("<h2>Data</h2>"):text.index("<h2>How it was made</h2>")].rpartition("<section>")[0]
                   .rpartition("</section>")[0] + "</body>")
    for part in ("8 images (none held out), 2 classes: <b>scar 3, nevus 5", "no patients known", "30 x 20", "33.3 % of the area",
                 "0..255 of 0..255", "The data changed while this run was trained: 6 images and 0 held out, then 8 images"):
        assert part in section.text, part
    assert len(section.images) == 1 and section.images[0]["src"].startswith("data:image/png")


@pytest.mark.parametrize("content", ['{"weights": {"images": 3}}', "[", '{"fingerprint": "x"}', None])
def test_runs_of_earlier_versions_and_damaged_files_have_no_section_of_data(run, content):
    if content is not None:
        (run / "data.json").write_text(content)
    text, page = read(run)
    assert "<h2>Data</h2>" not in text
    assert ("data.json" in page.text) == (content not in (None, '{"weights": {"images": 3}}'))


def test_a_sheet_that_is_too_large_enters_reduced_and_a_damaged_one_is_named(run, monkeypatch):
    (run / "data.json").write_text(json.dumps(images_of(run, {"a": 2})))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1600, 2400, 3), dtype=np.uint8)).save(run / "data.png")
    monkeypatch.setattr(report, "FIGURE_BYTES", 1000)
    assert report.contents(run)["data"]["sheet"].startswith("data:image/png")
    (run / "data.png").write_bytes(b"\x89PNG" + bytes(2000))
    page = read(run)[1]
    assert "data.png could not be shown" in page.text


def test_a_judge_that_learned_from_few_images_is_named():
    from types import SimpleNamespace

    import torch

    from libs.evaluation.references import few_for_judge
    judge = SimpleNamespace(name="classifier-cxr64")

    class Real(SimpleNamespace):
        def __len__(self):
            return len(self.labels)

    few, many = Real(name="cxr", labels=torch.zeros(26)), Real(name="cxr", labels=torch.zeros(260))
    text, = few_for_judge([judge], few, "val")
    assert "trained on only 26 images of split 'val'" in text
    assert few_for_judge([judge], many, "val") == few_for_judge([SimpleNamespace(name="colour")], few, "") == []
    assert few_for_judge([judge], None, "") == []


def test_a_printed_evaluation_names_the_split_of_its_reference():
    from libs import evaluation
    result = {"n": 3, "sampler": "ddim", "reference": "26 images of cxr", "reference_split": "val", "scores": {}, "per_class": {},
              "warnings": []}
    assert evaluation.table(result) == "3 images, ddim, against split 'val', 26 images of cxr"
    del result["reference_split"]
    assert evaluation.table(result) == "3 images, ddim, against 26 images of cxr"
