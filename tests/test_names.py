"""Names that look equal and are not: labels, folders, patients, splits, pairs, options."""

import unicodedata

import pytest

from libs import data, names, pipeline
from libs.evaluation.masks import find_masks
from tests.layouts import folder, image, mask

COMPOSED, APART = unicodedata.normalize("NFC", "läsion"), unicodedata.normalize("NFD", "läsion")
ALIKE = [
    (COMPOSED, APART),
    ("nevus", "nevus\u200b"),
    ("nevus a", "nevus\u00a0a"),
    ("nevus a", "nevus  a"),
    ("nevus", "ne\u00advus"),
    ("nevus", "\ufeffnevus"),
    ("Nevus", "Νevus"),
    ("nevus", "nеvus"),
    ("T-1", "T‑1"),
    ("µm", "μm"),
    ("nevus", "ｎevus"),
    ("Crohn's", "Crohn’s"),
    ("fibroma", "ﬁbroma"),
    ("nevus", "nevus\u2060"),
    ("nevus", "\u202anevus\u202c"),
    ("nevus a", "nevus\u2003a"),
    ("nevus", "nevus\ufe0f"),
]


def table(root, rows, name="metadata.csv"):
    for k in range(len(rows) - 1):
        image(root / f"{k}.png", seed=k)
    (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("one, other", ALIKE)
def test_what_a_person_sees(one, other):
    assert one != other and names.visible(one) == names.visible(other)
    assert names.match(other, [one, "b"]) == one and names.match("c", [one, "b"]) == "c"
    assert names.match(other, [one, other]) == other and names.escaped(one) != names.escaped(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("a", "b"),
        ("T2", "T²"),
        ("a", "A"),
        ("läsion", "lasion"),
        ("1", "l"),
        ("a b", "ab"),
        ("a_b", "a-b"),
        ("漢字", "漢"),
    ],
)
def test_what_a_person_can_tell_apart(one, other):
    assert names.visible(one) != names.visible(other)


@pytest.mark.parametrize("one, other", ALIKE[:6] + [("nevus", "nevus "), ("nevus", " nevus")])
def test_class_folders_that_look_equal_are_named_by_escapes(tmp_path, one, other):
    for name in (one, other):
        image(tmp_path / name / "1.png")
    with pytest.raises(ValueError) as error:
        folder(tmp_path)
    said = str(error.value)
    assert "look equal and are not" in said and ascii(one) in said and ascii(other) in said
    assert sorted(folder(tmp_path, classes=(one, other)).labels.tolist()) == [0, 1], (
        "as runs of earlier versions have them"
    )


@pytest.mark.parametrize("one, other", ALIKE)
def test_labels_of_a_table_that_look_equal(tmp_path, one, other):
    root = table(tmp_path, ["file_name,label", f"0.png,{one}", f"1.png,{other}"])
    with pytest.raises(ValueError, match="look equal and are not") as error:
        folder(root)
    assert ascii(other) in str(error.value)
    dataset = folder(root, classes=(one,))
    assert dataset.classes == [one] and dataset.labels.tolist() == [0, 0], "a name of `classes` counts"


@pytest.mark.parametrize("spell", [(COMPOSED, APART), (APART, COMPOSED), ("nevus", "nevus\u200b")])
def test_splits_may_spell_a_class_in_two_ways(tmp_path, spell, caplog):
    for split, name in zip(("train", "val"), spell):
        for label in (name, "b"):
            image(tmp_path / split / label / "1.png")
    options = {"name": "folder", "path": str(tmp_path), "resolution": 16, "split": "train"}
    train, val = data.get(**options), data.held_out(options, "val")
    first = spell[0] if spell[0].startswith("nevus") else COMPOSED
    assert train.classes == val.classes == sorted(
        ["b", first]
    ) and val.labels.tolist() == train.labels.tolist() == [0, 1]
    assert "one class" in caplog.text and ascii(spell[0]) in caplog.text
    assert val[1]["image"].shape == (3, 16, 16), "its file has its real name"
    assert folder(tmp_path, split="val", classes=(spell[0], "b"), drop_classes=(spell[1],)).classes == ["b"]


def test_one_spelling_stays_as_it_is(tmp_path):
    image(tmp_path / APART / "1.png")
    dataset = folder(tmp_path)
    assert dataset.classes == [APART], "runs of earlier versions know it so"
    assert folder(tmp_path, classes=(COMPOSED,)).classes == [COMPOSED]


def test_case_and_what_cannot_be_seen_together(tmp_path):
    for name in ("Nevus", "nevus\u200b"):
        image(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match="differ only in case"):
        folder(tmp_path)


def test_patients_and_splits(tmp_path, caplog):
    rows = [
        "file_name,label,patient,split",
        "0.png,a,P001,train",
        "1.png,a,P001 ,train",
        "2.png,b,P\u200b001,test",
        "3.png,a,P2,test",
    ]
    with pytest.raises(ValueError, match="group 'P001' is in more than one split: 'train'.*'test'"):
        folder(table(tmp_path, rows), group_column="patient")
    rows[3] = "2.png,b,P\u00a0001,train"
    rows[2] = "1.png,a,P001,train\u200b"
    dataset = folder(table(tmp_path, rows), group_column="patient", split="train")
    assert [dataset.groups[i] for i in range(3)] == ["P001", "P001", "P\u00a0001"], (
        "one blank is a blank, none is none"
    )
    rows[3] = "2.png,b,P\u200b001,train"
    caplog.clear()
    dataset = folder(table(tmp_path, rows), group_column="patient", split="train\u200b")
    assert len(dataset) == 3 and {dataset.groups[i] for i in range(3)} == {"P001"}
    assert "groups are spelled in ways that look equal, such as 'P001' and 'P\\u200b001'" in caplog.text


@pytest.mark.parametrize("groups", [("1", "1.0"), ("7", "007"), ("P1", "p1")])
def test_patients_that_may_be_one_are_a_warning(tmp_path, caplog, groups):
    root = table(
        tmp_path, ["file_name,label,patient", f"0.png,a,{groups[0]}", f"1.png,a,{groups[1]}", "2.png,a,9"]
    )
    dataset = folder(root, group_column="patient")
    assert "may mean one" in caplog.text and len({dataset.groups[i] for i in range(3)}) == 3
    caplog.clear()
    labels = table(tmp_path, ["file_name,label", "0.png,1", "1.png,1.0"])
    folder(labels)
    assert "the classes 1 and 1.0 are one number" in caplog.text


def test_pairs_of_two_forms(tmp_path):
    for k, (one, other) in enumerate(((COMPOSED, APART), (APART + "2", COMPOSED + "2"), ("a b", "a\u00a0b"))):
        image(tmp_path / "images" / APART / f"{one}.png", seed=k)
        mask(tmp_path / "masks" / COMPOSED / f"{other}.png", rows=slice(0, 6 * k + 6), columns=slice(None))
    dataset = folder(tmp_path, name="image_mask")
    assert len(dataset) == 3 and dataset.classes == [APART]
    shares = {dataset.file_name(i): round(float(dataset[i]["mask"].mean()), 2) for i in range(3)}
    assert shares == {
        f"images/{APART}/{COMPOSED}.png": 0.25,
        f"images/{APART}/{APART}2.png": 0.5,
        f"images/{APART}/a b.png": 0.75,
    }


def test_tables_and_files_of_two_forms(tmp_path):
    image(tmp_path / APART / f"{COMPOSED}1.png")
    mask(tmp_path / "m" / f"{APART}.png")
    for name in (COMPOSED, APART):
        (tmp_path / "metadata.csv").write_text(
            f"file_name,mask_file_name\n{name}/{name}1.png,m/{name}.png\n", encoding="utf-8"
        )
        dataset = folder(tmp_path)
        data.preflight(dataset)
        assert dataset.file_name(0) == f"{APART}/{COMPOSED}1.png" and dataset[0]["mask"].mean() > 0


def test_split_folders_with_what_cannot_be_seen(tmp_path):
    for split in ("train ", "val\u200b"):
        image(tmp_path / split / "a" / "1.png")
    train = folder(tmp_path, split="train")
    assert len(train) == 1 and train.classes == ["a"] and train.file_name(0) == "train /a/1.png"
    assert len(folder(tmp_path, split="val")) == 1 and train[0]["image"].shape == (3, 16, 16)
    rows = ["file_name,label,split", "0.png,a,train\u200b", "1.png,a,train\u200b", "2.png,a,train\u200b"]
    root = table(tmp_path / "t", rows)
    assert [len(folder(root, split=split, holdout=0.34)) for split in ("train", "val")] == [2, 1]


def test_options_and_the_command_line(tmp_path):
    classes = [COMPOSED, "nevus"]
    assert pipeline.choose_labels(APART, classes, 2, conditional=True) == [0, 0]
    assert pipeline.choose_labels("nevus\u200b", classes, 1, conditional=True) == [1]
    assert pipeline.count_labels(f"{APART}=1,nevus=2", classes) == [0, 1, 1]
    assert pipeline.requested([("a spot", APART)], "", classes, 1, labelled=True) == ([0], ["a spot"])
    mask(tmp_path / APART / "1.png")
    assert [each.label for each in find_masks(tmp_path, classes, {})] == [COMPOSED]
    with pytest.raises(ValueError, match="no such class"):
        pipeline.choose_labels("lasion", classes, 1, conditional=True)
    for name in (COMPOSED, "b"):
        image(tmp_path / "data" / name / "1.png")
    assert folder(tmp_path / "data", drop_classes=(APART,)).classes == ["b"]
