"""What an average still holds of the start of a training: the warm-up of its rate, a resume, the warning."""

import json
import logging

import pytest
import torch
from ml_collections import ConfigDict

from libs import engine
from libs.engine import checkpoint
from tests.test_engine import Batches, loss_fn, toy

TINY = ("--config=configs/phantom32_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.train.batch_size=16", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.dataset.size=200", "--config.train.validation_size=16",
        "--config.lr_scheduler.warmup_steps=0", "--config.train.ema_rate=0.9999")


def train(folder, n_steps, *, ema_warmup=True, ema_rate=0.9, rates=()):
    run = engine.Run(folder, seed=7)
    state = engine.State(run, toy(), optimizer={"lr": 0.01}, lr_scheduler={"name": "constant"}, n_steps=n_steps,
                         ema_rate=ema_rate, more_ema_rates=rates, ema_warmup=ema_warmup)
    try:
        engine.fit(run, state, Batches(), loss_fn, ConfigDict(dict(n_steps=n_steps, save_interval=1, keep_checkpoints=99)))
    finally:
        run.finish()
    return state


def recomputed(folder, rates):
    """The average by its definition, from the raw weights of every checkpoint; rates: of update 1, 2, ..."""
    average = toy().state_dict()["0.weight"]
    for step, rate in enumerate(rates, 1):
        raw = checkpoint.read(folder / "ckpts" / f"{step}.ckpt")[0]["nnet"]["0.weight"]
        average = rate * average + (1 - rate) * raw
    return average


@pytest.mark.parametrize("ema_warmup", [True, False])
def test_every_average_follows_its_formula(tmp_path, ema_warmup):
    train(tmp_path, 6, ema_rate=0.9999, rates=(0.3,), ema_warmup=ema_warmup)
    for name, rate in (("nnet_ema", 0.9999), ("nnet_ema_0.3", 0.3)):
        rates = [min(rate, (1 + step) / (10 + step)) if ema_warmup else rate for step in range(1, 7)]
        tensors, record = checkpoint.read(tmp_path / "ckpts" / "6.ckpt")
        torch.testing.assert_close(tensors[name]["0.weight"], recomputed(tmp_path, rates))
        assert record["ema_warmup"] is ema_warmup


@pytest.mark.parametrize("begun, config", [(False, True), (True, False)])
def test_a_run_goes_on_as_it_was_begun(tmp_path, caplog, begun, config):
    caplog.set_level(logging.INFO)
    train(tmp_path, 3, ema_warmup=begun)
    state = train(tmp_path, 6, ema_warmup=config)
    assert state.ema_warmup is begun
    assert f"this run was begun with {begun}" in caplog.text
    rates = [min(0.9, (1 + step) / (10 + step)) if begun else 0.9 for step in range(1, 7)]
    torch.testing.assert_close(state.ema[0].weight, recomputed(tmp_path, rates))


def test_a_checkpoint_of_an_earlier_version_had_no_warm_up(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(tmp_path, 3, ema_warmup=False)
    folder = tmp_path / "ckpts" / "3.ckpt"
    tensors, record = checkpoint.read(folder)
    del record["ema_warmup"]
    checkpoint.write(tmp_path / "ckpts", 3, tensors, record)
    state = train(tmp_path, 6, ema_warmup=True)
    torch.testing.assert_close(state.ema[0].weight, recomputed(tmp_path, [0.9] * 6))
    assert sum("goes on" in line or "go on without" in line for line in caplog.text.splitlines()) == 1


def test_a_rate_that_leaves_the_start_is_named_with_what_to_set(tmp_path, caplog):
    train(tmp_path / "a", 20, ema_warmup=False, ema_rate=0.95, rates=(0.5, 0.99))
    first, second = [record.getMessage() for record in caplog.records if "will still be the weights" in record.getMessage()]
    assert f"{100 * 0.95 ** 20:.0f} % of the average of rate 0.95 (train.ema_rate)" in first
    assert "--config.train.ema_warmup=True" in first and "--config.train.ema_rate=0.8" in first
    assert "--config.sample.weights=raw" in first and '--config.train.more_ema_rates="(0.5, 0.8)"' in second
    assert f"{100 * 0.99 ** 20:.0f} %" in second
    caplog.clear()
    train(tmp_path / "b", 20, ema_warmup=True, ema_rate=0.9999)
    train(tmp_path / "c", 20, ema_warmup=False, ema_rate=0.5)
    assert "will still be" not in caplog.text


def test_a_resumed_run_is_not_advised_to_warm_up(tmp_path, caplog):
    train(tmp_path, 3, ema_warmup=False, ema_rate=0.99)
    caplog.clear()
    train(tmp_path, 20, ema_warmup=True, ema_rate=0.99)
    warning, = [record.getMessage() for record in caplog.records if "will still be the weights" in record.getMessage()]
    assert "ema_warmup=True" not in warning and "--config.train.ema_rate=0.8" in warning


def losses(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == kind]


def test_a_short_training_is_judged_by_what_it_learned(inside, tmp_path):
    """60 steps at 0.9999: without warm-up the average is the random start, with it as good as the weights."""
    steps = ("--config.train.n_steps=60", "--config.train.validation_interval=60", "--config.train.log_interval=20",
             "--config.optimizer.lr=0.002")
    found = {}
    for warmup in (True, False):
        folder = tmp_path / str(warmup)
        done = inside("train.py", *TINY, *steps, f"--config.train.ema_warmup={warmup}", f"--workdir={folder}")
        assert ("will still be the weights" in done.stderr) is not warmup
        found[warmup] = losses(folder, "validation")[0] / losses(folder, "train")[-1]
    assert found[True] < 1.3 and found[False] > 1.7, found
