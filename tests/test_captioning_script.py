"""scripts/caption_images.py: from class folders to the table that training reads, through kills and bad answers."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from configs import isic_captions, kvasir_captions
from libs import captioning, data
from tests.conftest import ROOT
from tests.test_captioning import t5  # noqa: F401 (fixture)
from tests.test_captioning_models import colour_of, no_proxy, server, tiny  # noqa: F401 (fixtures)

LOOSE = {"checks.min_words": 1, "checks.max_words": 0, "checks.no_measurements": False, "checks.dependence": 0,
         "output.table": "", "server.startup": 0.0}


def options_for(server, path, **more):  # noqa: F811
    return LOOSE | {"input.path": str(path), "model.name": "server", "model.path": "eye", "server.base_url": server.url,
                    "server.backoff": 0.01, "output.threads": 2} | more


def command(options, workdir):
    return ("--config=configs/isic_captions.py", *(f"--config.{key}={value}" for key, value in options.items()),
            f"--workdir={workdir}")


@pytest.fixture(scope="module")
def caption():
    """caption(options, workdir): the script's function, in this process."""
    spec = importlib.util.spec_from_file_location("caption_images", ROOT / "scripts" / "caption_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(options, workdir):
        config = isic_captions.get_config()
        config.t5_simplify = kvasir_captions.get_config().t5_simplify
        config.update_from_flattened_dict(options)
        module.main(config.lock(), workdir)

    return call


@pytest.fixture
def images(tmp_path):
    """Three images in two classes, in two splits."""
    for k, name in enumerate(("train/NV/1.png", "train/MEL/2.png", "test/NV/3.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (60 + 60 * k, 10, 200 - 60 * k)).save(path)
    return tmp_path / "images"


def table_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row["file_name"]: row for row in csv.DictReader(file)}


def test_from_class_folders_to_the_table_that_training_reads(caption, server, images, tmp_path, capsys):  # noqa: F811
    options = options_for(server, images, prompts="vsg_skin") | {"output.table": "metadata_captions.csv"}
    caption(options, tmp_path / "out")
    assert "failed start: 3" in capsys.readouterr().out, "no answer begins as asked"
    assert not any(row["text"] for row in table_of(images / "metadata_captions.csv").values())

    def labelled(prompt, image, n):
        name = "melanoma" if "describe what a melanoma" in prompt.lower() else "melanocytic nevus"
        return f"A dermoscopic image of a {name}, grey level {image.getpixel((0, 0))[0]}."

    server.answer = labelled
    caption(options | {"output.redo_failed": True, "checks.dependence": 3}, tmp_path / "out")
    said = capsys.readouterr().out
    assert "A dermoscopic image of a melanoma, grey level 120." in said and "3 of 3 images described" in said
    dataset = data.get(name="folder", path=images / "metadata_captions.csv", resolution=8, split="train")
    assert dataset.classes == ["MEL", "NV"] and dict(zip(dataset.labels.tolist(), dataset.captions, strict=True)) == {
        0: "A dermoscopic image of a melanoma, grey level 120.",
        1: "A dermoscopic image of a melanocytic nevus, grey level 60."}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["described"] == 3 and report["prompts"][0].startswith("vsg_skin@")
    asked = server.asked
    caption(options | {"checks.dependence": 3}, tmp_path / "out")
    assert server.asked == asked, "a finished table asks nothing, nor does the check that it passed"


def test_splits_are_those_of_the_data_set(caption, server, images, tmp_path):  # noqa: F811
    (images / "train").rename(images / "Train")
    (images / "test").rename(images / "Test")
    caption(options_for(server, images) | {"output.table": "metadata_captions.csv"}, tmp_path / "out")
    splits = {name: row["split"] for name, row in table_of(images / "metadata_captions.csv").items()}
    assert splits == {"Train/NV/1.png": "Train", "Train/MEL/2.png": "Train", "Test/NV/3.png": "Test"}
    assert len(data.get(name="folder", path=images / "metadata_captions.csv", resolution=8, split="Train")) == 2


def test_several_processes_are_refused(caption, server, images, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2: one process .* --config.output.threads=16"):
        caption(options_for(server, images), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    caption(options_for(server, images), tmp_path)
    assert len(table_of(tmp_path / "captions.csv")) == 3


def test_a_tokenizer_with_code_of_its_own(caption, server, tiny, images, tmp_path):  # noqa: F811
    folder, trace = tmp_path / "own_code", tmp_path / "trace"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}')
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    with pytest.raises(ValueError, match="own_code comes with code of its own.*name another one by config.checks.tokenizer"):
        caption(options_for(server, images) | {"checks.max_tokens": 9, "checks.tokenizer": str(folder)}, tmp_path / "out")
    assert not trace.exists()


def test_simple_captions_become_descriptions_beside_their_images(caption, server, images, tmp_path, t5,  # noqa: F811
                                                                 capsys, caplog, monkeypatch):
    """Med-Art's raw.csv gives the metadata.csv that trainings read; where no description passes, the sentence stays."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (images / "raw.csv").write_text("file_name,text\ntrain/NV/1.png,An endoscopic image of polyps\n"
                                    "train/MEL/2.png,An endoscopic image of normal cecum\n")
    good = "An endoscopic image of polyps. It is red and round. It is smooth."
    server.answer = lambda prompt, image, n: good if "polyps" in prompt else "A nice picture."
    options = options_for(server, images / "raw.csv", **{
        "prompts": "vsg_kvasir", "output.table": "metadata.csv", "checks.fallback": "start", "checks.max_tokens": 18,
        "checks.tokenizer": "nobody/t5-that-is-nowhere", "checks.attempts": 2})
    caption(options, tmp_path / "out")
    assert "tokens are estimated" in caplog.text and "1 have the fallback text, such as train/MEL/2.png" in capsys.readouterr().out
    rows = table_of(images / "metadata.csv")
    assert rows["train/NV/1.png"] == {"file_name": "train/NV/1.png", "label": "polyps", "fallback": "",
                                      "text": "An endoscopic image of polyps. It is red and round."}
    assert rows["train/MEL/2.png"] == {"file_name": "train/MEL/2.png", "label": "normal cecum", "fallback": "start",
                                       "text": "An endoscopic image of normal cecum."}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tokens"] == "estimated: nobody/t5-that-is-nowhere was not at hand" and report["fallback"] == ["train/MEL/2.png"]
    dataset = data.get(name="folder", path=images, resolution=8, require=("text",))
    assert len(dataset) == 2 and dataset.captions[1] == "An endoscopic image of normal cecum."

    asked = server.asked
    caption(options, tmp_path / "out")
    assert server.asked == asked, "a finished table is written again, and nothing asked"
    (images / "metadata.csv").write_text("file_name,text\ntrain/NV/1.png,my own\n")
    with pytest.raises(ValueError, match="metadata.csv is there already and not as"):
        caption(options, tmp_path / "out")

    server.answer = lambda *_: good
    caption(options | {"output.table": "simple.csv", "checks.shorten": "t5_simplify", "t5_simplify.path": str(t5), "limit": 1,
                       "checks.tokenizer": str(t5), "t5_simplify.max_length": 9, "t5_simplify.min_length": 2}, tmp_path / "new")
    text, = (row["text"] for row in table_of(images / "simple.csv").values())
    assert text.startswith("An endoscopic image of polyps. ") and text != "An endoscopic image of polyps. It is red and round."

    (images / "raw.csv").write_text("file_name,text\ntrain/NV/1.png,An endoscopic image of polyps\ntrain/MEL/2.png,Ulcers\n")
    with pytest.raises(ValueError, match=r"1 texts do not name a class as .*: raw.csv:3: 'Ulcers'; mend them"):
        caption(options, tmp_path / "other")


def test_an_input_table_keeps_its_columns(caption, server, images, tmp_path):  # noqa: F811
    (images / "metadata.csv").write_text("file_name,text,label,mask_file_name,patient\n"
                                         "train/NV/1.png,old,NV,test/NV/3.png,p7\n"
                                         "train/MEL/2.png,old,MEL,test/NV/3.png,p8\n")
    caption(options_for(server, images) | {"output.table": "new.csv", "limit": 1}, tmp_path / "out")
    rows = table_of(images / "new.csv")
    assert rows == {"train/NV/1.png": {"file_name": "train/NV/1.png", "text": "A lesion of colour 60 10 200.", "label": "NV",
                                       "patient": "p7", "mask_file_name": "test/NV/3.png"}}


def test_a_model_that_does_not_look_is_stopped_after_the_sample(caption, server, images, tmp_path):  # noqa: F811
    server.answer = lambda *_: "A brown lesion."
    with pytest.raises(ValueError, match="2 of 2 descriptions stayed the same with a blank image"):
        caption(options_for(server, images) | {"checks.dependence": 2, "checks.on_fail": "stop"}, tmp_path)
    assert len(table_of(tmp_path / "captions.csv")) == 2


@pytest.mark.parametrize("changes, words", [
    ({"prompts": "vsg_skin", "input.label_column": ""}, "name the {label}"),
    ({"model.name": "serve"}, "did you mean 'server'"),
    ({"output.table": "metadata.csv"}, "config.output.table is 'metadata.csv'"), ({"output.threads": 0}, "threads is 0"),
    ({"checks.fallback": "start"}, "have no start"), ({"checks.shorten": "t5"}, "shorten is 't5'; known: 'sentences', 't5_simpl"),
    ({"checks.max_tokens": 9}, "max_tokens needs"), ({"checks.attempts": 0}, "attempts is 0"),
    ({"limit": -1}, "limit is -1"),
    ({"server.base_url": "http://127.0.0.1:9/v1"}, "cannot be reached"), ({"input.path": "/nowhere"}, "no such folder")])
def test_what_cannot_be_is_said_before_any_question(caption, server, images, tmp_path, changes, words):  # noqa: F811
    with pytest.raises(ValueError, match=words):
        caption(options_for(server, images) | changes, tmp_path)
    assert server.asked == 0


def test_goes_on_after_kill_and_interrupt(script, server, tmp_path):  # noqa: F811
    (tmp_path / "in").mkdir()
    for k in range(12):
        Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(tmp_path / "in" / f"{k}.png")
    table, kept = tmp_path / "out" / "captions.csv", {}
    words = command(options_for(server, tmp_path / "in"), tmp_path / "out")
    for how in (signal.SIGKILL, signal.SIGINT):
        asked, held = server.asked, threading.Event()

        def slow(prompt, image, n, asked=asked, held=held):
            if n > asked + 9:
                held.wait(20)
            return colour_of(prompt, image)

        server.answer = slow
        process = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "caption_images.py"), *words], cwd=ROOT,
                                   text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"},
                                   # tests that run in the background inherit that interrupts are ignored
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        end = time.monotonic() + 60
        while time.monotonic() < end and server.asked < asked + 11 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(how)
        # The answers are held back until an interrupted process says that it ends, however busy the machine is.
        said = "".join(iter(process.stderr.readline, "")) if how == signal.SIGKILL else ""
        while how == signal.SIGINT and "ending:" not in said and process.poll() is None:
            said += process.stderr.readline()
        held.set()
        said += process.communicate(timeout=30)[1]
        before, kept = kept, table_of(table)
        assert before.items() <= kept.items() and len(before) + 3 <= len(kept) < 12, said
        if how == signal.SIGINT:
            assert process.returncode == 130 and f"interrupted: {len(kept)} images are in" in said
        with open(table, "ab") as file:
            file.write(b'11.png,"A torn li')
    asked, server.answer = server.asked, colour_of
    done = script("scripts/caption_images.py", *words)
    assert f"{12 - len(kept)} of 12 images to describe" in done.stdout
    assert server.asked - asked == 2 * (12 - len(kept)), "two questions with the image; the text-only one is known"
    after = table_of(table)
    assert kept.items() <= after.items() and {name: row["text"] for name, row in after.items()} == {
        f"{k}.png": f"A lesion of colour {20 * k} 0 0." for k in range(12)}
    assert table_of(tmp_path / "out" / "metadata.csv").keys() == after.keys()


def test_with_a_local_model(script, tiny, images, tmp_path):  # noqa: F811
    words = command(LOOSE | {"input.path": images, "model.path": tiny, "model.max_new_tokens": 12, "checks.max_tokens": 40,
                             "checks.tokenizer": tiny, "checks.dependence": 2, "transformers.device": "cpu"},
                    tmp_path / "out")
    done = script("scripts/caption_images.py", *words, env={"HF_HUB_OFFLINE": "1"})
    rows = table_of(tmp_path / "out" / "captions.csv")
    assert len(rows) == 3 and all(row["text"] and row["model"] == str(tiny) for row in rows.values())
    answers = [json.loads(row["answers"]) for row in rows.values()]
    assert all(list(answer) == ["impression", "variation", "description"] for answer in answers)
    assert len({answer["variation"] for answer in answers}) == 1 and "image dependence" in done.stdout
    assert set(table_of(tmp_path / "out" / "metadata.csv")["test/NV/3.png"]) == {"file_name", "text", "label", "split"}
    with captioning.Table(tmp_path / "out" / "captions.csv") as table:
        assert len(table.rows) == 3
