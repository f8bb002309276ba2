"""Transparency of mask files is the mask, or background, in every mode; it is never dropped."""

import numpy as np
import pytest
import torch
from PIL import Image

from libs import data
from libs.data.masks import MaskCode
from libs.evaluation.masks import find_masks, of_files
from tests.layouts import image, mask

LESION = np.zeros((8, 16), np.uint8)
LESION[:4, :4] = 1  # an eighth of the pixels
WHITE, ALPHA = np.full((8, 16), 255, np.uint8), LESION * 255


def drawn(kind):
    """(picture of a lesion, options of `save`) whose transparency, or that of its surroundings, tells it."""
    palette = Image.fromarray(LESION)
    if kind == "palette":
        palette.putpalette([255, 255, 255, 255, 255, 255])
        return palette, {"transparency": bytes([0, 255])}
    return {
        "white": (Image.fromarray(np.dstack([WHITE, WHITE, WHITE, ALPHA])), {}),
        "black": (Image.fromarray(np.dstack([WHITE * 0, WHITE * 0, WHITE * 0, ALPHA])), {}),
        "red": (Image.fromarray(np.dstack([WHITE, WHITE * 0, WHITE * 0, ALPHA])), {}),
        "grey": (Image.fromarray(np.dstack([WHITE, ALPHA]), "LA"), {}),
        "cut out": (Image.fromarray(np.dstack([ALPHA, ALPHA, ALPHA, ALPHA])), {}),
        "hidden": (Image.fromarray(np.dstack([WHITE, WHITE, np.where(LESION, WHITE, 9), ALPHA])), {}),
        "entry of grey": (Image.fromarray(np.where(LESION, WHITE, np.uint8(7))), {"transparency": 7}),
        "entry of colour": (
            Image.fromarray(np.where(LESION[..., None].repeat(3, 2), np.uint8(255), np.uint8(7))),
            {"transparency": (7, 7, 7)},
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["white", "black", "red", "grey", "cut out", "hidden", "entry of grey", "entry of colour", "palette"],
)
@pytest.mark.parametrize("values", [(), (0, 255), ((0, 0, 0), (255, 255, 255))])
def test_an_eighth_is_foreground(tmp_path, kind, values):
    picture, options = drawn(kind)
    picture.save(tmp_path / "m.png", **options)
    code = MaskCode(values)
    index = code.index(code.tensor(code.read(tmp_path / "m.png"))[None])[0]
    assert (index.numpy() == LESION).all() and index.float().mean() == 0.125


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2), (255, 0), ((0, 0, 255), (255, 0, 0))])
def test_declared_levels_and_backgrounds(tmp_path, values):
    background, front = values[0], values[1]
    planes = [np.full_like(WHITE, level) for level in (front if isinstance(front, tuple) else (front,) * 3)]
    Image.fromarray(np.dstack([*planes, ALPHA])).save(tmp_path / "m.png")
    assert (MaskCode(values).read(tmp_path / "m.png") == LESION).all(), "laid over the first class"
    several = np.dstack([*planes, WHITE])
    several[6:, :, :3], several[6:, :, 3] = 33, 0  # what is transparent has no colour of its own
    several[:6, 8:, :3] = background
    Image.fromarray(several).save(tmp_path / "n.png")
    expected = np.zeros_like(LESION)
    expected[:6, :8] = 1
    assert (MaskCode(values).read(tmp_path / "n.png") == expected).all()


def test_numbers_of_a_palette_stay_numbers(tmp_path):
    numbers = LESION.copy()
    numbers[6:] = 2
    picture = Image.fromarray(numbers)
    picture.putpalette([9, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "m.png", transparency=bytes([255, 255, 0]))
    assert (MaskCode((0, 1, 2)).read(tmp_path / "opaque.png") == numbers).all()
    assert (MaskCode((0, 1, 2)).read(tmp_path / "m.png") == LESION).all(), "transparent is background"
    picture.save(tmp_path / "half.png", transparency=bytes([255, 255, 100]))
    with pytest.raises(
        ValueError, match="half.png: a mask of palette numbers with pixels that are half transparent"
    ):
        MaskCode((0, 1, 2)).read(tmp_path / "half.png")
    inverted = Image.fromarray(1 - LESION)
    inverted.putpalette([255, 0, 0, 0, 0, 0])
    inverted.save(tmp_path / "red.png", transparency=bytes([255, 0]))
    assert (MaskCode((0, 1)).read(tmp_path / "red.png") == LESION).all(), (
        "the only opaque number is no background"
    )


def test_smooth_transparency_is_a_grey_level_or_refused(tmp_path):
    Image.fromarray(np.dstack([WHITE, WHITE, WHITE, LESION * 200])).save(tmp_path / "m.png")
    assert set(np.unique(MaskCode().read(tmp_path / "m.png"))) == {0, 200}
    with pytest.raises(ValueError, match="16 of 128 pixels|hold no value of mask_values"):
        MaskCode((0, 255)).read(tmp_path / "m.png")


def test_sixteen_bits_with_transparency(tmp_path):
    """Grey of 16 bits with an alpha channel, which Pillow cannot write."""
    import struct
    import zlib

    def png(path, grey, alpha):
        rows = b"".join(
            b"\0" + b"".join(struct.pack(">HH", int(g), int(a)) for g, a in zip(*row))
            for row in zip(grey, alpha)
        )
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 16, 8, 16, 4, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                for kind, body in chunks
            )
        )

    png(tmp_path / "m.png", np.full((8, 16), 65535), LESION.astype(np.int64) * 65535)
    for values in ((), (0, 255), ((0, 0, 0), (255, 255, 255))):
        code = MaskCode(values)
        assert code.index(code.tensor(code.read(tmp_path / "m.png"))[None]).float().mean() == 0.125
    png(tmp_path / "levels.png", LESION, np.full((8, 16), 65535))
    with pytest.raises(ValueError, match="levels.png: 16-bit grey with transparency; save it without"):
        MaskCode((0, 1)).read(tmp_path / "levels.png")


def test_in_a_data_set_and_by_mask_path(tmp_path):
    image(tmp_path / "images" / "1.png", (8, 16))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.dstack([WHITE, WHITE, WHITE, ALPHA])).save(tmp_path / "masks" / "1.png")
    for values in ((), (0, 255)):
        dataset = data.get(
            name="image_mask", path=str(tmp_path), resolution=8, crop="pad", mask_values=values, upscale=True
        )
        data.preflight(dataset)
        assert dataset[0]["mask"].mean().item() == pytest.approx(0.125 / 2, abs=0.01), (
            "half of the square is padded"
        )
        asked = of_files(
            "m", find_masks(tmp_path / "masks", [], {}), [0], MaskCode(values), side=8, crop="pad"
        )
        assert torch.equal(asked[[0]][0], dataset[0]["mask"])


@pytest.mark.parametrize("values", [(), (0, 255)])
def test_masks_without_two_classes_are_told(tmp_path, caplog, values):
    for k in range(3):
        image(tmp_path / "images" / f"{k}.png")
        mask(tmp_path / "masks" / f"{k}.png", level=0)
    options = {
        "name": "image_mask",
        "path": str(tmp_path),
        "resolution": 16,
        "mask_values": values,
        "cache": "",
    }
    data.preflight(data.get(**options))
    assert "all of the 3 masks are empty" in caplog.text
    caplog.clear()
    for k in range(3):
        mask(tmp_path / "masks" / f"{k}.png", rows=slice(None), columns=slice(None))
    data.preflight(data.get(**options))
    assert "all of the 3 masks are full" in caplog.text
    caplog.clear()
    mask(tmp_path / "masks" / "0.png", level=0)
    data.preflight(data.get(**options))
    assert "1 of the 3 masks is empty" in caplog.text and "2 of the 3 masks are full" in caplog.text
    of_files("m", find_masks(tmp_path / "masks", [], {}), [0, 1, 2], MaskCode(values), side=16)
    assert caplog.text.count("2 of the 3 masks are full") == 2, "those of --mask_path too"
    caplog.clear()
    mask(tmp_path / "masks" / "1.png")
    data.preflight(data.get(**options))
    assert "mask" not in caplog.text
