"""One's own images: tables and class folders are understood alike, and every fault is named at once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from libs import data
from libs.data.paths import natural
from libs.data.split import hold_out
from libs.data.table import Row

WBC = Path(__file__).parents[2] / "shared" / "data" / "wbc"


def picture(path, *, value=None, size=(20, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    value = len(str(path)) * 7 % 256 if value is None else value
    Image.new(mode, size, value if mode == "L" else (value, 10, 200)).save(path)
    return path


def folder(path, **options):
    return data.get(name="folder", path=str(path), resolution=16, **options)


def table(root, text, name="metadata.csv"):
    for k in range(4):
        picture(root / "img" / f"{k}.png", value=k * 50)
        picture(root / "mask" / f"{k}.png", value=k * 80, mode="L")
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


# class folders

def test_class_folders_nested_natural_order(tmp_path):
    for name in ("2/a.png", "10/b.JPG", "10/deep/er/c.bmp", "Nevus/d.tiff", ".hidden/e.png",
                 "2/.DS_Store.png"):
        picture(tmp_path / name)
    (tmp_path / "2" / "notes.txt").write_text("no image")
    dataset = folder(tmp_path)
    assert dataset.classes == ["2", "10", "Nevus"] and dataset.labels.tolist() == [0, 1, 1, 2]
    assert [dataset.file_name(i) for i in range(4)] == ["2/a.png", "10/b.JPG", "10/deep/er/c.bmp",
                                                        "Nevus/d.tiff"]
    item = dataset[2]
    assert item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.float32
    assert item["label"].item() == 1 and item["label"].dtype == torch.int64 and item["index"].item() == 2
    assert dataset.null["label"].item() == 3 and dataset.captions is None and dataset.shape == (3, 16, 16)
    assert sorted(["10", "2", "b1", "a", "B", "1a"], key=natural) == ["1a", "2", "10", "a", "B", "b1"]


def test_split_folders_share_the_classes(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "train/c/3.png", "test/a/4.png", "test/c/5.png"):
        picture(tmp_path / name)
    assert folder(tmp_path, split="train").classes == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"class 'b' has 0 images in split 'test'.*drop_classes=\('b',\)"):
        folder(tmp_path, split="test")
    test = folder(tmp_path, split="test", min_per_class=0)
    assert test.classes == ["a", "b", "c"] and test.labels.tolist() == [0, 2]
    dropped = folder(tmp_path, split="test", drop_classes=["b"])
    assert dropped.classes == ["a", "c"] and dropped.labels.tolist() == [0, 1]
    assert len(folder(tmp_path)) == 5 and len(folder(tmp_path, split="train", drop_classes=("b",))) == 2
    with pytest.raises(ValueError, match="no split 'tset'.*did you mean 'test'"):
        folder(tmp_path, split="tset")
    picture(tmp_path / "d" / "6.png")
    with pytest.raises(ValueError, match=r"look like splits and \['d'\] like classes"):
        folder(tmp_path)


def test_split_folders_alike_and_inside(tmp_path):
    for split, columns in (("train", "file_name,label\n1.png,a\n"), ("test", "file_name,text\n1.png,a\n")):
        picture(tmp_path / "set" / split / "1.png")
        (tmp_path / "set" / split / "metadata.csv").write_text(columns)
    with pytest.raises(ValueError, match=r"different columns: {'test': \['text'\], 'train': \['label'\]}"):
        folder(tmp_path / "set")
    (tmp_path / "set" / "test" / "metadata.csv").write_text("file_name,label\n1.png,b\n")
    dataset = folder(tmp_path / "set", split="test", min_per_class=0)
    assert dataset.file_name(0) == "test/1.png" and dataset.labels.tolist() == [1]
    picture(tmp_path / "other" / "c" / "1.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="train is a link out of the data folder"):
        folder(tmp_path / "links")
    assert folder(tmp_path / "links", follow_links=True).classes == ["c"]


def test_unlabelled(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    loose = folder(tmp_path)
    assert loose.classes == [] and loose.labels is None and loose.null == {}
    assert set(loose[0]) == {"image", "index"}
    picture(tmp_path / "a" / "3.png")
    with pytest.raises(ValueError, match="2 images beside the class folders"):
        folder(tmp_path)
    assert len(folder(tmp_path, label_column="")) == 3 and folder(tmp_path, label_column="").labels is None


def test_folder_faults_all_at_once(tmp_path):
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "scan.dcm").write_bytes(b"x")
    (tmp_path / "a" / "old.gif").write_bytes(b"x")
    (tmp_path / "a" / "out.png").symlink_to(picture(tmp_path.parent / "elsewhere" / "x.png"))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError) as error:
        folder(tmp_path)
    for part in ("a/scan.dcm: a format", "a/old.gif: a format", "a/out.png is a link out",
                 "a/pipe.png is not a file",
                 "a/loop is a link to a folder", "5 problems"):
        assert part in str(error.value)
    for name in ("scan.dcm", "old.gif", "pipe.png"):
        (tmp_path / "a" / name).unlink()
    with pytest.raises(ValueError, match="class 'empty' has 0 images"):
        folder(tmp_path, follow_links=True)
    (tmp_path / "empty").rmdir()
    assert len(folder(tmp_path, follow_links=True)) == 2


def test_missing_or_empty_path(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"imagse: no such folder.*did you mean 'images'"):
        folder(tmp_path / "imagse")
    with pytest.raises(ValueError, match="no images: expected .png"):
        folder(tmp_path / "images")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="expected a folder of images"):
        folder(tmp_path / "a.txt")


# tables

@pytest.mark.parametrize("change", ["", "bom", "crlf", "quotes", "jsonl", "path", "mask_name"])
def test_table_in_any_dress(tmp_path, change):
    text = ('file_name,text,label,mask_file_name,site\nimg/0.png,"one, two",b,mask/0.png,x\n'
            'img/1.png,"a ""word""",10,mask/1.png,y\n\nimg/2.png,"two\nlines", 9 ,mask/2.png,z\n')
    if change == "crlf":
        text = text.replace("\n", "\r\n")
    if change == "quotes":
        text = text.replace("file_name,text", '"file_name","text"').replace("img/0.png", '"img/0.png"')
    if change == "mask_name":
        text = text.replace("mask_file_name", "mask_name")
    name = "metadata.csv"
    if change == "jsonl":
        name, fields = "metadata.jsonl", ("file_name", "text", "label", "mask_file_name", "site")
        rows = [("img/0.png", "one, two", "b", "mask/0.png", "x"),
                ("img/1.png", 'a "word"', 10, "mask/1.png", "y"),
                ("img/2.png", "two\nlines", "9", "mask/2.png", "z")]
        text = "\n".join(json.dumps(dict(zip(fields, row, strict=True))) for row in rows)
    root = table(tmp_path, ("\ufeff" if change == "bom" else "") + text, name)
    dataset = folder(root / name if change == "path" else root)
    assert dataset.classes == ["9", "10", "b"] and dataset.labels.tolist() == [2, 1, 0]
    assert dataset.captions == ["one, two", 'a "word"', "two\r\nlines" if change == "crlf" else "two\nlines"]
    assert [row["site"] for row in dataset.rows] == ["x", "y", "z"] and dataset.file_name(1) == "img/1.png"
    assert [round(dataset[i]["mask"].unique().item() * 255) for i in range(3)] == [0, 80, 160]
    assert dataset[0]["mask"].shape == (1, 16, 16) and data.preflight(dataset) == 3


def test_bad_rows_named_at_once(tmp_path):
    outside = picture(tmp_path / "outside.png")
    rows = ["img/0.png", "img/9.png", "img/1.PNG", "../outside.png", str(outside), "file:///etc/x.png",
            "img\\0.png",
            "zip://img::a", "img/link.png", "img/a\0b.png", "", "img", "~/x.png", "C:/x.png",
            "http://x/y.png",
            "img/../../outside.png", "x" * 5000]
    root = table(tmp_path / "set", "file_name,label\n" + "".join(f"{row},a\n" for row in rows))
    (root / "img" / "link.png").symlink_to(outside)
    with pytest.raises(ValueError) as error:
        folder(root)
    lines = str(error.value).splitlines()
    assert len(lines) == len(rows) and "16 problems" in lines[0]
    for k, part in enumerate(["no such file", "did you mean '1.png'", "'..'", "is absolute", "is a URL",
                              "write '/'", "URL",
                              "a link out of", "NUL", "is empty", "not a file", "absolute", "absolute", "URL",
                              "'..'",
                              "no such file"], 1):
        assert f"metadata.csv:{k + 2}: file_name" in lines[k] and part in lines[k] and len(lines[k]) < 250


@pytest.mark.parametrize("text, faults", [
    ("file,label\nimg/0.png,a\n", ["no column 'file_name'", "['file', 'label']", "did you mean 'file'"]),
    ("File_Name,label\nimg/0.png,a\n", ["no column 'file_name'", "did you mean 'File_Name'"]),
    ("file_name,Label\nimg/0.png,a\n", ["no column 'label'", "did you mean 'Label'"]),
    ("file_name,label,label\nimg/0.png,a,b\n", ["columns ['label'] occur twice"]),
    ("file_name;label\nimg/0.png;a\n", ["separated by ';'"]),
    ("", ["no header"]),
    ("file_name,label\n", ["no images"]),
    ("file_name,label\nimg/0.png,a,b\n", [":2: 3 fields where the header has 2"]),
    ("file_name,label\nimg/0.png\nimg/1.png,\n", [":2: 1 fields", "metadata.csv:3: label is empty"]),
    ('file_name,label\nimg/0.png,"a\nimg/1.png,b\n', ["not CSV from here on"]),
    ("file_name,label\nimg/0.png," + "a" * 10**7 + "\n", [":2: not CSV", "field limit"]),
    ("file_name,label\nimg/0.png,é\n".encode("latin-1"), ["not UTF-8"]),
    ("file_name,label\nimg/0.png,a\nimg/0.png,b\n",
     ["metadata.csv:3: img/0.png is 'b' here and 'a' in metadata.csv:2"]),
    ("file_name,label\nimg/0.png,a\nimg/1.png,A\n", ["differ only in case"]),
    ("file_name,mask_name\nimg/0.png,mask/7.png\nimg/1.png,\n",
     [":2: mask_name", "no such file", ":3: mask_name is empty"]),
])
def test_faulty_tables(tmp_path, text, faults):
    with pytest.raises(ValueError) as error:
        folder(table(tmp_path, text))
    for fault in faults:
        assert fault in str(error.value)


def test_every_fault_of_a_caption_table_in_one_message(tmp_path, caplog):
    """Files that are missing, doubled in any spelling, without a text or without a row: each with its line, all at once."""
    text = "file_name,text\nimg/0.png,red\nimg/7.png,pale\n./img/0.png,red again\nimg//1.png, \n{}"
    root = table(tmp_path, text.format("img/./1.png,x\n"))
    with pytest.raises(ValueError) as error:
        folder(root, require=("text",), unlisted_files="error")
    said = str(error.value)
    for part in ("5 problems", "metadata.csv:3: file_name 'img/7.png': no such file", "metadata.csv:5: text is empty (missing_capt",
                 "metadata.csv:4: img/0.png is in metadata.csv:2 already: keep one of them, or set doubled_files='keep'",
                 "metadata.csv:6: img/1.png is in metadata.csv:5 already", "6 images in the folder without a row: img/2.png, "
                 "img/3.png, mask/0.png, mask/1.png, mask/2.png and 1 more; add rows"):
        assert part in said, (part, said)

    root = table(tmp_path, text.replace("img/7", "img/2").replace("img//1.png, \n", "").format(""))
    with pytest.raises(ValueError, match="1 problem\n.*metadata.csv:4: img/0.png is in metadata.csv:2 already"):
        folder(root)
    caplog.clear()
    dataset = folder(root, doubled_files="keep", require=("text",))
    assert dataset.captions == ["red", "pale", "red again"] and dataset.file_name(2) == "img/0.png"
    assert "1 rows name a file that another row names" in caplog.text and "without a row: img/1.png, img/3.png" in caplog.text
    caplog.clear()
    table(tmp_path, "file_name,text,shown\n" + "".join(f"img/{k}.png,x,mask/{k}.png\n" for k in range(3)))
    for name in ("img", "mask"):
        (root / name / "3.png").unlink()
    folder(root)
    assert "without a row" not in caplog.text, "what any column names is not left over"
    for options, fault in (({"doubled_files": "first"}, "doubled_files='first'"), ({"unlisted_files": ""}, "unlisted_files=''")):
        with pytest.raises(ValueError, match=fault):
            folder(root, **options)


@pytest.mark.parametrize("header, hint", [("caption", "only .'file_name', 'caption'.; did you mean text_column='caption'"),
                                          ("texts", "did you mean 'texts'"), ("x", "no column 'text', only .'file_name', 'x'.$")])
def test_a_table_without_texts_says_what_it_has(tmp_path, header, hint):
    root = table(tmp_path, f"file_name,{header}\nimg/0.png,red\n")
    with pytest.raises(ValueError, match=rf"no text in the data, but require=\('text',\).*{hint}"):
        folder(root, require=("text",))


def test_faulty_jsonl(tmp_path):
    lines = ['{"file_name": "img/0.png", "label": "a"}', '{"file_name": ', "[1]", '{"label": "a"}',
             '{"file_name": "img/1.png", "label": null}', "[" * 100_000]
    with pytest.raises(ValueError) as error:
        folder(table(tmp_path, "\n".join(lines), "metadata.jsonl"))
    for fault in ("5 problems", "jsonl:2: not JSON", "jsonl:3: expected an object",
                  "jsonl:4: file_name is empty",
                  "jsonl:5: label is empty", "jsonl:6: not JSON"):
        assert fault in str(error.value)


def test_wanted_columns_must_be_there(tmp_path):
    root = table(tmp_path, "file_name,text,diagnosis\nimg/0.png,,a\nimg/1.png,x,b\n")
    assert folder(root).labels is None and folder(root, label_column="diagnosis").labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no column 'diagnosys'.*did you mean 'diagnosis'"):
        folder(root, label_column="diagnosys")
    with pytest.raises(ValueError, match=r"no label in the data[\s\S]*no mask in the "
                                         r"data[\s\S]*metadata.csv:2: text is empty"):
        folder(root, require=("label", "text", "mask"))


def test_given_classes_fix_the_labels(tmp_path):
    root = table(tmp_path, "file_name,label\nimg/0.png,b\nimg/1.png,a\n")
    dataset = folder(root, classes=["b", "a"])
    assert dataset.classes == ["b", "a"] and dataset.labels.tolist() == [0, 1] and dataset.null["label"] == 2
    with pytest.raises(ValueError, match=r"metadata.csv:3: class 'a' is not among \['b', 'A'\]; did you mean "
                                         r"'A'"):
        folder(root, classes=("b", "A"))
    with pytest.raises(ValueError, match="class 'c' has 0 images"):
        folder(root, classes=("a", "b", "c"))


@pytest.mark.parametrize("options, fault", [
    ({"channels": 2}, "channels=2"), ({"crop": "middle"}, "crop='middle'"), ({"holdout": 1.5}, "holdout=1.5"),
    ({"holdout": 0.1}, "expected split='train' or 'val'"), ({"window": (5, 1)}, "window=.5, 1."),
    ({"cache": "memory", "crop": "random"}, "random crop differs"),
    ({"require": ("lable",)}, "did you mean 'label'"),
    ({"mask_max": 0}, "mask_max=0"), ({"drop_classes": ("c",)}, "no class"),
    ({"group_column": "p"}, "no column 'p'")])
def test_options_out_of_range(tmp_path, options, fault):
    root = table(tmp_path, "file_name,label\nimg/0.png,a\nimg/1.png,b\n")
    with pytest.raises(ValueError, match=fault):
        folder(root, **options)


def test_unknown_data_set_or_option():
    with pytest.raises(ValueError, match="did you mean 'folder'"):
        data.get(name="foldr", path="x")
    for name in ("folder", "phantoms", "imagenet", "celeba", "cifar10"):
        with pytest.raises(ValueError, match="did you mean 'random_flip'"):
            data.get(name=name, randm_flip=True)
    for name, absent in (("folder", "root"), ("isic2018", "masks"), ("celeba", "rows"), ("cifar10", "kwargs"),
                         ("phantoms", "args")):
        with pytest.raises(ValueError, match="expected one of") as error:
            data.get(name=name, **{absent: 1})
        assert "'split'" in str(error.value) and f"'{absent}'" not in str(error.value).split("expected")[1]


# splits

def test_split_column_and_leaks(tmp_path):
    text = ("file_name,label,split,patient\nimg/0.png,a,train,p1\nimg/1.png,b,train,p2\n"
            "img/2.png,a,val,p3\nimg/3.png,b,val,p4\n")
    root = table(tmp_path, text)
    parts = [folder(root, split=s, group_column="patient") for s in ("train", "val")]
    assert [[p.file_name(i) for i in range(2)] for p in parts] == [["img/0.png", "img/1.png"],
                                                                   ["img/2.png", "img/3.png"]]
    with pytest.raises(ValueError, match="split 'val' of their own: set holdout=0"):
        folder(root, split="train", holdout=0.1)
    table(tmp_path, text.replace("p4", "p1").replace("img/2.png", "img/1.png").replace("a,val", "b,val"))
    with pytest.raises(ValueError) as error:
        folder(root, split="train", group_column="patient")
    text = str(error.value)
    assert "group 'p1' is in more than one split: 'train' (metadata.csv:2), 'val' (metadata.csv:5)" in text
    assert "file 'img/1.png' is in more than one split" in str(error.value)
    with pytest.raises(ValueError, match="file 'img/1.png'"):
        folder(root)


def test_holdout_is_disjoint_and_stable():
    rng = np.random.default_rng(0)
    for trial in range(30):
        n, patients = int(rng.integers(5, 200)), int(rng.integers(2, 60))
        rows = [Row(f"{i}.png", "", label=str(rng.integers(3)), group=f"p{rng.integers(patients)}")
                for i in range(n)]
        backwards = [Row(r.name, "", label=r.label, group=r.group) for r in reversed(rows)]
        hold_out(rows, 0.2, trial)
        val, train = ({r.group for r in rows if r.split == s} for s in ("val", "train"))
        assert not val & train and {r.label for r in rows if r.split == "train"} and train
        alone = [Row(f"{i}.png", "", label=str(i % 3)) for i in range(n)]
        again = [Row(r.name, "", label=r.label) for r in reversed(alone)]
        for some in (alone, again):
            hold_out(some, 0.2, trial)
        assert {r.name for r in alone if r.split == "val"} == {r.name for r in again if r.split == "val"}
        for label in "012":
            held = [r.split == "val" for r in alone if r.label == label]
            assert sum(held) == min(round(0.2 * len(held)), max(0, len(held) - 1))
        hold_out(backwards, 0.2, trial)
        assert not {r.group for r in backwards if r.split == "val"} & {r.group for r in backwards
                                                                       if r.split == "train"}


def test_holdout_of_class_folders(tmp_path):
    for k in range(20):
        picture(tmp_path / "ab"[k % 2] / f"{k}.png")
    train, val = (folder(tmp_path, holdout=0.2, split=s) for s in ("train", "val"))
    names = [{d.file_name(i) for i in range(len(d))} for d in (train, val)]
    assert len(train) == 16 and len(val) == 4 and not names[0] & names[1]
    assert val.labels.bincount().tolist() == [2, 2]
    other = folder(tmp_path, holdout=0.2, holdout_seed=1, split="val")
    assert {other.file_name(i) for i in range(4)} != names[1]
    with pytest.raises(ValueError, match="needs a metadata table"):
        folder(tmp_path, group_column="patient")


def test_groups_and_splits_are_kept(tmp_path):
    root = table(tmp_path / "table", "file_name,label,split,patient\nimg/0.png,a,train,p1\nimg/1.png,b,train,p2\n"
                                     "img/2.png,a,train,p1\nimg/3.png,b,val,p4\n")
    grouped = folder(root, group_column="patient")
    assert list(grouped.groups) == ["p1", "p2", "p1", "p4"] and list(grouped.splits) == ["train"] * 3 + ["val"]
    part = data.Subset(grouped, [3, 0])
    assert list(part.groups) == ["p4", "p1"] and list(part.splits) == ["val", "train"]
    assert folder(root).groups is None and data.Subset(folder(root), [0]).groups is None
    assert folder(root, split_column="").splits is None
    assert grouped.fingerprint == folder(root).fingerprint, "a store made without groups stays in use"
    for name in ("Train/a/1.png", "Test/a/2.png"):
        picture(tmp_path / "folders" / name)
    assert list(folder(tmp_path / "folders").splits) == ["Test", "Train"]


# texts

def test_images_without_a_text_are_left_out_where_asked(tmp_path, caplog):
    root = table(tmp_path, "file_name,text,label,split\nimg/0.png,round,a,train\nimg/1.png, ,a,train\n"
                           "img/2.png,oval,b,train\nimg/3.png,,b,val\n")
    assert folder(root, split="train").captions == ["round", " ", "oval"]
    with pytest.raises(ValueError, match=r"metadata.csv:3: text is empty \(missing_captions='skip' leaves it out\)"):
        folder(root, split="train", require=("text",))
    kept = folder(root, split="train", require=("text",), missing_captions="skip")
    assert kept.captions == ["round", "oval"] and [row["file_name"] for row in kept.rows] == ["img/0.png", "img/2.png"]
    assert kept.labels.tolist() == [0, 1] and "no text for 1 of 3 images: 1.png; left out" in caplog.text
    with pytest.raises(ValueError, match="no text for 1 of 1 images: 3.png; describe"):
        folder(root, split="val", min_per_class=0, missing_captions="skip")
    assert len(folder(root, text_column="", missing_captions="skip")) == 4, "no texts are asked for"
    with pytest.raises(ValueError, match="missing_captions='drop': expected one of"):
        folder(root, missing_captions="drop")


# images

def test_preflight_names_every_bad_file_at_once(tmp_path):
    root = table(tmp_path, "file_name,label,mask_name\n"
                 + "".join(f"img/{k}.png,a,mask/{k}.png\n" for k in range(4)))
    for k in range(4, 70):
        picture(root / "img" / f"{k}.png", size=(15, 40))
        picture(root / "mask" / f"{k}.png", size=(15, 40), mode="L")
    (root / "metadata.csv").write_text("file_name,label,mask_name\n" + "".join(f"img/{k}.png,a,mask/{k}.png\n"
                                                                               for k in range(70)))
    whole = (root / "img" / "0.png").read_bytes()
    (root / "img" / "0.png").write_bytes(whole[:60])
    (root / "img" / "1.png").write_bytes(b"")
    (root / "img" / "2.png").write_text("not an image")
    picture(root / "mask" / "3.png", size=(20, 21), mode="L")
    dataset = folder(root)
    with pytest.raises(ValueError) as error:
        data.preflight(dataset, workers=3)
    text = str(error.value)
    assert "70 problems" in text and "... and 20 more" in text and len(text.splitlines()) == 52
    for part in ("metadata.csv:2: ", "0.png: truncated", "1.png: empty (0 bytes)", "metadata.csv:4: ",
                 "2.png: not a readable",
                 "metadata.csv:5: mask/3.png: the mask has 20x21 pixels, its image img/3.png 20x20",
                 "metadata.csv:6: img/4.png: 15x40 pixels are smaller than resolution=16"):
        assert part in text
    with pytest.raises(ValueError, match="img/5.png: 15x40 pixels"):
        dataset[5]
    assert folder(root, upscale=True)[5]["image"].shape == (3, 16, 16)


def test_masks_of_small_numbers_are_noticed(tmp_path):
    root = table(tmp_path, "file_name,mask_name\nimg/0.png,mask/0.png\nimg/1.png,mask/1.png\n")
    picture(root / "mask" / "1.png", value=2, mode="L")
    for value in (2, 127):  # up to one half, all is background
        picture(root / "mask" / "1.png", value=value, mode="L")
        said = rf"largest grey level is {value} .* mask_values=\(0, ..., {value}\).* mask_max={value}"
        with pytest.raises(ValueError, match=said):
            data.preflight(folder(root))
    picture(root / "mask" / "1.png", value=128, mode="L")
    assert data.preflight(folder(root)) == 2
    picture(root / "mask" / "1.png", value=2, mode="L")
    dataset = folder(root, mask_max=2)
    assert data.preflight(dataset) == 2 and dataset[1]["mask"].unique().tolist() == [1.0]


def test_flips_move_image_and_mask_together(tmp_path):
    root = table(tmp_path, "file_name,mask_name\nimg/0.png,mask/0.png\n")
    left = np.zeros((16, 16), np.uint8)
    left[:4, :8] = 255
    for name in ("img", "mask"):
        Image.fromarray(left).save(root / name / "0.png")
    plain = folder(root, channels=1)
    flips = folder(root, channels=1, random_flip=True, random_vflip=True)
    seen = set()
    for seed in range(30):
        item = flips.item(0, torch.Generator().manual_seed(seed))
        assert ((item["image"] > 0) == (item["mask"] > 0.5)).all()
        seen.add(tuple((item["image"] > 0).nonzero()[0].tolist()))
        assert (plain.item(0, torch.Generator().manual_seed(seed))["image"] == plain[0]["image"]).all()
    assert seen == {(0, 0, 0), (0, 0, 8), (0, 12, 0), (0, 12, 8)}
    assert all((flips[0][key] == plain[0][key]).all() for key in ("image", "mask"))
    crops = folder(root, channels=1, crop="random")
    assert (crops[0]["image"] == plain[0]["image"]).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("gb", [1.0, 1.2e-6])
def test_cache_changes_nothing(tmp_path, depth, gb):
    rng = np.random.default_rng(0)
    for k in range(4):
        kind = np.uint16 if depth == 16 and k != 1 else np.uint8  # one 8-bit file among the deep ones
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, np.iinfo(kind).max, (40, 50),
                                     dtype=kind)).save(tmp_path / "a" / f"{k}.png")
    plain = folder(tmp_path, channels=1, cache="", random_flip=True)
    kept = folder(tmp_path, channels=1, cache="memory", cache_gb=gb, random_flip=True)
    assert kept.cache.capacity == (4 if gb == 1 else (2 if depth == 16 else 4))
    for _ in range(2):
        for i in range(4):
            for seed in (0, 1):
                generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
                assert torch.allclose(plain.item(i, generators[0])["image"],
                                      kept.item(i, generators[1])["image"],
                                      rtol=0, atol=1e-6)
    (tmp_path / "a" / "0.png").unlink()
    assert (kept[0]["image"] == kept[0]["image"]).all()
    with pytest.raises(ValueError, match="0.png: no such file"):
        plain[0]


def test_fingerprint_notices_change(tmp_path):
    for k in range(3):
        picture(tmp_path / "ab"[k % 2] / f"{k}.png")
    first = folder(tmp_path).fingerprint
    assert folder(tmp_path).fingerprint == first and folder(tmp_path, random_flip=True).fingerprint == first
    assert len({first, folder(tmp_path, channels=1).fingerprint,
                folder(tmp_path, classes=("b", "a")).fingerprint,
                data.get(name="folder", path=str(tmp_path), resolution=8).fingerprint}) == 4
    os.utime(tmp_path / "a" / "0.png", ns=(1, 1))
    assert folder(tmp_path).fingerprint != first
    subset = data.Subset(folder(tmp_path), [2, 0])
    assert subset.labels.tolist() == [1, 0] and subset[0]["index"] == 0 and subset.file_name(1) == "a/0.png"
    assert subset.fingerprint != folder(tmp_path).fingerprint


@pytest.mark.skipif(not WBC.is_dir(), reason="the real images of ../shared are not here")
def test_white_blood_cells():
    train = data.get(name="folder", path=str(WBC), resolution=64, split="train",
                     require=("label", "text", "mask"))
    test = data.get(name="folder", path=str(WBC), resolution=64, split="test", drop_classes=("basophil",))
    assert train.classes == ["basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    assert train.labels.bincount().tolist() == [1, 18, 42, 38, 141]
    assert test.labels.bincount().tolist() == [4, 11, 10, 35]
    assert train.captions[0].startswith("a small lymphocyte") and train.rows[0]["label"] == "lymphocyte"
    assert data.preflight(train) == 240 and data.preflight(test) == 60
    item = train[0]
    assert [round(v * 255) for v in item["mask"].unique().tolist()] == [0, 128, 255]
    nucleus = item["mask"][0] > 0.9
    assert item["image"][1][nucleus].mean() < item["image"][1][item["mask"][0] < 0.1].mean() - 0.3
