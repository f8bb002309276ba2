"""sample.py asked for masks, on a network that paints the mask it is given; and the times that it states."""

import csv
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

import sample
from libs import codecs, data, diffusion, evaluation, pipeline
from libs.evaluation import generation, requests
from libs.evaluation import masks as masks_of

CLASSES = ["nevus", "melanoma", "angioma"]
SIDE = 8
CODE = data.MaskCode((0, 128, 255), names=("skin", "rim", "core"))


class Paint(torch.nn.Module):
    """Predicts as x0 what it is asked for: classes of the mask in the first channel, the label in the second, the share of
    noise that it began with in the third."""

    conditioning_scale = 1.0

    def __init__(self, takes=("label", "mask")):
        super().__init__()
        self.takes, self.offset = takes, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, label=None, mask=None):
        of_mask = x[:, 0] if mask is None else mask.argmax(1) / 2 if mask.shape[1] > 1 else mask[:, 0]
        of_mask = self.conditioning_scale * of_mask
        of_label = torch.zeros(len(x)) if label is None else label / 4
        return torch.stack([of_mask, of_label[:, None, None].expand_as(x[:, 0]), 0.1 * x[:, 2]], 1) + self.offset


def config(**own):
    return ConfigDict({
        "seed": 0, "train": {"mode": "cond", "mixed_precision": "no", "p_uncond": 0.1},
        "nnet": {"sample_size": SIDE, "in_channels": 3},
        "denoiser": {"predicts": "x0", "clip": False}, "schedule": {"name": "linear", "steps": 1000}, "codec": {"name": "pixels"},
        "dataset": {"name": "phantoms", "resolution": SIDE, "size": 24, "split": "train", "masks": True},
        "sample": {"algorithm": "ddim", "sample_steps": 2, "mini_batch_size": 4, "guidance": 1.0, "path": "",
                   "controlnet_scale": 1.0, **own}})


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """ask(mask_path=..., ...) runs sample.py's function on a painting network and returns (folder, rows of the table, output)."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")

    def call(*, takes=("label", "mask"), code=CODE, scale=1.0, classes=CLASSES, folder="out", **options):
        cfg = config(path=str(tmp_path / folder) if folder else "", controlnet_scale=scale)
        null = {"label": torch.tensor(len(classes))} if "label" in takes else {}
        sampler = pipeline.Pipeline(Paint(takes), cfg, codec=codecs.get(**cfg.codec), schedule=diffusion.schedule(**cfg.schedule),
                                    null=null, masks_as=code)
        found = evaluation.Trained(sampler, list(classes), None, None, None, None, weights)
        monkeypatch.setattr(evaluation, "open_trained", lambda *_, **__: found)
        usual = {"label": "", "prompt": "", "input_path": "", "mask_path": "", "counts": "", "n_samples": 1,
                 "layout": "flat", "seed": 0}
        sample.sample(cfg, tmp_path / "run", "", **usual | {key: str(value) if key.endswith("path") else value
                                                            for key, value in options.items()})
        place = Path(cfg.sample.path) if folder else next((tmp_path / "run").glob("images_*"))
        with open(place / "metadata.csv", newline="") as stream:
            return place, list(csv.DictReader(stream)), capsys.readouterr().out

    return call


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def three_levels(seed, side=SIDE):
    return np.random.default_rng(seed).choice([0, 128, 255], (side, side))


def painted(file):
    """(classes of the mask, label) that an image shows."""
    pixels = np.asarray(Image.open(file)).astype(float) / 127.5 - 1
    return (pixels[..., 0] * 2).round().astype(int), round(float(pixels[..., 1].mean()) * 4)


def test_a_folder_of_masks_gives_images_called_after_them_each_with_noise_of_its_own(ask, tmp_path):
    for place, seed in (("a.png", 0), ("a.bmp", 1), ("deep/b.png", 2), ("grid.png", 3)):
        save(tmp_path / "masks" / place, three_levels(seed))
    folder, rows, out = ask(mask_path=tmp_path / "masks", n_samples=3, label="melanoma")
    names = [row["file_name"] for row in rows]
    assert names == [f"{stem}_melanoma_{k}.png" for stem in ("a_bmp", "a_png", "grid_png", "deep_b") for k in range(3)]
    noise = set()
    for row in rows:
        classes, label = painted(folder / row["file_name"])
        np.testing.assert_array_equal(classes, np.asarray(Image.open(tmp_path / "masks" / row["mask"])) // 127)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["mask_file_name"])),
                                      np.asarray(Image.open(tmp_path / "masks" / row["mask"])))
        assert label == 1 and row["label"] == "melanoma"
        noise.add(np.asarray(Image.open(folder / row["file_name"]))[..., 2].tobytes())
    assert len(noise) == 12, "no two images of a folder begin with the same noise"
    assert "12 images in" in out and "weights as they are" in out and "12 images, 2 steps: " in out
    picture = np.asarray(Image.open(folder / "comparison.png"))
    assert picture.shape == (4 * (SIDE + 2) + 2, 4 * (SIDE + 2) + 2, 3), "a row for each mask: the mask and its three images"
    np.testing.assert_array_equal(picture[2:2 + SIDE, 2:2 + SIDE], np.moveaxis(
        CODE.picture(torch.as_tensor(three_levels(1) // 127)).numpy(), 0, -1))


def test_the_folder_is_a_data_set_of_images_masks_and_labels(ask, tmp_path):
    for number in range(2):
        save(tmp_path / "masks" / f"{number}.png", three_levels(number))
    folder, _, _ = ask(mask_path=tmp_path / "masks", label="all", layout="classes", n_samples=2)
    assert sorted(path.name for path in (folder / "nevus").iterdir()) == ["0_0.png", "0_1.png", "1_0.png", "1_1.png"]
    found = data.get("folder", path=str(folder), resolution=SIDE, mask_values=(0, 128, 255))
    data.preflight(found)
    assert len(found) == 12 and found.classes == sorted(CLASSES)
    for item in (found[i] for i in range(12)):
        of_image = ((item["image"][0] * 2).round().long(), CLASSES.index(found.classes[item["label"]]))
        assert torch.equal(of_image[0], item["mask"].argmax(0)) and of_image[1] == round(float(item["image"][1].mean()) * 4)


@pytest.mark.parametrize("code, dtype", [(data.MaskCode(((0, 0, 0), (255, 0, 0), (0, 0, 255))), "colours"),
                                         (data.MaskCode((0, 1)), "two"), (data.MaskCode((), 100), "grey")])
def test_masks_are_copied_in_the_values_of_the_run(ask, tmp_path, code, dtype):
    draw = np.random.default_rng(0)
    array = draw.integers(code.classes if code.values else 101, size=(SIDE, SIDE))
    array = np.array(code.values)[array] if code.values else array
    folder, rows, _ = ask(mask_path=save(tmp_path / "one.png", array), code=code, takes=("mask",))
    assert [row["file_name"] for row in rows] == ["one.png"] and "label" not in rows[0]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "masks" / "one.png")), array)
    assert not list(folder.rglob(".staging*"))


def test_labels_are_those_of_the_table_or_the_folder_or_the_classes_in_turn(ask, tmp_path):
    for place in ("data/images/1.png", "data/images/2.png"):
        save(tmp_path / place, np.zeros((SIDE, SIDE, 3)))
    for number in (1, 2):
        save(tmp_path / f"data/masks/{number}.png", three_levels(number))
    files = masks_of.find_masks(tmp_path / "data", CLASSES, {})
    assert [each.name for each in files] == ["masks/1.png", "masks/2.png"], "images beside masks are none"
    assert masks_of._without_images(["x/scans/1.png", "x/segs/1.png", "scans/2.png"], "scans", "segs") == [
        "x/segs/1.png", "scans/2.png"]
    (tmp_path / "data/metadata.csv").write_text("file_name,label,mask_file_name,split\nimages/1.png,angioma,masks/2.png,train\n"
                                                "images/2.png,nevus,masks/1.png,\n")
    _, rows, _ = ask(mask_path=tmp_path / "data", n_samples=2)
    assert [(row["mask"], row["label"]) for row in rows] == 2 * [("masks/2.png", "angioma")] + 2 * [("masks/1.png", "nevus")]
    (tmp_path / "data/metadata.csv").write_text("file_name,label\nmasks/1.png,wart\n")
    with pytest.raises(ValueError, match="label 'wart' is no class of the network; known: nevus, melanoma, angioma; --label"):
        ask(mask_path=tmp_path / "data")
    _, rows, _ = ask(mask_path=tmp_path / "data/metadata.csv", label="angioma")
    assert [row["label"] for row in rows] == ["angioma"]
    for name in ("nevus/1.png", "angioma/far/1.png"):
        save(tmp_path / "by_class" / name, three_levels(0))
    files = masks_of.find_masks(tmp_path / "by_class", CLASSES, {})
    assert [(each.name, each.label) for each in files] == [("angioma/far/1.png", "angioma"), ("nevus/1.png", "nevus")]
    plain = [each._replace(label="") for each in files]
    assert requests.each_mask(plain, "", CLASSES, 2, labelled=True) == ([0, 0, 1, 1], [0, 1, 2, 0])
    assert requests.each_mask(plain, "all", CLASSES, 1, labelled=True) == ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    assert requests.each_mask(plain, "", CLASSES, 1, labelled=False) == ([0, 1], [0, 0])


def test_masks_of_any_size_are_brought_to_that_of_the_network_as_the_data_are(tmp_path):
    corners = np.array([[0, 255], [128, 0]])
    wide = np.kron(corners, np.ones((8, 16))).astype(int)  # 16 x 32: the centre is 16 x 16
    sides = {"small": corners, "wide": wide}
    files = [masks_of.MaskFile(save(tmp_path / f"{name}.png", mask), f"{name}.png", "") for name, mask in sides.items()]
    found = masks_of.of_files(tmp_path, files, [1, 0], CODE, side=SIDE)
    assert tuple(found[[0, 1]].shape) == (2, 3, SIDE, SIDE)
    expected = np.kron(np.array([[0, 2], [1, 0]]), np.ones((4, 4))).astype(int)
    np.testing.assert_array_equal(found[[1]][0].argmax(0), expected)
    np.testing.assert_array_equal(found[[0]][0].argmax(0), expected)
    padded = masks_of.of_files(tmp_path, files, [1], CODE, side=SIDE, crop="pad")[[0]][0].argmax(0)
    flat = np.kron(np.array([[0, 2], [1, 0]]), np.ones((2, 4)))
    np.testing.assert_array_equal(padded, np.pad(flat, ((2, 2), (0, 0))).astype(int))


def test_sampling_goes_on_and_another_mask_or_scale_is_another_request(ask, tmp_path):
    for number in range(3):
        save(tmp_path / "masks" / f"{number}.png", three_levels(number))
    folder, rows, _ = ask(mask_path=tmp_path / "masks", n_samples=2)
    files = [folder / row["file_name"] for row in rows]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    files[1].unlink()
    _, again, out = ask(mask_path=tmp_path / "masks", n_samples=2)
    assert "1 images, 2 steps" in out and again == rows and all(file.read_bytes() == before[file][0] for file in files)
    assert files[0].stat().st_mtime_ns == before[files[0]][1]
    assert "all of them were there already" in ask(mask_path=tmp_path / "masks", n_samples=2)[2]
    save(tmp_path / "masks" / "1.png", three_levels(9))
    assert "2 images, 2 steps" in ask(mask_path=tmp_path / "masks", n_samples=2)[2], "the images of the mask that has changed"
    _, scaled, out = ask(mask_path=tmp_path / "masks", n_samples=2, scale=0.5)
    assert "6 images, 2 steps" in out and scaled[0]["sampler"] == f'{rows[0]["sampler"]}, controlnet scale 0.5'
    (tmp_path / "masks" / "2.png").unlink()
    ask(mask_path=tmp_path / "masks", n_samples=1, label="nevus")
    left = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    assert left == ["0_nevus.png", "1_nevus.png", "comparison.png", "grid.png", "masks/0.png", "masks/1.png", "metadata.csv"]
    ask(label="nevus", n_samples=1, takes=("label",), code=None)
    left = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    assert left == ["000000_nevus.png", "grid.png", "metadata.csv"]


def test_without_masks_those_of_training_images_are_drawn_each_of_its_class(ask):
    phantoms = {"code": data.MaskCode((0, 255)), "classes": ["nevus", "melanoma", "angioma", "dermatofibroma"]}
    folder, rows, _ = ask(label="all", n_samples=2, **phantoms)
    dataset = data.get(**config().dataset)
    names = [dataset.file_name(i) for i in range(len(dataset))]
    for row in rows:
        item = dataset[names.index(row["mask"])]
        assert phantoms["classes"][item["label"]] == row["label"] and row["mask_file_name"] == f"masks/{row['file_name']}"
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["mask_file_name"])), item["mask"][0] * 255)
        np.testing.assert_array_equal(painted(folder / row["file_name"])[0], 2 * item["mask"][0])
    assert rows == ask(label="all", n_samples=2, **phantoms)[1]
    with pytest.raises(ValueError, match="no mask of class 'wart': give --mask_path"):
        ask(classes=["nevus", "wart"], n_samples=2, code=phantoms["code"])
    with pytest.raises(ValueError, match=r"masks with mask_max=100, those of phantoms have mask_values=\(0, 255\)"):
        ask(n_samples=2, **phantoms | {"code": data.MaskCode((), 100)})
    for options, complaint in (({"name": "folder", "path": "/nowhere", "resolution": SIDE}, "'/nowhere' is not at hand: give"),
                               ({"name": "phantoms", "resolution": SIDE, "size": 4}, "phantoms has none: give --mask_path")):
        with pytest.raises(ValueError, match=complaint):
            masks_of.of_training_images(options, None, [], seed=0, side=SIDE, names=["a.png"])


@pytest.mark.parametrize("options, complaint", [
    ({"mask_path": "nowhere"}, "--mask_path=nowhere: no such file or folder"),
    ({"mask_path": "{}/empty"}, "no masks can be had from there[^|]*no images"),
    ({"mask_path": "{}/odd"}, r"the masks: 1 problem\n.*odd/1.png: 3 of 64 pixels hold no value of mask_values=.*7 in 3"),
    ({"mask_path": "{}/good", "takes": ("label",), "code": None}, "this network takes no mask, but label"),
    ({"mask_path": "{}/good", "label": "wart"}, "--label=wart: no such class"),
    ({"mask_path": "{}/good", "counts": "nevus=1"}, "not with --counts"),
    ({"mask_path": "{}/good", "prompt": "a lesion"}, "not with prompts"),
    ({"mask_path": "{}/good", "folder": "good/out"}, "lie in each other"),
    ({"mask_path": "{}/good/1.png", "folder": "good"}, "lie in each other"),
    ({"layout": "classes", "label": "nevus", "classes": ["nevus", "masks"], "mask_path": "{}/good"}, None),
    ({"layout": "classes", "label": "masks", "classes": ["nevus", "masks"], "mask_path": "{}/good"}, "a class has that name")])
def test_bad_requests(ask, tmp_path, options, complaint):
    odd = three_levels(0)
    odd[0, :3] = 7
    save(tmp_path / "odd/1.png", odd)
    save(tmp_path / "good/1.png", three_levels(0))
    (tmp_path / "empty").mkdir()
    options = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in options.items()}
    if complaint is None:
        assert ask(**options)[1]
        return
    with pytest.raises(ValueError, match=complaint):
        ask(**options)
    assert not (tmp_path / "out").exists() and not (tmp_path / "good/out").exists()


def test_requests_for_masks_have_folders_of_their_own(ask, tmp_path):
    folder, _, _ = ask(mask_path=save(tmp_path / "one.png", three_levels(0)), label="all", folder="")
    assert re.fullmatch(r"images_\w+_one_all_[0-9a-f]{6}_seed0", folder.name)
    for kind in ("a/nevus", "a/melanoma", "b/nevus"):
        save(tmp_path / kind / "masks" / "1.png", three_levels(0))
        ask(mask_path=tmp_path / kind / "masks", folder="")
    made = sorted(place.name.rsplit("_", 2)[0] for place in (tmp_path / "run").glob("images_*") if "_one_" not in place.name)
    assert made == ["images_melanoma_masks", "images_nevus_masks", "images_nevus_masks"], "one for each folder of masks"


def test_names_never_collide():
    assert masks_of.distinct(["a", "A", "b"], ["a_png", "A_png", "b_png"]) == ["000000_a", "000001_A", "b"]
    assert masks_of.distinct(["comparison", "a", "a"], ["comparison_png", "a_png", "a_bmp"]) == ["comparison_png", "a_png", "a_bmp"]
    names = requests._names_of_masks(["b_a", "b"], ["x", "a_x"], "flat")
    assert len(set(names)) == 2 and names[0].endswith("b_a_x.png")


def of_rank(rank, world):
    return SimpleNamespace(rank=rank, world=world, accelerator=SimpleNamespace(autocast=nullcontext), gather_rows=lambda rows: rows)


def test_several_processes_make_the_images_of_one(tmp_path):
    cfg = config()
    sampler = pipeline.Pipeline(Paint(), cfg, codec=codecs.get(**cfg.codec), schedule=diffusion.schedule(**cfg.schedule),
                                null={"label": torch.tensor(3)}, masks_as=CODE)
    files = [masks_of.MaskFile(save(tmp_path / f"{k}.png", three_levels(k)), f"{k}.png", "") for k in range(9)]
    cond = {"label": torch.arange(9) % 3, "mask": masks_of.of_files(tmp_path, files, range(9), CODE, side=SIDE)}
    made = [{index: image for run in (of_rank(rank, world) for rank in range(world)) for indices, images in evaluation.generate(
        run, sampler, cond, 9, seed=0, batch_size=2) for index, image in zip(indices, images)} for world in (1, 2)]
    assert sorted(made[0]) == sorted(made[1]) == list(range(9))
    assert all(torch.equal(made[0][index], made[1][index]) for index in range(9))


def test_progress_is_told_of_many_images(monkeypatch, caplog):
    """A minute passes whenever the clock is read."""
    cfg, clock, run = config(), iter(range(10_000)), SimpleNamespace(is_main=True, **vars(of_rank(0, 2)))
    sampler = pipeline.Pipeline(Paint(("label",)), cfg, codec=codecs.get(**cfg.codec), schedule=diffusion.schedule(**cfg.schedule),
                                null={"label": torch.tensor(3)})
    monkeypatch.setattr(generation, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(clock)))
    for n, said in ((64, []), (72, [f"{k} of 36 images of this process (of 2), {60 / 9:.2g} s each" for k in (9, 18, 27)])):
        caplog.clear()
        with caplog.at_level("INFO"):
            list(evaluation.generate(run, sampler, {"label": torch.zeros(n).long()}, n, seed=0, batch_size=9))
        assert caplog.messages == said


def test_times_have_one_definition(monkeypatch):
    """By a clock that goes on by a second whenever it is read: before a batch, at its first network call, at each end of one,
    and at the end."""
    cfg, clock = config(), iter(range(1000))
    sampler = pipeline.Pipeline(Paint(("label",)), cfg, codec=codecs.get(**cfg.codec), schedule=diffusion.schedule(**cfg.schedule),
                                null={"label": torch.tensor(3)})
    monkeypatch.setattr(generation.time, "perf_counter", lambda: float(next(clock)))
    timing, run = evaluation.Timing(), of_rank(0, 1)
    cond = {"label": torch.zeros(10).long()}
    list(evaluation.generate(run, sampler, cond, 10, seed=0, batch_size=4, timing=timing, without={8, 9}))
    # of 10 images in batches of 2, the last one is there: 4 batches of 2 steps
    assert (timing.images, timing.batches, timing.largest) == (8, 4, 2)
    assert timing.sampling == 4 * 2 and timing.seconds == 4 * (2 + 2)
    assert timing.told(run, 2) == "8 images, 2 steps: 16.0 s, 2 s/image, 1e+03 ms/step (one batch of 2; decoding not included)"
    halves = 1 + (sampler.guidance != 1)
    assert timing.measured(run) == {"seconds_per_image": 2.0, "evaluations_per_image": 2 * halves, "batch": 2}
    assert not sampler.net._forward_hooks and not sampler.net._forward_pre_hooks
    other = torch.tensor([[8.0, 2, 30, 12, 4]], dtype=torch.float64)
    two = SimpleNamespace(world=2, gather_rows=lambda rows: torch.cat([rows, other]))
    assert timing.told(two, 2) == ("16 images, 2 steps on 2 processes: 30.0 s, 1.88 s/image, 1.67e+03 ms/step (one batch of 4; "
                                   "decoding not included)")
    assert evaluation.Timing().told(run, 2) == ""


def test_weights_are_named(tmp_path):
    trained = SimpleNamespace(step=3, source=tmp_path / "3.ckpt")
    assert evaluation.weights_used(trained) == f"{tmp_path}/3.ckpt, step 3, weights as they are"
    trained.source.mkdir()
    (trained.source / "manifest.json").write_text("{}")
    assert evaluation.weights_used(trained).endswith(", step 3, moving average")
    assert evaluation.weights_used(trained, 0.5).endswith(", step 3, moving average of rate 0.5")
    (trained.source / "state.json").write_text('{"ema_rate": 0.0}')  # train.ema_rate, by which nothing is averaged
    assert evaluation.weights_used(trained).endswith(", step 3, the weights themselves")
    assert evaluation.weights_used(trained, 0.5).endswith(", step 3, moving average of rate 0.5")
    (tmp_path / "sd" / "unet_ema").mkdir(parents=True)
    (tmp_path / "sd" / "unet_ema" / "config.json").write_text("{}")
    for source in (tmp_path / "sd", tmp_path / "sd" / "unet"):
        assert evaluation.weights_used(SimpleNamespace(step=None, source=source)) == f"{source}, moving average (unet_ema)"


def test_masks_of_an_unknown_run_must_have_the_channels_of_the_network():
    net = SimpleNamespace(mask_channels=3)
    assert requests._code({"mask_values": (0, 128, 255), "mask_names": ()}, net).channels == 3
    with pytest.raises(ValueError, match=r"masks of 3 channels, config.dataset.mask_values=\(\) means 1"):
        requests._code({"mask_max": 255}, net)
