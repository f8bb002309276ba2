"""Masks: what their values mean, from the file to the tensor and back; what is not declared is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from libs import data
from libs.data.masks import MaskCode
from libs.data.transforms import apply_crop, apply_crop_to_mask, plan_crop, too_small

INDEX = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
COLOURS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def saved(path, array, mode=None, palette=None, **options):
    image = Image.fromarray(array) if mode is None else Image.fromarray(array, mode)
    if palette:
        image.putpalette([level for colour in palette for level in colour])
    image.save(path, **options)
    return path


def painted(index, colours=COLOURS):
    return np.array(colours, np.uint8)[index]


# files

def test_classes_by_grey_level_or_number(tmp_path):
    grey = np.array([0, 128, 255], np.uint8)[INDEX]
    code = MaskCode((0, 128, 255))
    assert (code.read(saved(tmp_path / "l.png", grey)) == INDEX).all() and code.read(tmp_path / "l.png").dtype == np.uint8
    assert (code.read(saved(tmp_path / "rgb.png", np.repeat(grey[..., None], 3, 2))) == INDEX).all()
    assert (MaskCode((255, 0, 128)).read(tmp_path / "l.png") == np.array([1, 2, 0])[INDEX]).all(), "in the order declared"
    numbers = MaskCode((0, 1, 2))
    assert (numbers.read(saved(tmp_path / "i.png", INDEX)) == INDEX).all()
    assert (numbers.read(saved(tmp_path / "i16.png", INDEX.astype(np.uint16))) == INDEX).all()
    assert (numbers.read(saved(tmp_path / "p.png", INDEX, palette=COLOURS)) == INDEX).all(), "numbers of a palette"
    levels = [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    assert (code.read(saved(tmp_path / "pg.png", INDEX, palette=levels)) == INDEX).all(), "a grey palette shows grey levels"


def test_classes_by_colour(tmp_path):
    code = MaskCode([list(colour) for colour in COLOURS], names=["sky", "sea", "land"])
    assert code.values == COLOURS and code.names == ("sky", "sea", "land")
    assert (code.read(saved(tmp_path / "p.png", INDEX, palette=COLOURS)) == INDEX).all()
    assert (code.read(saved(tmp_path / "rgb.png", painted(INDEX))) == INDEX).all()
    assert (code.picture(torch.from_numpy(INDEX)).permute(1, 2, 0).numpy() == painted(INDEX)).all()
    assert (MaskCode(((0, 0, 0), (9, 9, 9))).read(saved(tmp_path / "l.png", INDEX // 2 * 9)) == INDEX // 2).all()


def test_two_levels(tmp_path):
    bits = np.array([[True, False]])
    for values in ((0, 1), (0, 255)):
        assert MaskCode(values).read(saved(tmp_path / "b.png", bits)).tolist() == [[1, 0]], values
    assert MaskCode((0, 255)).read(saved(tmp_path / "l.png", bits * np.uint8(255))).tolist() == [[1, 0]]
    assert MaskCode().read(tmp_path / "l.png").tolist() == [[255, 0]], "grey levels stay"
    assert MaskCode(max=7).read(saved(tmp_path / "7.png", bits * np.uint8(7))).tolist() == [[7, 0]]


@pytest.mark.parametrize("values, array, message", [
    ((0, 1), INDEX, r"m.png: 2 of 6 pixels hold no value of mask_values=\(0, 1\) \(value in pixels: 2 in 2\); declare"),
    ((0, 255), np.arange(12, dtype=np.uint8).reshape(3, 4), r"11 of 12 pixels .*: 1 in 1, 2 in 1, .* and 6 further values"),
    (COLOURS[:2], painted(INDEX), r"2 of 6 pixels .*: \(0, 0, 255\) in 2\)"),
    ((0, 1), painted(INDEX), "m.png: a mask in colour; declare its colours"),
    (COLOURS, INDEX.astype(np.uint16), "m.png: a mask of type 'I;16'"),
    ((), painted(INDEX), "m.png: a mask in colour"), ((0, 300), None, "whole numbers in 0 .. 255"),
    ((0, 1, 1), None, "one occurs twice"), ((7,), None, "two classes or more"), ((0, (1, 2, 3)), None, "not both"),
    (((1, 2), (3, 4)), None, "three numbers"), ((0, "1"), None, "whole numbers"), ((0, 1.5), None, "whole numbers"),
    ((False, True), None, "whole numbers")])
def test_what_is_not_declared_is_named(tmp_path, values, array, message):
    with pytest.raises(ValueError, match=message):
        MaskCode(values).read(saved(tmp_path / "m.png", array))


def test_other_options():
    with pytest.raises(ValueError, match="mask_max=0"):
        MaskCode(max=0)
    with pytest.raises(ValueError, match=r"mask_names=\('a', 'b'\): expected 3 different names"):
        MaskCode((0, 1, 2), names=("a", "b"))
    with pytest.raises(ValueError, match="expected 2 different names"):
        MaskCode(names=("a", "a"))
    assert MaskCode((0, 1, 2)).names == ("class 0", "class 1", "class 2") and MaskCode().names == ("class 0", "class 1")
    assert MaskCode((0, 1)) == MaskCode([0, 1]) != MaskCode((1, 0))
    assert MaskCode(COLOURS).settings["values"] == [list(colour) for colour in COLOURS]
    assert MaskCode(**MaskCode(COLOURS, names="abc").settings) == MaskCode(COLOURS, names="abc")


# tensors

@pytest.mark.parametrize("code, channels, classes", [(MaskCode(), 1, 2), (MaskCode((0, 255)), 1, 2), (MaskCode((0, 1, 2)), 3, 3)])
def test_tensors_and_back(code, channels, classes):
    index = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]], np.uint8) * (1 if code.values else 255)
    mask = code.tensor(index)
    assert (code.channels, code.classes) == (channels, classes) and mask.shape == (2, channels, 2, 2)
    assert mask.dtype == torch.float32 and mask.min() == 0 and mask.max() == 1
    assert torch.equal(code.tensor(index[0]), mask[0]) and torch.equal(code.tensor(torch.from_numpy(index)), mask)
    assert (code.levels(mask).numpy() == index).all() and code.levels(mask).dtype == torch.uint8
    assert (code.index(mask).numpy() == (index > 0)).all() and code.index(mask).dtype == torch.int64
    seen = code.picture(code.index(mask)[0])
    assert seen.shape == (3, 2, 2) and seen.dtype == torch.uint8 and torch.equal(code.picture(mask[0]), seen)
    assert (seen[:, 0, 0] == 0).all() and (seen[:, 0, 1] > 0).any()


def test_grey_levels_keep_their_shades():
    code, levels = MaskCode(max=200), torch.arange(0, 201, dtype=torch.uint8)[None]
    mask = code.tensor(levels)
    assert torch.equal(mask[0], levels / 200) and torch.equal(code.levels(mask[None])[0], levels)
    assert code.picture(mask)[0, 0].unique().numel() == 201 and code.index(mask[None]).sum() == 100
    assert len({tuple(c) for c in MaskCode(tuple(range(12))).picture(torch.arange(12)[None])[:, 0].T.tolist()}) == 12


# data sets

@pytest.fixture
def place(tmp_path):
    """Three 24x12 images whose red channel tells the class of their masks, three classes in vertical stripes."""
    (tmp_path / "m").mkdir()
    stripes = np.repeat(np.arange(3, dtype=np.uint8), 8)[None].repeat(12, 0)
    lines = ["file_name,mask_name"]
    for k in range(3):
        index = (stripes + k) % 3
        saved(tmp_path / f"{k}.png", np.dstack([index * 100, index, index]))
        saved(tmp_path / "m" / f"{k}.png", index, palette=COLOURS)
        lines.append(f"{k}.png,m/{k}.png")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


def folder(path, **options):
    return data.get(name="folder", path=str(path), **{"resolution": 12, "mask_values": (0, 1, 2), **options})


def agrees(item):
    """Whether each pixel's class is what its red channel says."""
    return torch.equal(((item["image"][0] + 1) * 127.5 / 100).round().long(), item["mask"].argmax(0))


@pytest.mark.parametrize("cache", ["", "memory"])
def test_one_channel_for_each_class(place, cache):
    dataset = folder(place, random_flip=True, random_vflip=True, cache=cache, mask_names=("a", "b", "c"))
    assert data.preflight(dataset) == 3 and dataset.masks_as == MaskCode((0, 1, 2), names=("a", "b", "c"))
    for seed in range(8):
        item = dataset.item(seed % 3, torch.Generator().manual_seed(seed))
        assert item["mask"].shape == (3, 12, 12) and (item["mask"].sum(0) == 1).all() and agrees(item)
    part = data.Subset(dataset, [2])
    assert part.masks_as == dataset.masks_as and torch.equal(part[0]["mask"], dataset[2]["mask"])
    assert dataset.batch([0, 1])["mask"].shape == (2, 3, 12, 12)
    assert folder(place, mask_values=COLOURS)[1]["mask"].equal(dataset[1]["mask"]), "by colour as by number"


def test_values_are_part_of_the_fingerprint(place):
    prints = [folder(place, **options).fingerprint for options in (
        {}, {"mask_values": COLOURS}, {"mask_values": (0, 2, 1)}, {"mask_values": ()}, {"crop": "pad"})]
    assert len(set(prints)) == 5
    assert folder(place, mask_names=("a", "b", "c")).fingerprint == prints[0], "names change no pixel"


def test_values_of_every_file_are_checked(place):
    with pytest.raises(ValueError, match=r"3 problems[\s\S]*metadata.csv:3: .*m/1.png: 96 of 288 pixels[\s\S]*2 in 96"):
        data.preflight(folder(place, mask_values=(0, 1)))
    (place / "metadata.csv").write_text("file_name\n0.png\n")
    with pytest.raises(ValueError, match="the data have no masks"):
        folder(place)
    with pytest.raises(ValueError, match="mask_names=.*expected 3"):
        folder(place / "nowhere", mask_names=("a",))
    assert data.get(name="phantoms", size=4, masks=True).masks_as.names == ("skin", "lesion")
    assert data.get(name="phantoms", size=4).masks_as is None and folder(place, mask_values=()).masks_as is None


# whole images

@pytest.mark.parametrize("size, side", [((30, 12), 8), ((12, 30), 8), ((64, 16), 16), ((5, 1), 8), ((300, 1), 4), ((7, 7), 7)])
def test_padding_keeps_the_proportions(size, side):
    image = Image.new("L", size, 200)
    crop = plan_crop(size, side, crop="pad")
    cut, mask = np.asarray(apply_crop(image, crop)), np.asarray(apply_crop_to_mask(Image.new("L", size, 2), crop))
    assert cut.shape == mask.shape == (side, side) and ((cut > 0) == (mask == 2)).all()
    filled = (mask == 2).any(0).sum(), (mask == 2).any(1).sum()
    expected = [max(1, length * side / max(size)) for length in size]
    assert max(filled) == side and all(abs(a - b) <= 1 for a, b in zip(filled, expected))
    above, below = np.argmax(mask.any(1)), np.argmax(mask.any(1)[::-1])
    assert abs(int(above) - int(below)) <= 1, "centred"
    assert too_small(size, side, crop="pad") == (max(size) < side) and too_small(size, side) == (min(size) < side)


def test_padded_data(place):
    dataset = folder(place, crop="pad", resolution=24)
    item = dataset.item(1, torch.Generator().manual_seed(0))
    assert agrees(item) and torch.equal(item["image"], dataset[1]["image"]), "the same with a generator"
    assert (item["image"][:, :6] == -1).all() and (item["mask"][0, :6] == 1).all() and (item["mask"][0, 6:18] < 1).any()
    with pytest.raises(ValueError, match="24x12 pixels are smaller than resolution=25"):
        folder(place, crop="pad", resolution=25)[0]
    with pytest.raises(ValueError, match="24x12 pixels are smaller than resolution=24"):
        folder(place, resolution=24)[0]


def test_wbc_cells(wbc):
    dataset = data.get(name="folder", path=str(wbc), resolution=32, split="train", mask_values=(0, 128, 255),
                       mask_names=("background", "cytoplasm", "nucleus"))
    mask = dataset[0]["mask"]
    assert mask.shape == (3, 32, 32) and (mask.sum(0) == 1).all() and (mask.sum((1, 2)) > 0).all()


# the feature store

def encoded(images):
    return images[:, :1], None


IDENTITY = {"codec": {"name": "red", "fingerprint": "a"}, "encoder": {}}


@pytest.mark.parametrize("values", [(), (0, 128), (0, 128, 255)])
def test_stores_carry_masks(tmp_path, values):
    index = np.repeat(np.arange(4, dtype=np.uint8)[None] // 2 if len(values) == 2 else np.array([[0, 1, 2, 2]], np.uint8), 4, 0)
    levels = np.array([0, 128, 255], np.uint8)[index]
    saved(tmp_path / "1.png", np.dstack([levels] * 3))
    saved(tmp_path / "m.png", levels)
    (tmp_path / "metadata.csv").write_text("file_name,mask_name\n1.png,m.png\n")
    images = folder(tmp_path, resolution=4, mask_values=values, mask_names=tuple("abc"[:len(values)]))
    data.store.write(tmp_path / "store", images, encode_images=encoded, identity=IDENTITY, flips=True, progress=False)
    plain, mirrored = data.Features(tmp_path / "store"), data.Features(tmp_path / "store", random_flip=True)
    assert plain.masks_as == images.masks_as and plain.manifest["files"]["mask.npy"]["bytes"] == 128 + 16
    assert torch.equal(plain.batch([0])["mask"], images.batch([0])["mask"])
    assert torch.equal(data.Subset(plain, [0])[0]["mask"], images[0]["mask"])
    seen = [mirrored.batch([0, 0], [seed, seed + 9]) for seed in range(8)]
    for batch in seen:
        for mean, mask in zip(batch["mean"], batch["mask"]):
            turned = not torch.equal(mean, plain.batch([0])["mean"][0])
            assert torch.equal(mask, images[0]["mask"].flip(-1) if turned else images[0]["mask"])
    assert len({batch["mean"][0].sum(1).tolist()[0][0] for batch in seen}) == 2, "both copies are shown"
    data.store.check(tmp_path / "store", IDENTITY, images.fingerprint)
    with pytest.raises(ValueError, match="of something else"):
        data.store.check(tmp_path / "store", IDENTITY, folder(tmp_path, resolution=4, mask_values=(255, 128, 0)).fingerprint)


class Unmasked(data.Subset):
    """As a data set was before stores kept masks: the same fingerprint, and nothing known of its masks."""

    masks_as = fingerprint = None

    def __init__(self, dataset):
        super().__init__(dataset, range(len(dataset)))
        self.masks_as, self.fingerprint = None, dataset.fingerprint


def test_an_older_store_without_masks_stays_good(place):
    images, options = folder(place), dict(encode_images=encoded, identity=IDENTITY, progress=False)
    data.store.write(place / "old", Unmasked(images), **options)
    data.store.write(place / "old", images, **options)
    old = data.Features(place / "old")
    assert old.masks_as is None and "mask" not in old[0] and "masks" not in old.manifest
