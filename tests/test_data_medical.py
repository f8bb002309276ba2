"""ISIC 2018 and 2019, ChestX-ray14 and MS-COCO from small stand-ins in their official formats."""

import json
import logging

import pytest
from PIL import Image

from libs import data

ISIC2018 = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
ISIC2019 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
NIH = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
       "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],")  # the published header does end in a comma


def pictures(folder, names, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.new(mode, (24, 20), k * 9 % 256 if mode == "L" else (k * 9 % 256, 30, 60)).save(folder / name)


def one_hot(columns, labels):
    """Ground truth lines of images ISIC_0000000 ..., one per label."""
    names = columns.split(",")[1:]
    lines = [",".join([f"ISIC_{k:07}"] + ["1.0" if name == label else "0.0" for name in names])
             for k, label in enumerate(labels)]
    return "\n".join([columns, *lines]) + "\n"


def small(name, path, **options):
    return data.get(name=name, path=str(path), resolution=16, **options)


@pytest.fixture
def isic2018(tmp_path):
    for part, labels in (("Training", ["NV", "MEL", "VASC", "NV"]), ("Validation", ["DF"]), ("Test", ["BKL", "NV"])):
        stem = f"ISIC2018_Task3_{part}"
        pictures(tmp_path / f"{stem}_Input", [f"ISIC_{k:07}.jpg" for k in range(len(labels))])
        (tmp_path / f"{stem}_Input" / "ATTRIBUTION.txt").write_text("who took them")
        (tmp_path / f"{stem}_GroundTruth").mkdir()
        (tmp_path / f"{stem}_GroundTruth" / f"{stem}_GroundTruth.csv").write_text(one_hot(ISIC2018, labels))
    return tmp_path


def test_isic2018_reads_the_official_splits(isic2018, caplog):
    train = small("isic2018", isic2018, random_flip=True)
    assert train.classes == ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"] and train.labels.tolist() == [1, 0, 6, 1]
    assert train.file_name(2) == "ISIC2018_Task3_Training_Input/ISIC_0000002.jpg" and train.captions is None
    assert "4 images in ISIC2018_Task3_Training_GroundTruth.csv; the published set has 10,015" in caplog.text
    assert data.preflight(train) == 4 and train[0]["image"].shape == (3, 16, 16) and train.null["label"] == 7
    assert [len(small("isic2018", isic2018, split=s)) for s in ("val", "test", "")] == [1, 2, 7]
    options = {"name": "isic2018", "path": str(isic2018), "resolution": 16, "split": "train"}
    assert data.held_out(options, "test").labels.tolist() == [4, 1]


def test_isic2018_class_order_is_the_csv_or_as_asked(isic2018, caplog):
    caplog.set_level(logging.INFO)
    asked = ("VASC", "NV", "MEL", "DF", "BKL", "BCC", "AKIEC")
    assert small("isic2018", isic2018, classes=asked).labels.tolist() == [1, 2, 0, 1]
    two = small("isic2018", isic2018, classes=("NV", "VASC"))
    assert (two.classes, two.labels.tolist()) == (["NV", "VASC"], [0, 1, 0]) and "left out 1 images of MEL" in caplog.text
    with pytest.raises(ValueError, match="isic2018 class='NVV': expected one of .*did you mean 'NV'"):
        small("isic2018", isic2018, classes=("NVV",))
    with pytest.raises(ValueError, match="one occurs twice"):
        small("isic2018", isic2018, classes=("NV", "NV"))
    with pytest.raises(ValueError, match="no image of the classes BCC"):
        small("isic2018", isic2018, classes=("BCC",))


def test_isic_faults_are_named_with_their_line(isic2018):
    table = isic2018 / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    good = table.read_text()
    table.write_text(good.replace("ISIC_0000000,0.0,1.0", "ISIC_0000000,1.0,1.0").replace("1,1.0", "1,0.0")
                     .replace("ISIC_0000003,0.0", "ISIC_0000003,x"))
    with pytest.raises(ValueError, match=r"3 problems\n.*GroundTruth.csv:2: ISIC_0000000 has 2 ones in 1.0,1.0,0.0.*\n"
                                         r".*csv:3: ISIC_0000001 has 0 ones.*\n.*csv:5: ISIC_0000003 has 1 ones in x,1.0"):
        small("isic2018", isic2018)
    table.write_text(good + good.splitlines()[1] + "\nISIC_0000009,1,0,0,0,0,0,0\n")
    with pytest.raises(ValueError, match=r"csv:6: ISIC_0000000.jpg is in .*csv:2 already"):
        small("isic2018", isic2018)
    table.write_text(good + "ISIC_0000009,1,0,0,0,0,0,0\n../ISIC_0000001,1,0,0,0,0,0,0\n")
    with pytest.raises(ValueError, match=r"csv:6: ISIC_0000009.jpg: no such file in ISIC2018_Task3_.*\n.*csv:7: "):
        small("isic2018", isic2018)
    table.write_text(good.replace("AKIEC", "AK"))
    with pytest.raises(ValueError, match=r"GroundTruth.csv:1: no column AKIEC; expected image, MEL, .* found image, MEL,"):
        small("isic2018", isic2018)
    table.unlink()
    with pytest.raises(ValueError, match="no ISIC2018_Task3_Training_GroundTruth/.*expected ISIC 2018 task 3 as"):
        small("isic2018", isic2018)
    with pytest.raises(ValueError, match="split='valid': expected one of .*did you mean 'val'"):
        small("isic2018", isic2018, split="valid")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_captions_are_found_by_file_name(isic2018, caplog, suffix):
    texts = {"ISIC_0000000.jpg": "a small, brown lesion", "images/ISIC_0000002.jpg": "red lacunae", "ISIC_0000003.jpg": " "}
    table = isic2018 / f"texts.{suffix}"
    table.write_text(
        "file_name,text\n" + "".join(f'{name},"{text}"\n' for name, text in texts.items()) if suffix == "csv" else
        "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in texts.items()))
    with pytest.raises(ValueError, match=rf"texts.{suffix}: no text for 2 of 4 images: ISIC_0000001.jpg, ISIC_0000003.jpg; "
                                         "describe them, or leave them out by missing_captions='skip'"):
        small("isic2018", isic2018, captions=str(table))
    found = small("isic2018", isic2018, captions=str(table), missing_captions="skip")
    assert found.captions == ["a small, brown lesion", "red lacunae"] and found.labels.tolist() == [1, 6]
    assert "no text for 2 of 4 images" in caplog.text
    bare = small("isic2018", isic2018)
    assert found.fingerprint != bare.fingerprint


def test_caption_tables_that_cannot_serve(isic2018):
    table = isic2018 / "texts.csv"
    with pytest.raises(ValueError, match="texts.csv': no such file; expected a .csv or .jsonl with columns file_n"):
        small("isic2018", isic2018, captions=str(table))
    table.write_text("file_name,caption\nISIC_0000000.jpg,brown\n")
    with pytest.raises(ValueError, match="texts.csv:1: no column text; expected file_name, text, found file_name, caption"):
        small("isic2018", isic2018, captions=str(table))
    table.write_text("file_name,text\nISIC_0000000.jpg,brown\na/ISIC_0000000.jpg,red\n")
    with pytest.raises(ValueError, match="texts.csv:3: ISIC_0000000.jpg has a text already"):
        small("isic2018", isic2018, captions=str(table))
    table.write_text("file_name,text\nother.jpg,brown\n")
    with pytest.raises(ValueError, match="no text for 4 of 4 images: .*ISIC_0000003.jpg; describe"):
        small("isic2018", isic2018, captions=str(table), missing_captions="skip")
    with pytest.raises(ValueError, match="missing_captions='drop': expected one of"):
        small("isic2018", isic2018, missing_captions="drop")


@pytest.fixture
def isic2019(tmp_path):
    labels = ["NV"] * 40 + ["SCC"] * 20 + ["MEL"] * 20
    pictures(tmp_path / "ISIC_2019_Training_Input", [f"ISIC_{k:07}.jpg" for k in range(80)])
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text(one_hot(ISIC2019, labels))
    lesions = [f"ISIC_{k:07},55,anterior torso,{f'HAM_{k // 2}' if k % 10 else ''},female" for k in range(80)]
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "\n".join(["image,age_approx,anatom_site_general,lesion_id,sex", *lesions]) + "\n")
    return tmp_path


def test_isic2019_divides_by_lesion_from_a_seed(isic2019, caplog):
    parts = {split: small("isic2019", isic2019, split=split, holdout=0.1, cache="")
             for split in ("train", "val", "test", "")}
    names = {split: set(part.names) for split, part in parts.items()}
    assert len(parts[""]) == 80 and parts[""].classes == ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]
    assert names["train"] | names["val"] | names["test"] == names[""]
    assert sum(map(len, names.values())) == 160 and 12 <= len(names["test"]) <= 20 and 4 <= len(names["val"]) <= 10
    lesions = {split: {int(name[-11:-4]) // 2 for name in names[split] if int(name[-11:-4]) % 10 > 1} for split in parts}
    assert not lesions["test"] & (lesions["train"] | lesions["val"]) and not lesions["train"] & lesions["val"]
    assert parts["test"].labels.bincount(minlength=8).tolist()[0] >= 2, "each class gives its share"
    assert set(small("isic2019", isic2019, split="test", cache="").names) == names["test"], "whatever is held out"
    other = small("isic2019", isic2019, split="test", split_seed=1, cache="")
    assert set(other.names) != names["test"]
    whole = parts[""]
    assert whole.groups[2] == whole.groups[3] == "HAM_1" and whole.groups[10] == whole.file_name(10), "of no known lesion"
    assert not {*parts["train"].groups} & {*parts["test"].groups} and {*whole.splits} == {"train", "val", "test"}
    (isic2019 / "ISIC_2019_Training_Metadata.csv").unlink()
    caplog.clear()
    alone = small("isic2019", isic2019, split="", cache="")
    assert len(alone) == 80 and alone.groups is None
    assert "Metadata.csv is missing: images of one lesion may come into different splits" in caplog.text


def test_isic2019_refuses_what_it_cannot_divide(isic2019, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="no split 'val' in the data; they have .*holdout=0.1 makes one"):
        small("isic2019", isic2019, split="val")
    with pytest.raises(ValueError, match=r"test_share=1: expected a share in \[0, 1\)"):
        small("isic2019", isic2019, test_share=1)
    table = isic2019 / "ISIC_2019_Training_GroundTruth.csv"
    table.write_text(table.read_text().replace("0.0,1.0,0.0\n", "0.0,0.0,1.0\n"))  # SCC becomes UNK
    assert len(small("isic2019", isic2019, split="", cache="")) == 60 and "left out 20 images of UNK" in caplog.text


@pytest.fixture
def chest(tmp_path):
    """Patients 1 .. 12 with four images each; patients 10 to 12 are test patients."""
    findings = ["No Finding", "Hernia", "Effusion|Mass", "Atelectasis"]
    names = [f"{patient:08}_{k:03}.png" for patient in range(1, 13) for k in range(4)]
    lines = [f"{name},{findings[i % 4]},0,{i // 4 + 1},058,M,PA,2682,2749,0.143,0.143," for i, name in enumerate(names)]
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([NIH, *lines]) + "\n")
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:36]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[36:]) + "\n")
    pictures(tmp_path / "images_001" / "images", names[:20], mode="L")
    pictures(tmp_path / "images_012" / "images", names[20:], mode="L")
    return tmp_path


def test_chestxray14_official_split_and_single_labels(chest, caplog):
    train = small("chestxray14", chest)
    assert len(train) == 27 and len(train.classes) == 15 and train.classes[0] == "Atelectasis"
    assert train.classes[14] == "No Finding" and train.labels.tolist() == [14, 13, 0] * 9
    assert train.file_name(26) == "images_012/images/00000009_003.png" and train[0]["image"].shape == (3, 16, 16)
    assert "48 images in Data_Entry_2017.csv; the published set has 112,120" in caplog.text
    grey = small("chestxray14", chest, split="test", channels=1, no_finding=False)
    assert grey.shape == (1, 16, 16) and grey.labels.tolist() == [13, 0] * 3 and "No Finding" not in grey.classes
    assert list(train.groups) == [str(patient) for patient in range(1, 10) for _ in range(3)]
    several = small("chestxray14", chest, single_label=False)
    assert len(several) == 36 and several.labels is None and several.null == {}
    parts = [small("chestxray14", chest, split=split, holdout=0.3) for split in ("train", "val", "test")]
    patients = [{name[-16:-8] for name in part.names} for part in parts]
    assert len(patients[1]) in (2, 3) and not patients[0] & patients[1] and not patients[0] & patients[2]
    assert sum(len(part) for part in parts) == 36


def test_chestxray14_faults(chest):
    with pytest.raises(ValueError, match="single_label=False: images with several findings have no label"):
        small("chestxray14", chest, single_label=False, classes=("Hernia",))
    listed = chest / "test_list.txt"
    good = listed.read_text()
    listed.write_text(good + "00000099_000.png\n00000001_000.png\n")
    with pytest.raises(ValueError, match=r"test_list.txt:13: unknown image '00000099_000.png'; it is not in Data_Entry.*\n"
                                         r".*test_list.txt:14: 00000001_000.png is in split 'train' already"):
        small("chestxray14", chest)
    listed.write_text(good.split("\n", 1)[1])
    with pytest.raises(ValueError, match=r"Data_Entry_2017.csv:38: 00000010_000.png is in none of train_val_list"):
        small("chestxray14", chest)
    listed.write_text(good)
    table = chest / "Data_Entry_2017.csv"
    content = table.read_text()
    table.write_text(content.replace(",Hernia,0,1,", ",Hernja,0,,"))
    with pytest.raises(ValueError, match=r"csv:3: unknown finding 'Hernja'; did you mean 'Hernia'\?\n.*:3: Patient ID is empty"):
        small("chestxray14", chest)
    table.write_text(content)
    (chest / "images_012" / "images" / "00000009_003.png").unlink()
    with pytest.raises(ValueError, match=r"csv:37: 00000009_003.png: no such file in images_001/images, images_012/images"):
        small("chestxray14", chest)
    assert len(small("chestxray14", chest, split="test")) == 9, "only what is read must be there"


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for part, numbers in (("train2014", [30, 9]), ("val2014", [42])):
        names = {number: f"COCO_{part}_{number:012}.jpg" for number in numbers}
        pictures(tmp_path / part, names.values())
        notes = [{"image_id": number, "id": k, "caption": f"{number} seen by {k}"} for k in range(5) for number in numbers]
        (tmp_path / "annotations" / f"captions_{part}.json").write_text(json.dumps(
            {"images": [{"id": number, "file_name": name} for number, name in names.items()], "annotations": notes}))
    return tmp_path


def test_mscoco_keeps_every_caption(coco, caplog):
    train = small("mscoco", coco)
    assert train.captions == [[f"{number} seen by {k}" for k in range(5)] for number in (9, 30)]
    assert train.labels is None and train.classes == [] and train.file_name(0) == "train2014/COCO_train2014_000000000009.jpg"
    assert "2 images in captions_train2014.json; the published set has 82,783" in caplog.text
    assert len(data.held_out({"name": "mscoco", "path": str(coco), "resolution": 16}, "val")) == 1
    assert data.get(name="mscoco", path=str(coco), resolution=32)[0]["image"].shape == (3, 32, 32), "small ones are enlarged"


def test_mscoco_faults(coco):
    table = coco / "annotations" / "captions_train2014.json"
    content = json.loads(table.read_text())
    table.write_text(json.dumps(content | {"annotations": content["annotations"][::2] + [{"image_id": 7, "caption": "?"}]}))
    with pytest.raises(ValueError, match=r"COCO_train2014_000000000009.jpg \(image 9\) has no caption\n.*unknown image 7"):
        small("mscoco", coco)
    table.write_text(table.read_text()[:-20])
    with pytest.raises(ValueError, match="captions_train2014.json: expected COCO captions, .*JSONDecodeError"):
        small("mscoco", coco)
    table.write_text(json.dumps(content))
    (coco / "train2014" / "COCO_train2014_000000000030.jpg").unlink()
    with pytest.raises(ValueError, match="captions_train2014.json: image 30: COCO_train2014_000000000030.jpg: no such file"):
        small("mscoco", coco)
