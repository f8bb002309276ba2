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
    assert "Earlier evaluation: oldest" in read(run)[1].text


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
