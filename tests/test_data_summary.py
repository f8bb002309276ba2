"""What a training learns from is logged, kept in data.json and drawn in data.png before its first step."""

import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from libs import codecs, data, pipeline
from libs.data import sheet, summary
from tests.conftest import ROOT

TINY = ("--config=configs/folder64_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.dataset.resolution=16", "--config.nnet.img_size=16", "--config.nnet.patch_size=4",
        "--config.train.batch_size=4", "--config.train.preview_interval=0", "--config.train.eval_interval=0",
        "--config.train.validation_interval=0", "--config.train.workers=0", "--config.train.mixed_precision=no")
SIZES = ((32, 16), (20, 20), (40, 30))  # width, height
KEPT = (16 * 16 / (32 * 16), 1.0, 16 * 16 / (21 * 16))  # shares of the area within the central square, resized to 16 pixels


def save(folder, counts, *, first=0, top=250):
    """Class folders of noise, sizes in turn; {class: images}."""
    rng = np.random.default_rng(first)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            width, height = SIZES[i % 3]
            image = rng.integers(3, top, (height, width)).astype(np.uint8)
            image[0, :2] = 3, top
            Image.fromarray(image).save(folder / name / f"{i:03}.png")
    return folder


def opened(folder, **options):
    return data.get(name="folder", path=str(folder), resolution=16, **options)


def summarised(dataset, **options):
    data.preflight(dataset)
    return summary.summarise(dataset, {"crop": "center"}, **options)


class Run(SimpleNamespace):
    """As much of a run as a summary takes."""

    def __init__(self, folder, **own):
        folder.mkdir(exist_ok=True)
        super().__init__(**{"folder": folder, "is_main": True, "resumes": False, "seed": 1, "device": torch.device("cpu")} | own)


def note(run, dataset, **options):
    """`record_summary` of a run, and what it would keep in data.json, written as the engine writes it."""
    stream = data.Stream(dataset, 2, seed=0)
    summary.record_summary(run, stream, {"crop": "center"}, **options)
    (run.folder / "data.json").write_text(json.dumps(stream.facts))
    return stream.facts


def test_counts_sizes_crop_and_levels(tmp_path):
    save(tmp_path, {"no": 6, "yes": 12})
    options = {"name": "folder", "path": str(tmp_path), "resolution": 16, "holdout": 0.34, "split": "train"}
    train, val = data.get(**options), data.held_out(options, "val")
    content = summarised(train, held_out=val)
    assert (content["images"], content["held_out"]) == (len(train), len(val)) == (12, 6)
    assert content["classes"] == {"no": {"images": 4, "held_out": 2}, "yes": {"images": 8, "held_out": 4}}
    assert content["splits"] == {"train": 12, "val": 6} and content["groups"] is None and content["captions"] is None
    sizes = [Image.open(tmp_path / train.file_name(i)).size for i in range(len(train))]
    lost = 1 - np.mean([KEPT[SIZES.index(size)] for size in sizes])
    assert content["files"]["area_lost"] == pytest.approx(lost, abs=1e-4) and content["files"]["enlarged"] == 0
    assert content["files"]["smallest"] == list(min(sizes, key=np.prod)) and content["files"]["largest"] == [40, 30]
    assert content["files"]["levels"] == {"8": {"images": 12, "lowest": 3, "highest": 250, "range": 255}}
    assert content["files"]["grey"] == 12 and content["shape"] == [3, 16, 16]
    first, held_out = summary.describe(content)
    assert first.startswith("12 images (of 18, 6 held out), 2 classes: no 4, yes 8; 20x20 to 40x30, cut to their central square ("
                            f"{100 * lost:.0f} % of the area lost on average; crop=pad keeps all); grey levels 3..250")
    assert first.endswith("no patients known") and held_out == "held out: no 2, yes 4"


def test_padding_keeps_all_and_enlarged_images_are_counted(tmp_path):
    save(tmp_path, {"no": 3})
    content = summarised(opened(tmp_path, crop="pad"))
    assert content["files"]["area_lost"] == 0 and "kept whole and padded" in summary.describe(content)[0]
    content = summarised(data.get(name="folder", path=str(tmp_path), resolution=25, upscale=True))
    assert content["files"]["enlarged"] == 2 and "2 of 3 enlarged" in summary.describe(content)[0]


def test_patients_are_counted_and_never_named(tmp_path):
    save(tmp_path, {"x": 8})
    rows = [f"x/{i:03}.png,{'nevus' if i % 2 else 'scar'},Doe^{i // 2},a text {i % 3}" for i in range(8)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,patient,text", *rows]) + "\n")
    dataset = opened(tmp_path, group_column="patient")
    content = summarised(dataset)
    assert content["groups"] == {"images": 4, "held_out": 0} and content["captions"] == {"images": 8, "distinct": 3}
    text = " ".join(summary.describe(content))
    assert "4 patients or other groups" in text and "3 distinct texts" in text
    assert "Doe" not in json.dumps(content) + text and ".png" not in json.dumps(content)


def test_masks_are_measured(tmp_path):
    for i in range(4):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
        mask = np.zeros((16, 16), np.uint8)
        mask[:4 * i] = 255  # 0, 1/4, 1/2 and 3/4 of the area
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    dataset = data.get(name="image_mask", path=str(tmp_path), resolution=16, mask_values=(0, 255), mask_names=("skin", "lesion"))
    masks = summarised(dataset)["masks"]
    assert masks == {"images": 4, "names": ["skin", "lesion"], "values": {"skin": 0.625, "lesion": 0.375}, "foreground": 0.375,
                     "empty": 1, "full": 0}
    assert summarised(data.get(name="image_mask", path=str(tmp_path), resolution=16))["masks"]["foreground"] == 0.375


def test_the_sheet_shows_classes_in_turn_by_the_seed_and_draws_masks_and_labels(tmp_path):
    dataset = data.get(name="phantoms", resolution=16, size=200, masks=True)
    chosen = sheet.choose(dataset, seed=3)
    assert len(set(chosen)) == 32 and dataset.labels[chosen].tolist() == [0, 1, 2, 3] * 8
    assert chosen == sheet.choose(dataset, seed=3) != sheet.choose(dataset, seed=4)
    sheet.write_sheet(tmp_path / "data.png", dataset, seed=3)
    drawn = np.array(Image.open(tmp_path / "data.png"))
    side, gap = sheet.CELL_PIXELS, sheet.GAP_PIXELS
    assert drawn.shape == (4 * (side + sheet.CAPTION_PIXELS + gap) + gap, 8 * (side + gap) + gap, 3)
    cell, item = drawn[gap:gap + side, gap:gap + side], dataset[chosen[0]]
    image = ((item["image"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1)
    mask = item["mask"][0].numpy().repeat(8, 0).repeat(8, 1) > 0.5
    outline = (cell == sheet.OUTLINE).all(-1)
    assert outline.any() and mask[outline].all() and (cell[~outline] == image[~outline]).all()
    captions = drawn[gap + side:gap + side + sheet.CAPTION_PIXELS, gap:gap + side]
    assert (captions == sheet.PAPER).all(-1).mean() < 0.99, "the name of the class"
    assert not list(tmp_path.glob("data.png.*"))


@pytest.mark.parametrize("size, labelled", [(5, True), (300, False)])
def test_few_grey_large_and_unlabelled_images_make_a_sheet(tmp_path, size, labelled):
    rng = np.random.default_rng(0)
    for i in range(5):
        (tmp_path / "d" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 60000, (size, size)).astype(np.uint16)).save(tmp_path / "d" / "a" / f"{i}.png")
    options = {} if labelled else {"label_column": ""}
    dataset = data.get(name="folder", path=str(tmp_path / "d"), resolution=size, channels=1, **options)
    assert sorted(sheet.choose(dataset)) == [0, 1, 2, 3, 4]
    sheet.write_sheet(tmp_path / "data.png", dataset)
    side = sheet.MOST_PIXELS if size == 300 else 130
    assert Image.open(tmp_path / "data.png").width == 5 * (side + sheet.GAP_PIXELS) + sheet.GAP_PIXELS


def test_features_without_images_are_described_from_their_store_and_shown_by_the_codec(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images, codec = data.get(name="phantoms", resolution=16, size=40, masks=True), codecs.get(name="pixels")
    data.store.write(tmp_path / "store", images, identity=pipeline.identity(codec),
                     encode_images=lambda x: (x, None), about={"dataset": {"resolution": 16}})
    features = data.Features(tmp_path / "store")
    facts = note(Run(tmp_path / "run"), features, codec=codec)
    assert facts["from"] == "features" and facts["shape"] == [3, 16, 16] and facts["files"] is None
    assert facts["classes"]["melanoma"]["images"] == 10 and "40 images (none held out), as features" in caplog.text
    sheet.write_sheet(tmp_path / "images.png", images, seed=1)
    shown, real = (np.array(Image.open(path)) for path in (tmp_path / "run" / "data.png", tmp_path / "images.png"))
    assert np.abs(shown.astype(int) - real).max() <= 1, "float16 latents"
    note(Run(tmp_path / "other"), features)
    assert not (tmp_path / "other" / "data.png").exists() and "not written, as neither images nor a codec" in caplog.text


def test_measurements_of_the_script_that_made_the_features_are_taken(tmp_path):
    images = opened(save(tmp_path / "data", {"a": 6}))
    data.preflight(images, remember=tmp_path / "store_preflight.json")
    data.store.write(tmp_path / "store", images, identity={"codec": {}, "encoder": {}}, encode_images=lambda x: (x, None))
    content = summary.summarise(data.Features(tmp_path / "store"), {}, images=opened(tmp_path / "data"))
    assert content["files"]["largest"] == [40, 30] and content["from"] == "features"


def test_random_numbers_of_the_training_stay_as_they_are(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    note(Run(tmp_path / "run"), data.get(name="phantoms", resolution=16, size=8))
    assert torch.equal(torch.rand(3), expected)


def test_other_processes_write_nothing(tmp_path):
    assert "images" not in note(Run(tmp_path / "run", is_main=False), data.get(name="phantoms", resolution=16, size=8))
    assert not (tmp_path / "run" / "data.png").exists()


def test_a_training_says_what_it_learns_from_and_a_resume_that_the_images_changed(inside, tmp_path):
    path, run = save(tmp_path / "data", {"no": 10, "yes": 20}), tmp_path / "run"
    common = [*TINY, f"--config.dataset.path={path}", f"--workdir={run}"]
    said = inside("train.py", *common, "--config.train.n_steps=1").stderr
    assert re.search(r"data: 27 images \(of 30, 3 held out\), 2 classes: no 9, yes 18; .*grey levels 3\.\.250.*no patients", said)
    assert said.index("data: 27 images") < said.index("step 1 of 1") and "changed" not in said
    before = json.loads((run / "data.json").read_text())
    picture = (run / "data.png").read_bytes()
    assert (before["images"], before["held_out"], "earlier" in before) == (27, 3, False)

    said = inside("train.py", *common, "--config.train.n_steps=2").stderr
    assert "have changed" not in said and (run / "data.png").read_bytes() == picture
    save(path, {"yes": 10}, first=100)
    said = inside("train.py", *common, "--config.train.n_steps=3").stderr
    lines = [line for line in said.splitlines() if "changed" in line]
    assert len(lines) == 1 and "the data have changed" in lines[0] and "27 images then, 36 now" in lines[0], said
    assert "another setting: fingerprint" not in said and (run / "data.png").read_bytes() != picture
    after = json.loads((run / "data.json").read_text())
    assert after["images"] == 36 and after["earlier"] == [{key: before[key] for key in ("images", "held_out", "fingerprint")}]
    assert "have changed" not in inside("train.py", *common, "--config.train.n_steps=4").stderr
    assert json.loads((run / "data.json").read_text())["earlier"] == after["earlier"]


def test_as_many_images_that_are_others_are_said_and_runs_of_earlier_versions_say_nothing(tmp_path, caplog):
    run, options = Run(tmp_path / "run", resumes=True), {"crop": "center"}
    for content in ("", "[]", "{}", '{"weights": {"images": 3, "mean": 1.0, "sha256": "0"}}'):
        (run.folder / "data.json").write_text(content)
        note(run, opened(save(tmp_path / "data", {"a": 6})))
        assert "changed" not in caplog.text
    save(tmp_path / "data", {"a": 6}, top=200)
    note(run, opened(tmp_path / "data"))
    assert "6 images then, 6 now (as many, but other files" in caplog.text
    caplog.clear()
    store = {"identity": {"codec": {}, "encoder": {}}, "encode_images": lambda x: (x, None)}
    run = Run(tmp_path / "latents", resumes=True)
    for number, size in enumerate((8, 12)):
        data.store.write(tmp_path / f"store{number}", data.get(name="phantoms", resolution=16, size=size), **store)
        summary.record_summary(run, stream := data.Stream(data.Features(tmp_path / f"store{number}"), 2, seed=0), options)
        (run.folder / "data.json").write_text(json.dumps(stream.facts))
    assert "8 images then, 12 now" in caplog.text


def test_every_training_calls_it_before_its_first_step():
    scripts = sorted(path for path in ROOT.glob("train*.py") if path.name != "train_filter.py")  # which learns from ratings
    assert len(scripts) == 12
    for path in scripts:
        text = path.read_text()
        assert text.count("data.record_summary(run, stream, config.dataset") == 1, path.name
        assert text.index("data.record_summary(") < text.index("engine.fit("), path.name
