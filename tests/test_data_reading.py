"""Every kind of image file is shown truthfully or refused by name; squares are cut as in guided-diffusion."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from libs.data.reading import open_image, open_mask, pixels, read_image
from libs.data.transforms import apply_crop, apply_crop_to_mask, draw_flips, plan_crop

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(folder, name, array, **options):
    path = folder / name
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def unit(array, largest):
    return array.astype(np.float64) / largest * 2 - 1


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.TIFF"])
def test_8_bits_exactly(tmp_path, name):
    image = read_image(saved(tmp_path, name, COLOUR))
    assert image.dtype == np.float32 and image.shape == (3, 6, 9)
    assert np.abs(image - unit(COLOUR, 255).transpose(2, 0, 1)).max() < 1e-6
    grey = saved(tmp_path, name, GREY8)
    assert np.abs(read_image(grey, channels=1)[0] - unit(GREY8, 255)).max() < 1e-6
    assert (read_image(grey, channels=3) == read_image(grey, channels=1)).all()


def test_colour_to_grey_is_luma(tmp_path):
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    image = read_image(saved(tmp_path, "a.png", COLOUR), channels=1)
    assert image.shape == (1, 6, 9) and np.abs((image[0] + 1) * 127.5 - luma).max() < 1


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_all_of_them(tmp_path, name, order):
    path = saved(tmp_path, name, GREY16.astype(order))
    assert (pixels(open_image(path))[..., 0] == GREY16).all()
    for channels in (1, 3):
        image = read_image(path, channels=channels)
        assert image.shape[0] == channels and np.abs(image - unit(GREY16, 65535)).max() < 1e-6


def test_tiff_white_is_zero(tmp_path):
    path = saved(tmp_path, "a.tif", GREY16, tiffinfo={262: 0})
    assert (pixels(open_image(path))[..., 0] == 65535 - GREY16).all()


def test_window_in_raw_levels(tmp_path):
    path = saved(tmp_path, "a.png", np.array([[0, 1000, 2000, 3000, 65535]], np.uint16))
    assert np.allclose(read_image(path, channels=1, window=(1000, 3000)), [[[-1, -1, 0, 1, 1]]], atol=2e-5)
    path = saved(tmp_path, "b.tif", np.array([[-1000, -160, 40, 240, 3000]], np.int32))
    assert np.allclose(read_image(path, channels=1, window=(-160, 240)), [[[-1, -1, 0, 1, 1]]], atol=2e-5)
    path = saved(tmp_path, "c.tif", np.array([[-0.5, 0.0, 0.25, 1.5]], np.float32))
    assert np.allclose(read_image(path, channels=1, window=(0, 1)), [[[-1, -1, -0.5, 1]]], atol=2e-5)
    with pytest.raises(ValueError, match="greyscale"):
        read_image(saved(tmp_path, "d.png", COLOUR), window=(-160, 240))


def test_no_agreed_scale_needs_a_window(tmp_path):
    for array in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), -3, np.int32),
                  np.full((4, 4), 70000, np.int32)):
        with pytest.raises(ValueError, match=r"a\.tif.*window=\(low, high\)"):
            read_image(saved(tmp_path, "a.tif", array))
    with pytest.raises(ValueError, match="nan"):
        read_image(saved(tmp_path, "a.tif", np.full((4, 4), np.nan, np.float32)), window=(0, 1))


def test_palette_bilevel_cmyk_alpha(tmp_path):
    two = np.array([[[200, 10, 10], [10, 10, 200]] * 4] * 8, np.uint8)
    palette = Image.fromarray(two).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image = read_image(saved(tmp_path, "p.png", palette))
    assert np.abs(unit(two, 255).transpose(2, 0, 1) - image).max() < 1e-6
    bits = GREY8 > 127
    assert (read_image(saved(tmp_path, "b.png", bits), channels=1)[0] == bits * 2.0 - 1).all()
    ink = Image.fromarray(np.full((8, 8, 4), [0, 255, 255, 0], np.uint8), "CMYK")
    for name in ("c.tif", "c.jpg"):
        red = read_image(saved(tmp_path, name, ink))
        assert red[0].min() > 0.9 and red[1:].max() < -0.7
    clear = np.dstack([COLOUR, np.full((6, 9), 255, np.uint8)])
    assert (read_image(saved(tmp_path, "o.png", clear)) == read_image(saved(tmp_path, "q.png", COLOUR))).all()
    clear[..., 3] = 0
    assert (read_image(saved(tmp_path, "z.png", clear)) == -1).all()
    half = Image.fromarray(np.dstack([np.full((4, 4), 200, np.uint8), np.full((4, 4), 128, np.uint8)]), "LA")
    assert np.abs((read_image(saved(tmp_path, "la.png", half), channels=1) + 1) * 127.5 - 100).max() < 2


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation(tmp_path, turn):
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # white in the upper left corner
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
              6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1)}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    image = read_image(saved(tmp_path, "a.jpg", stored.copy(), exif=exif, quality=95), channels=1)[0]
    assert image.shape == (16, 24) and image[:7, :7].min() > 0.8 and image[9:, 9:].max() < -0.8


def png_that_claims(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def test_refused_by_name(tmp_path):
    whole = saved(tmp_path, "whole.png", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    jpeg = saved(tmp_path, "whole.jpg", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    frames = [Image.fromarray(GREY8)] * 3
    for name, content, fault in [
            ("missing.png", None, "no such file"), ("empty.png", b"", "0 bytes"),
            ("text.png", b"hello" * 99, "not a readable"),
            ("cut.png", whole[:len(whole) // 2], "truncated or damaged"),
            ("cut.jpg", jpeg[:len(jpeg) // 2], "truncated"),
            ("bomb.png", png_that_claims(50_000, 50_000), "MAX_IMAGE_PIXELS"),
            ("large.png", png_that_claims(10_000, 10_000), "10000x10000 pixels; more than PIL")]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: .*{fault}"):
            read_image(path)
    for name in ("many.tif", "many.png"):
        frames[0].save(tmp_path / name, save_all=True,
                       append_images=[Image.fromarray(255 - GREY8), frames[2]])
        with pytest.raises(ValueError, match=f"{name}: 3 frames"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="not a regular file"):
        read_image(tmp_path)
    Image.fromarray(GREY8).save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_image(tmp_path / "a.gif")


def test_any_damage_is_a_value_error_or_an_image(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("f.png", "f.jpg", "f.bmp", "f.tif"):
        whole = saved(tmp_path, name, rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).read_bytes()
        for _ in range(40):
            content = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                content[place] = rng.integers(256)
            (tmp_path / name).write_bytes(content[:rng.integers(1, len(whole) + 1)] if rng.random() < 0.5
                                          else content)
            try:
                assert read_image(tmp_path / name).shape[0] == 3
            except ValueError as error:
                assert name in str(error)


def test_masks(tmp_path):
    levels = np.array([[0, 128, 255, 7]] * 4, np.uint8)
    for array in (levels, np.dstack([levels] * 3)):
        assert (np.asarray(open_mask(saved(tmp_path, "m.png", array))) == levels).all()
    with pytest.raises(ValueError, match="m.png: a mask in colour"):
        open_mask(saved(tmp_path, "m.png", COLOUR))
    with pytest.raises(ValueError, match="8-bit"):
        open_mask(saved(tmp_path, "m.png", GREY16))


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (71, 300), (33, 32), (32, 32)])
def test_center_crop_geometry(size):
    """On a ramp, a pixel of the square shows the value at its own centre: scale and place can be read off."""
    side, (width, height) = 32, size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    steps, (w, h) = 0, size
    while min(w, h) >= 2 * side:
        w, h, steps = w // 2, h // 2, steps + 1
    w, h = round(w * side / min(w, h)), round(h * side / min(w, h))
    for ramp, length, target in ((x, width, w), (y, height, h)):
        crop = plan_crop(size, side)
        cut = np.asarray(apply_crop(Image.fromarray(ramp.astype(np.float32)), crop))
        line = cut[16] if ramp is x else cut[:, 16]
        expected = ((target - side) // 2 + np.arange(side) + 0.5) * length / target - 0.5
        assert cut.shape == (side, side) and np.abs(line - expected)[3:-3].max() < 0.6
    assert len(crop.sizes) == steps + 1


def test_halving_averages_four_pixels():
    array = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    halved = np.asarray(apply_crop(Image.fromarray(array), plan_crop((64, 64), 32)))
    assert np.abs(halved - array.reshape(32, 2, 32, 2).mean((1, 3))).max() <= 1


def test_random_crop_range_and_mask_alignment():
    disc = np.hypot(*(np.mgrid[:120, :160] - np.array([60, 80])[:, None, None])) < 40
    image = Image.fromarray(disc.astype(np.uint8) * 255)
    generator, shorts, places = torch.Generator().manual_seed(0), set(), set()
    for _ in range(100):
        crop = plan_crop(image.size, 40, crop="random", generator=generator)
        shorts.add(min(crop.sizes[-1]))
        places.add((crop.left, crop.top))
        cut = np.asarray(apply_crop(image, crop)) > 127
        mask = np.asarray(apply_crop_to_mask(image, crop))
        assert cut.shape == (40, 40) and set(np.unique(mask)) <= {0, 255}
        assert ((mask > 127) != cut).mean() < 0.03
    assert shorts == set(range(40, 51)) and len(places) > 50


def test_flips_are_fair_and_only_where_asked():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_flips(generator, horizontal=True, vertical=True) for _ in range(400)]
    assert all(60 < drawn.count(axes) < 140 for axes in ((), (-1,), (-2,), (-1, -2)))
    assert {draw_flips(generator, horizontal=True) for _ in range(50)} == {(), (-1,)}
    assert draw_flips(None, horizontal=True, vertical=True) == ()
