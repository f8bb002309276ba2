"""The downstream study of segmentation: its scores in closed form, masks that move with their images, resuming, real effects."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from libs.downstream import images, networks, plan, segmentation, summary, training
from tests.conftest import ROOT
from tests.test_downstream import study

NAMES = ["background", "rim", "core"]
TRAIN = dict(n_steps=50, batch_size=8, balanced=False, mixed_precision="", label_smoothing=0.0, random_flip=True,
             random_vflip=True, random_shift=1, threads=1)
ADAM, RATE = dict(name="adamw", lr=5e-3, weight_decay=0.01), dict(name="cosine", warmup_steps=1)


def squares(n, seed=0, size=16):
    """Noisy pictures of a bright square with a dark core anywhere: arrays (n, size, size, 3) and masks (n, size, size)."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), np.uint8)
    for mask in masks:
        row, column = rng.integers(0, size - 8, 2)
        mask[row:row + 8, column:column + 8] = 1
        mask[row + 2:row + 6, column + 2:column + 6] = 2
    pictures = np.array([110, 200, 30])[masks][..., None] + 20 * rng.normal(size=(n, size, size, 3))
    return pictures.clip(0, 255).astype(np.uint8), masks


def made(n, seed=0, labels=None):
    pictures, masks = squares(n, seed)
    return images.of_tensors(torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.zeros(n) if labels is None else labels,
                             images.UNLABELLED if labels is None else ["a", "b"], names=[f"{seed}/{i}.png" for i in range(n)],
                             masks=torch.from_numpy(masks), mask_names=NAMES)


# scores

def test_scores_are_means_over_the_images_that_have_a_class():
    nan, everything = np.nan, np.ones(3, bool)
    values = np.array([[1.0, 0.5, nan], [0.8, 0.7, 0.2], [0.6, nan, 0.4], [1.0, nan, nan]])
    names = segmentation.names(NAMES)
    assert names == [("dice", ""), ("dice", "background"), ("dice", "rim"), ("dice", "core")]
    whole, twice, without = segmentation.scores(values, everything, [[1, 1, 1, 1], [2, 0, 1, 1], [1, 0, 0, 3]])
    assert whole == pytest.approx([(0.6 + 0.3) / 2, 0.85, 0.6, 0.3])
    assert twice == pytest.approx([(0.5 + 0.4) / 2, (2 + 0.6 + 1) / 4, 0.5, 0.4])
    assert without[[1, 2]] == pytest.approx([1, 0.5]) and np.isnan(without[[0, 3]]).all()  # no core in this draw
    said = segmentation.scores(values, np.array([True, True, False]), np.ones((1, 4)))[0]
    assert said == pytest.approx([0.6, 0.85, 0.6, 0.3])  # no test mask has a core: it is not in the mean


# what each training sees

def test_masks_are_part_of_what_a_training_sees():
    real, synthetic, test = made(12), made(12, 1), made(6, 2)
    options = dict(fractions=(0.5, 1.0), ratios=(1.0,), seeds=(0,), with_all=False, settings={})
    keys = [each.key for each in plan.trainings(real, synthetic, test, **options)]
    other = made(12, 1)
    other.masks, other.mask_hashes = made(12, 3).masks, made(12, 3).mask_hashes
    changed = plan.trainings(real, other, test, **options)
    assert [each.arm.name for each, key in zip(changed, keys, strict=True) if each.key == key] == ["real", "real"]
    labels = torch.arange(12) % 2
    labelled = plan.trainings(made(12, labels=labels), synthetic, test, **options | {"fractions": (0.2,)})
    assert {int(labels[i]) for i in labelled[0].real} == {0, 1} and len(labelled[0].real) == 2  # one of each class
    part = real.only([3, 5])
    assert torch.equal(part.masks, real.masks[[3, 5]]) and part.mask_hashes == [real.mask_hashes[i] for i in (3, 5)]
    assert part.targets == NAMES and real.pairs() == {"background": 12, "rim": 12, "core": 12}
    assert real.counts() == {"images": 12}


def test_what_a_study_cannot_be_made_of_and_what_is_said():
    real, test = made(4), made(4, 2)
    empty = made(4, 1)
    empty.masks = torch.zeros_like(empty.masks)
    with pytest.raises(ValueError, match="(?s)2 problems.*no training mask has anything but 'background'.*no test mask"):
        images.check(empty, empty, test)
    with pytest.raises(ValueError, match="there is no synthetic pair"):
        images.check(real, test, made(0))
    assert images.few(test) == ["classes in fewer than 30 test masks: background 4, rim 4, core 4; their scores move much with "
                                "each image"]
    assert images.few(empty)[1] == "classes in no test mask: rim, core; they do not count in the mean"
    assert "classes in no synthetic mask: rim, core" in images.missing(empty)[0] and not images.missing(real)
    copied = made(4, 5)
    copied.mask_hashes[2] = test.mask_hashes[1]
    assert "1 of 4 synthetic pairs have the mask of a test image, such as 5/2.png is that of 2/1.png" in \
        segmentation.shared(copied, test)[0]
    assert segmentation.shared(made(4, 5), test) == []
    with pytest.raises(ValueError, match="label_smoothing=0.1: a segmentation network"):
        training.check(TRAIN | {"label_smoothing": 0.1}, ADAM, RATE, masks=True)
    with pytest.raises(ValueError, match="'timm:resnet18'.*the network that segments is 'small'"):
        networks.build_segmenter("timm:resnet18", classes=2, channels=3, resolution=16)


# training

def learned(what, seed=0, **changes):
    return training.train(what.pixels, what.labels, 3, masks=what.masks, seed=seed, train=TRAIN | changes, optimizer=ADAM,
                          lr_scheduler=RATE, nnet=dict(width=16))


def test_a_training_is_a_function_of_its_seed_and_moves_masks_with_images():
    real, test = made(40), made(30, 1)
    nets = [learned(real), learned(real)]
    found = [segmentation.dice(net, test.pixels, test.masks) for net in nets]
    assert torch.equal(*found) and found[0].shape == (30, 3)
    assert found[0][:, 1:].mean() > 0.75  # mirrored and moved at every step
    wrong = made(40)
    wrong.masks = wrong.masks.roll(1, 0)
    assert segmentation.dice(learned(wrong), test.pixels, test.masks)[:, 1:].nanmean() < 0.5
    assert not torch.equal(found[0], segmentation.dice(learned(real, 1), test.pixels, test.masks))


# the script

def write(folder, parts, mask_values=(0, 128, 255)):
    """A folder of pairs with metadata.csv: `parts` is {split: (number, seed)}; a split '' has no column."""
    (folder / "masks").mkdir(parents=True)
    rows = []
    for split, (n, seed) in parts.items():
        for i, (picture, mask) in enumerate(zip(*squares(n, seed))):
            name = f"{split}{i}.png"
            Image.fromarray(picture).save(folder / name)
            Image.fromarray(np.array(mask_values, np.uint8)[mask]).save(folder / "masks" / name)
            rows.append({"file_name": name, "mask_file_name": f"masks/{name}"} | ({"split": split} if split else {}))
    with open(folder / "metadata.csv", "w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(real, synthetic): unlabelled pairs; 20 real ones to train on and 8 to test, 24 synthetic ones."""
    root = tmp_path_factory.mktemp("pairs")
    write(root / "real", {"train": (20, 0), "test": (8, 1)})
    write(root / "synthetic", {"": (24, 2)})
    return root / "real", root / "synthetic"


def options(real, synthetic, workdir, *more):
    return (f"--config={ROOT / 'configs' / 'folder64_segmentation.py'}", f"--config.dataset.path={real}",
            "--config.dataset.resolution=16", "--config.dataset.mask_values=(0,128,255)",
            "--config.dataset.mask_names=('background','rim','core')", f"--config.synthetic.path={synthetic}",
            f"--workdir={workdir}", "--config.train.n_steps=15", "--config.lr_scheduler.warmup_steps=1",
            "--config.nnet.width=4", "--config.study.fractions=(0.1, 1.0)", "--config.study.seeds=(0, 1)",
            "--config.study.bootstrap=100", *more)


@pytest.fixture(scope="module")
def finished(script, folders, tmp_path_factory):
    """(folder of a finished study, what the script said)."""
    folder = tmp_path_factory.mktemp("study")
    return folder, script("eval_downstream.py", *options(*folders, folder))


def test_the_files_of_a_study(finished):
    folder, done = finished
    # 2 seeds x (2 x real, synthetic, 2 x 1:1, 2 x all)
    assert len(list((folder / "trainings").iterdir())) == 2 * 2 * 7 and "training 14 of 14" in done.stderr
    record = json.loads((folder / "downstream.json").read_text())
    assert (record["task"], record["classes"], record["counts"]["test"]) == ("segmentation", NAMES, {"images": 8})
    page = (folder / "downstream.md").read_text()
    for text in ("# What synthetic images are worth to a segmentation network", "| real + 1 synthetic | 2 | 2 |",
                 "| trained on | real | synthetic | Dice | difference |", "| core (n=8) | synthetic |",
                 "8 real ones to test on (background 8, rim 8, core 8)", "the mean over all classes but background"):
        assert text in page, page
    assert "10 %, synthetic instead of real alone: Dice" in done.stdout
    rows = list(csv.DictReader((folder / "downstream.csv").read_text().splitlines()))
    assert len(rows) == 2 * 4 * 4 and {(row["metric"], row["class"]) for row in rows} == {("dice", name) for name in ("", *NAMES)}
    mean = {row["class"]: float(row["value"]) for row in rows if row["arm"] == "real" and row["fraction"] == "1"}
    assert mean[""] == pytest.approx((mean["rim"] + mean["core"]) / 2, abs=1e-5)
    kept = next((folder / "trainings").glob("*.npz"))
    with np.load(kept) as file:
        assert file["dice"].shape == (8, 3)
    assert Image.open(folder / "downstream.png").size[0] > 700


def test_a_study_goes_on_with_what_is_there(finished, folders, tmp_path, caplog):
    folder = tmp_path / "again"
    shutil.copytree(finished[0], folder)
    lost = sorted((folder / "trainings").glob("*.npz"))[:2]
    lost[0].unlink()
    np.savez(lost[1], dice=np.zeros((8, 3), np.float32))
    study(*options(*folders, folder))
    assert "14 trainings of 15 steps, 12 of them are there already" in caplog.text and "is damaged" in caplog.text
    for name in ("downstream.csv", "downstream.md"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_study_of_phantoms(tmp_path, capsys):
    write(tmp_path / "pairs", {"": (4, 0)}, mask_values=(0, 255, 255))
    for path in [*(tmp_path / "pairs").glob("*.png"), *(tmp_path / "pairs" / "masks").glob("*.png")]:
        Image.open(path).resize((32, 32), Image.NEAREST).save(path)
    study(f"--config={ROOT / 'configs' / 'phantom32_segmentation.py'}", f"--config.synthetic.path={tmp_path / 'pairs'}",
          f"--workdir={tmp_path / 'run'}", "--config.train.n_steps=2", "--config.lr_scheduler.warmup_steps=1",
          "--config.nnet.width=4", "--config.study.fractions=(1.0,)", "--config.study.seeds=(0,)", "--config.study.with_all=False",
          "--config.study.bootstrap=100", "--config.dataset.size=12", "--config.test.size=12")
    said = capsys.readouterr().out
    assert "12 real images to train on, 4 synthetic ones, 12 real ones to test on (skin 12, lesion 12)" in said


@pytest.mark.parametrize("change, said", [
    ("--config.study.task=segmenting", "config.study.task='segmenting': expected one of"),
    ("--config.train.label_smoothing=0.1", "a segmentation network is trained without"),
    ("--config.dataset.mask_column=", "the real images have no masks"),
    ("--config.synthetic.mask_column=", "the synthetic images have no masks"),
    ("--config.nnet.name=timm:resnet18", "the network that segments is 'small'"),
    ("--config.dataset.mask_values=(0,1,2)", "128"),
], ids=lambda text: text.split("=")[0].removeprefix("--config.") if text.startswith("--") else "")
def test_bad_input(folders, tmp_path, change, said):
    given = [each for each in options(*folders, tmp_path / "run") if not each.startswith(change.split("=")[0] + "=")]
    if change == "--config.dataset.mask_column=":
        given = [each for each in given if ".mask_" not in each]
    with pytest.raises(ValueError) as error:
        study(*given, change)
    assert said in str(error.value)
    assert not (tmp_path / "run" / "trainings").exists()


def test_sentences_and_tables_are_those_of_the_metrics_there_are():
    real, synthetic, test = made(12), made(12, 1), made(20, 2)
    found = plan.trainings(real, synthetic, test, fractions=(1.0,), ratios=(1.0,), seeds=(0, 1), with_all=False, settings={})
    values = {each.key: np.full((20, 3), 0.9 if "+" in each.arm.name else 0.5, np.float32) for each in found}
    rows = summary.summarise(found, values, test, (1.0,), resamples=100)
    assert summary.sentences(rows)[1] == ("100 %, real + 1 synthetic instead of real alone: Dice +0.400 [0.400, 0.400], gain.")
