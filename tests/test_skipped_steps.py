"""Steps of fp16 whose gradients overflow: skipped, counted, and never an Infinity in metrics.jsonl."""

import json
import math

import pytest
import torch
from ml_collections import ConfigDict

from libs import engine
from libs.engine import optim
from tests.test_engine import Batches


class Overflowing(torch.autograd.Function):
    """The identity, whose gradient is infinite where `spoil` is set."""

    @staticmethod
    def forward(context, x, spoil):
        context.spoil = spoil
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * (math.inf if context.spoil else 1.0), None


def train(folder, spoiled, *, n_steps=8, log_interval=4, stop_at=None):
    """A training with the loss scaler of fp16 on the CPU; the gradients of the steps `spoiled` overflow. Returns norms, state."""
    run = engine.Run(folder, seed=7)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=1000)
    torch.manual_seed(0)
    state = engine.State(run, torch.nn.Linear(3, 3), optimizer={"lr": 0.01}, lr_scheduler={"name": "constant"}, n_steps=n_steps)
    norms, advance = [], state.advance

    def noted(loss):
        norm, verdict = advance(loss)
        norms.append(float(norm))
        return norm, verdict

    state.advance = noted
    if stop_at is not None:
        run._stop.agreed = lambda: state.step == stop_at

    def loss_fn(net, batch):
        return Overflowing.apply(net(batch["x"]), state.step + 1 in spoiled).square().mean(), {}

    try:
        engine.fit(run, state, Batches(), loss_fn, ConfigDict(dict(n_steps=n_steps, log_interval=log_interval, save_interval=100)))
    finally:
        run.finish()
    return norms, state


def train_lines(folder):
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line.get(key) for key in ("step", "grad_norm", "skipped_steps")} for line in lines if line["kind"] == "train"]


def test_the_norm_is_that_of_the_steps_that_counted_and_the_others_are_counted(tmp_path):
    norms, _ = train(tmp_path, {2, 3, 5, 6, 7, 8})
    assert [math.isfinite(norm) for norm in norms] == [step in (1, 4) for step in range(1, 9)]
    first, second = train_lines(tmp_path)
    assert first == {"step": 4, "grad_norm": pytest.approx((norms[0] + norms[3]) / 2, rel=1e-5), "skipped_steps": 2}
    assert second == {"step": 8, "grad_norm": None, "skipped_steps": 4}


def test_a_skipped_step_changes_no_weight_and_lowers_the_scale(tmp_path):
    net = torch.nn.Linear(3, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    update = optim.Update(optim.make(net.parameters(), lr=0.1), scaler=scaler, grad_clip=1.0)
    for spoil, changes in ((True, False), (False, True), (True, False)):
        before, scale = net.weight.detach().clone(), scaler.get_scale()
        loss = Overflowing.apply(net(torch.ones(2, 3)), spoil).square().mean()
        scaler.scale(loss).backward()
        norm, verdict = update(loss.detach())
        assert (not torch.equal(before, net.weight)) is changes and bool(norm.isfinite()) is changes and verdict.isfinite()
        assert scaler.get_scale() == scale * (0.5 if spoil else 1.0)


def test_a_window_with_skipped_steps_survives_a_stop(tmp_path):
    train(tmp_path / "whole", {2, 6})
    with pytest.raises(SystemExit):
        train(tmp_path / "parts", {2, 6}, stop_at=3)
    record = json.loads((tmp_path / "parts" / "ckpts" / "3.ckpt" / "state.json").read_text(), parse_constant=pytest.fail)
    assert record["extra"]["counts"] == [[3, 3, 3]]
    train(tmp_path / "parts", {2, 6})
    assert train_lines(tmp_path / "parts") == train_lines(tmp_path / "whole")


def test_without_a_scaler_nothing_is_counted(tmp_path):
    run = engine.Run(tmp_path, seed=7)
    state = engine.State(run, torch.nn.Linear(3, 3), optimizer={"lr": 0.01}, lr_scheduler={"name": "constant"}, n_steps=4)
    engine.fit(run, state, Batches(), lambda net, batch: (net(batch["x"]).square().mean(), {}),
               ConfigDict(dict(n_steps=4, log_interval=2, save_interval=100)))
    run.finish()
    assert [line["skipped_steps"] for line in train_lines(tmp_path)] == [None, None]
    assert all(line["grad_norm"] > 0 for line in train_lines(tmp_path))
