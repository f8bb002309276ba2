"""Noise and times of a held-out image are a function of (seed, image), whatever the batch, the order and the processes."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from libs import codecs, diffusion, engine
from libs.engine.item_noise import ItemNoise

TINY = ("--config=configs/phantom32_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.train.n_steps=1", "--config.train.validation_interval=1",
        "--config.train.preview_interval=0", "--config.train.eval_interval=0", "--config.optimizer.lr=1e-12",
        "--config.dataset.size=120", "--config.train.validation_size=24",
        "--config.lr_scheduler.warmup_steps=0")


def draws(x, index, seed=3):
    """What a loss may draw for items with values x (N, 3), by name."""
    with ItemNoise(seed, index):
        n = len(x)
        return {
            "randn_like": torch.randn_like(x), "randn": torch.randn(x.shape), "rand": torch.rand(n, dtype=torch.float64),
            "randint": torch.randint(1, 1000, (n,)), "half": torch.randn(n, 2, 2, dtype=torch.bfloat16),
            "rand_like": torch.rand_like(x), "randint_like": torch.randint_like(x, 9),
            "normal_": torch.empty(n, 4).normal_(2.0, 0.5), "uniform_": torch.empty(n, 4).uniform_(-1, 1),
            "bernoulli_": torch.empty(n, 40).bernoulli_(0.5), "random_": torch.empty(n, dtype=torch.int64).random_(0, 10 ** 6),
            "exponential_": torch.empty(n).exponential_(), "bernoulli": torch.bernoulli(x.sigmoid()),
            "multinomial": torch.multinomial(x.exp(), 2), "normal": torch.normal(x, x.exp()), "poisson": torch.poisson(x.exp()),
            "gumbel": F.gumbel_softmax(x), "dropout": F.dropout(torch.ones(n, 50), 0.5, training=True),
            "feature_dropout": F.dropout2d(torch.ones(n, 9, 2, 2), 0.5, training=True),
            "attention": F.scaled_dot_product_attention(*torch.ones(3, n, 2, 6, 8).unbind(0), dropout_p=0.5),
            "distribution": torch.distributions.Normal(x, 1.0).sample(), "offset": diffusion.loss.draw_noise(x[:, :, None, None], 0.1),
        }


def test_each_item_meets_its_own_numbers_in_any_batch_and_order():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    whole = draws(x, range(12))
    parts = [draws(x[i:i + 5], range(i, min(i + 5, 12))) for i in (0, 5, 10)]
    order = torch.tensor([7, 0, 11, 3])
    again, other = draws(x[order], order), draws(x, range(12), seed=4)
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts])), name
        assert torch.equal(value[order], again[name]), name
        assert not torch.equal(value, other[name]), f"{name} does not depend on the seed"
        assert len({tuple(row.flatten().tolist()) for row in value}) > 1, f"{name} is the same for all items"


def test_the_numbers_have_the_right_distribution():
    with ItemNoise(0, range(4000)):
        normal, uniform, whole = torch.randn(4000), torch.rand(4000), torch.randint(1, 5, (4000,))
        dropped = F.dropout(torch.ones(4000, 3), 0.25, training=True)
    assert abs(normal.mean()) < 0.06 and abs(normal.std() - 1) < 0.05
    assert abs(uniform.mean() - 0.5) < 0.02 and uniform.min() >= 0 and uniform.max() < 1
    assert whole.unique().tolist() == [1, 2, 3, 4]
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3]) and abs(dropped.mean() - 1) < 0.03


def test_the_generators_of_others_are_left_alone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        generator, same = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        with ItemNoise(0, range(4)):
            mine = torch.randn(7, generator=generator)
        assert torch.equal(mine, torch.randn(7, generator=same))


@pytest.mark.parametrize("draw", [lambda: torch.randn(3, 5), lambda: torch.rand(()), lambda: torch.randperm(5),
                                  lambda: torch.randn(1, 5), lambda: F.rrelu(-torch.ones(4, 9), training=True)])
def test_what_cannot_be_given_to_single_items_is_refused(draw):
    with torch.random.fork_rng(devices=[]), ItemNoise(0, range(4)), pytest.raises(ValueError, match="cannot be given to single"):
        draw()


def test_attention_without_dropout_and_all_else_passes():
    layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    with torch.no_grad(), ItemNoise(0, range(4)):
        F.scaled_dot_product_attention(*torch.ones(3, 4, 2, 6, 8).unbind(0))
        layer(torch.ones(4, 3, 8))


def mean_loss(loss_fn, net, items, size, world=1, seed=7):
    """validation_loss over `items` as `world` processes with batches of `size` would compute it, from the means of each."""
    run = SimpleNamespace(seed=seed, rank=0, world=1, device=torch.device("cpu"), from_main=lambda value: value,
                          gather_rows=lambda rows: rows, accelerator=SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False)))
    total, count = {}, 0
    for rank in range(world):
        mine = range(len(items["index"]))[rank::world]
        batches = [{key: value[list(mine[i:i + size])] for key, value in items.items()} for i in range(0, len(mine), size)]
        for name, value in engine.validation_loss(run, loss_fn, net, iter(batches)).items():
            total[name] = total.get(name, 0) + value * len(mine)
        count += len(mine)
    return {name: value / count for name, value in total.items()}


class Net(torch.nn.Module):
    """A network of images with two outputs for each channel and dropout."""

    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.drop = torch.nn.Conv2d(2, outputs, 3, padding=1), torch.nn.Dropout(0.5)

    def forward(self, x, t):
        return self.drop(self.conv(x)) + t.float().reshape(-1, 1, 1, 1) / 1000


def hybrid(net, batch):
    schedule = diffusion.schedule(name="linear")
    t, _ = diffusion.time_sampler("uniform", schedule).draw(len(batch["z"]))
    losses = diffusion.loss.hybrid(diffusion.Denoiser(net, schedule, predicts="eps", learned_var=True), batch["z"], t)
    return losses.loss.mean(), {"vb": losses.vb.mean()}


STORED = codecs.get(name="pixels")


def moments(net, batch):
    schedule = diffusion.schedule(name="vpsde")
    z = codecs.latents(STORED, {"mean": batch["z"], "std": torch.full_like(batch["z"], 0.3)})  # as a store has them
    t = schedule.sample_times(len(z))
    noise = diffusion.loss.draw_noise(z, offset=0.1)
    losses = diffusion.loss.simple(diffusion.Denoiser(net, schedule, predicts="eps"), z, t, noise, input_perturbation=0.1)
    return diffusion.loss.batch_mean(losses, batch["weight"]), {}


@pytest.mark.parametrize("loss_fn, outputs", [(hybrid, 4), (moments, 2)])
def test_the_mean_over_held_out_images_does_not_depend_on_the_batching(loss_fn, outputs):
    generator = torch.Generator().manual_seed(1)
    items = {"z": torch.rand(10, 2, 8, 8, generator=generator) * 2 - 1, "weight": torch.rand(10, generator=generator),
             "index": torch.randperm(40, generator=generator)[:10]}
    net = Net(outputs).eval()
    reference = mean_loss(loss_fn, net, items, 1)
    for size, world in ((3, 1), (10, 1), (4, 2), (1, 3)):
        assert mean_loss(loss_fn, net, items, size, world) == pytest.approx(reference, rel=1e-6)
    turned = {key: value.flip(0) for key, value in items.items()}
    assert mean_loss(loss_fn, net, turned, 4) == pytest.approx(reference, rel=1e-6)
    assert mean_loss(loss_fn, net, items, 4, seed=8)["loss"] != pytest.approx(reference["loss"], rel=1e-3)


def validation_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line["loss"] for line in lines if line["kind"] == "validation")


def test_train_py_has_one_validation_loss_for_any_batch_size_and_processes(inside, script, tmp_path):
    for size in (8, 24):
        inside("train.py", *TINY, f"--config.train.batch_size={size}", f"--workdir={tmp_path / str(size)}")
    script("train.py", *TINY, "--config.train.batch_size=8", f"--workdir={tmp_path / 'two'}", processes=2)
    losses = [validation_of(tmp_path / name) for name in ("8", "24", "two")]
    assert losses == pytest.approx([losses[0]] * 3, rel=2e-6)


def test_a_best_checkpoint_that_other_noise_chose_is_forgotten(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    best = {"step": 2, "metric": "validation_loss", "value": 1e-9, "judged_by": ["validation_loss"]}  # of an earlier version
    state = SimpleNamespace(step=4, best=best)
    from libs.engine.loop import _is_best
    judged = ["validation_loss of 24 items, noise of seed 7"]
    assert _is_best(state, {"validation_loss": 0.5}, "validation_loss", judged) and state.best["step"] == 4
    assert "judged by other scores (validation_loss)" in caplog.text
    state.step = 6
    assert not _is_best(state, {"validation_loss": 0.6}, "validation_loss", judged) and state.best["step"] == 4
