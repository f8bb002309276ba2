"""Masks among images: a training stops with one message, and whatever the message says works when typed."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from libs import data
from libs.evaluation.masks import find_masks
from tests.commands import call
from tests.layouts import folder, image, mask, typed


def by_suffix(root, suffix="_mask", classes=("benign/", "malignant/"), extension=".png"):
    for label in classes:
        for k in range(4):
            image(root / f"{label}x ({k}){extension}", seed=k)
            mask(root / f"{label}x ({k}){suffix}.png", rows=slice(k, k + 9))


def several(root):
    by_suffix(root)
    mask(root / "benign" / "x (1)_mask_1.png", rows=slice(15, 20))


def twins(root):
    for k in range(4):
        image(root / f"{k:03}.bmp", seed=k)
        mask(root / f"{k:03}.png", rows=slice(k, k + 9))


def both_sides(root):
    for k in range(4):
        image(root / f"{k}_image.png", seed=k)
        mask(root / f"{k}_ground_truth.png", rows=slice(k, k + 9))


def by_prefix(root):
    for k in range(4):
        image(root / "a" / f"Img_{k:03}.png", seed=k)
        mask(root / "a" / f"seg_{k:03}.png", rows=slice(k, k + 9))


def palettes(root):
    for k in range(4):
        image(root / f"{k}.jpg", seed=k)
        numbers = np.zeros((24, 24), np.uint8)
        numbers[k:9], numbers[15:] = 1, 2
        picture = Image.fromarray(numbers)
        picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
        picture.save(root / f"{k}_seg.png")


def smooth(root):
    """Masks that JPEG smoothed: many grey levels, nearly all of them black or white."""
    by_suffix(root, "_segmentation", classes=("a/",))
    for path in root.rglob("*_segmentation.png"):
        Image.open(path).resize((96, 96), Image.Resampling.BILINEAR).save(
            path.with_suffix(".jpg"), quality=80
        )
        path.unlink()
    for path in root.rglob("x (?).png"):
        Image.open(path).resize((96, 96)).save(path)


def folders(root, images="images", masks="masks", before="", ending=""):
    for k in range(4):
        image(root / before / images / f"{k}.jpg", seed=k)
        mask(root / before / masks / f"{k}{ending}.png", rows=slice(k, k + 9))


def ham(root):
    folders(root, ending="_segmentation")
    folders(root, masks="masks_200x150", ending="_segmentation")


def in_classes(root):
    for label in ("a", "b"):
        folders(root, before=label)


def below_classes(root):
    for label in ("a", "b"):
        folders(root, images=".", masks="GT", before=label)


def loose_and_folder(root):
    folders(root, images=".")


def divided(make):
    def divide(root):
        make(root / "train")
        make(root / "test")

    return divide


LAYOUTS = {
    "BUSI": several,
    "loose": lambda root: by_suffix(root, "@", classes=("",)),
    "WBC": twins,
    "both sides": both_sides,
    "prefix": by_prefix,
    "palette": palettes,
    "JPEG": smooth,
    "blank": lambda root: by_suffix(root, " mask"),
    "hyphen": lambda root: by_suffix(root, "-Label"),
    "other word": lambda root: by_suffix(root, ".lesion"),
    "upper case": lambda root: by_suffix(root, "_GT"),
    "HAM": ham,
    "folders": folders,
    "Images, Labels": lambda root: folders(root, "Images", "Labels"),
    "annotations": lambda root: folders(root, "photos", "annotation"),
    "Ground_Truth": lambda root: folders(root, "x", "Ground_Truth"),
    "beside a folder": loose_and_folder,
    "in classes": in_classes,
    "below classes": below_classes,
    "divided": divided(several),
    "divided folders": divided(folders),
    "divided classes": divided(in_classes),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stops_and_each_advice_works_as_typed(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    options = {"split": "train"} if (tmp_path / "train").exists() else {}
    with pytest.raises(ValueError) as error:
        folder(tmp_path, **options)
    said = str(error.value)
    assert "mask" in said and "Do one of these:" in said
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    masks = {
        name
        for name in files
        if re.search(r"(?i)mask|seg|@|lesion|label|_gt|/gt|ground|annotation|\d\d\d.png$", name)
    }
    masks -= {name for name in files if "Img_" in name}
    images = {name for name in files - masks if not options or name.startswith("train/")}
    given = [typed(part.split(": ", 1)[1]) for part in said.split("Do one of these:")[1].splitlines() if part]
    assert [set(each) & {"mask_like_files", "name"} for each in given] == [
        set(),
        {"name"},
        {"mask_like_files"},
    ]
    for each in given:
        dataset = folder(**{"path": tmp_path, **options, **each})
        data.preflight(dataset)
        names = {dataset.file_name(i) for i in range(len(dataset))}
        if "mask_like_files" in each:
            assert names & masks and names & images
        else:
            base = len(tmp_path.parts)
            below = (
                "/".join((*map(str, tmp_path.joinpath(each["path"]).parts[base:]), ""))
                if "path" in each
                else ""
            )
            assert {below + name for name in names} == images, each
        if "name" in each:
            found = [dataset.masks[i] for i in range(len(dataset))]
            assert all(set(one.split("\0")) <= masks for one in found)
            assert [dataset[i]["mask"].mean() > 0.01 for i in range(len(dataset))] == [True] * len(dataset)


@pytest.mark.parametrize(
    "make",
    [
        lambda root: [image(root / f"{a}/{k}{a}.png", seed=k) for a in "ab" for k in range(4)],
        lambda root: [
            image(root / f"{a}/{k}.png", seed=k) for a in ("with_mask", "without_mask") for k in range(4)
        ],
        lambda root: [
            image(root / f"a/{k}{end}", seed=k)
            for k in range(4)
            for end in (".png", ".jpg", "_copy.png", " (2).png")
        ],
        lambda root: [image(root / f"{a}/{k}.png", seed=k) for a in ("seg", "band", "gt") for k in range(4)],
        lambda root: [mask(root / f"a/{k}{k}{end}.png") for k in range(4) for end in ("", "b")],
        lambda root: [image(root / f"images/{k}.png", seed=k) for k in range(4)],
        lambda root: [mask(root / f"masks/{k}.png") for k in range(4)],
        lambda root: [image(root / f"{a}/{k}.png", seed=k) for a in ("mask", "no_mask") for k in range(4)],
        lambda root: [image(root / f"{k}.png", seed=k) for k in range(1, 120)],
    ],
)
def test_ordinary_names_do_not_stop(tmp_path, make, caplog):
    make(tmp_path)
    assert len(folder(tmp_path)) == len(list(tmp_path.rglob("*.*"))) and not caplog.text


def test_a_few_masks_are_a_warning(tmp_path, caplog):
    for k in range(8):
        image(tmp_path / "a" / f"{k}.png", seed=k)
    mask(tmp_path / "a" / "3_mask.png")
    assert len(folder(tmp_path)) == 9
    assert "1 files look like masks" in caplog.text and "a/3.png and a/3_mask.png" in caplog.text
    caplog.clear()
    assert len(folder(tmp_path, ignore_files=("*_mask.*",))) == 8 and not caplog.text


def test_tables_too(tmp_path, caplog):
    """A table that was made of all files; and one of the images alone, whose masks lie beside them."""
    several(tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    (tmp_path / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{name},{name[0]}\n" for name in files)
    )
    with pytest.raises(ValueError, match="9 files look like masks of other images"):
        folder(tmp_path)
    assert len(folder(tmp_path, ignore_files=("*_mask*",))) == 8
    (tmp_path / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{n},{n[0]}\n" for n in files if "mask" not in n)
    )
    caplog.clear()
    assert len(folder(tmp_path)) == 8
    assert (
        "9 images in the folder without a row" in caplog.text
        and "9 of them look like masks of images" in caplog.text
    )
    caplog.clear()
    folder(tmp_path, ignore_files="*_mask*")
    assert not caplog.text


def test_patterns_of_ignored_files(tmp_path, caplog):
    for name in ("a/1.png", "a/thumbs/2.png", "b/3_MASK.png", "b/4.png", "c/5_mask.png"):
        image(tmp_path / name)
    (tmp_path / "b" / "6_mask.dcm").write_bytes(b"x")
    dataset = folder(tmp_path, ignore_files=("*_mask.*", "*/thumbs/*"))
    assert [dataset.file_name(i) for i in range(len(dataset))] == ["a/1.png", "b/4.png"]
    assert dataset.classes == ["a", "b"], "a folder of ignored files is no class"
    assert folder(tmp_path, ignore_files=("a/*", "*mask*")).classes == ["b"]
    with pytest.raises(ValueError, match="no images"):
        folder(tmp_path, ignore_files=("*",))
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "b" / "6_mask.dcm").unlink()
    caplog.clear()
    assert len(folder(tmp_path, ignore_files=("*_msk.*",))) == 4
    assert "no file is called as ignore_files=('*_msk.*',) says" in caplog.text
    with pytest.raises(ValueError, match="mask_like_files='no': expected one of"):
        folder(tmp_path, mask_like_files="no")


def pairs(path, **options):
    return folder(
        path,
        **{"name": "image_mask", "images_folder": "", "masks_folder": "", "mask_suffix": "_mask"} | options,
    )


def test_several_masks_of_an_image_are_united(tmp_path):
    image(tmp_path / "a" / "1.png", (16, 16))
    mask(tmp_path / "a" / "1_mask.png", (16, 16), slice(0, 4), slice(0, 16), 1)
    mask(tmp_path / "a" / "1_mask_1.png", (16, 16), slice(8, 12), slice(0, 16), 2)
    mask(tmp_path / "a" / "1_mask (2).png", (16, 16), slice(2, 4), slice(0, 16), 2)
    dataset = pairs(tmp_path, mask_values=(0, 1, 2))
    index = dataset[0]["mask"].argmax(0)
    expected = np.zeros((16, 16), int)
    expected[:4], expected[2:4], expected[8:12] = 1, 2, 2
    assert (index.numpy() == expected).all(), "each pixel has the last of its classes"
    before = dataset.fingerprint
    mask(tmp_path / "a" / "1_mask_1.png", (16, 16), slice(0, 0))
    assert pairs(tmp_path, mask_values=(0, 1, 2)).fingerprint != before, "each file counts"
    mask(tmp_path / "a" / "1_mask_1.png", (16, 20))
    with pytest.raises(
        ValueError, match="a/1_mask_1.png: the mask has 20x16 pixels, its image a/1.png 16x16"
    ):
        data.preflight(pairs(tmp_path))
    mask(tmp_path / "a" / "1_mask_1.png", (16, 16))
    mask(tmp_path / "a" / "1_mask_1.bmp", (16, 16))
    with pytest.raises(ValueError, match="2 masks|4 masks"):
        pairs(tmp_path)


def test_what_is_alone_is_named_with_the_suffix_that_pairs(tmp_path):
    folders(tmp_path, ending="_segmentation")
    with pytest.raises(ValueError, match="--config.dataset.mask_suffix=_segmentation pairs them"):
        folder(tmp_path, name="image_mask")
    assert len(folder(tmp_path, name="image_mask", mask_suffix="_segmentation")) == 4
    several(tmp_path / "b")
    with pytest.raises(
        ValueError, match="images_folder= --config.dataset.masks_folder= --config.dataset.mask_suffix=_mask"
    ):
        folder(tmp_path / "b", name="image_mask")
    image(tmp_path / "b" / "benign" / "alone.png")
    mask(tmp_path / "b" / "benign" / "none_mask.png")
    with pytest.raises(ValueError) as error:
        pairs(tmp_path / "b")
    assert "1 image without a mask: benign/alone.png (expected benign/alone_mask.*)" in str(error.value)
    assert "1 mask without an image: benign/none_mask.png (expected benign/none.*)" in str(error.value)
    for options in ({"mask_suffix": ""}, {"mask_suffix": "", "images_folder": "x", "masks_folder": "x"}):
        with pytest.raises(
            ValueError, match="expected the names of two folders, or what tells masks from images in one"
        ):
            pairs(tmp_path / "b", **options)


def test_the_command_line_stops_before_anything_is_written(tmp_path):
    several(tmp_path / "data")
    done = call(
        "train.py",
        "--config=configs/folder64_uvit_label.py",
        f"--config.dataset.path={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        fails=True,
    )
    said = done.stdout + done.stderr
    assert "9 files look like masks of other images" in said and "--config.dataset.ignore_files" in said
    assert "Traceback" not in said and not list((tmp_path / "run").glob("*.json"))


def test_pictures_of_one_colour(tmp_path):
    """Images of one colour, as tests of other software draw them: their copies are no masks."""
    for k in range(4):
        for name in ("copies", "pairs"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (24, 24), (50 * k, 90, 10)).save(tmp_path / name / f"{k}.bmp")
        Image.new("RGB", (24, 24), (50 * k, 90, 10)).save(tmp_path / "copies" / f"{k}.png")
        mask(tmp_path / "pairs" / f"{k}.png")
    assert len(folder(tmp_path / "copies")) == 8
    with pytest.raises(
        ValueError, match="4 files look like masks of other images, not like images: 0.bmp and 0.png"
    ):
        folder(tmp_path / "pairs")


def test_a_split_and_its_masks(tmp_path):
    folders(tmp_path, "train", "train_masks")
    with pytest.raises(ValueError, match="look like splits") as error:
        folder(tmp_path)
    assert len(folder(tmp_path / typed(str(error.value).split("masks: ")[1])["path"])) == 4


def test_masks_that_images_are_asked_for(tmp_path):
    several(tmp_path)
    asked = [each.name for each in find_masks(tmp_path, ["benign"], {})]
    assert len(asked) == 9 and all("_mask" in name for name in asked)
    twins(tmp_path / "b")
    assert [each.name for each in find_masks(tmp_path / "b", [], {})] == [f"{k:03}.png" for k in range(4)]
    mask(tmp_path / "c" / "1_mask.png")
    mask(tmp_path / "c" / "2.png")
    assert len(find_masks(tmp_path / "c", [], {})) == 2, "masks alone are all asked for"
    assert len(find_masks(tmp_path / "c", [], {"mask_suffix": "_mask"})) == 1
