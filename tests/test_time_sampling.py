"""Training times drawn by their losses, against a plain loop over numpy arrays."""
import numpy as np
import pytest
import torch

from libs import diffusion


class ByLoop:
    """Nichol & Dhariwal 2021, section 3.3, a list of losses for each time."""

    def __init__(self, count):
        self.losses = [[] for _ in range(count)]

    def update(self, ks, losses):
        for k, loss in zip(ks, losses):
            if np.isfinite(loss):
                self.losses[k] = [*self.losses[k], loss][-10:]

    def probabilities(self):
        count = len(self.losses)
        if min(len(held) for held in self.losses) < 10:
            return np.full(count, 1 / count)
        root = np.array([np.sqrt(np.mean(np.array(held) ** 2)) for held in self.losses])
        return root / root.sum() * (1 - 0.001) + 0.001 / count


def by_loss(steps=6, **kwargs):
    return diffusion.time_sampler("loss_second_moment", diffusion.schedule("linear", steps=steps), **kwargs)


def batch(rng, size, count=6):
    ks, losses = rng.integers(0, count, size), rng.exponential(size=size).astype(np.float32)
    return ks, losses, torch.from_numpy(ks + 1).double() / count, torch.from_numpy(losses)


def trained(sampler, seed=0, rounds=15, size=16):
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        sampler.update(*batch(rng, size)[2:])
    return sampler


@pytest.mark.parametrize("size", [1, 7, 200])
def test_probabilities_are_those_of_a_loop(size):
    """Also where a time occurs many times in one batch: at 200 images, about 33 times, of which 10 are kept."""
    rng, sampler, loop = np.random.default_rng(0), by_loss(), ByLoop(6)
    for _ in range(-(-300 // size)):
        ks, losses, t, given = batch(rng, size)
        sampler.update(t, given)
        loop.update(ks, losses)
        for row, count, held in zip(sampler.history, sampler.counts.tolist(), loop.losses):
            assert sorted(row[:min(count, 10)].tolist()) == sorted(float(loss) for loss in held)
        np.testing.assert_allclose(sampler.probabilities(), loop.probabilities(), rtol=1e-6)
    assert sampler.counts.sum() == -(-300 // size) * size
    assert np.ptp(loop.probabilities()) > 0.01


def test_uniform_until_every_time_has_ten_losses():
    sampler, t = by_loss(steps=4), torch.arange(1, 5).double() / 4
    for _ in range(9):
        sampler.update(t, torch.tensor([1.0, 2, 3, 4]))
    sampler.update(t[:3], torch.tensor([1.0, 2, 3]))
    assert torch.equal(sampler.probabilities(), torch.full((4,), 0.25).double())
    assert torch.equal(sampler.draw(5)[1], torch.ones(5))
    sampler.update(t[3:], torch.tensor([4.0]))
    torch.testing.assert_close(sampler.probabilities(), 0.999 * torch.tensor([0.1, 0.2, 0.3, 0.4]).double() + 0.001 / 4)


def test_weights_keep_the_mean_of_every_loss():
    sampler = trained(by_loss())
    t, weights = sampler.draw(40_000, generator=torch.Generator().manual_seed(0))
    assert t.dtype == torch.float64 and weights.dtype == torch.float32 and t.shape == weights.shape == (40_000,)
    p, k = sampler.probabilities(), (t * 6).round().long() - 1
    torch.testing.assert_close(weights, (1 / (6 * p[k])).float())
    assert p.sum().item() == pytest.approx(1, abs=1e-12) and (p[k.unique()] / (6 * p[k.unique()])).sum().item() == pytest.approx(1)
    drawn = k.bincount(minlength=6) / len(k)
    assert (drawn - p).abs().max() < 4 * (p * (1 - p) / len(k)).sqrt().max()
    assert (weights * t ** 2).mean().item() == pytest.approx(((torch.arange(1, 7) / 6) ** 2).mean().item(), abs=0.01)


def test_state_dict_carries_the_history_and_the_next_draws():
    sampler, other = trained(by_loss()), by_loss()
    assert list(sampler.state_dict()) == ["history", "counts"]
    assert sampler.history.shape == (6, 10) and sampler.counts.dtype == torch.int64
    other.load_state_dict(sampler.state_dict())
    first, second = (s.draw(50, generator=torch.Generator().manual_seed(1)) for s in (sampler, other))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and first[1].std() > 0
    trained(sampler, seed=5, rounds=1)
    trained(other, seed=5, rounds=1)
    assert torch.equal(sampler.history, other.history) and torch.equal(sampler.counts, other.counts)
    with pytest.raises(RuntimeError, match="size mismatch"):
        by_loss(steps=7).load_state_dict(sampler.state_dict())
    torch.manual_seed(3)
    drawn = sampler.draw(9)[0]
    torch.manual_seed(3)
    assert torch.equal(sampler.draw(9)[0], drawn)


def test_two_processes_hold_the_history_of_one():
    rng, alone, shared = np.random.default_rng(2), by_loss(), {}
    ranks = [by_loss(gather=lambda rows: torch.cat(shared["rows"])) for _ in range(2)]
    for _ in range(12):
        t, losses = batch(rng, 24)[2:]
        shared["rows"] = [torch.stack([t, losses.double()], 1)[part] for part in (slice(0, 12), slice(12, 24))]
        for rank, sampler in enumerate(ranks):
            sampler.update(t[12 * rank:12 * rank + 12], losses[12 * rank:12 * rank + 12])
        alone.update(t, losses)
    for sampler in ranks:
        assert torch.equal(sampler.history, alone.history) and torch.equal(sampler.counts, alone.counts)
    assert alone.probabilities().std() > 0


def test_losses_that_are_not_finite_leave_no_trace():
    sampler, clean = by_loss(), by_loss()
    ks, losses, t, given = batch(np.random.default_rng(4), 200)
    bad = given.clone()
    bad[::3], bad[1::7], bad[2::11] = torch.nan, torch.inf, -torch.inf
    sampler.update(t, bad)
    clean.update(t[bad.isfinite()], bad[bad.isfinite()])
    assert torch.equal(sampler.history, clean.history) and torch.equal(sampler.counts, clean.counts)
    sampler.update(t[:1], torch.tensor([1e300], dtype=torch.float64))      # infinite in the history's float32
    assert sampler.history.isfinite().all() and torch.equal(sampler.counts, clean.counts)
    nothing = by_loss(steps=2)
    for _ in range(10):
        nothing.update(torch.tensor([0.5, 1.0]), torch.zeros(2))
    assert torch.equal(nothing.probabilities(), torch.full((2,), 0.5).double())


def test_grids_of_training_are_kept_to():
    noise, generator = diffusion.schedule("linear"), torch.Generator().manual_seed(0)
    times = noise.times("ddim25")
    sampler = diffusion.time_sampler("loss_second_moment", noise, times)
    assert sampler.history.shape == (25, 10)
    drawn = torch.cat([sampler.draw(100, generator=generator)[0] for _ in range(5)])
    assert set(drawn.tolist()) == set(times[:-1].tolist())
    sampler.update(times[[3, 3, 24]].float(), torch.tensor([5.0, 6.0, 7.0]))       # float32 times find their rows
    assert sampler.counts.nonzero().flatten().tolist() == [0, 21] and sampler.history[21, :2].tolist() == [5, 6]
    continuous = diffusion.schedule("vpsde")
    gridded = diffusion.time_sampler("loss_second_moment", continuous, continuous.times(8))
    assert set(gridded.draw(200, generator=generator)[0].tolist()) == set(continuous.times(8)[:-1].tolist())


@pytest.mark.parametrize("name, times", [("linear", None), ("linear", "ddim25"), ("vpsde", None)])
def test_uniform_draws_what_the_schedule_draws(name, times):
    noise = diffusion.schedule(name)
    times = noise.times(times) if times else None
    sampler = diffusion.time_sampler("uniform", noise, times)
    t, weights = sampler.draw(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(t, noise.sample_times(30, times=times, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(weights, torch.ones(30)) and weights.dtype == torch.float32
    assert sampler.update(t, torch.rand(30)) is None and not sampler.state_dict()


def test_what_cannot_be_is_refused():
    noise = diffusion.schedule("linear", steps=10)
    with pytest.raises(ValueError, match="Did you mean 'loss_second_moment'"):
        diffusion.time_sampler("loss-second-moment", noise)
    with pytest.raises(ValueError, match="known: uniform, loss_second_moment"):
        diffusion.time_sampler("", noise)
    with pytest.raises(ValueError, match=r"VPSDE has none: give a grid \(times=schedule.times\(1000\)\).* 'uniform'"):
        diffusion.time_sampler("loss_second_moment", diffusion.schedule("vpsde"))
    for times in ([0.0], [0.1, 0.5, 1.0]):
        with pytest.raises(ValueError, match="fall strictly"):
            diffusion.time_sampler("loss_second_moment", noise, times)
    with pytest.raises(ValueError, match=r"t has shape \(3,\) and losses \(2,\)"):
        by_loss().update(torch.ones(3), torch.ones(2))
