"""Files of a data folder that are not read are mentioned: images of other formats, archives, tables, texts."""

import logging

import numpy as np
import pytest
from PIL import Image

from libs import data
from libs.evaluation.masks import find_masks
from tests.layouts import folder, image, mask


@pytest.mark.parametrize(
    "extension", [".pgm", ".ppm", ".pbm", ".pnm", ".jfif", ".jpe", ".dib", ".PGM", ".JFIF", ".TIFF", ".Bmp"]
)
def test_more_extensions_are_read(tmp_path, extension):
    pixels = np.tile(np.uint8([[0, 255]]), (16, 8))
    kind = {".ppm": "RGB", ".pbm": "1"}.get(extension.lower(), "L")
    (tmp_path / "a").mkdir()
    form = {".jfif": "JPEG", ".jpe": "JPEG", ".dib": "BMP", ".tiff": "TIFF", ".bmp": "BMP"}.get(
        extension.lower(), "PPM"
    )
    Image.fromarray(pixels).convert(kind).save(tmp_path / "a" / f"1{extension}", format=form)
    Image.fromarray(pixels).save(tmp_path / "a" / "2.png")
    dataset = folder(tmp_path, channels=1)
    assert len(dataset) == 2 and data.preflight(dataset) == 2
    assert (dataset[0]["image"] - dataset[1]["image"]).abs().mean() < (0.1 if form == "JPEG" else 1e-6)


def test_deep_pgm_keeps_its_depth(tmp_path):
    levels = np.arange(16 * 16).reshape(16, 16) * 257
    (tmp_path / "1.pgm").write_bytes(b"P5\n16 16\n65535\n" + levels.astype(">u2").tobytes())
    shown = folder(tmp_path, channels=1)[0]["image"][0].numpy()
    assert np.abs((shown + 1) / 2 * 65535 - levels).max() < 1
    assert np.ptp(folder(tmp_path, channels=1, window=(0, 2570))[0]["image"].numpy()) == 2


def test_what_is_passed_over_is_counted_by_extension(tmp_path, caplog):
    image(tmp_path / "a" / "1.png")
    for name in (
        "a/2.webm",
        "a/3.webm",
        "b/4.zip",
        "a/readme",
        "a/notes.txt",
        "a/x.db",
        "b/README.md",
        "a/Thumbs.db",
        "a/.DS_Store",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    image(tmp_path / "b" / "5.png").rename(tmp_path / "b" / "IM0005")
    image(tmp_path / "b" / "6.png")
    assert len(folder(tmp_path)) == 2
    said = caplog.text
    assert (
        "4 files passed over" in said
        and "2 .webm (a/2.webm)" in said
        and "1 .zip (b/4.zip, an archive: unpack it)" in said
    )
    assert "1 without extension (b/IM0005)" in said
    assert "1 of them holds an image, such as b/IM0005: rename it to IM0005.png" in said
    for other in ("readme", "txt", ".db", "DS_Store"):
        assert other not in said
    caplog.clear()
    assert len(folder(tmp_path, ignore_files=("*.webm", "*.zip", "IM*"))) == 2 and not caplog.text


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    (tmp_path / "data.npz").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"no images: expected .png.*2 files passed over.*\.npz \(data.npz, an archive"
    ):
        folder(tmp_path)
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ValueError, match="IM0001: DICOM is not read: convert it to .png"):
        folder(tmp_path)


def test_pairs_tables_and_asked_masks(tmp_path, caplog):
    for kind, draw in (("images", image), ("masks", mask)):
        draw(tmp_path / kind / "1.png")
        (tmp_path / kind / "2.webm").write_bytes(b"x")
    image(tmp_path / "test_images" / "9.png")
    image(tmp_path / "loose.png")
    assert len(folder(tmp_path, name="image_mask")) == 1
    assert "4 files passed over" in caplog.text and "2 .webm (images/2.webm)" in caplog.text
    assert "1 folders of images (test_images/)" in caplog.text and "1 .png (loose.png)" in caplog.text
    caplog.clear()
    assert len(find_masks(tmp_path / "masks", [], {})) == 1 and "1 .webm (2.webm)" in caplog.text
    caplog.clear()
    (tmp_path / "metadata.csv").write_text("file_name\nloose.png\n")
    (tmp_path / "scan.webp").write_bytes(b"x")
    folder(tmp_path)
    assert "images in the folder without a row: images/1.png, masks/1.png, scan.webp" in caplog.text


@pytest.mark.parametrize(
    "name, advice",
    [
        ("labels.csv", "--config.dataset.path={root}/labels.csv reads it, or rename it metadata.csv"),
        ("Metadata.csv", "--config.dataset.path={root}/Metadata.csv reads it"),
        (
            "metadata1000.jsonl",
            "--config.dataset.path={root}/metadata1000.jsonl reads it, or rename it metadata.jsonl",
        ),
        ("labels.tsv", "save it as CSV in UTF-8 under the name metadata.csv"),
        ("labels.xlsx", "save it as CSV in UTF-8"),
    ],
)
def test_tables_of_other_names_are_mentioned(tmp_path, caplog, name, advice):
    for label in ("a", "b"):
        image(tmp_path / label / "1.png")
    text = (
        '{"file_name": "a/1.png", "label": "x"}\n'
        if name.endswith("jsonl")
        else "file_name,label\na/1.png,x\n"
    )
    (tmp_path / name).write_text(text)
    assert folder(tmp_path).classes == ["a", "b"]
    assert f"{name} is not read, and folder names are the labels" in caplog.text
    assert advice.format(root=tmp_path) in caplog.text
    if "path=" in advice:
        assert folder(tmp_path / name).classes == ["x"], "the advice works"
    (tmp_path / name).rename(tmp_path / "b" / name)
    caplog.clear()
    folder(tmp_path)
    assert f"b/{name} is not read" in caplog.text, "in a class folder too"


def test_tables_that_lack_file_names_and_beside_splits(tmp_path, caplog):
    for split in ("train", "val"):
        for label in ("a", "b"):
            image(tmp_path / split / label / "1.png")
    (tmp_path / "HAM_metadata.csv").write_text("image_id,dx\n1,nv\n")
    folder(tmp_path, split="train")
    assert "HAM_metadata.csv is not read" in caplog.text
    assert "call its column of file names file_name (it has ['image_id', 'dx']), then --config" in caplog.text
    caplog.clear()
    (tmp_path / "HAM_metadata.csv").unlink()
    folder(tmp_path, split="train")
    assert not caplog.text
    image(tmp_path / "pairs" / "images" / "1.png")
    mask(tmp_path / "pairs" / "masks" / "1.png")
    (tmp_path / "pairs" / "metadata.csv").write_text(
        "file_name,mask_file_name,label\nimages/1.png,masks/1.png,x\n"
    )
    folder(tmp_path / "pairs", name="image_mask")
    assert (
        f"--config.dataset.name=folder --config.dataset.path={tmp_path}/pairs/metadata.csv reads it"
        in caplog.text
    )


def test_captions_of_equal_names_are_mentioned(tmp_path, caplog):
    for k in range(3):
        image(tmp_path / "a" / f"{k}.png", seed=k)
        (tmp_path / "a" / f"{k}.txt").write_text("a mole")
    (tmp_path / "a" / "readme.txt").write_text("by me")
    folder(tmp_path)
    assert "3 .txt files with the name of an image, such as a/0.txt, are not read" in caplog.text
    caplog.clear()
    (tmp_path / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"a/{k}.png,a mole\n" for k in range(3))
    )
    with caplog.at_level(logging.INFO):
        folder(tmp_path)
    assert "not read" not in caplog.text
