"""The scripts through their real command line, as one process and as two: train, resume, evaluate, sample, page.

Calls whose command line another test types are made inside this process.
"""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from libs import engine
from libs.engine import checkpoint
from tests.conftest import ROOT

TINY = ("--config=configs/phantom32_uvit_label.py", "--config.lr_scheduler.warmup_steps=1", "--config.nnet.embed_dim=32",
        "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.nnet.patch_size=8", "--config.dataset.size=64", "--config.train.batch_size=8",
        "--config.train.log_interval=1", "--config.train.save_interval=2", "--config.train.preview_interval=4",
        "--config.train.eval_interval=4", "--config.train.validation_interval=4", "--config.train.validation_size=16",
        "--config.metrics.n_samples=12", "--config.metrics.bootstrap=5", "--config.sample.sample_steps=3",
        "--config.metrics.sample_steps=3", "--config.sample.mini_batch_size=4")


def losses(folder):
    return [(line["step"], line["loss"]) for line in engine.read_metrics(folder / "metrics.jsonl")
            if line["kind"] == "train"]


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """A run of 6 steps and an evaluation, by one process."""
    folder = tmp_path_factory.mktemp("run")
    script("train.py", *TINY, "--config.train.n_steps=6", f"--workdir={folder}")
    script("eval.py", *TINY, f"--workdir={folder}", "--config.sample.n_samples=8")
    return folder


def test_a_run_keeps_what_it_promises(trained):
    assert {"config.json", "run.json", "classes.json", "metrics.jsonl", "samples", "ckpts", "tensorboard"} <= set(
        os.listdir(trained))
    assert [step for step, _ in losses(trained)] == [1, 2, 3, 4, 5, 6]
    kinds = [line["kind"] for line in engine.read_metrics(trained / "metrics.jsonl")]
    assert kinds.count("validation") == 2 and kinds.count("eval") == 2  # at step 4 and at the end
    assert sorted(os.listdir(trained / "samples")) == ["4.png", "6.png"]
    grid = np.asarray(Image.open(trained / "samples" / "6.png"))
    assert grid.shape == (4 * 34 + 2, 8 * 34 + 2, 3)  # a row for each of the four classes
    session = json.loads((trained / "run.json").read_text())["sessions"][0]
    assert "train.py" in session["command"] and session["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_a_finished_run_stays_as_it_is(inside, trained):
    before = (trained / "metrics.jsonl").read_text()
    inside("train.py", *TINY, "--config.train.n_steps=6", f"--workdir={trained}")
    assert (trained / "metrics.jsonl").read_text() == before


def test_evaluation_counts_exactly_and_is_the_same_on_two_processes(script, inside, trained, tmp_path):
    found = {}
    for name, call, batch in (("one", inside, 5), ("two", functools.partial(script, processes=2), 5), ("other", inside, 11)):
        call("eval.py", *TINY, f"--workdir={trained}", f"--name={name}", "--config.sample.n_samples=11",
             f"--config.sample.mini_batch_size={batch}", f"--config.sample.npz={tmp_path}/{name}.npz")
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as file:
            found[name] = file["arr_0"]
        scores = json.loads((trained / "eval" / name / "scores.json").read_text())
        assert scores["n"] == 11 and scores["seed"] == 1
        assert all(score["n"] == 11 for score in scores["scores"].values())
        assert sum(next(iter(each.values()))["n"] for each in scores["per_class"].values()) == 11
        assert scores["warnings"], "eleven images are too few, and that must be said"
        assert not any(metric == "fid" for metric in scores["scores"]), "nothing is called FID that is not"
    assert found["one"].shape == (11, 32, 32, 3) and found["one"].dtype == np.uint8
    assert len(np.unique(found["one"].reshape(11, -1), axis=0)) == 11, "every image is another one"
    np.testing.assert_array_equal(found["one"], found["two"])
    # Another batch size may round a product differently: at most one grey level.
    assert np.abs(found["one"].astype(int) - found["other"].astype(int)).max() <= 1


def test_samples_and_page(script, inside, trained, tmp_path):
    out = {}
    for processes, call in ((1, inside), (2, functools.partial(script, processes=2))):
        folder = tmp_path / f"{processes}"
        call("sample.py", f"--workdir={trained}", "--label=angioma", "--n_samples=5", "--seed=9", f"--config.sample.path={folder}")
        out[processes] = {name: np.asarray(Image.open(folder / name)) for name in sorted(os.listdir(folder))
                          if name.endswith(".png")}
        with open(folder / "metadata.csv") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["label"] for row in rows] == ["angioma"] * 5 and len({row["sha256"] for row in rows}) == 1
        assert all((folder / row["file_name"]).is_file() for row in rows)
    assert out[1].keys() == out[2].keys() and len(out[1]) == 6  # five images and the grid
    for name in out[1]:
        np.testing.assert_array_equal(out[1][name], out[2][name])
    first = Image.open(tmp_path / "1" / "000000_angioma.png")
    assert first.text["label"] == "angioma" and first.text["seed"] == "9"
    done = inside("scripts/make_report.py", f"--workdir={trained}")
    page = (trained / "report.html").read_text()
    assert "angioma" in page and "http://" not in page.replace("http://www.w3.org", "") and "report.html" in done.stdout


def test_a_wrong_label_is_named(inside, trained):
    done = inside("sample.py", f"--workdir={trained}", "--label=angiome", fails=True)
    assert "no such class; known: all, nevus, melanoma, angioma, dermatofibroma" in done.stderr


def test_a_diverging_run_ends_with_step_and_files(inside, tmp_path):
    done = inside("train.py", *TINY, "--config.train.n_steps=50", "--config.optimizer.lr=1e30", "--config.train.grad_clip=0.0",
                  "--config.train.eval_interval=0",
                  "--config.train.preview_interval=0", f"--workdir={tmp_path}", fails=True)
    assert "is not finite; no weight was changed" in done.stderr and "phantoms/0/train/" in done.stderr


def test_two_processes_train_save_and_resume(script, tmp_path):
    """Taken up again in the middle of a log window of 3 steps, so that the sums of both processes must come back."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    options = (*TINY, "--config.train.n_steps=4", "--config.train.log_interval=3")
    script("train.py", *options, f"--workdir={whole}", processes=2)
    assert json.loads((whole / "run.json").read_text())["sessions"][0]["processes"] == 2
    shutil.copytree(whole, again)
    shutil.rmtree(again / "ckpts" / "4.ckpt")
    script("train.py", *options, "--config.train.eval_interval=0", f"--workdir={again}", processes=2)
    assert losses(whole) == losses(again) and [step for step, _ in losses(again)] == [3, 4]
    mine, its = (checkpoint.read(folder / "ckpts" / "4.ckpt")[0]["nnet_ema"] for folder in (whole, again))
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_sigterm_on_one_rank_saves_the_same_step_on_all_and_exits_with_143(tmp_path):
    """Two real processes; the second one gets the signal, the first one saves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2",
                   "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    command = [sys.executable, "train.py", *TINY, "--config.train.n_steps=100000", "--config.train.save_interval=1000000",
               "--config.train.eval_interval=0", "--config.train.preview_interval=0", "--config.train.workers=1",
               f"--workdir={tmp_path}"]
    ranks = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                              env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
    try:
        until = time.time() + 120
        while not (tmp_path / "metrics.jsonl").is_file() or len((tmp_path / "metrics.jsonl").read_text()) < 300:
            assert time.time() < until and all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGTERM)
        errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [143, 143], errors
    step, = checkpoint.steps(tmp_path / "ckpts")
    assert all(f"step {step} is saved" in error for error in errors)


def test_published_weights_without_data_or_run(inside, tmp_path):
    """A U-ViT .pth from the authors is a state_dict of the averaged network; sampling needs nothing else."""
    from libs import backbones
    options = dict(name="uvit", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=-1)
    torch.save(backbones.get(**options).state_dict(), tmp_path / "cifar10_uvit_small.pth")
    own = [f"--config.nnet.{key}={options[key]}" for key in ("patch_size", "embed_dim", "depth", "num_heads")]
    inside("sample.py", "--config=configs/cifar10_uvit_small.py", f"--nnet_path={tmp_path}/cifar10_uvit_small.pth", *own,
           f"--workdir={tmp_path}/w", f"--config.sample.path={tmp_path}/out", "--n_samples=3", "--config.sample.sample_steps=4")
    assert sorted(os.listdir(tmp_path / "out")) == ["000000.png", "000001.png", "000002.png", "grid.png", "metadata.csv"]
    done = inside("sample.py", "--config=configs/cifar10_uvit_small.py", f"--nnet_path={tmp_path}/cifar10_uvit_small.pth",
                  f"--workdir={tmp_path}/w", "--n_samples=3", fails=True)
    assert "embed_dim" in done.stderr or "shape" in done.stderr


def test_statistics_from_ones_own_data(script, tmp_path, trained):
    script("scripts/compute_fid_stats.py", *TINY, "--features=classifier", f"--output={tmp_path}/mine.npz",
           f"--workdir={trained}")
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (64,) and file["sigma"].shape == (64, 64) and int(file["n"]) == 64


def test_real_images_train_from_their_table(inside, wbc, tmp_path):
    inside("train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={wbc}", f"--workdir={tmp_path}",
           "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2", "--config.nnet.patch_size=16",
           "--config.train.batch_size=8", "--config.train.n_steps=2", "--config.train.eval_interval=0",
           "--config.train.preview_interval=2", "--config.sample.sample_steps=2", "--config.metrics.sample_steps=2",
           "--config.train.log_interval=1", "--config.dataset.drop_classes=('basophil',)", "--config.train.balanced=True",
           "--config.train.workers=0")
    assert json.loads((tmp_path / "classes.json").read_text()) == ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    assert (tmp_path / "samples" / "2.png").is_file() and len(losses(tmp_path)) == 2


def test_grey_images_of_16_bits_from_class_folders_end_to_end(script, inside, tmp_path):
    """One channel all the way: data, network, features, PNGs and page; the network sees more than 256 levels."""
    rng = np.random.default_rng(0)
    for name in ("2 mild", "10 severe"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(24):
            level = 40_000 if name == "10 severe" else 10_000
            pixels = (level + rng.normal(0, 3_000, (20, 24))).clip(0, 65_535).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    common = ("--config=configs/folder64_uvit_label.py", f"--config.dataset.path={tmp_path}/data",
              "--config.dataset.resolution=16", "--config.dataset.channels=1", "--config.nnet.in_chans=1",
              "--config.nnet.img_size=16", "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2",
              f"--workdir={tmp_path}/run", "--config.train.batch_size=8", "--config.train.n_steps=2",
              "--config.train.workers=2", "--config.train.log_interval=1", "--config.metrics.features=('classifier',)",
              "--config.metrics.n_samples=8", "--config.metrics.bootstrap=3", "--config.sample.sample_steps=2",
              "--config.metrics.sample_steps=2", "--config.sample.n_samples=8")
    script("train.py", *common)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["2 mild", "10 severe"]  # natural order
    inside("eval.py", *common, "--config.train.workers=0")
    inside("sample.py", f"--workdir={tmp_path}/run", "--label=2 mild", "--n_samples=2", f"--config.sample.path={tmp_path}/out")
    assert Image.open(tmp_path / "out" / "000000_2 mild.png").mode == "L"
    inside("scripts/make_report.py", f"--workdir={tmp_path}/run")
    assert "10 severe" in (tmp_path / "run" / "report.html").read_text()


def test_statistics_in_place_of_the_images(inside, trained, tmp_path):
    """Where the images are not at hand, a statistics file of the same features gives the Fréchet distance and no more."""
    from tests.test_cli import FOLDER, folder_of_images
    options = (*FOLDER, f"--config.dataset.path={folder_of_images(tmp_path / 'data', each=12)}", f"--workdir={tmp_path}/run",
               "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2",
               "--config.lr_scheduler.warmup_steps=1", "--config.train.eval_interval=0", "--config.train.preview_interval=0",
               "--config.sample.sample_steps=2", "--config.sample.n_samples=6", "--config.metrics.bootstrap=0")
    inside("train.py", *options)
    folder = inside("scripts/train_feature_network.py", *FOLDER, f"--config.dataset.path={tmp_path}/data").stdout.split(":")[0]
    assert (ROOT / folder / "weights.safetensors").is_file()
    features = f"--config.metrics.features=('classifier:{ROOT / folder}',)"
    inside("scripts/compute_fid_stats.py", *options, f"--features=classifier:{ROOT / folder}", f"--output={tmp_path}/mine.npz")
    with_images = inside("eval.py", *options, features, f"--config.metrics.fid_stat={tmp_path}/mine.npz", "--name=with")
    os.rename(tmp_path / "data", tmp_path / "elsewhere")
    inside("eval.py", *options, features, f"--config.metrics.fid_stat={tmp_path}/mine.npz", "--name=without",
           "--config.sample.labels=balanced", f"--config.sample.path={tmp_path}/kept")
    scores = json.loads((tmp_path / "run" / "eval" / "without" / "scores.json").read_text())
    assert list(scores["scores"])[0].startswith("fd_classifier-") and not any("kid" in name for name in scores["scores"])
    assert any("only mean and covariance" in text for text in scores["warnings"]) and "mine.npz" in scores["reference"]
    assert "fd_classifier-" in with_images.stdout and len(list((tmp_path / "kept").glob("*.png"))) == 6


def published_data(name, root):
    """Stand-ins in the file formats of the published data sets; CIFAR-10's are sparse files of the full size."""
    if name == "cifar10":
        (root / "cifar-10-batches-bin").mkdir()
        for file in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
            with open(root / "cifar-10-batches-bin" / file, "wb") as stream:
                stream.truncate(10_000 * 3073)
    elif name == "celeba":
        (root / "celeba" / "img_align_celeba").mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (178, 218), (20 * i, 0, 0)).save(root / "celeba" / "img_align_celeba" / f"{i:06}.png")
        (root / "celeba" / "list_eval_partition.txt").write_text("".join(f"{i:06}.png 0\n" for i in range(8)))
    else:
        for i in range(8):
            path = root / "train" / f"n0{i % 2}" / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80, 100), (20 * i, 0, 0)).save(path)
    return root


@pytest.mark.parametrize("name", ["cifar10_uvit_small", "celeba64_uvit_small", "imagenet64_uvit_mid",
                                  "imagenet64_uvit_large"])
def test_published_configs_train_and_sample(inside, tmp_path, name):
    """The published commands on data in the published formats, the network narrowed; no Inception weights, and said so."""
    data = published_data(name.split("_")[0].rstrip("64"), tmp_path)
    inside("train.py", f"--config=configs/{name}.py", f"--config.dataset.path={data}", f"--workdir={tmp_path}/run",
           "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2", "--config.nnet.patch_size=16",
           "--config.train.batch_size=4", "--config.train.workers=0", "--config.train.n_steps=2",
           "--config.train.log_interval=1", "--config.metrics.sample_steps=3", env={"TORCH_HOME": str(tmp_path)})
    assert len(losses(tmp_path / "run")) == 2 and (tmp_path / "run" / "samples" / "2.png").is_file()
    inside("sample.py", f"--workdir={tmp_path}/run", "--n_samples=2", "--config.sample.sample_steps=3",
           f"--config.sample.path={tmp_path}/out")
    with open(tmp_path / "out" / "metadata.csv") as stream:
        labels = [row.get("label", "") for row in csv.DictReader(stream)]
    assert labels == (["n00", "n01"] if "imagenet" in name else ["", ""]), "an unconditional network makes no class"


def test_accelerate_launch_with_mixed_precision(tmp_path):
    """The documented launcher; two processes, bf16 from its command line, numbers in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--mixed_precision", "bf16", "--main_process_port", str(21000 + os.getpid() % 20000), "train.py", *TINY,
               "--config.train.n_steps=4", "--config.train.eval_interval=0", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    session, = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert session["processes"] == 2 and session["precision"] == "bf16"
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, pytest.approx(event.value)) for event in board.Scalars("train/loss")] == losses(tmp_path)
    assert board.Images("samples")
