"""The report: all that the run folder holds appears, escaped, in one page that loads nothing; what is missing
or damaged costs a sentence and not the page."""

import base64
import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from libs import report
from libs.report.figures import curves, png

EVIL = '<script>alert("x")</script> & naevus'
VOID = {"meta", "link", "img", "br"}
LOADS = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")


class Page(html.parser.HTMLParser):
    """Collects text, loads and images, and asserts that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.text, self.loads, self.images, self.tags, self.open = "", [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        attributes = dict(attributes)
        self.loads += [attributes[key] for key in LOADS if key in attributes]
        self.images += [attributes] if tag == "img" else []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(folder, **kwargs):
    text = report.write(folder, **kwargs).read_text(encoding="utf-8")
    return text, Page(text)


def score(value, width, n):
    return {"value": value, "low": value - width, "high": value + width, "n": n}


def fake_evaluation(folder, *, classes=("a", "b"), size=8, per_class=6, channels=3, usual=True, step=300):
    rng = np.random.default_rng(0)
    n = per_class * len(classes)
    images = rng.integers(0, 256, (3, n, size, size, channels), dtype=np.uint8)
    labels = np.repeat(np.arange(len(classes)), per_class)
    distances = np.linspace(1.5, 4.5, n)
    arrays = [images[0], labels, images[1], distances, np.arange(n) + 1000, images[2], labels[::-1]]
    folder.mkdir(parents=True)
    np.savez(folder / "shown.npz", *arrays, *([np.linspace(2, 6, 101)] if usual else []))
    of_class = {name: {"fd_clf": score(71.25, 4, 12), "recall_clf": score(0.5, 0.04, 64 if i else 12)}
                for i, name in enumerate(classes)}
    scores = {"fd_clf": score(34.567, 2.1, 640), "kid_clf": score(0.01234, 0.0021, 640),
              "recall_clf": score(0.618, 0.02, 640),
              "accuracy": {"value": 0.875, "low": None, "high": None, "n": 640, "better": "higher",
                           "meaning": "hits"}}
    (folder / "scores.json").write_text(json.dumps({
        "n": 640, "step": step, "nnet": "ckpts/300.ckpt", "seed": 4321, "sampler": "ddim <b>",
        "features": "clf", "reference": "train", "seconds": 75, "warnings": ["N = 12 is <few>"],
        "scores": scores, "per_class": of_class}))


@pytest.fixture
def run(tmp_path):
    """A finished run as engine and evaluation leave it, with hostile names and a torn last line."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({
        "seed": 77, "train": {"batch_size": 16, "n_steps": 300}, "nnet": {"name": "uvit", "depth": 13},
        "dataset": {"name": "phantoms", "resolution": 8, "path": "</pre><img src=http://x>"},
        "sample": {"a": {"b": []}}}))
    (folder / "run.json").write_text(json.dumps({"sessions": [
        {"command": f"python train.py --workdir=r{i} && <i>", "versions": {"torch": f"2.{i}"},
         "device": "CPU <x>", "started": f"2025-01-0{i + 1}T10:00:00", "git": "abc123"} for i in range(2)]}))
    (folder / "classes.json").write_text(json.dumps([EVIL, "melanoma"]))
    lines = [{"step": s, "kind": "train", "loss": 1 / s, "grad_norm": 0.5, "images_per_second": 8.0}
             for s in range(10, 301, 10)]
    lines += [{"step": s, "kind": "validation", "loss": 1.1 / s} for s in (100, 200, 300)]
    lines += [{"step": s, "kind": "eval", "n": 50, "fd_clf": 900 / s} for s in (100, 200, 300)]
    lines += [{"step": 150, "kind": "train", "loss": float("nan")}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 310, "kind": "tra'
    (folder / "metrics.jsonl").write_text(text)
    (folder / "samples").mkdir()
    for step in range(0, 301, 25):
        Image.new("RGB", (16, 16), (step % 256, 0, 0)).save(folder / f"samples/{step}.png")
    fake_evaluation(folder / "eval/final", classes=(EVIL, "melanoma"))
    return folder


def test_all_that_the_folder_holds_is_shown(run):
    _, page = read(run, title="Lesions & co")
    for expected in (
            "Lesions & co", "300 of 300", "4,800", "10 min", "uvit", "phantoms", "8 × 8", "melanoma", "77",
            "13", "34.6", "32.5 to 36.7", "0.0123", "0.0102 to 0.0144", "0.618", "0.598 to 0.638", "0.875",
            "hits", "71.2", "67.2 to 75.2", "640", "4321", "ddim <b>", "ckpts/300.ckpt", "1 min 15 s",
            "N = 12 is <few>", "lower is better", "higher is better", "workdir=r1", "2.1", "CPU <x>",
            "abc123", "python train.py --workdir=r0 && <i>", "Versions changed", "metrics.jsonl: line 38",
            "real no. 1000"):
        assert expected in page.text, expected
    assert "†" in page.text and "No evaluation yet" not in page.text


def test_seconds_and_images_follow_from_steps_batch_and_rate(run):
    # 300 steps of 16 images at 8 images/s are 600 s
    shown = report.contents(run)
    assert shown["seconds"] == pytest.approx(600) and shown["images"] == 4800


def test_the_page_loads_nothing_and_escapes_everything(run):
    text, page = read(run)
    assert page.loads and all(load.startswith(("data:", "#")) for load in page.loads)
    assert "default-src 'none'" in text and not re.search(r"url\((?!#)", text) and "@import" not in text
    assert "script" not in page.tags and "<script" not in text and "&lt;script&gt;" in text
    assert EVIL in page.text and "<img src=http" not in text


def test_real_and_generated_come_in_equal_numbers_and_at_least_96_pixels_wide(run):
    _, page = read(run)
    groups = report.contents(run)["evaluations"][0]["side_by_side"]["rows"]
    assert [row["name"] for row in groups] == [EVIL, "melanoma"]
    assert all(len(row["real"]) == len(row["generated"]) == 6 for row in groups)
    tiles = [image for image in page.images if image["alt"].startswith(("real", "generated", "nearest"))]
    assert len(tiles) == 2 * 12 + 2 * 12
    assert all(image["width"] == "96" and image["class"] == "px" for image in tiles)


def test_pictures_are_the_files_own_pixels_under_their_own_class(run):
    with np.load(run / "eval/final/shown.npz") as file:
        generated, real, labels = file["arr_0"], file["arr_5"], file["arr_6"]
    rows = report.contents(run)["evaluations"][0]["side_by_side"]["rows"]
    for label, row in enumerate(rows):
        np.testing.assert_array_equal(decode(row["generated"][0]), generated[label * 6])
        np.testing.assert_array_equal(decode(row["real"][0]), real[np.flatnonzero(labels == label)[0]])


def test_neighbours_are_sorted_and_marked_below_the_five_percent_quantile_of_real_distances(run):
    nearest = report.contents(run)["evaluations"][0]["nearest"]
    distances = [pair["distance"] for pair in nearest["pairs"]]
    assert distances == sorted(distances)
    assert nearest["close"] == pytest.approx(2.2) and nearest["usual"] == pytest.approx(4)  # 2, 2.04, ...
    assert [pair["close"] for pair in nearest["pairs"]] == [d < 2.2 for d in distances]
    assert nearest["n_close"] == sum(d < 2.2 for d in distances) > 0


def test_previews_are_spread_over_training(run):
    (run / "samples/100.png").write_bytes(b"")
    steps = [preview["step"] for preview in report.contents(run)["previews"]]
    assert steps[0] == 0 and steps[-1] == 300 and 4 <= len(steps) <= 6 and steps == sorted(steps)


@pytest.mark.parametrize("part, sentence", [
    ("config.json", "no config.json"), ("run.json", "No sessions"), ("metrics.jsonl", "No curves yet"),
    ("samples", "No preview grids yet"), ("eval", "No evaluation yet"),
    ("eval/final/shown.npz", "No pictures of this")])
def test_a_missing_part_costs_a_sentence(run, part, sentence):
    (run / part).rename(run / "elsewhere")
    _, page = read(run)
    assert sentence in page.text


def test_an_empty_folder_makes_a_page_of_sentences(tmp_path):
    _, page = read(tmp_path)
    assert "No evaluation yet: run python eval.py" in page.text and "No curves yet" in page.text


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: b"\xff\xfe{[", lambda whole: b"3",
                                    lambda whole: whole[:len(whole) // 2]])
def test_damaged_files_are_named_and_the_page_stands(run, damage):
    parts = ["config.json", "run.json", "classes.json", "metrics.jsonl", "samples/0.png",
             "eval/final/shown.npz"]
    fake_evaluation(run / "eval/broken")
    for part in [*parts, "eval/broken/scores.json"]:
        (run / part).write_bytes(damage((run / part).read_bytes()))
    _, page = read(run)
    assert "34.6" in page.text and "broken/scores.json could not be read" in page.text
    named = page.text.split("Warnings")[-1]
    for part in parts:
        # an empty log is no damage
        assert os.path.basename(part) in named or (part, damage(b"xx")) == ("metrics.jsonl", b""), part


def test_the_newest_evaluation_comes_first_and_only_the_newest_bring_pictures(run):
    for i, name in enumerate(("older", "oldest")):
        fake_evaluation(run / "eval" / name, step=100)
        os.utime(run / "eval" / name / "scores.json", (1000 - i, 1000 - i))
    shown = report.contents(run)["evaluations"]
    assert [e["name"] for e in shown] == ["final", "older", "oldest"]
    assert [e["side_by_side"] is not None for e in shown] == [True, True, False]
    assert "Further evaluation: oldest" in read(run)[1].text


@pytest.mark.parametrize("size, width", [(8, "96"), (40, "120"), (300, "128")])
def test_grey_unlabelled_and_large_images(tmp_path, size, width):
    fake_evaluation(tmp_path / "eval/e", classes=("",), size=size, per_class=4, channels=1, usual=False)
    _, page = read(tmp_path)
    assert {image["width"] for image in page.images} == {width}
    shapes = {decode(image["src"]).shape for image in page.images}
    assert shapes == {(min(size, 192),) * 2}
    assert "median distance is" in page.text and "of real images are to each other" not in page.text


def test_writing_is_atomic_and_a_wrong_folder_is_named(run, monkeypatch, tmp_path):
    report.write(run)
    before = (run / "report.html").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        report.write(run, title="another")
    assert (run / "report.html").read_bytes() == before and not list(run.glob(".report*"))
    with pytest.raises(ValueError, match="nowhere"):
        report.write(tmp_path / "nowhere")


def test_of_repeated_steps_the_later_line_counts(tmp_path):
    path, warnings = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 2, "kind": "train", "loss": 1}\n[1]\n'
                    '{"step": 1, "kind": "train", "loss": 3, "x": "y"}\n'
                    '{"step": 2, "kind": "train", "loss": 0.5}\n')
    found = report.read_metrics(path, warnings)
    assert list(found["train"]) == [1, 2] and found["train"][2]["loss"] == 0.5
    assert "x" not in found["train"][1]
    assert len(warnings) == 1 and "line 2 " in warnings[0]


@pytest.mark.parametrize("value, width, text", [
    (12.3456, 2.5, "12.3"), (0.0123456, 0.0011, "0.0123"), (1234.5, 300, "1,234"), (0.8123, 0, "0.8123"),
    (41210.7, 0, "41,211"), (1.0, float("inf"), "1"), (7, 0, "7"), (None, 0, "–"),
    (float("nan"), 1, "nan"), ("a", 0, "a"), (1e-12, 1e-13, "0.0000000")])
def test_numbers_carry_the_digits_of_their_interval(value, width, text):
    assert report.number(value, width) == text


@pytest.mark.parametrize("seconds, text", [
    (0, "0 s"), (59.6, "1 min"), (3725, "1 h 2 min"), (90000, "1 d 1 h")])
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_curves_use_the_pages_colours_and_stay_small():
    rng = np.random.default_rng(0)
    steps = np.arange(1.0, 200_001)
    noisy = 1 / steps + 0.01 * rng.random(len(steps))
    svg = curves([(steps, noisy)], dots=[(steps[::50_000], np.ones(4))], log=True)
    Page(svg)
    assert svg.startswith("<svg") and len(svg) < 60_000 and "http" not in svg and "<style" not in svg
    for used in ("var(--accent)", "var(--second)", "var(--ink)", "var(--rule)", "var(--sans)"):
        assert used in svg
    assert not re.search(r"#00000\d", svg)


def test_png_keeps_every_pixel_and_reduces_only_what_is_large():
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(png(image)), image)
    assert decode(png(np.zeros((400, 200), np.uint8), limit=100)).shape == (100, 50)


def decode(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


LEVELS = {"t0": 0.0, "t0.25": 0.25, "t0.9": 0.899, "t1": 1.0}
MEASURES = ("accuracy", "balanced_accuracy", "nll", "ece", "brier")


def fake_classifier(folder):
    """A run of train_classifier.py as it leaves it: scores by noise level, a figure, no pictures; classes with hostile names."""
    evaluated = folder / "eval/classifier_20"
    evaluated.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({
        "train": {"batch_size": 8, "noised": True, "best_metric": "nll"}, "nnet": {"name": "adm_classifier"},
        "dataset": {"name": "phantoms", "resolution": 8}}))
    numbers = {f"{measure}_{level}": i + time for i, measure in enumerate(MEASURES) for level, time in LEVELS.items()}
    numbers |= {measure: i + 0.5 for i, measure in enumerate(MEASURES)}
    numbers |= {"nll_tempered": 1.75, "temperature": 1.625}
    lines = [{"step": s, "kind": "train", "loss": 1 / s, "accuracy": 0.5} for s in (10, 20)]
    lines += [{"step": s, "kind": "eval", "n": 40, **numbers, f"accuracy_of_{EVIL}": 0.25, "accuracy_of_x_t1": 0.75}
              for s in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {name: score(value, 0.015625, 40) for name, value in numbers.items()}
    (evaluated / "scores.json").write_text(json.dumps({"n": 40, "step": 20, "scores": scores, "levels": LEVELS}))
    Image.new("RGB", (40, 20), (1, 2, 3)).save(evaluated / "reliability.png")
    return folder


@pytest.fixture
def classifier(tmp_path):
    folder = fake_classifier(tmp_path)
    (folder / "metrics.jsonl").rename(folder / "metrics")  # ten charts take a second
    return folder


def test_the_page_of_a_classifier_says_so_and_misses_no_pictures(classifier):
    _, page = read(classifier)
    assert "A classifier of noisy images: network adm_classifier" in page.text and "generative" not in page.text
    assert "shown.npz" not in page.text and " eval.py" not in page.text and "preview grids" not in page.text
    for title, meaning in (("Balanced accuracy", "Mean over the classes"), ("Negative log-likelihood", "in nats"),
                           ("Calibration error", "as sure as right"), ("Brier score", "Squared distance"),
                           ("Temperature", "too sure")):
        assert title in page.text and meaning in page.text, title
    assert [name for name, _ in report.contents(classifier)["evaluations"][0]["headline"]] == list(MEASURES[:4])


@pytest.mark.parametrize("nnet, noised, levels, said", [
    ("adm_classifier", False, True, "A classifier of clean images"), ("own", True, True, "A classifier of noisy images"),
    ("own", True, False, "A generative model of images")])
def test_a_classifier_is_known_by_its_network_or_its_scores(classifier, nnet, noised, levels, said):
    (classifier / "config.json").write_text(json.dumps({"nnet": {"name": nnet}, "train": {"noised": noised}}))
    path = classifier / "eval/classifier_20/scores.json"
    if not levels:
        path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "levels"}))
    page = read(classifier)[1].text
    assert said in page and ("shown.npz" in page) == (not levels)


def test_a_classifier_without_an_evaluation_is_told_where_one_comes_from(classifier):
    (classifier / "eval").rename(classifier / "elsewhere")
    assert "No evaluation yet: train_classifier.py writes it" in read(classifier)[1].text


def test_scores_of_noise_levels_are_rows_of_one_table(classifier):
    found = report.contents(classifier)["evaluations"][0]
    assert list(found["scores"]) == [*MEASURES, "nll_tempered", "temperature"] and found["level_columns"] == list(MEASURES)
    values = [[float(row["scores"][measure]["value"]) for measure in MEASURES] for row in found["levels"]]
    np.testing.assert_allclose(values, np.array(list(LEVELS.values()))[:, None] + np.arange(5), atol=1e-3)
    text, page = read(classifier)
    table = page.text.split("By noise level")[1].split("No scores per class")[0]
    assert "measured at 0.899" in table and table.count("measured at") == 1 and "2.234 to 2.266" in table
    assert 'title="nll_t0.25"' in text


@pytest.mark.parametrize("levels", [[1], {"t0": "x"}, {"t0": None}, "t0", {"t7": 7.0}])
def test_levels_that_are_none_leave_the_scores_as_they_are(classifier, levels):
    path = classifier / "eval/classifier_20/scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "levels": levels}))
    assert "ece_t0.25" in report.contents(classifier)["evaluations"][0]["scores"] and read(classifier)


def test_one_chart_holds_a_measure_at_all_noise_levels_or_of_all_classes(classifier):
    (classifier / "metrics").rename(classifier / "metrics.jsonl")
    drawn = {(c["kind"], c["name"], c["by"]): c for c in report.contents(classifier)["charts"]}
    assert list(drawn) == [
        ("train", "loss", ""), *[("eval", measure, "noise level") for measure in MEASURES], ("train", "accuracy", ""),
        ("eval", "nll_tempered", ""), ("eval", "temperature", ""), ("eval", "accuracy", "class")]
    words, colours = zip(*drawn["eval", "ece", "noise level"]["keys"])
    assert words == ("t 0", "t 0.25", "t 0.9", "t 1", "mean of all") and len(set(colours)) == 5
    assert all(f"stroke: {colour}" in drawn["eval", "ece", "noise level"]["svg"] for colour in colours)
    assert [words for words, _ in drawn["eval", "accuracy", "class"]["keys"]] == [EVIL, "x_t1"]
    text, page = read(classifier)
    assert EVIL in page.text and "script" not in page.tags and text.count("<svg") == 10
    assert "best checkpoint is chosen by them" in page.text


def test_figures_of_an_evaluation_are_embedded_byte_for_byte(classifier, monkeypatch):
    folder = classifier / "eval/classifier_20"
    (folder / "broken.png").write_bytes((folder / "reliability.png").read_bytes()[:40])
    (folder / "page.png").write_text("<script>alert(1)</script>")
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "large.png")
    monkeypatch.setattr(report, "FIGURE_BYTES", 10_000)
    _, page = read(classifier)
    assert [image["alt"] for image in page.images] == ["figure reliability"] and "How often right, and how sure" in page.text
    assert base64.b64decode(page.images[0]["src"].split(",")[1]) == (folder / "reliability.png").read_bytes()
    for name in ("broken", "page", "large"):
        assert f"classifier_20/{name}.png could not be shown" in page.text
    assert "at most 0.01 MB" in page.text
    assert all(load.startswith(("data:image/png;base64,", "data:,", "#")) for load in page.loads)


def test_a_folder_full_of_images_does_not_fill_the_page(classifier):
    for i in range(15):
        Image.new("RGB", (4, 4)).save(classifier / f"eval/classifier_20/{i:06d}.png")
    shown = report.contents(classifier)
    assert len(shown["evaluations"][0]["figures"]) == report.MOST_FIGURES
    assert any("4 more PNG files" in text for text in shown["warnings"])


def test_only_the_newest_classifier_evaluations_bring_figures(classifier):
    for i, name in enumerate(("older", "oldest")):
        (classifier / "eval" / name).mkdir()
        for part in ("scores.json", "reliability.png"):
            (classifier / "eval" / name / part).write_bytes((classifier / "eval/classifier_20" / part).read_bytes())
        os.utime(classifier / "eval" / name / "scores.json", (1000 - i, 1000 - i))
    _, page = read(classifier)
    assert len(page.images) == 2 and page.text.count("newer evaluations take their place") == 1


STUDY = """# Worth <b>

- 9 real images

| trained on | AUC |
|---|---:|
| real | 0.997 [0.9, 1.0] |
| real + <script> | 0.5 |

## In words
"""


def test_a_downstream_study_is_shown_as_text_and_figure(run):
    (run / "downstream.md").write_text(STUDY)
    Image.new("RGB", (30, 10), (9, 8, 7)).save(run / "downstream.png")
    text, page = read(run)
    assert "What synthetic images are worth to a classifier" in page.text and "# Worth <b>\n\n- 9 real images" in page.text
    assert "trained on       AUC\nreal             0.997 [0.9, 1.0]\nreal + <script>  0.5" in page.text
    assert "script" not in page.tags and "real + &lt;script&gt;" in text and '<pre class="wide">' in text
    image = next(image for image in page.images if image["alt"].startswith("scores against"))
    assert decode(image["src"]).shape == (10, 30, 3) and "A generative model" in page.text


@pytest.mark.parametrize("part", ["downstream.md", "downstream.png"])
def test_half_a_study_is_shown_and_a_study_of_its_own_is_called_one(tmp_path, part):
    (tmp_path / "config.json").write_text(json.dumps({"study": {"seeds": [1]}, "nnet": {"name": "small"}}))
    (tmp_path / "downstream.md").write_bytes(STUDY.encode() + b"\xff")
    Image.new("RGB", (30, 10)).save(tmp_path / "downstream.png")
    (tmp_path / part).unlink()
    _, page = read(tmp_path)
    assert "A study of what synthetic images are worth" in page.text and "eval_downstream.py" in page.text
    assert ("# Worth" in page.text) == (part == "downstream.png") and len(page.images) == (part == "downstream.md")
    for missed in ("No evaluation yet", "No curves yet", "No preview"):
        assert missed not in page.text


@pytest.mark.parametrize("name, parts", [
    ("balanced_accuracy_t0.25", ("balanced_accuracy", "t0.25")), ("accuracy", ("accuracy", "")), ("fd_clf", ("fd", "clf")),
    ("accuracyof_x", ("accuracyof", "x")), ("fid", ("fid", "")), ("other_a_b", ("other", "a_b"))])
def test_names_of_scores_part_after_the_longest_known_name(name, parts):
    assert report.parted(name, ("accuracy", "balanced_accuracy", "balanced", "fd", "fid")) == parts
