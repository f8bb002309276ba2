"""Grey levels that use a sliver of what their files can hold: a pre-flight stops, and what it advises works when it is typed."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from libs import data
from libs.data.measurements import Measurements, check_levels
from libs.data.reading import measure_levels, open_image, pixels, read_image

SIDE = 24
TINY = ("--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2", "--config.dataset.resolution=16",
        "--config.nnet.img_size=16", "--config.nnet.patch_size=4", "--config.train.batch_size=4", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.train.validation_interval=0", "--config.train.workers=0",
        "--config.train.mixed_precision=no", "--config.train.n_steps=1")


def draw(top, dtype, count=8, low=0, colour=False):
    """Images whose levels are `low` to `top`, both of which occur."""
    rng = np.random.default_rng(0)
    images = rng.integers(low, top + 1, (count, SIDE, SIDE, *([3] if colour else []))).astype(dtype)
    images[:, 0, 0], images[:, 0, 1] = low, top
    return images


def save(folder, images, ending="png", first=0):
    for number, image in enumerate(images, first):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.{ending}")
    return folder


def opened(folder, **options):
    return data.get(name="folder", path=str(folder), resolution=16, **options)


def advised(text):
    """The windows that a message names, as it is typed: [(low, high)]."""
    return [tuple(float(end) for end in pair) for pair in re.findall(r'--config\.dataset\.window="\((-?\d+),(-?\d+)\)"', text)]


@pytest.mark.parametrize("top, low, dtype, ending, window", [
    (4095, 0, np.uint16, "png", (0, 4095)),  # 12 bits in 16, as X-rays, MR and CT are exported
    (3900, 0, np.uint16, "tif", (0, 4095)),
    (1000, 0, np.uint16, "png", (0, 1023)),
    (16000, 0, np.uint16, "png", (0, 16383)),
    (300, 0, np.uint16, "png", (0, 300)),  # no usual detector: the level itself
    (250, 0, np.int32, "tif", (0, 255)),
    (4095, 0, np.int32, "tif", (0, 4095)),
    (34000, 31000, np.uint16, "png", (31000, 34000)),  # HU + 32768
    (2, 0, np.uint8, "png", (0, 2)),  # 0..1 saved as 8 bits, a data set that was published so
    (63, 0, np.uint8, "bmp", (0, 63)),
])
def test_a_sliver_of_the_range_stops_with_a_window_that_works(tmp_path, top, low, dtype, ending, window):
    save(tmp_path, draw(top, dtype, low=low), ending)
    with pytest.raises(ValueError, match="pre-flight: 1 problem") as error:
        data.preflight(opened(tmp_path, channels=1))
    range_of = 255 if dtype == np.uint8 else 65535
    assert f"{top} of {range_of}" in str(error.value) or f"{low} to {top} of 0..{range_of}" in str(error.value)
    assert advised(str(error.value)) == [window, (0, range_of)]
    dataset = opened(tmp_path, channels=1, window=window)
    assert data.preflight(dataset) == 8
    raw = np.array(Image.open(dataset._path(dataset.file_name(0))), float)
    shown = read_image(dataset._path(dataset.file_name(0)), channels=1, window=window)[0]
    assert shown == pytest.approx((raw - window[0]) / (window[1] - window[0]) * 2 - 1, abs=1e-4)
    assert data.preflight(opened(tmp_path, channels=1, window=(0, range_of))) == 8, "meant to be so dark"


def test_colour_files_that_are_dark_are_shown_through_a_window_too(tmp_path):
    images = draw(2, np.uint8, colour=True)
    save(tmp_path, images)
    with pytest.raises(ValueError, match=r"2 of 255, .*saved from 0\.\.1\?") as error:
        data.preflight(opened(tmp_path))
    for window, factor in zip(advised(str(error.value)), (127.5, 1)):
        assert data.preflight(opened(tmp_path, window=window)) == 8
        path = tmp_path / "a" / "0.png"
        assert (pixels(open_image(path, window=window)) == np.array(images[0] * factor).round()).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_a_window_works_for_transparent_and_palette_files(tmp_path, mode):
    grey = np.arange(0, 200, 8, dtype=np.uint8).reshape(5, 5)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    windowed = pixels(open_image(tmp_path / "a.png", channels=1, window=(0, 200)))[..., 0]
    assert windowed.astype(float) == pytest.approx(grey / 200 * 65535, abs=1)


def test_a_window_in_raw_units_is_refused_for_colour_files(tmp_path):
    Image.fromarray(draw(200, np.uint8, 1, colour=True)[0]).save(tmp_path / "screenshot.png")
    for channels in (1, 3):
        with pytest.raises(ValueError, match=r"screenshot\.png: window=\(-160, 240\) lies outside 0 \.\. 255"):
            open_image(tmp_path / "screenshot.png", channels=channels, window=(-160, 240))


@pytest.mark.parametrize("window, shade", [((5000, 6000), "black"), ((-10, 0), "white")])
def test_a_window_that_meets_nothing_stops_with_the_levels(tmp_path, window, shade):
    low = 0 if shade == "black" else 5
    save(tmp_path, draw(4095, np.uint16, low=low))
    with pytest.raises(ValueError, match=f"shows all 8 images {shade}: their grey levels are {low} to 4095") as error:
        data.preflight(opened(tmp_path, channels=1, window=window))
    assert data.preflight(opened(tmp_path, channels=1, window=advised(str(error.value))[-1])) == 8


def test_a_window_far_wider_than_the_levels_and_images_without_any_of_it_are_warned_of(tmp_path, caplog):
    save(tmp_path, draw(4095, np.uint16))
    data.preflight(opened(tmp_path, channels=1, window=(0, 40000)))
    assert "use a small part of window" in caplog.text and advised(caplog.text) == [(0, 40000), (0, 4095)][1:]
    caplog.clear()
    save(tmp_path, draw(900, np.uint16, count=3), first=8)
    data.preflight(opened(tmp_path, channels=1, window=(1000, 4095)))
    assert "3 of 11 images are all black or all white under window" in caplog.text


def test_files_of_two_depths_that_no_window_suits_are_told_to_be_saved_alike(tmp_path):
    save(tmp_path, draw(4095, np.uint16))
    save(tmp_path, draw(255, np.uint8, 4), first=8)
    with pytest.raises(ValueError, match="4 of 8 bits reach 255.*same number of bits$"):
        data.preflight(opened(tmp_path, channels=1))
    # 8-bit values in files of 32 bits beside files of 8 bits: one window is right for both
    for path in tmp_path.rglob("*.png"):
        if Image.open(path).mode.startswith("I"):
            path.unlink()
    save(tmp_path, draw(255, np.int32), "tif", first=20)
    with pytest.raises(ValueError) as error:
        data.preflight(opened(tmp_path, channels=1))
    assert advised(str(error.value)) == [(0, 255)]
    assert data.preflight(opened(tmp_path, channels=1, window=(0, 255))) == 12


def test_black_files_are_a_fault_and_ordinary_ones_and_plain_colours_none(tmp_path, caplog):
    save(tmp_path / "black", np.zeros((4, SIDE, SIDE), np.uint8))
    with pytest.raises(ValueError, match="every pixel of 4 images is 0"):
        data.preflight(opened(tmp_path / "black", channels=1))
    assert data.preflight(opened(save(tmp_path / "full", draw(255, np.uint8)), channels=1)) == 8
    assert data.preflight(opened(save(tmp_path / "deep", draw(60000, np.uint16)), channels=1)) == 8
    assert not caplog.text
    plain = np.stack([np.full((SIDE, SIDE), level, np.uint8) for level in (10, 20, 30, 40)])
    assert data.preflight(opened(save(tmp_path / "plain", plain), channels=1)) == 4 and "40 of 255" in caplog.text


def test_signed_and_floating_point_files_name_a_window_of_their_own_levels(tmp_path):
    save(tmp_path, draw(900, np.int32, low=-1000), "tif")
    with pytest.raises(ValueError) as error:
        data.preflight(opened(tmp_path, channels=1))
    assert advised(str(error.value))[0] == (-1000, 900)


def test_levels_are_measured_before_any_window():
    assert measure_levels(Image.fromarray(draw(4095, np.uint16, 1)[0])) == {
        "depth": 16, "low": 0, "high": 4095, "grey": True, "flat": False}
    assert measure_levels(Image.new("RGB", (3, 3), (7, 9, 200))) == {
        "depth": 8, "low": 7, "high": 200, "grey": False, "flat": True}


def test_a_run_that_an_earlier_version_began_goes_on_with_a_warning(tmp_path, caplog):
    dataset = opened(save(tmp_path / "data", draw(4095, np.uint16)), channels=1)
    note = tmp_path / "preflight.json"
    note.write_text(json.dumps({"good": dataset.fingerprint}))  # as earlier versions wrote it
    assert data.preflight(dataset, remember=note) == 8, "decoded again, once, for the measurements"
    assert "4095 of 65535" in caplog.text
    again = opened(tmp_path / "data", channels=1)
    assert data.preflight(again, remember=note) == 0
    assert vars(again.measurements)["levels"] == {16: {"images": 8, "lowest": 0, "highest": 4095}}
    with pytest.raises(ValueError, match="4095"):
        data.preflight(again, remember=tmp_path / "other.json")


@pytest.mark.parametrize("content", ["", "[]", '{"good": 1}', '{"good": "x", "measurements": [1]}'])
def test_a_damaged_note_costs_a_second_look(tmp_path, content):
    (tmp_path / "note.json").write_text(content)
    dataset = opened(save(tmp_path / "data", draw(255, np.uint8)), channels=1)
    assert data.preflight(dataset, remember=tmp_path / "note.json") == 8
    assert data.preflight(dataset, remember=tmp_path / "note.json") == 0


def test_measurements_survive_json_and_threads(tmp_path):
    dataset = opened(save(tmp_path, draw(255, np.uint8, 40)), channels=1)
    data.preflight(dataset, workers=8)
    found = dataset.measurements
    again = Measurements.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json() and found.images == 40 == found.levels[8]["images"]
    assert check_levels(again) == ([], [])


def test_training_feature_extraction_and_export_stop_alike_and_the_typed_window_trains(inside, tmp_path):
    path = save(tmp_path / "data", draw(4095, np.uint16, 24))
    common = ("--config=configs/folder64_uvit_label.py", f"--config.dataset.path={path}", "--config.dataset.channels=1",
              "--config.nnet.in_chans=1")
    said = inside("train.py", *common, *TINY, f"--workdir={tmp_path}/run", fails=True).stderr
    assert "the largest grey level of" in said and "4095 of 65535" in said and "Traceback" not in said
    option = re.search(r'--config\.dataset\.window="(\(0,4095\))"', said)
    inside("train.py", *common, *TINY, f"--workdir={tmp_path}/run", f"--config.dataset.window={option[1]}")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["window"] == [0, 4095]
    exported = inside("scripts/export_images.py", *common, "--config.dataset.resolution=16", f"--output={tmp_path}/out",
                      fails=True)
    assert "4095 of 65535" in exported.stderr and not (tmp_path / "out").exists()


def test_real_images_of_an_evaluation_that_are_dark_stop_it(tmp_path, monkeypatch):
    from types import SimpleNamespace

    import torch

    from libs import metrics
    from libs.evaluation import references
    monkeypatch.chdir(tmp_path)
    run = SimpleNamespace(rank=0, world=1, is_main=True, gather_rows=lambda rows: rows.cpu(), from_main=lambda value: value,
                          barrier=lambda: None, device=torch.device("cpu"))
    colour = metrics.extractor("colour", device="cpu")
    dark = opened(save(tmp_path / "dark", draw(4095, np.uint16)), channels=3)
    with pytest.raises(ValueError, match="4095 of 65535"):
        references.reference(run, colour, dark)
    bright = opened(tmp_path / "dark", channels=3, window=(0, 4095))
    assert references.reference(run, colour, bright).gaussian.n == 8


def test_a_log_of_the_training_shows_the_levels(caplog, tmp_path):
    caplog.set_level(logging.INFO)
    dataset = opened(save(tmp_path, draw(4095, np.uint16)), channels=1, window=(0, 4095))
    data.preflight(dataset)
    from libs.data.summary import describe, summarise
    text = " ".join(describe(summarise(dataset, {"crop": "center"})))
    assert "grey levels 0..4095 of 65535 (16 bits), shown through window=(0,4095)" in text


def test_advice_names_the_section_that_was_typed_and_generated_images_may_be_dark(tmp_path, caplog):
    dataset = opened(save(tmp_path, draw(40, np.uint8)), channels=1)
    with pytest.raises(ValueError, match=r'--config\.pairs\.window="\(0,40\)"'):
        data.preflight(dataset, window_option="config.pairs.window")
    assert data.preflight(dataset, generated=True, window_option="config.synthetic.window") == 8
    assert "40 of 255" in caplog.text and "--config.dataset" not in caplog.text


@pytest.mark.parametrize("name", ["filter_clip", "filter_domain", "filter_words"])
def test_the_pairs_of_a_filter_take_the_window_that_a_message_names(tmp_path, name):
    import importlib
    from types import SimpleNamespace

    from libs.evaluation import rated_pairs
    config = importlib.import_module(f"configs.{name}").get_config()
    save(tmp_path, draw(4095, np.uint16))
    config.pairs.update({"path": str(tmp_path), "resolution": 16})
    with pytest.raises(ValueError, match=r'--config\.pairs\.window="\(0,4095\)"'):
        rated_pairs.beside(config.pairs, SimpleNamespace())
    assert "window" in config.pairs


def test_captions_pools_and_scale_factors_look_at_a_sample(tmp_path):
    images = draw(4095, np.uint16)
    save(tmp_path / "data", images)
    (tmp_path / "data" / "a" / "broken.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r'1 problem.*\n.*4095 of 65535.*--config\.input\.window="\(0,4095\)"'):
        data.check_sample(opened(tmp_path / "data", channels=1), window_option="config.input.window")
    data.check_sample(opened(tmp_path / "data", channels=1, window=(0, 4095)))
    data.check_sample(data.get(name="phantoms", resolution=16, size=8))


@pytest.mark.parametrize("command, option", [
    (("scripts/caption_images.py", "--config=configs/isic_captions.py", "--config.input.path={data}", "--workdir={out}"),
     "config.input.window"),
    (("scripts/build_rating_pool.py", "--config=configs/rating.py", "--config.pool.real={data}", "--config.pool.resolution=16",
      "--models={models}", "--output={out}"), "config.pool.real_window"),
    (("scripts/compute_scale_factor.py", "--config=configs/folder64_uvit_label.py", "--config.dataset.path={data}",
      "--config.dataset.resolution=16"), "config.dataset.window")])
def test_scripts_that_read_files_name_their_option(inside, tmp_path, command, option):
    save(tmp_path / "data", draw(4095, np.uint16))
    save(tmp_path / "samples", draw(255, np.uint8))
    rows = [f"{'ab'[i % 2]}/{i}.png,a lesion,{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "samples" / "metadata.csv").write_text("\n".join(["file_name,text,label", *rows]) + "\n")
    places = {"data": tmp_path / "data", "out": tmp_path / "out", "models": tmp_path / "samples"}
    said = inside(command[0], *[part.format(**places) for part in command[1:]], fails=True).stderr
    assert "4095 of 65535" in said and f'--{option}="(0,4095)"' in said and "Traceback" not in said, said
