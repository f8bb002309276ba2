"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps with alpha^2 + sigma^2 = 1.

A float t is answered by a float, so that a sampler's coefficients cost the device nothing; a Tensor t by a
Tensor of its shape and dtype. Both are computed in float64.
"""
import difflib
import inspect
import math
from functools import lru_cache
from typing import NamedTuple

import torch

from . import grids


@lru_cache(maxsize=16)
def _copied(times, device):
    return torch.tensor(times, dtype=torch.float64, device=device)


def grid_on(times, device):
    """Times, a Tensor or numbers, as a float64 Tensor on a device; copied there once, not at every step of a training."""
    device = None if device is None else torch.device(device)
    if device is None or device.type == "cpu" or isinstance(times, torch.Tensor) and times.device == device:
        return torch.as_tensor(times, dtype=torch.float64, device=device)
    return _copied(tuple(torch.as_tensor(times, dtype=torch.float64).tolist()), device)


def mix(a, x, b, y):
    """a x + b y, coefficients being floats (two operations on the device) or Tensors (N,), one per image."""
    if isinstance(a, torch.Tensor):
        a, b = (c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for c in (a, b))
        return a * x + b * y
    return torch.add(a * x, y, alpha=b)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0 * x_0 + xt * x_t, small); large is beta, the variance of q(x_t | x_s)."""
    x0: float | torch.Tensor
    xt: float | torch.Tensor
    small: float | torch.Tensor
    large: float | torch.Tensor


class Schedule:
    """A variance-preserving noise schedule on t in [0, 1], t = 0 being clean data.

    A network trained on it receives network_time(t) = t * scale + shift. steps: N of a discrete schedule,
    which trains at t = n/N, n = 1..N, only; None for a continuous one. Subclasses give `_log_alpha` and
    `beta`.
    """
    steps = None
    start = 1.0  # where samplers begin

    def __init__(self, *, scale, shift=0.0):
        self.scale, self.shift = scale, shift

    def _log_alpha(self, t):
        """log alpha of a float, or of a float64 Tensor."""
        raise NotImplementedError

    def beta(self, t):
        """Rate of noising, -2 d log(alpha)/dt at a float t: dx = -beta/2 x dt + sqrt(beta) dw."""
        raise NotImplementedError

    def _of(self, t, formula):
        if isinstance(t, torch.Tensor):
            return formula(torch, self._log_alpha(t.double())).to(t.dtype)
        return formula(math, self._log_alpha(float(t)))

    def log_alpha(self, t):
        return self._of(t, lambda m, log_alpha: log_alpha)

    def alpha(self, t):
        """Scale of the data, sqrt(alpha_bar)."""
        return self._of(t, lambda m, log_alpha: m.exp(log_alpha))

    def sigma(self, t):
        """Standard deviation of the noise, sqrt(1 - alpha_bar); expm1 keeps its digits near t = 0."""
        return self._of(t, lambda m, log_alpha: m.sqrt(abs(m.expm1(2 * log_alpha))))

    def lam(self, t):
        """log(alpha / sigma), half the log signal-to-noise ratio; falls in t, from infinity at t = 0."""
        def formula(m, log_alpha):
            if m is math and log_alpha == 0:
                return math.inf
            return log_alpha - 0.5 * m.log(abs(m.expm1(2 * log_alpha)))
        return self._of(t, formula)

    def snr(self, t):
        """Signal-to-noise ratio alpha^2 / sigma^2; infinite at t = 0."""
        lam = self.lam(t)
        return torch.exp(2 * lam) if isinstance(lam, torch.Tensor) else math.exp(2 * lam)

    def t_of_lam(self, lam):
        """The float t in (0, 1] with lam(t) = lam, to the last digit by bisection; ValueError if none."""
        if not self.lam(1.0) <= lam < math.inf:
            raise ValueError(f"lam={lam}: this schedule's are finite and at least {self.lam(1.0):.6g}")
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self.lam(middle) > lam else (low, middle)
        return high

    def network_time(self, t):
        """t, a float or Tensor, as the published networks receive it."""
        return t * self.scale + self.shift

    def add_noise(self, x0, eps, t):
        """x_t of q(x_t | x_0) for clean x0 (N, ...), standard normal eps like it, and t a float or (N,)."""
        return mix(self.alpha(t), x0, self.sigma(t), eps)

    def posterior(self, t, s):
        """Posterior of the step from t down to s (Ho et al. 2020, eq. 6-7), floats or Tensors (N,)."""
        m = torch if isinstance(t, torch.Tensor) else math
        at, as_ = (self._log_alpha(r.double() if m is torch else r) for r in (t, s))
        var_t, var_s, large = (abs(m.expm1(2 * d)) for d in (at, as_, at - as_))
        return Posterior(x0=m.exp(as_) * large / var_t, xt=m.exp(at - as_) * var_s / var_t,
                         small=large * var_s / var_t, large=large)

    def sample_times(self, n, *, times=None, generator=None, device=None):
        """n training times, float64 (n,): U[0, 1), or uniform over the n/N of a discrete schedule.

        times: a grid of `times`, falling to 0, to draw from instead (never the 0): MGDM trains on "ddim250".
        """
        source = device if generator is None else generator.device
        device = source if device is None else device
        if times is not None:
            grid = grid_on(times, device)
            return grid[torch.randint(len(grid) - 1, (n,), generator=generator, device=source).to(device)]
        if self.steps is None:
            return torch.rand(n, generator=generator, device=source, dtype=torch.float64).to(device)
        drawn = torch.randint(1, self.steps + 1, (n,), generator=generator, device=source)
        return drawn.to(device).double() / self.steps

    def times(self, steps, *, spacing=None, start=None, end=None):
        """Times of a sampler, falling float64 (steps + 1,); the network runs at all of them but the last.

        steps: the number of network calls, or guided-diffusion's respacing as text: "ddim25" (a stride),
            "10,15,20" (so many from each equal section of 1..N), "250" (from one section), "" (all N).
        spacing, by default respaced for discrete schedules and uniform for continuous ones:
            respaced     guided-diffusion's: t = (k+1)/N for the kept k, then 0
            stride       the same for "ddim<steps>": every so many steps from the first (MGDM)
            leading      t = (k+2)/N for k a whole stride from 0, then 1/N: diffusers' DDIM for SD
            linspace     t = (k+1)/N for k evenly from N-1 to 0 but not 0, then t = 0: diffusers' DPM-Solver++
            uniform      evenly from start to end (1/1000): U-ViT's DPM-Solver++
            euler        evenly from start to 1/1000, then 0: U-ViT's Euler-Maruyama
            logsnr       evenly in lam from start to end (1/N, or 1e-4 where continuous)
            logsnr_fast  steps//3 + 1 intervals even in lam, each split evenly by its order: DPM-Solver "fast"
        """
        spacing = spacing or ("respaced" if self.steps or isinstance(steps, str) else "uniform")
        return grids.times(self, steps, spacing, self.start if start is None else start, end)


class VPSDE(Schedule):
    """The variance-preserving SDE with a linear beta(t) (Song et al. 2021), as U-ViT uses it."""

    def __init__(self, beta_min=0.1, beta_max=20.0):
        super().__init__(scale=999)
        self.beta_min, self.beta_max = beta_min, beta_max

    def _log_alpha(self, t):
        return -0.5 * t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def beta(self, t):
        return self.beta_min + t * (self.beta_max - self.beta_min)


class VPSDECosine(Schedule):
    """alpha(t) = cos(angle(t)) / cos(angle(0)), Nichol & Dhariwal's (2021) in continuous time.

    At t = 1 there is no signal at all and beta is infinite: samplers begin at DPM-Solver's 0.9946.
    """
    start = 0.9946

    def __init__(self, s=0.008):
        super().__init__(scale=999)
        self.s = s

    def _angle(self, t):
        return (t + self.s) / (1 + self.s) * math.pi / 2

    def _log_alpha(self, t):
        m = torch if isinstance(t, torch.Tensor) else math
        return m.log(m.cos(self._angle(t))) - m.log(m.cos(self._angle(0 * t)))     # exactly 0 at t = 0

    def beta(self, t):
        return math.pi / (1 + self.s) * math.tan(self._angle(t))


class Discrete(Schedule):
    """Variances beta_1..beta_N at t = n/N (Ho et al. 2020); log alpha is 0 at t = 0 and linear in between."""

    def __init__(self, betas, *, shift=0.0):
        super().__init__(scale=len(betas), shift=shift)
        self.steps = len(betas)
        self._table = [0.0, *(0.5 * torch.cumprod(1 - betas, 0).log()).tolist()]
        self._on_device = {}

    def _log_alpha(self, t):
        n, table = t * self.steps, self._table
        if isinstance(t, torch.Tensor):
            if t.device not in self._on_device:
                self._on_device[t.device] = torch.tensor(table, dtype=torch.float64, device=t.device)
            table, k = self._on_device[t.device], n.long().clamp(max=self.steps - 1)
        else:
            k = min(int(n), self.steps - 1)
        return table[k] + (n - k) * (table[k + 1] - table[k])

    def beta(self, t):
        n = min(max(math.ceil(t * self.steps - 1e-6), 1), self.steps)      # at a kink, the slope on the left
        return -2 * self.steps * (self._table[n] - self._table[n - 1])


def _linear(steps=1000):
    """Ho et al.'s line from 1e-4 to 0.02, steeper for fewer steps to end the same (guided-diffusion)."""
    return Discrete(torch.linspace(0.1, 20, steps, dtype=torch.float64) / steps, shift=-1)


def _cosine(steps=1000):
    """Nichol & Dhariwal's cosine with beta <= 0.999 (guided-diffusion)."""
    angles = (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2
    alpha_bar = torch.cos(angles) ** 2
    return Discrete((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999), shift=-1)


def _sd(steps=1000, beta_start=0.00085, beta_end=0.012, shift=0.0):
    """Stable Diffusion's "scaled linear": sqrt(beta) is a line.

    shift: of the network's time: 0 for U-ViT, which receives 1 ... N; -1 for networks of diffusers, which receive 0 ... N - 1.
    """
    return Discrete(torch.linspace(beta_start ** 0.5, beta_end ** 0.5, steps, dtype=torch.float64) ** 2, shift=shift)


SCHEDULES = {"vpsde": VPSDE, "vpsde_cosine": VPSDECosine, "sd": _sd, "linear": _linear, "cosine": _cosine}


# Where another kind of schedule than the options are of is chosen, their usual values are left out and others refused.
USUAL = {"steps": (1000,), "beta_start": (0.00085,), "beta_end": (0.012,), "shift": (0.0, -1.0), "beta_min": (0.1,),
         "beta_max": (20.0,), "s": (0.008,)}


def schedule(name, **kwargs):
    """The schedule of that name: vpsde(beta_min, beta_max), vpsde_cosine(s), sd(steps, shift), linear, cosine (steps).

    An option that the named schedule does not take is left out where it has the value that it has by default elsewhere, so
    that one name can be put in the place of another.

    Raises:
        ValueError: an unknown name, or an option that the schedule does not take, of another value.
    """
    if name not in SCHEDULES:
        close = difflib.get_close_matches(str(name), SCHEDULES, 1)
        raise ValueError(f"schedule {name!r}; known: {', '.join(SCHEDULES)}"
                         + (f". Did you mean {close[0]!r}?" if close else ""))
    takes = {each: list(inspect.signature(make).parameters) for each, make in SCHEDULES.items()}
    for option in [option for option in kwargs if option not in takes[name]]:
        value = kwargs.pop(option)
        if value in USUAL.get(option, ()):
            continue
        others = [each for each in SCHEDULES if option in takes[each]]
        raise ValueError(f"schedule {name!r} takes no {option}, here {value!r}: it takes {', '.join(takes[name])}"
                         + (f"; {option} is an option of {', '.join(others)}" if others else ""))
    return SCHEDULES[name](**kwargs)
