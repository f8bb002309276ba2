"""What is said of runs that are older than a file or a setting, that are damaged, or whose data are given otherwise."""

import json
import logging

import pytest

from libs import pipeline
from libs.engine import checkpoint, fixed
from libs.evaluation import weights
from tests.test_class_ldm import place  # noqa: F401 (a fixture)
from tests.test_run_identity import begun, run, sample, save_vae  # noqa: F401 (fixtures)
from libs import codecs  # isort: skip


def test_a_resumed_run_of_an_earlier_version_gets_its_identity(inside, run, tmp_path):  # noqa: F811
    """From then on another decoder is noticed, which no file of an earlier version tells."""
    folder, training = run
    (folder / "identity.json").unlink()
    more = inside("train_class_ldm.py", *training, "--config.train.n_steps=3")
    assert "is not known. The present one is recorded" in more.stderr
    record = json.loads((folder / "identity.json").read_text())
    assert record == pipeline.trained_with(codecs.get("kl", path=str(tmp_path / "vae")))
    save_vae(tmp_path / "vae", decoder_seed=7)
    assert "its decoder makes other images" in sample(inside, folder, tmp_path / "a", fails=True).stderr


def test_damaged_newer_weights_are_not_advised(tmp_path, caplog):
    """The best checkpoint is named with the newest one beside it, unless that one cannot be read."""
    caplog.set_level(logging.INFO)
    for step in (2, 4):
        checkpoint.write(tmp_path / "ckpts", step, {}, {"step": step})
    weights.log_newer(tmp_path, tmp_path / "ckpts" / "2.ckpt", 2)
    assert "4.ckpt" in caplog.text
    caplog.clear()
    (tmp_path / "ckpts" / "4.ckpt" / "state.json").write_text("")
    weights.log_newer(tmp_path, tmp_path / "ckpts" / "2.ckpt", 2)
    assert not caplog.text


@pytest.mark.parametrize("option, size", [("resolution", "img_size"), ("resolution", "sample_size"), ("channels", "in_chans")])
def test_a_size_that_follows_from_the_data_is_set_by_the_data(option, size):
    """The option that a user gives is named, not the one that was computed from it."""
    before = {"nnet": {size: 32}, "dataset": {option: 32}}
    now = {"nnet": {size: 64}, "dataset": {option: 64}}
    with pytest.raises(ValueError, match=f"Set --config.dataset.{option}=32, or") as error:
        fixed.check(before, now, "run")
    assert size not in str(error.value)
    with pytest.raises(ValueError, match=f"Set --config.nnet.{size}=32, or"):
        fixed.check(before, {**now, "dataset": {option: 32}}, "run")
