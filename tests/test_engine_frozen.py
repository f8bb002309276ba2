"""Frozen weights that a run keeps, and the best checkpoint by the loss on held-out batches."""

import json

import pytest
import torch

from libs import engine
from libs.engine import checkpoint
from tests.test_engine import Batches, settings, toy, train


def half_frozen(seed=0):
    net = toy(seed)
    net[0].requires_grad_(False)
    return net


def fit(folder, net, n_steps):
    run = engine.Run(folder, seed=7)
    engine.keep_frozen(run, net)
    state = engine.State(run, net, optimizer={"lr": 0.01}, lr_scheduler={}, n_steps=20, ema_rate=0.9)
    engine.fit(run, state, Batches(), lambda net, batch: (net(batch["x"]).square().mean(), {}), settings(n_steps=n_steps))
    run.finish()
    return state


def test_frozen_weights_are_kept_once_and_come_back(tmp_path):
    first = half_frozen()
    fit(tmp_path, first, 5)
    saved = checkpoint.read(tmp_path / "ckpts" / "5.ckpt")[0]
    assert set(saved["nnet"]) == {"2.weight", "2.bias"}, "checkpoints hold what is trained"
    weights, step, source = engine.load_weights(tmp_path)
    assert step == 5 and set(weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(weights["0.weight"], first[0].weight)
    # Another network under the same trained weights is another network.
    digest = engine.weights_hash(source)
    resumed = fit(tmp_path, half_frozen(seed=3), 8)
    assert torch.equal(resumed.module[0].weight, first[0].weight), "a resumed run takes them from its folder"
    assert digest == engine.weights_hash(tmp_path / "ckpts" / "5.ckpt")
    (tmp_path / "frozen.safetensors").unlink()
    assert digest != engine.weights_hash(tmp_path / "ckpts" / "5.ckpt")
    with pytest.raises(ValueError, match=r"frozen.safetensors is missing: it holds the 2 frozen.*[Rr]estore.*another --workdir"):
        fit(tmp_path, half_frozen(), 9)
    (tmp_path / "base.json").write_text('{"sha256": "0"}')  # frozen weights that are known, and not kept
    known = engine.weights_hash(tmp_path / "ckpts" / "5.ckpt")
    (tmp_path / "base.json").write_text('{"sha256": "1"}')
    assert known != engine.weights_hash(tmp_path / "ckpts" / "5.ckpt")


def test_frozen_weights_of_another_network_are_refused(tmp_path):
    fit(tmp_path, half_frozen(), 5)
    other = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.Dropout(0.2), torch.nn.Linear(9, 3))
    other[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen weights of another network: 0.bias, 0.weight differ"):
        fit(tmp_path, other, 8)


def test_a_run_without_checkpoint_keeps_the_weights_it_begins_with(tmp_path):
    run = engine.Run(tmp_path, seed=7)
    engine.keep_frozen(run, half_frozen(0))
    run.finish()  # stopped before its first checkpoint
    second = half_frozen(1)
    fit(tmp_path, second, 2)
    assert torch.equal(engine.load_weights(tmp_path)[0]["0.weight"], second[0].weight)


def test_nothing_is_kept_where_everything_is_trained(tmp_path):
    fit(tmp_path, toy(), 2)
    assert not (tmp_path / "frozen.safetensors").exists()


def test_the_best_checkpoint_by_validation_loss(tmp_path):
    state = train(tmp_path, 16, validation_interval=4, best_metric="validation_loss", keep_checkpoints=1, save_interval=16)
    told = {line["step"]: line["loss"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
            if line["kind"] == "validation"}
    best = min(told, key=told.get)
    assert state.best["step"] == best and state.best["value"] == told[best] and sorted(told) == [4, 8, 12, 16]
    assert engine.load_weights(tmp_path)[1] == best


def test_validation_loss_without_held_out_data_is_said(tmp_path, caplog):
    train(tmp_path, 4, best_metric="validation_loss")
    assert "needs held-out data" in caplog.text
