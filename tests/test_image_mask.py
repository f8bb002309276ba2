"""Images with masks in two folders: paired by name, whatever prefix, extension or class folder; what is alone is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from configs import folder64_controlnet, folder256_controlnet
from libs import data


def pairs(root, images=("1.png", "2.png"), masks=("1.png", "2.png"), size=(8, 8)):
    """Files below `root` whose grey level is their place in the list, so that an item tells which mask it has."""
    for names, mode in ((images, "RGB"), (masks, "L")):
        for k, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, size, k if mode == "L" else (k * 20,) * 3).save(root / name)
    return root


def opened(root, **options):
    return data.get(name="image_mask", path=str(root), **{"resolution": 8, "mask_values": (0, 1, 2), **options})


def names(dataset):
    return [(dataset.file_name(i), dataset.masks[i]) for i in range(len(dataset))]


def test_by_name_with_prefixes_and_other_extensions(tmp_path):
    pairs(tmp_path, ("images/Img_001.jpg", "images/Img_002.JPG"), ("masks/seg_001.png", "masks/seg_002.tif"))
    dataset = opened(tmp_path, image_prefix="Img_", mask_prefix="seg_")
    assert names(dataset) == [("images/Img_001.jpg", "masks/seg_001.png"), ("images/Img_002.JPG", "masks/seg_002.tif")]
    assert dataset.labels is None and dataset.classes == [] and data.preflight(dataset) == 2
    assert [dataset[k]["mask"].argmax(0).unique().item() for k in range(2)] == [0, 1]
    pairs(tmp_path / "b", ("scans/x/1.png",), ("scans_mask/x/1_.png", "scans_mask/x/m1.png"))
    with pytest.raises(ValueError, match="1 mask without an image: scans_mask/x/1_.png"):
        opened(tmp_path / "b", images_folder="scans", masks_folder="scans_mask", mask_prefix="m")
    (tmp_path / "b" / "scans_mask" / "x" / "1_.png").unlink()
    found = opened(tmp_path / "b", images_folder="scans", masks_folder="scans_mask", mask_prefix="m")
    assert names(found) == [("scans/x/1.png", "scans_mask/x/m1.png")] and found.classes == ["x"]


@pytest.mark.parametrize("form", ["{kind}/{label}/{k}.png", "{label}/{kind}/{k}.png", "{label}/{kind}/deep/{k}.png"])
@pytest.mark.parametrize("split", ["", "train"])
def test_classes_and_splits(tmp_path, form, split):
    for part in ("train/", "val/") if split else ("",):
        files = [[part + form.format(kind=kind, label=label, k=k) for label in ("b", "a") for k in range(2)]
                 for kind in ("images", "masks")]
        pairs(tmp_path, *files)
    dataset = opened(tmp_path, split=split, mask_values=(0, 1, 2, 3))
    assert dataset.classes == ["a", "b"] and dataset.labels.tolist() == [0, 0, 1, 1]
    assert [i.replace("images", "masks") for i, _ in names(dataset)] == [m for _, m in names(dataset)]
    assert [dataset[k]["mask"].argmax(0).unique().item() for k in range(4)] == [2, 3, 0, 1], "each has its own"
    loose = opened(tmp_path, split=split, label_column="", mask_values=(0, 1, 2, 3))
    assert loose.classes == [] and len(loose) == 4 and loose.masks_as.channels == 4
    if split:
        options = {"name": "image_mask", "path": str(tmp_path), "resolution": 8, "split": split, "min_per_class": 2}
        held_out = data.held_out(options, "val")
        assert len(held_out) == 4 and held_out.file_name(0).startswith("val/") and held_out.classes == ["a", "b"]


def test_held_out_by_class(tmp_path):
    files = [[f"{kind}/{'ab'[k % 2]}/{k}.png" for k in range(20)] for kind in ("images", "masks")]
    pairs(tmp_path, *files)
    options = {"name": "image_mask", "path": str(tmp_path), "resolution": 8, "holdout": 0.2, "split": "train"}
    train, val = data.get(**options), data.held_out(options, "val")
    assert len(train) == 16 and val.labels.bincount().tolist() == [2, 2]
    assert not set(names(train)) & set(names(val))


def test_what_is_alone_is_named_on_both_sides(tmp_path):
    pairs(tmp_path, [f"images/{k:02}.png" for k in range(15)], ["masks/00.png", "masks/x.png"])
    with pytest.raises(ValueError) as error:
        opened(tmp_path)
    text = str(error.value)
    assert "2 problems" in text and "14 images without a mask: images/01.png, images/02.png" in text and "and 4 more" in text
    assert "(expected masks/01.*; see image_prefix, mask_prefix, image_suffix, mask_suffix)" in text
    assert "1 mask without an image: masks/x.png (expected images/x.*" in text
    with pytest.raises(ValueError, match=r"14 images without .*expected masks/seg_01.\*\)[\s\S]*expected images/Img_x.\*"):
        opened(tmp_path, image_prefix="Img_", mask_prefix="seg_")


@pytest.mark.parametrize("images, masks, message", [
    (["images/a.png"], ["masks/a.png", "masks/a.jpg"], "masks/a.jpg: 2 masks: masks/a.jpg, masks/a.png; keep one"),
    (["images/a.png", "images/a.jpg"], ["masks/a.png"], "masks/a.png: the mask of 2 images: images/a.jpg, images/a.png"),
    (["images/a.png"], [], "masks/ is missing"), ([], ["masks/a.png"], "images/ is missing"),
    (["a/images/1.png", "b/images/1.png"], ["a/masks/1.png"], "b/masks/ is missing"),
    (["a/1.png"], [], "a: images, but no folder 'images'[\\s\\S]*no folders 'images' and 'masks'"),
    (["images/1.png", "a/images/1.png"], ["masks/1.png", "a/masks/1.png"], "a/ has folders of its own beside images/"),
    (["images/1.png", "images/a/1.png"], ["masks/1.png", "masks/a/1.png"], "1 images beside the class folders"),
    (["images/a/1.png"], ["masks/b/1.png"], r"expected masks/a/1.\*"),
    (["images/1.png", "images/2.nii"], ["masks/1.png"], "images/2.nii: a format that is not read"),
    (["train/images/1.png", "c/images/1.png"], [], "look like splits")])
def test_other_faults_of_the_structure(tmp_path, images, masks, message):
    for name in (*images, *masks):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


def test_faults_of_options_and_files(tmp_path):
    pairs(tmp_path, ("images/1.png",), ("masks/1.png",), size=(9, 8))
    Image.new("L", (9, 9), 3).save(tmp_path / "masks" / "1.png")
    with pytest.raises(ValueError, match="81 of 81 pixels hold no value"):
        data.preflight(opened(tmp_path))
    with pytest.raises(ValueError, match="the mask has 9x9 pixels, its image images/1.png 9x8"):
        data.preflight(opened(tmp_path, mask_values=(0, 3)))
    for options, message in (({"masks_folder": "images"}, "expected the names of two folders"),
                             ({"image_prefx": "a"}, "did you mean"),
                             ({"group_column": "p"}, "needs a metadata table"), ({"require": ("text",)}, "no text in the data")):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, **options)
    (tmp_path / "masks").rename(tmp_path.parent / f"beside_{tmp_path.name}")
    (tmp_path / "masks").symlink_to(tmp_path.parent / f"beside_{tmp_path.name}")
    with pytest.raises(ValueError, match="masks is a link out of the data folder"):
        opened(tmp_path)
    assert len(opened(tmp_path, follow_links=True)) == 1


def test_flips_and_batches(tmp_path):
    pairs(tmp_path, ("images/1.png",), ())
    half = np.zeros((8, 8), np.uint8)
    half[:, :3] = 1
    (tmp_path / "masks").mkdir()
    Image.fromarray(half).save(tmp_path / "masks" / "1.png")
    Image.fromarray(half * 255).save(tmp_path / "images" / "1.png")
    dataset = opened(tmp_path, mask_values=(0, 1), random_flip=True, channels=1)
    seen = [dataset.item(0, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(torch.equal((each["image"] > 0).float(), each["mask"]) for each in seen)
    assert {each["mask"][0, 0, 0].item() for each in seen} == {0.0, 1.0}
    assert next(data.Stream(dataset, 1, seed=0)())["mask"].shape == (1, 1, 8, 8)


def test_wbc_cells_by_folders(wbc):
    dataset = opened(wbc, resolution=16, mask_values=(0, 128, 255))
    assert len(dataset) == 300 and names(dataset)[0] == ("images/001.png", "masks/001.png")
    assert dataset[0]["mask"].shape == (3, 16, 16)


def test_a_config_may_go_from_one_form_of_images_to_the_other(tmp_path):
    """What only the other form has may stay at its default, and is refused where it asks for something."""
    pairs(tmp_path / "folders", ("images/1.png",), ("masks/1.png",))
    pairs(tmp_path / "table", ("1.png",), ("m1.png",))
    (tmp_path / "table" / "metadata.csv").write_text("file_name,mask_file_name\n1.png,m1.png\n")
    for get_config in (folder256_controlnet.get_config, folder64_controlnet.get_config):
        for name in ("folder", "image_mask"):
            options = dict(get_config().dataset) | {"name": name, "resolution": 8, "split": "", "holdout": 0.0,
                                                    "path": str(tmp_path / ("table" if name == "folder" else "folders"))}
            assert len(data.get(**options)) == 1 and data.get(**options).masks_as is not None
    with pytest.raises(ValueError, match="option image_prefix='Img_' is one of 'image_mask': set name='image_mask'"):
        data.get(**options | {"name": "folder", "image_prefix": "Img_"})
    with pytest.raises(ValueError, match="'image_prefx'=*.*expected one of.*'image_prefix'"):
        data.get(**options | {"image_prefx": ""})
    with pytest.raises(ValueError, match="'images_folder': expected one of"):
        data.get(name="isic2018", images_folder="images")


def test_a_holdout_says_nothing_of_the_test_split(tmp_path):
    """Evaluations ask for the masks of the test split of data whose validation images were held out of the training ones."""
    for split, count in (("train", 10), ("test", 3)):
        for kind, level in (("images", 90), ("masks", 255)):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), level).save(folder / f"{i}.png")
    options = dict(name="image_mask", path=str(tmp_path), resolution=8, split="train", holdout=0.3)
    assert [len(data.held_out(options, split)) for split in ("train", "val", "test")] == [7, 3, 3]
