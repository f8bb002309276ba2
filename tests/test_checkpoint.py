"""Checkpoints: whole or not there, verified when read, and never able to run code."""

import json
import os
import random
import shutil

import pytest
import torch

from libs.engine import checkpoint


def tensors(value=0.0):
    return {"nnet": {"a": torch.full((50, 4), value), "b": torch.arange(7)}, "optimizer": {}}


def test_what_is_read_is_what_was_written(tmp_path):
    folder = checkpoint.write(tmp_path, 12, tensors(0.1), {"step": 12, "note": "x"})
    assert folder == tmp_path / "12.ckpt"
    found, record = checkpoint.read(folder)
    assert record == {"step": 12, "note": "x"}
    assert torch.equal(found["nnet"]["a"], torch.full((50, 4), 0.1)) and found["nnet"]["b"].dtype == torch.int64
    assert sorted(os.listdir(tmp_path)) == ["12.ckpt"]


def damage(folder, rng):
    """One of: cut a file, empty it, flip a byte, delete it. Returns the damaged file's name."""
    file = rng.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    kind = rng.choice(["cut", "empty", "flip", "delete"])
    if kind == "delete":
        file.unlink()
    else:
        place = rng.randrange(len(content))
        content = content[:place] if kind == "cut" else content[:0] if kind == "empty" else content
        if kind == "flip":
            content[place] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(content))
    return file.name


def test_any_damage_is_found_and_the_checkpoint_before_is_used(tmp_path, caplog):
    rng = random.Random(0)
    checkpoint.write(tmp_path / "whole", 1, tensors(1.0), {"step": 1})
    checkpoint.write(tmp_path / "whole", 2, tensors(2.0), {"step": 2})
    for trial in range(200):
        root = tmp_path / f"{trial}"
        shutil.copytree(tmp_path / "whole", root)
        before = (root / "2.ckpt" / "manifest.json").read_text()
        damage(root / "2.ckpt", rng)
        caplog.clear()
        folder, found, record = checkpoint.read_latest(root)
        if folder.name == "2.ckpt":  # only white space or a bit of the manifest's own layout may change unnoticed
            assert json.loads((folder / "manifest.json").read_text()) == json.loads(before)
        else:
            assert record["step"] == 1 and found["nnet"]["a"][0, 0] == 1.0
            assert "2.ckpt is damaged" in caplog.text


def test_all_damaged_is_an_error_and_none_is_a_start(tmp_path):
    assert checkpoint.read_latest(tmp_path) is None
    checkpoint.write(tmp_path, 5, tensors(), {"step": 5})
    (tmp_path / "5.ckpt" / "nnet.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(5.ckpt\)"):
        checkpoint.read_latest(tmp_path)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.write(tmp_path, step, tensors(), {"step": step})
    checkpoint.prune(tmp_path, keep=2, protect={10})
    assert checkpoint.steps(tmp_path) == [10, 30, 40]


def test_a_failing_deletion_does_not_stop_a_run(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        checkpoint.write(tmp_path, step, tensors(), {"step": step})

    def refuse(*_):
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "replace", refuse)
    checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.steps(tmp_path) == [1, 2] and "could not delete" in caplog.text


@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(tmp_path, monkeypatch, call):
    checkpoint.write(tmp_path, 1, tensors(1.0), {"step": 1})
    real, count = checkpoint._flush, iter(range(1, 100))

    def flush(path):
        if next(count) == call:
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr(checkpoint, "_flush", flush)
    if call <= 5:
        with pytest.raises(OSError, match="MiB are free.*Older checkpoints are intact"):
            checkpoint.write(tmp_path, 2, tensors(2.0), {"step": 2})
    monkeypatch.undo()
    assert checkpoint.read_latest(tmp_path)[2]["step"] == 1
    assert [name for name in os.listdir(tmp_path)] == ["1.ckpt"]


def test_sweep_removes_what_a_killed_writer_left(tmp_path):
    checkpoint.write(tmp_path, 1, tensors(), {"step": 1})
    (tmp_path / ".staging-2-abc").mkdir()
    (tmp_path / ".staging-2-abc" / "nnet.safetensors").write_bytes(b"half")
    assert checkpoint.read_latest(tmp_path)[2]["step"] == 1
    checkpoint.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["1.ckpt"]
