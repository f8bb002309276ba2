"""A CSV of paths and texts as people write it: understood, or every faulty line named."""

import pytest
import torch
from PIL import Image

from configs import medical512_sd_finetune
from libs import data

PLAIN = "path, Text\na.png, red and round\nimg/b.png, pale\n"


@pytest.fixture
def place(tmp_path):
    for k, name in enumerate(("a.png", "img/b.png", "img/c, d.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (k * 50, 0, 0)).save(tmp_path / name)
    return tmp_path


def opened(place, text, name="list.csv", **options):
    (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return data.get(name="path_text", path=str(place / name), resolution=8, **options)


@pytest.mark.parametrize("text", [
    PLAIN, PLAIN.replace(", ", ","), PLAIN.replace("path, Text", "Path,TEXT"), PLAIN.replace("path, Text", " PATH , text "),
    "\ufeff" + PLAIN, PLAIN.replace("\n", "\r\n"), PLAIN.replace("pale", '"pale" ') + "\n  \n", PLAIN.replace("pale", " pale\t"),
    'path, Text\n"a.png" , "red and round" \nimg/b.png,"pale"'], ids=range(9))
def test_as_people_write_it(place, text):
    dataset = opened(place, text)
    assert dataset.captions == ["red and round", "pale"] and [dataset.file_name(k) for k in range(2)] == ["a.png", "img/b.png"]
    assert dataset.labels is None and dataset.null == {} and data.preflight(dataset) == 2
    assert dataset[1]["image"][0, 0, 0] == pytest.approx(50 / 127.5 - 1) and set(dataset[0]) == {"image", "index"}


def test_quotes_keep_commas_and_lines(place):
    dataset = opened(place, 'path, Text\n"img/c, d.png", "round, with a ""halo"" , pale"\na.png, "two\nlines"\na.png, 5" wide\n')
    assert dataset.captions == ['round, with a "halo", pale', "two\nlines", '5" wide'] and dataset.file_name(0) == "img/c, d.png"


def test_modality_stands_before_the_text(place):
    text = "path, Text, {}\na.png, drusen, OCT\nimg/b.png, MRI: breast, MRI\na.png, plain,\n"
    for name in ("modality", "modal", "Modality"):
        dataset = opened(place, text.format(name))
        assert dataset.captions == ["OCT: drusen", "MRI: breast", "plain"], "not twice, and nothing where there is none"
    assert dataset.rows[0]["Modality"] == "OCT" and dataset.rows[0]["text"] == "OCT: drusen"
    assert opened(place, text.format("modality"), modality_column="").captions == ["drusen", "MRI: breast", "plain"]
    assert opened(place, text.format("kind"), modality_column="kind").captions[0] == "OCT: drusen"
    with pytest.raises(ValueError, match="no column 'knd'.*did you mean 'kind'"):
        opened(place, text.format("kind"), modality_column="knd")


def test_paths_may_lead_anywhere(place, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HOME", str(place / "img"))
    (place / "sub").mkdir()
    dataset = opened(place / "sub", f"path,Text\n{place}/a.png,one\n~/b.png,two\n../a.png,three\n")
    assert data.preflight(dataset) == 3 and dataset.file_name(1) == "~/b.png" and dataset.captions == ["one", "two", "three"]
    assert len({opened(place / "sub", f"path,Text\n{path},one\n").fingerprint for path in ("../a.png", "~/b.png")}) == 2
    (place / "img" / "b.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="list.csv:3: .*b.png: not a readable"):
        data.preflight(opened(place / "sub", f"path,Text\n{place}/a.png,one\n~/b.png,two\n"))


def test_every_faulty_line_is_named(place):
    with pytest.raises(ValueError) as error:
        opened(place, "path, Text\na.png, red, round\nnowhere.png, pale\na.png, fine\n, lost\nimg/b.png, a, b, c\nimg/b.png\n"
                      "/no/such/place.png, x\nhttps://x.org/a.png, y\n")
    text = str(error.value)
    for part in ("7 problems", "list.csv:2: 3 fields where the header has 2; put a text that holds a comma in double quotes",
                 "list.csv:3: path 'nowhere.png': no such file", "list.csv:5: path is empty", "list.csv:6: 4 fields",
                 "list.csv:7: 1 fields where the header has 2; add what is missing",
                 "list.csv:8: path '/no/such/place.png': no such file", "list.csv:9: path 'https://x.org/a.png' is a URL"):
        assert part in text, part


@pytest.mark.parametrize("text, message", [
    ("path;Text\na.png;red\n", "separated by ';': save it separated by commas"), ("", "no header; expected path"),
    ("file, Text\na.png, x\n", r"no column 'path'; it has \['file', 'Text'\]"), ("path\na.png\n", "no column 'Text'"),
    ("path, Text\na.png, \"open\nimg/b.png, x\n", "list.csv:2: not CSV from here on"), ("path, Text\n", "no images"),
    (b"path, Text\na.png, \xe4\n", "not UTF-8"), ("path, Text, Text\na.png, x, y\n", "occur twice"),
    ("path, TEXT, text\na.png, x, y\n", "no column 'Text'; it has"),
    ("path, Text\na.png, x\nimg/b.png,\n", r"list.csv:3: text is empty \(missing_captions='skip' leaves it out\)"),
    ("path, Text, label\na.png, x,\n", "list.csv:2: label is empty")])
def test_other_faults(place, text, message):
    with pytest.raises(ValueError, match=message):
        opened(place, text)


def test_faults_of_options(place):
    for options, message in (({"path_column": ""}, "expected the names of two columns"), ({"txt_column": "x"}, "did you mean"),
                             ({"text_column": "Report"}, "no column 'Report'")):
        with pytest.raises(ValueError, match=message):
            opened(place, PLAIN, **options)
    for path, message in ((place, "expected a .csv with the columns path and Text"), (place / "lst.csv", "no such folder or file"),
                          (place / "a.png", "expected a .csv"), ("", "path is empty")):
        with pytest.raises(ValueError, match=message):
            data.get(name="path_text", path=str(path), resolution=8)


def test_half_a_column_of_labels_is_no_fault_where_labels_are_not_used(place):
    text, own = "path, Text, Label\na.png, x, c\nimg/b.png, y,\n", medical512_sd_finetune.get_config().dataset
    with pytest.raises(ValueError, match="list.csv:3: Label is empty"):
        opened(place, text)
    (place / "list.csv").write_text(text)
    found = data.get(**dict(own, path=str(place / "list.csv"), resolution=8))
    assert found.captions == ["x", "y"] and found.classes == []


def test_empty_texts_can_be_left_out(place, caplog):
    dataset = opened(place, "path, Text\na.png, x\nimg/b.png,\n", missing_captions="skip")
    assert dataset.captions == ["x"] and "no text for 1 of 2 images: b.png; left out" in caplog.text


def test_doubled_files_are_several_texts_or_a_fault(place, caplog):
    text = "path, Text\na.png, x\n./a.png, y\nimg/b.png, z\n"
    assert opened(place, text).captions == ["x", "y", "z"] and "list.csv:3: a.png is in list.csv:2 already" in caplog.text
    with pytest.raises(ValueError, match="list.csv:3: a.png is in list.csv:2 already: keep one"):
        opened(place, text, doubled_files="error")


def test_labels_splits_and_groups(place, caplog):
    rows = "".join(f"a.png,t{k},c{k % 2},{'val' if k > 5 else 'train'},p{k}\n" for k in range(6)) + "img/b.png,u,c1,val,q\n"
    dataset = opened(place, "path,Text,label,split,patient\n" + rows.replace("c1", "c0"), split="train", group_column="patient")
    assert dataset.classes == ["c0"] and len(dataset) == 6 and dataset.groups[2] == "p2"
    options = {"name": "path_text", "path": str(place / "list.csv"), "resolution": 8, "split": "train"}
    assert data.held_out(options, "val").captions == ["u"] and "several splits" not in caplog.text
    assert len(data.get(**options | {"split": ""})) == 7
    assert "several splits (train: 6, val: 1), and split='' takes all of them" in caplog.text
    two = "path,Text\n" + "".join(f"img/{k}.png,t{k}\n" for k in range(10))
    for k in range(10):
        Image.new("L", (8, 8)).save(place / "img" / f"{k}.png")
    parts = [opened(place, two, holdout=0.2, split=split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [8, 2] and not set(parts[0].captions) & set(parts[1].captions)


def test_masks_and_json_lines(place):
    Image.new("L", (12, 10), 2).save(place / "img" / "m.png")
    dataset = opened(place, "path,Text,mask_file_name\na.png,x,img/m.png\n", mask_values=(0, 1, 2), crop="pad")
    assert dataset[0]["mask"].argmax(0)[4].eq(2).all() and torch.equal(dataset[0]["image"][:, 0], torch.full((3, 8), -1.0))
    lines = opened(place, '{"path": "a.png", "Text": "red, round"}\n', name="list.jsonl")
    assert lines.captions == ["red, round"]
