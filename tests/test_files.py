"""Damaged weights and full disks: one sentence that names the file, says what it is and what to do."""

import errno
import json
import math
import pathlib
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from libs import codecs, engine, files, metrics
from libs.codecs import training
from libs.engine import checkpoint, frozen
from libs.nn import pretrained

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
TINY = ("--config=configs/phantom32_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.train.batch_size=8", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.train.validation_interval=0", "--config.dataset.size=64",
        "--config.lr_scheduler.warmup_steps=0")


def good(path):
    tensors = {"a": torch.randn(100, 10), "b": torch.randn(3)}
    if path.suffix == ".safetensors":
        files.write_safetensors(tensors, path)
    else:
        torch.save(tensors, path)
    return path.read_bytes()


DAMAGE = {
    "pointer": (lambda whole: LFS, "is a Git LFS pointer, not the weights: run `git lfs pull`"),
    "empty": (lambda whole: b"", "is empty"),
    "page": (lambda whole: b"<!DOCTYPE html><html><body>404</body></html>", "is a web page, not weights or arrays"),
    "cut": (lambda whole: whole[:len(whole) // 2], "is cut off after"),
}
READERS = {
    "engine": lambda path: engine.load_weights(path),
    "metrics": lambda path: metrics.weights.read(path),
    "codec": lambda path: codecs.get(name="kl", path=str(path)),
    "perceptual": lambda path: training.perceptual(str(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_of_weights_is_named_and_described(tmp_path, reader, suffix, damage):
    path, (spoil, what) = tmp_path / f"x{suffix}", DAMAGE[damage]
    path.write_bytes(spoil(good(path)))
    with pytest.raises(ValueError) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value) and what in str(caught.value)


def test_a_cut_in_the_header_and_another_kind_of_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(good(path)[:20])
    with pytest.raises(ValueError, match="x.safetensors is cut off after 20 of"):
        files.read_safetensors(path)
    path.write_bytes(good(tmp_path / "y.pth"))
    with pytest.raises(ValueError, match="is a file of torch that is called .safetensors. Rename it"):
        files.read_safetensors(path)
    with pytest.raises(FileNotFoundError):
        files.read_safetensors(tmp_path / "nothing.safetensors")


def test_what_could_run_code_is_refused_without_torch_s_advice(tmp_path):
    torch.save({"model": pathlib.PurePosixPath("x")}, tmp_path / "x.pth")
    with pytest.raises(ValueError) as caught:
        files.read_torch(tmp_path / "x.pth")
    assert "PurePosixPath, which could run code" in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_of_diffusers_with_damaged_weights(tmp_path, damage):
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0"}))
    path, (spoil, what) = folder / "diffusion_pytorch_model.safetensors", DAMAGE[damage]
    path.write_bytes(spoil(good(path)))
    for read in (lambda: codecs.get(name="kl", path=str(tmp_path)), lambda: pretrained.load("AutoencoderKL", str(folder), what="x")):
        with pytest.raises(ValueError) as caught:
            read()
        assert str(path) in str(caught.value) and what in str(caught.value)
    if damage != "page":
        (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
        with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors is"):
            engine.load_weights(folder)


def test_lora_of_others_and_frozen_weights(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(LFS)
    with pytest.raises(ValueError, match="adapter_model.safetensors is a Git LFS pointer"):
        engine.load_weights(path)
    run = SimpleNamespace(folder=tmp_path, resumes=True, is_main=True, barrier=lambda: None)
    (tmp_path / frozen.NAME).write_bytes(b"")
    with pytest.raises(ValueError, match="frozen.safetensors is empty"):
        frozen.keep_frozen(run, torch.nn.Linear(2, 2).requires_grad_(False))


def test_the_command_line_says_it_in_one_line(inside, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(LFS)
    for option in (f"--config.train.init={path}",):
        said = inside("train.py", *TINY, "--config.train.n_steps=2", option, f"--workdir={tmp_path / 'run'}", fails=True).stderr
        assert f"error: {path} is a Git LFS pointer" in said and "Traceback" not in said


def full(*args, **kwargs):
    raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28) at path "/x/.tmpab"')


def test_a_full_disk_at_every_place_that_writes_weights(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "ckpts", 1, {"nnet": {"a": torch.ones(3)}}, {"step": 1})
    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*2.ckpt: No space left on device. It needs about 4 MiB, \d+ MiB are "
                                      "free. Older checkpoints are intact") as caught:
        checkpoint.write(tmp_path / "ckpts", 2, {"nnet": {"a": torch.ones(2 ** 20)}}, {"step": 2})
    assert caught.value.errno == errno.ENOSPC and checkpoint.steps(tmp_path / "ckpts") == [1]
    assert [path.name for path in (tmp_path / "ckpts").iterdir()] == ["1.ckpt"]
    run = SimpleNamespace(folder=tmp_path, resumes=False, is_main=True, barrier=lambda: None)
    with pytest.raises(OSError, match=r"frozen.safetensors cannot be written: No space.*MiB are free"):
        frozen.keep_frozen(run, torch.nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(OSError, match=r"pipeline cannot be written: No space left on device. \d+ MiB are free"), \
            pretrained.written_whole(tmp_path / "pipeline"):
        full()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpts"]
    with pytest.raises(OSError, match="metrics.jsonl cannot be written"), files.disk_errors(tmp_path / "metrics.jsonl"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_really_full(script, tmp_path):
    """A file system of 3 MiB: the first checkpoints fit, a later one does not; with room the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        run = ("train.py", *TINY, "--config.train.n_steps=12", "--config.train.save_interval=2", f"--workdir={disk / 'run'}",
               "--config.train.keep_checkpoints=99", "--config.train.mixed_precision=no")
        said = script(*run, fails=True).stderr
        line = next(line for line in said.splitlines() if line.startswith("error: "))
        assert "cannot write checkpoint" in line and "MiB, 0 MiB are free" in line or "MiB are free" in line
        assert "Older checkpoints are intact" in line and "Traceback" not in said
        steps = checkpoint.steps(disk / "run" / "ckpts")
        assert steps and all(checkpoint.read(disk / "run" / "ckpts" / f"{step}.ckpt") for step in steps)
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        script(*run)
        assert checkpoint.steps(disk / "run" / "ckpts")[-1] == 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_json_of_ours_is_strict_and_readable(tmp_path):
    content = {"a": [math.nan, 1.0, (math.inf, "x")], "b": {"c": -math.inf, "d": True, "e": None}}
    said = files.json_text(content)
    assert json.loads(said, parse_constant=pytest.fail) == {"a": [None, 1.0, [None, "x"]], "b": {"c": None, "d": True, "e": None}}
    for damaged in (b'{"a": 1', b"", b"\xff\xfe\x00"):
        (tmp_path / "x.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="x.json is.*damaged, restore it"):
            files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content, what", [(LFS, "it is a Git LFS pointer, not the file: run `git lfs pull`"), (b"", "it is empty"),
                                           (b"<html></html>", "it is a web page"), (b"PK\x03\x04 and no more", "it is cut off after")])
def test_damaged_archives_of_arrays_are_named(tmp_path, content, what):
    path = tmp_path / "stats.npz"
    path.write_bytes(content)
    for read in (files.read_npz, metrics.gaussian.load_stats):
        with pytest.raises(ValueError) as caught:
            read(path)
        assert str(path) in str(caught.value) and what in str(caught.value)
