"""Which times training draws: all alike, or the more often the larger their loss is.

A sampler of times draws (t, weights); a loss times its weight has the same mean, whichever sampler drew. What
one has learned lies in its buffers, so a state_dict carries it from a run to its continuation.
"""
import difflib

import torch
from torch import nn


class Uniform(nn.Module):
    """Times of `Schedule.sample_times`, all as probable; it learns nothing."""

    def __init__(self, schedule, times=None):
        super().__init__()
        self.schedule, self.times = schedule, times

    def draw(self, n, *, generator=None, device=None):
        """n times, float64 (n,), and their weights, float32 (n,): ones."""
        t = self.schedule.sample_times(n, times=self.times, generator=generator, device=device)
        return t, torch.ones(n, device=t.device)

    def update(self, t, losses):
        """Nothing."""


class LossSecondMoment(nn.Module):
    """Times in proportion to the root of the mean of their last ten squared losses (Nichol & Dhariwal 2021, 3.3).

    Uniform until each time has ten losses; after that a thousandth of the probability stays uniform.
    Buffers, a row for each of the T times from the lowest up: `history` (T, 10) of losses, in the order in
    which they came but that the newest takes the place of the oldest, and `counts` (T,) of all there were.
    They move to the device that `draw` is asked for.
    """
    kept = 10
    uniform = 0.001

    def __init__(self, schedule, times=None, gather=None):
        super().__init__()
        if times is None and schedule.steps is None:
            raise ValueError(f"'loss_second_moment' keeps losses of single times, and {type(schedule).__name__} has "
                             "none: give a grid (times=schedule.times(1000)), a discrete schedule (linear, cosine, sd), "
                             "or take 'uniform'")
        if times is None:
            grid = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
        else:
            grid = torch.as_tensor(times, dtype=torch.float64).cpu()[:-1].flip(0)
        if not len(grid) or not (grid.diff() > 0).all():
            raise ValueError(f"times={times}: two or more that fall strictly are needed, the last is never drawn")
        self.gather = gather
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("history", torch.zeros(len(grid), self.kept))
        self.register_buffer("counts", torch.zeros(len(grid), dtype=torch.int64))

    def probabilities(self):
        """p_t of each of the T times, float64 (T,), from the lowest time up."""
        flat = torch.full_like(self.grid, 1 / len(self.grid))
        root = self.history.double().square().mean(1).sqrt()
        total = root.sum()
        known = (self.counts >= self.kept).all() & (total > 0)
        return torch.where(known, (1 - self.uniform) * root / total + self.uniform * flat, flat)

    def draw(self, n, *, generator=None, device=None):
        """n times, float64 (n,), and their weights 1 / (T p_t), float32 (n,)."""
        self._follow(device)
        own = self.grid.device
        source = own if generator is None else generator.device
        p = self.probabilities()
        u = torch.rand(n, generator=generator, device=source, dtype=torch.float64).to(own)
        k = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        return self.grid[k], (1 / (len(p) * p[k])).float()

    @torch.no_grad()
    def update(self, t, losses):
        """Take in the losses (n,), unweighted, of the images at times t (n,); a loss that is not finite is left out.

        All processes call it with as many images each: `gather` joins theirs, so that all keep the same history.
        """
        if t.ndim != 1 or t.shape != losses.shape:
            raise ValueError(f"t has shape {tuple(t.shape)} and losses {tuple(losses.shape)}: one loss for each time is needed")
        pairs = torch.stack([t.to(losses.device).double(), losses.double()], dim=1)
        t, losses = (pairs if self.gather is None else self.gather(pairs)).to(self.grid.device).unbind(1)
        losses = losses.to(self.history.dtype)
        k, count = torch.bucketize(t.contiguous(), (self.grid[1:] + self.grid[:-1]) / 2), len(self.grid)
        # What is not kept goes to a row and a place beyond the last, cut off below: no mask, for which a device must wait.
        k, order = torch.where(losses.isfinite(), k, count).sort(stable=True)
        here, losses = torch.arange(len(k), device=k.device), losses[order]
        earlier = here - torch.searchsorted(k, k)       # of the same time in this batch
        later = torch.searchsorted(k, k, right=True) - here - 1
        kept = (k < count) & (later < self.kept)
        seen = torch.cat([self.counts, self.counts.new_zeros(1)])
        place = torch.where(kept, k * self.kept + (seen[k] + earlier) % self.kept, count * self.kept)
        history = torch.cat([self.history.flatten(), self.history.new_zeros(1)])
        history[place] = losses
        self.history.copy_(history[:-1].view_as(self.history))
        self.counts.copy_(seen.index_add_(0, k, torch.ones_like(k))[:-1])

    def _follow(self, device):
        if device is not None and self.grid.device != torch.device(device):
            self.to(device)


TIME_SAMPLERS = {"uniform": Uniform, "loss_second_moment": LossSecondMoment}


def time_sampler(name, schedule, times=None, *, gather=None):
    """The sampler of training times of that name, an nn.Module with `draw` and `update`: see TIME_SAMPLERS.

    times: the training grid as `Schedule.sample_times` takes it, falling, its last never drawn; by default all
    n/N of a discrete schedule, or U[0, 1). gather: joins the rows (n, 2) of all processes on each of them,
    such as accelerator.gather; None for one process.
    """
    if name not in TIME_SAMPLERS:
        close = difflib.get_close_matches(str(name), TIME_SAMPLERS, 1)
        raise ValueError(f"time sampler {name!r}; known: {', '.join(TIME_SAMPLERS)}"
                         + (f". Did you mean {close[0]!r}?" if close else ""))
    if name == "uniform":
        return Uniform(schedule, times)
    return LossSecondMoment(schedule, times, gather)
