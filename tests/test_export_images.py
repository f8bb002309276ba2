"""Any data set as a folder: what is written is what is read again."""

import csv

import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from libs import data
from scripts.export_images import export


def section(**dataset):
    return ConfigDict({"dataset": {"random_flip": True, **dataset}})


def test_drawn_lesions_come_back_with_labels_and_texts(tmp_path, capsys):
    export(section(name="phantoms", size=6, resolution=16, wordings=2), str(tmp_path / "out"))
    assert "6 images" in capsys.readouterr().out
    drawn = data.get("phantoms", size=6, resolution=16)
    again = data.get("folder", path=str(tmp_path / "out"), resolution=16, channels=3, split="")
    assert sorted(again.classes) == sorted(drawn.classes) and len(again) == 6
    found = {again.file_name(i).rsplit("/", 1)[-1]: again[i] for i in range(6)}
    captions = {again.file_name(i).rsplit("/", 1)[-1]: again.captions[i] for i in range(6)}
    for i in range(6):
        assert torch.equal(found[f"{i:06d}.png"]["image"], drawn[i]["image"])
        assert drawn.captions[i] in captions[f"{i:06d}.png"]


def test_texts_that_only_some_images_have_are_kept_and_no_folder_is_overwritten(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16), "red").save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "metadata.csv").write_text("file_name,text\na.png,\nb.png,a red square\n")
    options = dict(name="folder", path=str(tmp_path / "in"), resolution=16, channels=3, split="")
    export(section(**options), str(tmp_path / "out"))
    with open(tmp_path / "out" / "metadata.csv", newline="") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == ["", "a red square"]
    with pytest.raises(ValueError, match="not empty"):
        export(section(**options), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="--output"):
        export(section(**options), "")
