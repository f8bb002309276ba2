"""What a network's output says about the clean image and the noise."""
from typing import NamedTuple

import torch

from .schedule import mix

PREDICTIONS = ("eps", "x0", "v")


class Estimate(NamedTuple):
    """The clean image x0 and the noise eps in x_t = alpha x0 + sigma eps, both like x_t.

    push: what by_gradient added, s grad: x0 and eps hold it already, and ancestral steps take it at their own variance.
    var: where the network learns the variance of a step, the fraction f, like x_t and 0..1 within the range,
    of log variance = f log(beta) + (1-f) log(beta~) (Nichol & Dhariwal 2021, eq. 15): each step has its own
    beta.
    """
    x0: torch.Tensor
    eps: torch.Tensor
    var: torch.Tensor | None = None
    push: torch.Tensor | None = None


class Output(NamedTuple):
    """What the network says: its prediction (like x), variance head v in about [-1, 1], auxiliary losses."""
    prediction: torch.Tensor
    v: torch.Tensor | None = None
    losses: dict = {}


class Denoiser:
    """denoise(x, t, **cond) -> Estimate from a network `net(x, network_time, **cond)` and its schedule.

    predicts: what the network was trained on: eps, x0, or v = alpha eps - sigma x0 (Salimans & Ho 2022).
    learned_var: it returns 2C channels, the prediction and then v, with var = (v + 1) / 2.
    clip: x0 is clipped to [-1, 1] and eps is what then remains of x, as guided-diffusion does for pixels.
    """

    def __init__(self, net, schedule, predicts="eps", learned_var=False, clip=False):
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts={predicts!r}; allowed: {', '.join(PREDICTIONS)}")
        self.net, self.schedule = net, schedule
        self.predicts, self.learned_var, self.clip = predicts, learned_var, clip

    def __call__(self, x, t, **cond):
        """The Estimate at x_t (N, C, H, W) for the time t, a float when sampling, Tensor (N,) in training."""
        return self.estimate(self.output(x, t, **cond), x, t)

    def output(self, x, t, **cond):
        """What the network returns, taken apart; with_losses=True in `cond` asks for its auxiliary losses."""
        out = self.net(x, for_network(self.schedule.network_time, x, t), **cond)
        out, losses = out if isinstance(out, tuple) else (out, {})
        if out.dtype != x.dtype:  # the network may run in half precision, the arithmetic around it does not
            out = out.to(x.dtype)
        wanted = (len(x), 2 * x.shape[1], *x.shape[2:]) if self.learned_var else tuple(x.shape)
        if out.shape != wanted:
            raise ValueError(f"the network returned {tuple(out.shape)} for x {tuple(x.shape)}, not {wanted}: "
                             f"is learned_var={self.learned_var} right? True is for 2C channels")
        return Output(*out.chunk(2, 1), losses) if self.learned_var else Output(out, None, losses)

    def estimate(self, output, x, t, *, clip=None):
        """The Estimate that an Output at x_t means; clip overrides the denoiser's own."""
        out, clip = output.prediction, self.clip if clip is None else clip
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        from_x0 = clip or self.predicts == "x0"
        if isinstance(sigma, float) and sigma == 0 and from_x0:
            raise ValueError("t=0.0 is clean data, which says nothing about eps: start from a t above 0")
        if self.predicts == "eps":
            x0, eps = mix(1 / alpha, x, -sigma / alpha, out), out
        elif self.predicts == "v":
            x0, eps = mix(alpha, x, -sigma, out), None if from_x0 else mix(sigma, x, alpha, out)
        else:
            x0 = out
        if clip:
            x0 = x0.clamp(-1, 1)
        if from_x0:
            eps = mix(1 / sigma, x, -alpha / sigma, x0)
        return Estimate(x0, eps, None if output.v is None else (output.v + 1) / 2)

    def target(self, x0, eps, t):
        """What the network should predict at x_t = alpha x0 + sigma eps."""
        if self.predicts == "v":
            return mix(self.schedule.alpha(t), eps, -self.schedule.sigma(t), x0)
        return x0 if self.predicts == "x0" else eps


def for_network(network_time, x, t):
    """network_time(t), float32 (N,) on the device of the images x (N, ...), for t a float or Tensor (N,)."""
    if isinstance(t, torch.Tensor):
        return network_time(t.double()).to(x.device, torch.float32).expand(len(x))
    return torch.full((len(x),), network_time(t), dtype=torch.float32, device=x.device)
