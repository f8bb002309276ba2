"""What a training keeps beside the network: several averages, modules with a state of their own, moments in the weights' layout."""

import json

import pytest
import torch
from ml_collections import ConfigDict
from torch import nn

from libs import engine
from libs.engine import checkpoint, optim
from tests.test_engine import Batches


class Counter(nn.Module):
    """A module that learns something of each loss."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(()))


def convolutions():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).to(
        memory_format=torch.channels_last)


def train(folder, n_steps, *, stop_at=None, rates=(), ema_rate=0.9):
    run = engine.Run(folder, seed=7)
    counter = Counter()
    state = engine.State(run, convolutions(), optimizer={"lr": 0.01}, lr_scheduler={"name": "linear"}, n_steps=12,
                         ema_rate=ema_rate, more_ema_rates=rates, keep={"counter": counter})
    if stop_at is not None:
        run._stop.agreed = lambda: state.step == stop_at

    def loss_fn(net, batch):
        x = batch["x"][:, :, None, None].expand(-1, -1, 4, 4).contiguous(memory_format=torch.channels_last)
        loss = (net(x) - torch.randn_like(x)).square().mean()
        if net.training:
            counter.seen.add_(1)
            counter.last.copy_(loss.detach())
        return loss, {}

    try:
        engine.fit(run, state, Batches(), loss_fn, ConfigDict(dict(n_steps=n_steps, save_interval=4, keep_checkpoints=2)))
    finally:
        run.finish()
    return state, counter


def test_resume_restores_every_average_every_kept_module_and_the_layout_of_the_moments(tmp_path):
    whole, counted = train(tmp_path / "whole", 12, rates=(0.5, 0.99))
    with pytest.raises(SystemExit):
        train(tmp_path / "parts", 12, rates=(0.5, 0.99), stop_at=5)
    resumed, continued = train(tmp_path / "parts", 12, rates=(0.5, 0.99))
    assert continued.seen == counted.seen == 12 and continued.last == counted.last
    for one, other in zip(whole._weights + sum(whole._more.values(), []), resumed._weights + sum(resumed._more.values(), [])):
        assert torch.equal(one, other)
    assert resumed._weights[0].is_contiguous(memory_format=torch.channels_last)


def test_averages_are_what_their_rates_say(tmp_path):
    state, _ = train(tmp_path, 12, rates=(0.3, 0.5))
    first, _, _ = engine.load_weights(tmp_path)
    half, step, _ = engine.load_weights(tmp_path, ema_rate=0.5)
    assert step == 12 and not torch.equal(first["0.weight"], half["0.weight"])
    torch.testing.assert_close(first["0.weight"], state._averages[0])
    torch.testing.assert_close(engine.load_weights(tmp_path, ema_rate=0.9)[0]["0.weight"], first["0.weight"])
    raw, fast = engine.load_weights(tmp_path, averaged=False)[0]["0.weight"], state._more[0.3][0]
    assert (fast - raw).norm() < (half["0.weight"] - raw).norm() < (first["0.weight"] - raw).norm(), "the slower, the farther"
    torch.testing.assert_close(half["0.weight"], state._more[0.5][0])
    with pytest.raises(ValueError, match=r"no average of rate 0.7; known: 0 for the first, 0.3, 0.5"):
        engine.load_weights(tmp_path, ema_rate=0.7)


def test_an_average_that_was_not_kept_before_begins_with_the_weights(tmp_path, caplog):
    train(tmp_path, 4)
    state, counter = train(tmp_path, 5, rates=(0.5,))
    assert "no average of rate 0.5" in caplog.text and counter.seen == 5
    before = checkpoint.read(tmp_path / "ckpts" / "4.ckpt")[0]["nnet"]["0.weight"]
    rate = min(0.5, (1 + 5) / (10 + 5))  # of update number 5
    torch.testing.assert_close(state._more[0.5][0], rate * before + (1 - rate) * state._weights[0].detach())


def test_rates_that_no_average_has(tmp_path):
    for rates, message in (((0.9,), "there twice"), ((0.0,), "or is 0"), ((0.5, 0.5), "there twice"), ((1.5,), "must lie in")):
        with pytest.raises(ValueError, match=message):
            train(tmp_path / str(rates), 4, rates=rates)


class EightBit(torch.optim.Optimizer):
    """Keeps moments under the names of bitsandbytes."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            if not state:
                state.update(step=0, state1=torch.zeros_like(weight), absmax1=torch.zeros(1))
            state["step"] += 1
            state["state1"].lerp_(weight.grad, 0.1)
            weight.sub_(state["state1"], alpha=self.param_groups[0]["lr"])


@pytest.mark.parametrize("before, after", [("adamw_8bit", "adamw"), ("adamw", "adamw_8bit"), ("adam", "adamw_8bit")])
def test_moments_of_another_optimizer_are_refused_with_the_option_that_goes_on(tmp_path, monkeypatch, before, after):
    """As where a config takes 8 bits on the machine that has bitsandbytes, and a run moves from one to another."""
    monkeypatch.setattr(optim, "_eight_bit", lambda: EightBit)
    run = engine.Run(tmp_path, seed=7)

    def state_of(name):
        return engine.State(run, torch.nn.Linear(2, 2), optimizer={"name": name, "lr": 0.01}, lr_scheduler={}, n_steps=4)

    def step(state):
        loss = state.net(torch.ones(1, 2)).sum()
        loss.backward()
        state.advance(loss.detach())

    first = state_of(before)
    step(first)
    first.save(run.folder / "ckpts", keep=1)
    guessed = "adamw" if before == "adam" else before  # moments alone do not tell the two apart
    for said, named in ((before, before), (after, guessed), (None, guessed)):  # config.json may be older than this check
        (tmp_path / "config.json").write_text(json.dumps({"optimizer": {"name": said}} if said else {}))
        with pytest.raises(ValueError, match=rf"1.ckpt holds the moments of optimizer.name='{named}' .* here it is '{after}'.*"
                                             rf"--config.optimizer.name={named}(,|$)"):
            state_of(after).resume(run.folder / "ckpts")
    second = state_of(before)
    assert second.resume(run.folder / "ckpts") == {}
    step(first)
    step(second)
    assert torch.equal(second.module.weight, first.module.weight) and second.step == first.step == 2
    run.finish()


def test_another_kind_of_kept_module_begins_anew(tmp_path, caplog):
    train(tmp_path, 4)
    tensors, record = checkpoint.read(tmp_path / "ckpts" / "4.ckpt")
    checkpoint.write(tmp_path / "ckpts", 4, {**tensors, "counter": {"seen": torch.zeros(3)}}, record)
    _, counter = train(tmp_path, 6)
    assert "another kind of a counter: it begins anew" in caplog.text and counter.seen == 2


def test_linear_learning_rate_falls_to_zero_and_may_rise_first():
    found = [optim.lr_factor(step, name="linear", n_steps=4) for step in range(5)]
    assert found == [1.0, 0.75, 0.5, 0.25, 0.0], "guided-diffusion: 1 - step / lr_anneal_steps"
    found = [optim.lr_factor(step, name="linear", warmup_steps=2, n_steps=6) for step in range(7)]
    assert found == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_growth_of_the_loss_scale_reaches_the_scaler(tmp_path, monkeypatch):
    seen = []
    import libs.engine.run as room
    monkeypatch.setattr(room, "GradScalerKwargs", lambda **own: seen.append(own) or _Nothing())
    monkeypatch.setattr(room, "Accelerator", lambda **own: seen.append(own["kwargs_handlers"]) or (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        engine.Run(tmp_path, fp16_scale_growth=1e-3)
    assert seen[0] == {"growth_interval": 1000} and any(isinstance(each, _Nothing) for each in seen[1])


class _Nothing:
    pass
