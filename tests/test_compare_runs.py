"""The page of several runs: only what was measured alike stands side by side, a best value is marked only where intervals part,
and what is unfair, missing or damaged is said with the command that mends it."""

import csv
import hashlib
import json
import os

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from libs import backbones, codecs, data, diffusion, engine, evaluation, metrics, pipeline, report
from libs.evaluation.generation import save_npz
from libs.evaluation.references import Reference
from libs.report import comparison
from libs.report.compared import Run
from libs.report.fairness import remarks
from libs.report.yardsticks import Yardstick, best, judge, yardstick
from tests.test_report import EVIL, Page

CLASSES = ("nevus", "melanoma")
REAL, WEIGHTS = hashlib.sha256(b"real").hexdigest(), hashlib.sha256(b"weights").hexdigest()


def key(real, weights):
    return hashlib.sha256(f"{real} {weights}".encode()).hexdigest()[:16]


def fake(folder, *, script="train.py", nnet="uvit", best_metric="", batch=8, steps=40, rate=4.0, classes=CLASSES, device="CPU",
         dataset=(), log=None):
    """A trained run as the engine leaves it: `steps` steps of `batch` images at `rate` images a second, two scores on the way."""
    folder.mkdir(parents=True)
    write(folder / "config.json", {
        "seed": 1, "train": {"batch_size": batch, "n_steps": steps, "best_metric": best_metric},
        "nnet": {"name": nnet, "depth": 3}, "dataset": {"name": "phantoms", "resolution": 8, **dict(dataset)},
        "denoiser": {"predicts": "x0"}, "schedule": {"name": "vpsde"}, "codec": {"name": "pixels"}})
    write(folder / "classes.json", list(classes))
    write(folder / "run.json", {"sessions": [{"command": f"python /a/{script} --config=c.py --workdir={folder}", "device": device,
                                              "processes": 1, "precision": "no"}]})
    write(folder / "preflight.json", {"good": REAL})
    lines = log or [{"step": s, "kind": "train", "loss": 1.0, "images_per_second": rate} for s in range(10, steps + 1, 10)]
    lines += [{"step": s, "kind": "eval", "n": 16, "fd_clf": 900 / s, "frechet": 900 / s} for s in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluate(folder, *, shift=0.0, n=64, seed=1, name="final", real=REAL, weights=WEIGHTS, classes=CLASSES, old=False, made=0,
             resamples=20, images=240, more=(), text="", size=8):
    """An evaluation whose scores are those of features `shift` away from the real ones, written as evaluation writes it."""
    draw = torch.Generator().manual_seed(0)
    known, features = torch.randn(200, 4, generator=draw), torch.randn(n, 4, generator=draw) + shift
    labels, of_real = torch.arange(n) % max(1, len(classes)), torch.arange(200) % max(1, len(classes))
    options = {"feature": "clf", "names": ("fd", "kid", "pr"), "resamples": resamples, "seed": 0}
    source = text or f"{images} images of phantoms (phantoms-clf-{key(real, weights)}.npz)"
    found = {"n": n, "step": 40, "nnet": f"{folder}/ckpts/40.ckpt", "seed": seed, "sampler": "ddim, 20 steps, guidance 1.5",
             "features": "clf", "reference": source, "interval": "95 % bootstrap", "warnings": ["few images"],
             "scores": metrics.scores(features, known, **options)}
    if classes:
        found["per_class"] = metrics.scores_per_class(features, labels, known, of_real, classes=list(classes), **options)
    if not old:
        found |= {"judges": {"clf": {"weights": weights, "reference": source}}, "operations": 1500,
                  "real": {"name": "phantoms", "images": images, "shape": [3, size, size], "fingerprint": real},
                  "sampling": {"steps": 20, "guidance": 1.5, "evaluations_per_image": 40.0, "seconds_per_image": 0.25, "batch": 8,
                               "device": "CPU", "processes": 1, "precision": "no"},
                  "parameters": {"network": {"total": 2_848_276, "trainable": 2_848_276, "frozen": 0},
                                 "codec": {"total": 0, "trainable": 0, "frozen": 0}}}
    path = folder / "eval" / name
    path.mkdir(parents=True)
    write(path / "scores.json", found | dict(more))
    rng, each = np.random.default_rng(1), 4 * max(1, len(classes))
    pictures, shown = rng.integers(0, 256, (3, each, size, size, 3), dtype=np.uint8), np.arange(each) // 4
    save_npz(path / "shown.npz", arr_0=pictures[0], arr_1=shown, arr_2=pictures[1], arr_3=np.linspace(1.5, 3, each),
             arr_4=np.arange(each), arr_5=pictures[2], arr_6=shown, arr_7=np.linspace(2, 4, 50))
    if made:
        os.utime(path / "scores.json", (made, made))
    return folder


def write(path, content):
    path.write_text(json.dumps(content))


def change(path, **values):
    write(path, json.loads(path.read_text()) | values)


@pytest.fixture
def two(tmp_path):
    """Two comparable runs, the second clearly farther from the real images."""
    return [evaluate(fake(tmp_path / "near")),
            evaluate(fake(tmp_path / "far", script="train_class_ldm.py", nnet="unet_label", rate=2.0), shift=2.0)]


def page(workdirs, out, **options):
    path, faults = report.write_comparison(workdirs, out, **options)
    text = path.read_text(encoding="utf-8")
    return Page(text), faults, text


def said(faults):
    return " | ".join(fault["text"] for fault in faults)


def found(workdirs, **options):
    return comparison.contents(workdirs, **options)


def test_the_page_holds_scores_costs_images_and_curves_of_both_and_loads_nothing(two, tmp_path):
    shown, faults, text = page(two, tmp_path / "out", names=(EVIL, "far"), title="Lesions & co")
    assert not faults and "What stands against" not in shown.text
    scores = json.loads((two[0] / "eval/final/scores.json").read_text())["scores"]
    for expected in ("Lesions & co", EVIL, "unet_label", "2.85 M", "1.5 k", "60 k", "1 min 20 s", "2 min 40 s", "320",
                     "ddim, 20 steps", "0.25", "by features of", "nevus", "melanoma", "few images", "train_class_ldm.py",
                     "95 % bootstrap", report.score(scores["fd_clf"])["value"], report.score(scores["kid_clf"])["interval"]):
        assert expected.lower() in shown.text.lower(), expected
    assert all(load.startswith(("data:", "#")) for load in shown.loads) and "default-src 'none'" in text
    assert "script" not in shown.tags and "<script" not in text
    assert len(shown.images) == 3 * 2 * 4, "real, near, far: two classes, four each"
    assert text.count("<svg") == 2 and "over training time, in seconds" in text  # of fd_clf alone
    assert "Losses are not shown" in shown.text


def test_the_nearer_run_is_marked_and_equal_runs_are_not(two, tmp_path):
    overall = found(two)["scores"][0]["metrics"]
    assert overall["fd_clf"]["near"]["best"] and not overall["fd_clf"]["far"]["best"]
    twin = evaluate(fake(tmp_path / "twin"))
    overall = found([two[0], twin])["scores"][0]["metrics"]
    assert not any(cell["best"] for cells in overall.values() for cell in cells.values())


def test_filtered_images_beside_others_are_a_fault(two):
    path = two[1] / "eval/final/scores.json"
    sampling = json.loads(path.read_text())["sampling"]
    change(path, sampling=sampling | {"filter": "0123, score >= 0.7, 10 attempts"})
    text = said(found(two)["faults"])
    assert "near: none; far: 0123, score >= 0.7, 10 attempts" in text.replace(" none", " none") and "generator and filter" in text


def entry(value, low, high, n=50, **more):
    return {"value": value, "low": low, "high": high, "n": n, **more}


@pytest.mark.parametrize("metric, cells, name", [
    ("fd_x", {"a": entry(1, 0.5, 1.5), "b": entry(3, 2, 4)}, "a"),
    ("fd_x", {"a": entry(1, 0.5, 2.5), "b": entry(3, 2, 4)}, ""),
    ("fd_x", {"a": entry(1, 0.5, 2.0), "b": entry(3, 2, 4)}, ""),  # they touch
    ("fd_x", {"a": entry(1, 0.5, 1.5), "b": entry(3, 2, 4), "c": entry(1.2, 1, 2)}, ""),
    ("fd_x", {"a": entry(1, None, None), "b": entry(3, 2, 4)}, ""),
    ("fd_x", {"a": entry(1, 0.5, 1.5)}, ""),
    ("accuracy_x", {"a": entry(0.2, 0.1, 0.3), "b": entry(0.6, 0.5, 0.7)}, "b"),
    ("coverage_x", {"a": entry(0.0, 0.0, 0.0), "b": entry(0.05, 0.01, 0.09)}, ""),  # none of 50 may be 3 of 50
    ("coverage_x", {"a": entry(0.0, 0.0, 0.0, 5000), "b": entry(0.05, 0.01, 0.09, 5000)}, "b"),
    ("surprise", {"a": entry(1, 0.5, 1.5), "b": entry(3, 2, 4)}, ""),  # nobody knows which way is better
    ("surprise", {"a": entry(1, 0.5, 1.5, better="higher"), "b": entry(3, 2, 4, better="higher")}, "b"),
])
def test_a_value_is_best_where_its_interval_overlaps_no_other(metric, cells, name):
    assert best(metric, cells) == name


def test_training_time_adds_up_the_log_and_counts_undone_steps_once(tmp_path):
    # 10 steps at 4 images/s, killed, resumed at 10 and then twice as fast; an evaluation in between costs nothing
    log = [{"step": 10, "kind": "train", "images_per_second": 4.0}, {"step": 20, "kind": "train", "images_per_second": 1.0},
           {"step": 20, "kind": "train", "images_per_second": 8.0}, {"step": 40, "kind": "train", "images_per_second": 8.0}]
    run = Run(fake(tmp_path / "run", log=log), "run", [])
    assert run.seconds_at(10) == 20 and run.seconds_at(20) == 30 and run.seconds_at(40) == 50 and run.seconds_at(15) == 25
    assert run.facts()["training_seconds"] == 50 and run.facts()["images_per_second"] == 40 * 8 / 50


def test_of_three_runs_the_odd_one_is_left_out_with_the_reason(two, tmp_path):
    third = evaluate(fake(tmp_path / "third"), weights="f" * 64)
    result = found([third, *two])
    assert all(set(cells) == {"near", "far"} for part in result["scores"] for cells in part["metrics"].values())
    assert all(set(cells) == {"near", "far"} for rows in result["per_class"].values() for cells in rows.values())
    each, = result["left_out"]
    assert (each["run"], each["what"]) == ("third", "all scores by clf")
    assert each["reason"] == f"judged by other weights of clf (ffffffff, not {WEIGHTS[:8]}) than near"
    assert "third is judged by other weights of clf" in said(result["faults"])
    assert result["nearest"]["judge"] == "clf"
    shown, _, _ = page([third, *two], tmp_path / "out")
    assert shown.text.count("left out") >= 5
    rows = csv.DictReader((tmp_path / "out/comparison.csv").open())
    assert not any(row["n"] for row in rows if row["run"] == "third"), "what it took, and no scores"


@pytest.mark.parametrize("other, sentence", [
    ({"real": "e" * 64, "images": 99}, "with other real images than near: 99 of phantoms, eeeeeeee beside 240 of phantoms"),
    ({"weights": "e" * 64}, "judged by other weights of clf (eeeeeeee, not"),
    ({"n": 48}, "Different numbers of images were scored: near: 64, other: 48"),
    ({"seed": 5}, "The images are of different seeds: near: 1, other: 5"),
    ({"size": 16}, "The images have different sizes: near: 8 pixels, other: 16 pixels"),
    ({"text": "assets/x.npz (0123456789abcdef)"}, "measured against other real images or by other weights of clf (statistics"),
])
def test_what_differs_is_said_with_the_names_of_the_runs(two, tmp_path, other, sentence):
    run = evaluate(fake(tmp_path / "other"), **other)
    result = found([two[0], run])
    assert sentence in said(result["faults"])
    if "seed" in other or "size" in other:
        assert len(result["scores"][0]["metrics"]) == 4 and not result["left_out"]
    elif "n" in other:  # KID and precision do not move with it
        assert list(result["scores"][0]["metrics"]) == ["precision_clf", "kid_clf"]
        assert {each["what"] for each in result["left_out"]} == {"fd_clf, recall_clf"}
    else:
        assert not result["scores"] and {each["run"] for each in result["left_out"]} == {"near", "other"}
        assert list(result["nearest"]["runs"]) == ["near"] and result["nearest"]["apart"] == ["other"]


def test_classes_shares_training_images_and_labels_are_compared(two, tmp_path):
    other = evaluate(fake(tmp_path / "other", classes=("nevus", "angioma")), classes=("nevus", "angioma"))
    assert "do not know the same classes: near: nevus, melanoma; other: nevus, angioma" in said(found([two[0], other])["faults"])
    change(two[1] / "preflight.json", good="d" * 64)
    assert "far was trained on other images than near" in said(found(two)["faults"])
    path = two[1] / "eval/final/scores.json"
    rows = json.loads(path.read_text())["per_class"]
    change(path, per_class={name: {key: value | {"n": n} for key, value in rows[name].items()}
                            for name, n in (("nevus", 50), ("melanoma", 14))})
    assert "not asked for in the same shares: near: nevus 32, melanoma 32; far: nevus 50, melanoma 14" in said(found(two)["faults"])
    bare = [evaluate(fake(tmp_path / f"bare{i}", classes=()), classes=()) for i in range(2)]
    result = found(bare)
    assert not result["faults"] and any("None of the runs knows labels" in text for text in result["remarks"])
    assert not result["per_class"] and [row["name"] for row in result["pictures"]["rows"]] == [""]


def test_configs_explain_what_differs(two, tmp_path):
    other = evaluate(fake(tmp_path / "other", dataset={"holdout": 0.1, "split": "train"}), real="e" * 64)
    change(two[0] / "config.json", dataset={"name": "phantoms", "holdout": 0.0, "split": "train"})
    assert "Their configs differ: config.dataset.holdout is 0.1, there 0.0." in said(found([two[0], other])["faults"])


def test_a_run_without_an_evaluation_comes_with_its_command(two, tmp_path):
    fresh = fake(tmp_path / "my runs" / "fresh", script="train_dit.py")
    shown, faults, _ = page([*two, fresh], tmp_path / "out")
    assert faults == [{"text": "fresh has no evaluation: there are neither scores nor images to compare. To make it:",
                       "commands": [f"python eval_dit.py '--workdir={fresh}' --config.sample.n_samples=64"]}]
    assert f"python eval_dit.py '--workdir={fresh}'" in shown.text and "unet_label" in shown.text
    evaluate(fresh, n=32, seed=3)
    assert found([*two, fresh])["faults"][0]["commands"] == [f"python eval_dit.py '--workdir={fresh}' --config.sample.n_samples=64"]
    with pytest.raises(ValueError, match=r"none of the runs has an evaluation 'x'[^|]*eval_class_ldm.py --workdir=\S+far --name=x"):
        found(two, name="x")
    evaluate(two[0], name="x", seed=7)
    fault, = found(two, name="x")["faults"]
    assert fault["commands"] == [f"python eval_class_ldm.py --workdir={two[1]} --config.sample.n_samples=64 --seed=7 --name=x"]


def test_the_largest_evaluation_that_all_share_is_taken_and_of_equal_ones_the_newest(tmp_path):
    a, b = fake(tmp_path / "a"), fake(tmp_path / "b")
    evaluate(a, name="old", made=1000, n=16)
    evaluate(a, name="shared", made=2000, n=32)
    evaluate(a, name="own", made=3000, n=48)
    evaluate(b, name="old", made=1500, n=16)
    evaluate(b, name="shared", made=2500, n=32)
    evaluate(b, name="other weights", made=4000, n=32, weights="f" * 64)
    assert [run.evaluation["folder"] for run in found([a, b])["runs"]] == ["shared", "shared"]
    assert [run.evaluation["folder"] for run in found([a, b], name="old")["runs"]] == ["old", "old"]
    c = evaluate(fake(tmp_path / "c"), n=32, weights="e" * 64)  # the same number and seed, but nothing in common
    assert [run.evaluation["folder"] for run in found([a, b, c])["runs"]] == ["shared", "other weights", "final"]


def test_older_evaluations_are_told_by_their_statistics(two, tmp_path):
    old = evaluate(fake(tmp_path / "old"), old=True)
    result = found([two[0], old])
    assert not result["faults"] and not result["left_out"] and len(result["scores"][0]["metrics"]) == 4
    assert any("old: seconds per image and operations were not recorded" in text for text in result["remarks"])
    assert result["facts"]["old"]["sample_steps"] == 20 and result["facts"]["old"]["guidance"] == 1.5
    other = evaluate(fake(tmp_path / "other"), old=True, weights="f" * 64)
    result = found([two[0], other])
    assert not result["scores"] and "measured against other real images or by other weights of clf" in said(result["faults"])


def test_yardsticks():
    def told(**more):
        return {"judges": {}, "real": {}, "features": "inception, a/b", "reference": "", **more}

    new = {"a": {"weights": "w", "reference": "5 images of x (x-a-0123456789abcdef.npz); single images compared with 3 of them"}}
    assert yardstick(told(judges=new), "a") == Yardstick("0123456789abcdef")
    old = "5 images of x (x-inception-0000000000000000.npz); 5 images of x (x-a_b-1111111111111111.npz)"
    assert yardstick(told(reference=old), "a/b") == Yardstick("1" * 16)
    files = [yardstick(told(judges={"a": {"weights": "w", "reference": text}}), "a")
             for text in ("here/x.npz (0123456789abcdef)", "there/y.npz (0123456789abcdef)", "here/x.npz (fedcba9876543210)")]
    assert files[0] == files[1] != files[2], "the same file by another name is the same"
    assert yardstick(told(), "following") is None
    judged = told(judges={"following": {"weights": "s", "reference": "5 pairs"}}, real={"fingerprint": "r"})
    assert yardstick(judged, "following") == Yardstick("", "r", "s")
    assert [judge(told(), metric) for metric in ("fid", "kid_inception", "fd_a/b", "dice_lesion", "agreement_size", "odd")] == [
        "inception", "inception", "a/b", "following", "agreement", ""]


def test_scores_by_a_network_that_nobody_names_are_left_out(two):
    for run in two:
        scores = json.loads((run / "eval/final/scores.json").read_text())["scores"]
        change(run / "eval/final/scores.json", scores=scores | {"dice": entry(0.8, 0.7, 0.9)})
    result = found(two)
    assert {each["what"] for each in result["left_out"]} == {"dice"}
    assert "does not say by which network it was judged: evaluate it again" in said(result["faults"])
    for run, weights in zip(two, "ss"):
        judges = json.loads((run / "eval/final/scores.json").read_text())["judges"]
        change(run / "eval/final/scores.json", judges=judges | {"following": {"weights": weights, "reference": "5 pairs"}})
    result = found(two)
    assert not result["left_out"] and [part["judge"] for part in result["scores"]] == ["clf", "following"]


def test_remarks_name_machines_samplers_choice_and_unfinished_runs(tmp_path):
    a = evaluate(fake(tmp_path / "a", best_metric="frechet"))
    b = evaluate(fake(tmp_path / "b", device="GPU", rate=40.0), more={"sampler": "ddpm, 250 steps"}, resamples=0)
    change(b / "config.json", train={"batch_size": 8, "n_steps": 100})
    sessions = json.loads((b / "run.json").read_text())["sessions"]
    change(b / "run.json", sessions=[each | {"command": f"python train.py --config.train.batch_size={n}"}
                                     for each, n in zip(sessions * 2, (4, 8))])
    text = " | ".join(remarks(found([a, b])["runs"]))
    for expected in ("Samplers differ: a: ddim, 20 steps, guidance 1.5; b: ddpm, 250 steps", "a: frechet, b: the last step",
                     "10.0 times as long for a as for b", "a: CPU, float32; b: GPU, float32", "b has done 40 of its 100 steps",
                     "b went on with another batch size (4, 8)", "b: no intervals"):
        assert expected in text, expected


def test_the_files_hold_the_numbers_of_the_evaluations(two, tmp_path):
    page(two, tmp_path / "out", names=("near_1", "far"))
    known = json.loads((two[0] / "eval/final/scores.json").read_text())
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    own = written["runs"]["near_1"]
    assert {key: own["scores"]["fd_clf"][key] for key in ("value", "low", "high", "n")} == known["scores"]["fd_clf"]
    assert own["scores"]["fd_clf"]["best"] is True and own["per_class"]["nevus"]["kid_clf"]["value"] == (
        known["per_class"]["nevus"]["kid_clf"]["value"])
    assert own["facts"]["operations_per_image"] == 60_000 and own["nearest"]["n_close"] == 3  # below 2.1 of 1.5, 1.71, 1.93, 2.14
    assert own["curves"]["fd_clf"] == {"steps": [20, 40], "seconds": [40, 80], "values": [45, 22.5]}
    rows = list(csv.DictReader((tmp_path / "out/comparison.csv").open()))
    row, = (row for row in rows if (row["run"], row["class"], row["name"]) == ("near_1", "", "fd_clf"))
    assert float(row["value"]) == known["scores"]["fd_clf"]["value"] and row["best"] == "1"
    assert [row["value"] for row in rows if row["name"] == "images_seen"] == ["320", "320"]
    value = report.score(known["scores"]["fd_clf"])["value"]
    assert rf"near\_1 & \textbf{{{value}}}" in (tmp_path / "out/comparison.tex").read_text()
    text = (tmp_path / "out/comparison.md").read_text()
    assert rf"| near\_1 | **{value}** [" in text and "Fréchet distance ↓" in text


def test_curves_of_runs_that_logged_none_or_otherwise_are_not_drawn(two, tmp_path):
    silent = evaluate(fake(tmp_path / "silent"))
    lines = (silent / "metrics.jsonl").read_text().splitlines()
    (silent / "metrics.jsonl").write_text("\n".join(line for line in lines if "eval" not in line) + "\n")
    fewer = evaluate(fake(tmp_path / "fewer"))
    (fewer / "metrics.jsonl").write_text((fewer / "metrics.jsonl").read_text().replace('"n": 16', '"n": 8'))
    chart, = found([*two, silent, fewer])["charts"]
    assert list(chart["lines"]) == ["near", "far"] and chart["n"] == 16
    assert any(text.startswith("silent: it logged none") for text in chart["without"])
    assert any(text.startswith("fewer: measured on another number of images") for text in chart["without"])


@pytest.mark.parametrize("part, damage", [("eval/final/shown.npz", b"PK"), ("metrics.jsonl", b'{"step": 1, "ki'),
                                          ("classes.json", b"{"), ("eval/final/shown.npz", None)])
def test_damaged_files_cost_a_remark_and_not_the_page(two, tmp_path, part, damage):
    path = two[1] / part
    path.unlink() if damage is None else path.write_bytes(damage)
    shown, _, _ = page(two, tmp_path / "out")
    assert path.name in shown.text.split("What to know beside")[1] and "Fréchet distance" in shown.text


def test_scores_that_are_no_numbers_are_no_scores(two):
    path = two[1] / "eval/final/scores.json"
    scores = json.loads(path.read_text())["scores"]
    change(path, scores=scores | {"fd_clf": entry(float("nan"), 1, 2), "kid_clf": "broken"}, judges={"clf": 3}, operations="many",
           step="last", sampling={"steps": [1]}, warnings=None)
    assert set(found(two)["scores"][0]["metrics"]) == {"precision_clf", "recall_clf"}
    path.write_text('{"n": 3, "scores": ')
    result = found(two)
    assert "far has no evaluation" in said(result["faults"]) and any("scores.json could not be read" in text
                                                                     for text in result["remarks"])


def test_bad_input_is_named(two, tmp_path):
    (tmp_path / "empty").mkdir()
    classifier = fake(tmp_path / "clf", nnet="adm_classifier")
    for workdirs, options, message in (
            ([two[0]], {}, "1 run folders: give two or more"), ([], {}, "0 run folders"),
            ([two[0], tmp_path / "nowhere"], {}, "nowhere is no folder"), ([two[0], two[0]], {}, "near is given twice"),
            ([two[0], tmp_path / "empty"], {}, "no config.json that names a network"),
            ([two[0], classifier], {}, "its network is 'adm_classifier'"),
            (two, {"names": ["a"]}, "one name for each"), (two, {"names": ["a", "a"]}, "all different"),
            ([fake(tmp_path / "x"), fake(tmp_path / "y")], {}, "none of the runs has an evaluation")):
        with pytest.raises(ValueError, match=message):
            report.write_comparison(workdirs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_runs_are_called_by_what_tells_their_folders_apart():
    assert comparison.called(["w/a/default", "w/b/default"], []) == ["a/default", "b/default"]
    assert comparison.called(["w/dit", "w/uvit/"], []) == ["dit", "uvit"]
    numbers = {None: "–", 12: "12", 1500: "1.5 k", 2_848_276: "2.85 M", 999_999: "1 M"}
    assert {value: comparison.engineering(value) for value in numbers} == numbers


class Still:
    """In place of a feature network: the mean of each channel."""

    name, dims, classes, fingerprint = "clf", 3, None, WEIGHTS

    def both(self, images):
        return images.float().mean((2, 3)), None


def test_what_evaluation_writes_is_what_the_page_reads(tmp_path):
    dataset = data.get(name="phantoms", resolution=16, size=40, seed=0, split="train")
    features = torch.stack([(dataset[i]["image"] + 1).mean((1, 2)) * 127.5 for i in range(40)])
    gaussian = metrics.Gaussian(features.double().mean(0), torch.tensor(np.cov(features.double().T.numpy())), 40, "clf")
    side = Reference(gaussian, features, dataset.labels, torch.arange(40), "40 images of x (x-clf-0123456789abcdef.npz)")
    for name, depth in (("small", 2), ("large", 4)):
        run = engine.Run(fake(tmp_path / name, classes=dataset.classes))
        config = ConfigDict({
            "seed": 0, "train": {"mode": "cond"}, "schedule": {"name": "vpsde"}, "codec": {"name": "pixels"},
            "denoiser": {"predicts": "x0", "clip": True}, "dataset": {"name": "phantoms"},
            "nnet": {"name": "uvit", "img_size": 16, "patch_size": 8, "in_chans": 3, "embed_dim": 16, "depth": depth,
                     "num_heads": 2, "mlp_ratio": 2, "qkv_bias": False, "mlp_time_embed": False, "num_classes": 0},
            "sample": {"algorithm": "ddim", "sample_steps": 2, "mini_batch_size": 8, "guidance": 1.5, "labels": "balanced",
                       "path": "", "npz": ""}, "metrics": {"names": ("fd", "kid"), "bootstrap": 5}})
        net = pipeline.build_net(config, dataset.classes)
        sampler = pipeline.Pipeline(net.eval(), config, codec=codecs.get(name="pixels"), schedule=diffusion.schedule(name="vpsde"),
                                    null=pipeline.null_conditions(net, dataset.classes))
        evaluation.evaluate(run, sampler, config, dataset, n=16, seed=1, name="few", step=40, sides=[(Still(), side)])
        run.finish()
    result = found([tmp_path / "small", tmp_path / "large"])
    facts = result["facts"]["large"]
    assert not result["faults"] and not result["left_out"] and set(result["scores"][0]["metrics"]) == {"fd_clf", "kid_clf"}
    assert facts["parameters"] == sum(p.numel() for p in net.parameters()) > result["facts"]["small"]["parameters"]
    assert facts["operations"] == backbones.flops_per_image(net) and facts["evaluations_per_image"] == 4  # 2 steps, guided
    assert facts["seconds_per_image"] > 0 and facts["sampling_batch"] == 2 and facts["guidance"] == 1.5
    evaluated = result["runs"][0].evaluation
    assert evaluated["real"]["fingerprint"] == dataset.fingerprint and evaluated["judges"]["clf"]["weights"] == WEIGHTS
    assert len(result["pictures"]["rows"]) == 4 and result["nearest"]["runs"]["small"]["n"] == 16
