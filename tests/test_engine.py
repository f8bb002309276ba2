"""The training loop on a toy network: exact resume, verdicts on the device, counts of operations, averages."""

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch.utils._python_dispatch import TorchDispatchMode

from libs import engine
from libs.engine import checkpoint, optim
from libs.engine.loop import Window
from libs.engine.run import use_tf32


class Batches:
    """An endless stream of batches that are functions of the step alone."""

    def __init__(self, poison=None):
        self.poison = poison

    def __call__(self, start):
        step = start
        while True:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            if self.poison == step:
                x[1] = math.nan
            yield {"x": x, "index": torch.arange(4) + 4 * step}
            step += 1

    def file_name(self, i):
        return f"file{i}.png"


def loss_fn(net, batch):
    noise = torch.randn_like(batch["x"])  # from the generator that the engine seeds
    loss = (net(batch["x"]) - noise).square().mean()
    return loss, {"size": net(batch["x"]).abs().mean()}


def toy(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))


def settings(**own):
    return ConfigDict(dict(n_steps=20, log_interval=4, save_interval=5, keep_checkpoints=2) | own)


def begin(folder, *, net=None, **own):
    run = engine.Run(folder, seed=7)
    return run, engine.State(run, net or toy(), optimizer={"lr": 0.01, "betas": (0.9, 0.99)},
                             lr_scheduler={"name": "customized", "warmup_steps": 3}, n_steps=20, ema_rate=0.9, **own)


def train(folder, n_steps, stop_at=None, batches=None, **own):
    run, state = begin(folder, **{key: own.pop(key) for key in ("net", "grad_clip") if key in own})
    if stop_at is not None:
        asked = run._stop.agreed
        run._stop.agreed = lambda: state.step == stop_at or asked()
    try:
        engine.fit(run, state, batches or Batches(), loss_fn, settings(n_steps=n_steps, **own),
                   validation=lambda: iter([next(Batches()(1000)), next(Batches()(1001))]))
    finally:
        run.finish()
    return state


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in found]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_resume_is_exact_at_any_step(tmp_path, accumulation):
    own = dict(accumulation=accumulation, validation_interval=10, grad_clip=0.5)
    whole = train(tmp_path / "whole", 20, **own)
    for stop in (1, 6, 13):
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path / f"{stop}", 20, stop_at=stop, **own)
        assert stopped.value.code == 143
        assert checkpoint.steps(tmp_path / f"{stop}" / "ckpts")[-1] == stop
        resumed = train(tmp_path / f"{stop}", 20, **own)
        for mine, its in zip(whole.module.parameters(), resumed.module.parameters()):
            assert torch.equal(mine, its)
        for mine, its in zip(whole.ema.parameters(), resumed.ema.parameters()):
            assert torch.equal(mine, its)
        assert lines(tmp_path / "whole") == lines(tmp_path / f"{stop}")


def test_accumulation_does_not_change_the_gradient(tmp_path):
    net = torch.nn.Linear(3, 3)

    def plain(net, batch):
        return net(batch["x"]).square().mean(), {}

    results = []
    for parts in (1, 2, 4):
        run, state = begin(tmp_path / f"{parts}", net=torch.nn.Linear(3, 3))
        state.module.load_state_dict(net.state_dict())
        engine.fit(run, state, Batches(), plain, settings(n_steps=6, accumulation=parts))
        results.append(state.module.weight.detach().clone())
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_metrics_after_a_kill_are_rewound(tmp_path):
    train(tmp_path, 10)
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 12, "kind": "train", "loss": 1}\n{"step": 16, "kin')
    train(tmp_path, 20)
    train(tmp_path / "whole", 20)
    # step 10 was the last of a shorter run, so it has a log line of its own
    assert [line for line in lines(tmp_path) if line["step"] > 12] == lines(tmp_path / "whole")[3:]


@pytest.mark.parametrize("log_interval", [1, 4])
def test_a_non_finite_loss_changes_no_weight_and_names_step_and_files(tmp_path, log_interval):
    run, state = begin(tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 10 is not finite.*file36.png, file37.png"):
        engine.fit(run, state, Batches(poison=9), loss_fn, settings(log_interval=log_interval))
    good = train(tmp_path / "good", 9)
    for mine, its in zip(state.module.parameters(), good.module.parameters()):
        assert torch.equal(mine, its)
    assert checkpoint.steps(tmp_path / "ckpts") == [5]


class Operations(TorchDispatchMode):
    """Names of all operations that are dispatched, the marks for profilers aside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names += [str(function)] if not str(function).startswith("profiler.") else []
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_update_average_and_norm_are_twelve_operations(tmp_path, grad_clip):
    run, state = begin(tmp_path, grad_clip=grad_clip)
    for _ in range(2):
        loss, _ = loss_fn(state.net, next(Batches()(0)))
        loss.backward()
        loss = loss.detach()
        with Operations() as counted:
            state.advance(loss)
    assert len(counted.names) <= 12, counted.names


def test_no_device_is_waited_for_between_log_lines(tmp_path, monkeypatch):
    """A read of a device value dispatches _local_scalar_dense (item) or a copy; only log lines and saves may."""
    run, state = begin(tmp_path)
    seen = []
    advance = state.advance

    def counted(loss):
        with Operations() as operations:
            result = advance(loss)
        seen.append([name for name in operations.names if "_local_scalar_dense" in name or "_to_copy" in name])
        return result

    monkeypatch.setattr(state, "advance", counted)
    waits = []
    monkeypatch.setattr(Window, "check", lambda self, real=Window.check: (waits.append(state.step), real(self))[1])
    with Operations() as everything:
        engine.fit(run, state, Batches(), loss_fn, settings(n_steps=12, log_interval=6, save_interval=0))
    assert seen == [[]] * 12
    assert sorted(set(waits)) == [6, 12]
    items = [name for name in everything.names if "_local_scalar_dense" in name]
    assert len(items) <= 40, f"{len(items)} reads for two log lines and one checkpoint"


def test_clipping_equals_torch(tmp_path):
    run, state = begin(tmp_path, net=torch.nn.Linear(3, 3), grad_clip=0.1)
    other = torch.nn.Linear(3, 3)
    other.load_state_dict(state.module.state_dict())
    reference = torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.9, 0.99))
    for step in range(5):
        x = next(Batches()(step))["x"]
        for net in (state.module, other):
            (10 * net(x).square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        for group in reference.param_groups:
            group["lr"] = 0.01 * min(step / 3, 1)
        reference.step()
        reference.zero_grad()
        state.advance(torch.tensor(1.0))
    torch.testing.assert_close(state.module.weight, other.weight, rtol=1e-5, atol=1e-7)


def test_average_follows_its_formula_and_frozen_weights_are_shared(tmp_path):
    net = toy()
    net[0].requires_grad_(False)
    run, state = begin(tmp_path, net=net)
    assert state.ema[0].weight is net[0].weight
    expected = net[2].weight.detach().clone()
    for step in range(3):
        loss, _ = loss_fn(state.net, next(Batches()(step)))
        loss.backward()
        state.advance(loss.detach())
        rate = min(0.9, (2 + step) / (11 + step))  # of update number step + 1
        expected = rate * expected + (1 - rate) * net[2].weight.detach()
    torch.testing.assert_close(state.ema[2].weight, expected)
    state.save(tmp_path / "ckpts", keep=1)
    saved, _ = checkpoint.read(tmp_path / "ckpts" / "3.ckpt")
    assert sorted(saved["nnet"]) == sorted(saved["nnet_ema"]) == ["2.bias", "2.weight"]


def test_best_checkpoint_is_kept_and_loaded(tmp_path):
    run, state = begin(tmp_path)
    scores = {4: 3.0, 8: 1.0, 12: 2.0, 16: math.nan, 20: 5.0}
    engine.fit(run, state, Batches(), loss_fn, settings(eval_interval=4, save_interval=4, keep_checkpoints=1,
                                                        best_metric="distance"),
               evaluate=lambda ema, step: {"distance": scores[step]})
    assert checkpoint.steps(tmp_path / "ckpts") == [8, 20]
    weights, step, folder = engine.load_weights(tmp_path)
    assert step == 8 and folder.name == "8.ckpt" and set(weights) == set(state.module.state_dict())


def test_best_is_never_compared_with_other_scores(tmp_path, caplog):
    """Inception weights that were missing in the first session change what 'frechet' means."""
    run, state = begin(tmp_path)
    engine.fit(run, state, Batches(), loss_fn, settings(n_steps=4, eval_interval=4, best_metric="frechet"),
               evaluate=lambda ema, step: {"frechet": 3.0, "fd_classifier": 3.0})
    run.finish()
    run, state = begin(tmp_path)
    engine.fit(run, state, Batches(), loss_fn, settings(n_steps=8, eval_interval=4, best_metric="frechet"),
               evaluate=lambda ema, step: {"frechet": 40.0, "fid": 40.0})
    assert state.best["step"] == 8 and state.best["value"] == 40.0 and "judged by other scores" in caplog.text


def test_two_runs_cannot_share_a_folder(tmp_path, monkeypatch):
    run = engine.Run(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ValueError, match="another process is using the run folder"):
        engine.Run(tmp_path)
    run.finish()
    engine.Run(tmp_path).finish()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    train(tmp_path, 5)
    with pytest.raises(ValueError, match=r"0.weight: \(8, 3\) in the checkpoint, \(9, 3\) in this network"):
        train(tmp_path, 10, net=torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.Dropout(0.2), torch.nn.Linear(9, 3)))


class Payload:
    """A pickle that would leave a mark if it were executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_weights_files(tmp_path):
    state = toy().state_dict()
    torch.save(state, tmp_path / "published.pth")
    weights, step, _ = engine.load_weights(tmp_path / "published.pth")
    assert step is None and all(torch.equal(weights[name], state[name]) for name in state)
    torch.save({"step": 3, "network": state}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold a state_dict"):
        engine.load_weights(tmp_path / "other.pth")
    torch.save({"a": Payload(tmp_path / "mark")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be loaded safely|can be loaded safely"):
        engine.load_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "mark").exists()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        engine.load_weights(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        engine.load_weights(tmp_path)


def test_learning_rates():
    assert [optim.lr_factor(step, warmup_steps=4, n_steps=9) for step in (0, 2, 4, 400)] == [0.0, 0.5, 1.0, 1.0]
    cosine = [optim.lr_factor(step, name="cosine", warmup_steps=10, n_steps=110) for step in (0, 10, 60, 110)]
    np.testing.assert_allclose(cosine, [0.0, 1.0, 0.5, 0.0], atol=1e-12)
    with pytest.raises(ValueError, match="unknown lr_scheduler 'stairs'"):
        optim.lr_factor(0, name="stairs", n_steps=9)
    with pytest.raises(ValueError, match="cannot begin with 10 steps of warm-up"):
        optim.lr_factor(0, name="cosine", warmup_steps=10, n_steps=10)
    with pytest.raises(ValueError, match="unknown optimizer 'sgdd'"):
        optim.make([torch.nn.Parameter(torch.zeros(1))], name="sgdd", lr=1.0)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="config.train.save_intervall; did you mean save_interval"):
        engine.check_settings(ConfigDict({"save_intervall": 3}))


@pytest.fixture
def precision():
    """Puts PyTorch's precision of float32 products back as it was."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("device, train, found", [
    ("cuda", {"tf32": True}, ("high", True)), ("cuda", {"tf32": False}, ("highest", False)), ("cuda", {}, ("highest", True)),
    ("cpu", {"tf32": True}, ("highest", True)), ("cpu", {"tf32": False}, ("highest", True))])
def test_tf32_is_set_on_cuda_alone_and_never_for_metrics(device, train, found, precision, tmp_path, monkeypatch):
    from libs.metrics.features import full_precision
    use_tf32(False)
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's defaults
    monkeypatch.setattr("libs.engine.run.Run", lambda folder, **_: SimpleNamespace(device=torch.device(device), is_main=True))
    engine.start(ConfigDict({"seed": 0, "train": train}), tmp_path, claim=False)
    for _ in range(2):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == found
        # the newer view of the same settings agrees
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == (found[0] == "high")
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == found[1]
        with full_precision(device):
            assert torch.backends.cuda.matmul.fp32_precision != "tf32" != torch.backends.cudnn.conv.fp32_precision
    engine.check_settings(ConfigDict({"tf32": True}))  # every script that trains reads it, by `start`


def test_changed_settings_are_named_and_written_only_when_the_run_begins(tmp_path, caplog):
    config = ConfigDict({"seed": 0, "train": {"n_steps": 5}})
    run = engine.start(config, tmp_path)
    run.record("classes.json", ["a", "b"], fixed=True)
    assert not (tmp_path / "config.json").exists()
    run.describe()
    run.finish()
    config.train.n_steps = 9
    run = engine.start(config, tmp_path)
    assert run.changes == ["train.n_steps was 5, is now 9"]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["n_steps"] == 5
    with pytest.raises(ValueError, match="classes.json says .*belongs to another run"):
        run.record("classes.json", ["b", "a"], fixed=True)
    with caplog.at_level(logging.WARNING):
        run.describe()
    assert "train.n_steps was 5, is now 9" in caplog.text
    run.finish()
    assert json.loads((tmp_path / "config.json").read_text())["train"]["n_steps"] == 9
    assert len(json.loads((tmp_path / "run.json").read_text())["sessions"]) == 2


def test_the_stream_of_the_data_room_names_files():
    from libs import data
    stream = data.Stream(data.get(name="phantoms", size=8, resolution=8), 4, seed=0)
    assert stream.file_name(3) == stream.dataset.file_name(3) != ""


class Now(Batches):
    """Batches that bring the number of their step."""

    def __call__(self, start):
        for step, batch in enumerate(super().__call__(start), start):
            yield batch | {"step": torch.full((4,), step)}


def rare(net, batch):
    """A term that steps 0, 3, 6, ... have, larger by 2 in the second of two parts, and in odd steps there alone."""
    loss, step, first = net(batch["x"]).square().mean(), int(batch["step"][0]), int(batch["index"][0]) % 4
    there = step % 3 == 0 and (step % 2 == 0 or first or len(batch["index"]) == 4)
    return loss, {"size": loss.detach()} | ({"rare": torch.tensor(float(step + first))} if there else {})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_term_of_some_steps_is_averaged_over_those(tmp_path, monkeypatch, accumulation):
    monkeypatch.setitem(globals(), "loss_fn", rare)
    own = dict(log_interval=5, batches=Now(), accumulation=accumulation)
    train(tmp_path / "whole", 20, **own)
    found = [line.get("rare") for line in lines(tmp_path / "whole") if line["kind"] == "train"]
    assert found == pytest.approx([1.5, 7.5, 12, 16.5] if accumulation == 1 else [(1 + 5) / 2, (7 + 11) / 2, 13, (17 + 19) / 2])
    with pytest.raises(SystemExit):
        train(tmp_path / "parts", 20, stop_at=9, **own)
    assert checkpoint.read_latest(tmp_path / "parts" / "ckpts")[2]["extra"]["counts"] == [[4, 4, 4, 1]]
    train(tmp_path / "parts", 20, **own)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_term_that_no_step_had_is_not_logged(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "loss_fn", rare)
    train(tmp_path, 8, log_interval=2, batches=Now())
    assert ["rare" in line for line in lines(tmp_path) if line["kind"] == "train"] == [True, True, False, True]


def test_windows_of_earlier_versions_are_gone_on_with(tmp_path):
    window = Window(engine.Run(tmp_path))
    window.restore({"count": 2, "names": ["loss", "size"], "sums": [[3.0, 5.0]]})
    window.add({"loss": torch.tensor(3.0), "size": torch.tensor(1.0)}, torch.tensor(0.0), torch.arange(4), 3, None)
    assert {name: value for name, value in window.close().items() if name != "images_per_second"} == {"loss": 2.0, "size": 2.0}
    window.run.finish()
