"""Samplers: from noise to data along falling times, or from data to noise along rising ones.

Each is sample(denoise, x, times, schedule, *, generator=None, ...) -> x. `denoise(x, t) -> Estimate` runs at
all times but the last, with a float t; the coefficients are Python floats, so a step costs the device the
network and a few operations. Gradients pass through (use torch.no_grad where they should not). generator: one
torch.Generator for the batch, or a list of one per image, whose noise then does not depend on the batch it is
in; the deterministic samplers take it and leave it.

SAMPLERS says of each by name what it takes and needs; `make` puts one together with its times and refuses what does not
fit, so that a fault is found before anything is sampled.
"""
import difflib
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Callable

import torch

from .grids import OptionError, describe_choice, fast_orders
from .schedule import mix


VARIANCES = ("learned", "small", "large")


def normal_like(x, generator=None):
    """Standard normals like x (N, ...), drawn on the generator's device and moved to x's."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != len(x):
            raise ValueError(f"{len(generator)} generators for {len(x)} images: give one per image")
        drawn = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype) for g in generator]
        return torch.stack(drawn).to(x.device)
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def sample_ddim(denoise, x, times, schedule, *, eta=0.0, to_noise=False, generator=None):
    """DDIM (Song et al. 2021): falling times generate, rising ones encode; a dual bridge is one call of each.

    eta: from 0, deterministic, to 1, as noisy as sample_ddpm with the small variance; for falling times.
    to_noise: after the last rising time go on to alpha = 0, where x is the noise predicted at that time. So
    guided-diffusion and MGDM encode, taking the image for x at the lowest step:
    sample_ddim(denoise, image, schedule.times("ddim250")[:-1].flip(0), schedule, to_noise=True).
    """
    _check_eta(eta)
    times = _checked(times, may_rise=eta == 0)
    if to_noise and times[0] > times[-1]:
        raise ValueError("to_noise=True encodes, which needs rising times")
    ends = [(schedule.alpha(t), schedule.sigma(t)) for t in times[1:]] + [(0.0, 1.0)] * to_noise
    for i, (alpha, sigma) in enumerate(ends):
        estimate = denoise(x, times[i])
        variance = eta ** 2 * schedule.posterior(times[i], times[i + 1]).small if eta else 0.0
        x = mix(alpha, estimate.x0, math.sqrt(sigma ** 2 - variance), estimate.eps)
        if variance:
            x = torch.add(x, normal_like(x, generator), alpha=math.sqrt(variance))
    return x


def sample_ddpm(denoise, x, times, schedule, *, variance=None, generator=None):
    """Ancestral sampling (Ho et al. 2020); a step that ends at 0 is without noise.

    variance: "learned" from Estimate.var, "small" for the posterior's beta~, "large" for beta; by default
    learned where the network learned it, else small. Guidance by a gradient moves the mean by variance times
    gradient (Dhariwal & Nichol 2021, algorithm 1); of a step that ends at 0, whose beta~ is 0, by that of the step before.
    """
    _check_variance(variance)
    times, small_before = _checked(times), 0.0
    for t, s in zip(times, times[1:]):
        estimate = denoise(x, t)
        kind = variance or ("small" if estimate.var is None else "learned")
        if kind == "learned" and estimate.var is None:
            raise ValueError("variance='learned' with learned_var=False; allowed: 'small', 'large'")
        step = schedule.posterior(t, s)
        small = step.small if s > 0 else small_before
        if kind == "learned" and small:
            low, high = 0.5 * math.log(small), 0.5 * math.log(step.large)
            deviation = (low + (high - low) * estimate.var).exp()
        else:
            deviation = math.sqrt(step.large if kind == "large" else small)
        x0, push = estimate.x0, estimate.push
        if push is not None:  # taken out of x0, where it is meant for deterministic steps
            x0 = torch.add(x0, push, alpha=-schedule.sigma(t) ** 2 / schedule.alpha(t))
        x = mix(step.x0, x0, step.xt, x)
        if push is not None:
            x = x + deviation ** 2 * push
        if s > 0:
            x = x + deviation * normal_like(x, generator)
        small_before = step.small
    return x


def sample_euler_maruyama(denoise, x, times, schedule, *, sde=True, generator=None):
    """Euler-Maruyama on the reverse SDE, or if not sde, Euler on the probability-flow ODE (Song et al. 2021).

    As in U-ViT the last step is without noise; published times: schedule.times(1000, spacing="euler").
    """
    times = _checked(times)
    for t, s in zip(times, times[1:]):
        noising = (t - s) * schedule.beta(t)
        score = (1.0 if sde else 0.5) * noising / schedule.sigma(t)
        x = mix(1 + 0.5 * noising, x, -score, denoise(x, t).eps)
        if sde and s != times[-1]:
            x = torch.add(x, normal_like(x, generator), alpha=math.sqrt(noising))
    return x


def sample_dpm_fast(denoise, x, times, schedule, *, generator=None):
    """DPM-Solver "fast" (Lu et al. 2022): singlestep in the predicted noise, order 3 but for a short tail.

    times: all those at which the network is called, and an end above 0. The published 17 intervals of 50
    calls, even in lam, are schedule.times(50, spacing="logsnr_fast").
    """
    return _singlestep(denoise, x, times, schedule, of_data=False)


def sample_dpmpp_fast(denoise, x, times, schedule, *, generator=None):
    """DPM-Solver++ "fast" (Lu et al. 2023): singlestep in the predicted data, order 3 but for a short tail.

    times: all those at which the network is called, and an end above 0; U-ViT's and VAP's are
    schedule.times(50, spacing="uniform").
    """
    return _singlestep(denoise, x, times, schedule, of_data=True)


def _singlestep(denoise, x, times, schedule, *, of_data):
    """Exponential integrator in lam of the noise or, alpha and sigma exchanged and lam reversed, of the data.

    From point 0 of an interval, with m the estimate at a point, (a, b) = (alpha, sigma), h_j = lam_j - lam_0:
    x_j = a_j/a_0 x_0 - b_j (expm1(h_j) m_0 + slope_j (m_{j-1} - m_0)).
    """
    times = _checked(times)
    if times[-1] == 0:
        raise ValueError("times end at 0, where log(alpha/sigma), in which this solver steps, is infinite: "
                         "end at 1e-3 or so")
    first = 0
    for order in fast_orders(len(times) - 1):
        points = times[first:first + order + 1]
        first += order
        a, b = ([coefficient(t) for t in points] for coefficient in (schedule.alpha, schedule.sigma))
        h = [schedule.lam(t) - schedule.lam(points[0]) for t in points]
        if of_data:
            a, b, h = b, a, [-step for step in h]
        x_0 = x
        for j in range(1, order + 1):
            estimate = denoise(x, points[j - 1])
            m = estimate.x0 if of_data else estimate.eps
            m_0 = m if j == 1 else m_0
            exp, slope = math.expm1(h[j]), 0.0
            if j > 1:   # order 2 was published with exp/2, to first order the same as order 3's exp/h - 1
                slope = (exp / 2 if order == 2 else exp / h[j] - 1) * h[j] / h[j - 1]
            x = mix(a[j] / a[0], x_0, -b[j] * (exp - slope), m_0)
            if j > 1:
                x = torch.add(x, m, alpha=-b[j] * slope)
    return x


def sample_dpmpp_2m(denoise, x, times, schedule, *, generator=None):
    """DPM-Solver++(2M) (Lu et al. 2023), multistep of order 2; of order 1 in the first step and one to t = 0.

    Med-Art's times: schedule.times(20, spacing="linspace").
    """
    times = _checked(times)
    before = h_before = None
    for t, s in zip(times, times[1:]):
        x0 = denoise(x, t).x0
        h = schedule.lam(s) - schedule.lam(t)
        middle = x0
        if before is not None and s > 0:
            middle = torch.lerp(before, x0, 1 + 0.5 * h / h_before)   # extrapolated to the middle of the step
        x = mix(schedule.sigma(s) / schedule.sigma(t), x, -schedule.alpha(s) * math.expm1(-h), middle)
        before, h_before = x0, h
    return x


def _checked(times, *, may_rise=False):
    """The times as floats; ValueError unless they are two or more in [0, 1] that fall (or rise) strictly."""
    times = times.tolist() if isinstance(times, torch.Tensor) else [float(t) for t in times]
    shown = times if len(times) < 6 else f"[{times[0]}, {times[1]}, .., {times[-1]}]"
    if len(times) < 2 or not 0 <= min(times) <= max(times) <= 1:
        raise ValueError(f"times={shown}: two or more times in [0, 1] are needed")
    pairs = list(zip(times, times[1:]))
    if not (all(t > s for t, s in pairs) or (may_rise and all(t < s for t, s in pairs))):
        raise ValueError(f"times={shown}: must fall strictly" + (" or rise strictly" if may_rise else ""))
    return times


def _check_eta(eta):
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
        raise OptionError(f"eta={eta!r}: allowed are 0 (deterministic) to 1 (ancestral)", "eta", ways=({"eta": 0.0},))


def _check_variance(variance):
    if variance not in (None, "", *VARIANCES):
        raise OptionError(f"variance={variance!r}; allowed: 'learned', 'small', 'large', or None to choose", "variance",
                          ways=tuple({"variance": kind} for kind in VARIANCES))


@dataclass(frozen=True)
class Sampler:
    """One row of SAMPLERS, called as its function.

    sampler(denoise, x, times, schedule, *, generator=None, **options) -> x.

    order: by which power of the step its error falls. calls: of the network at each of its times but the last.
    continuous, discrete: its published spacing on a schedule of that kind, by a name of `Schedule.times`.
    options: {name: check of a value, which raises}. needs: what it asks of a schedule, attributes of `Schedule`.
    to_zero: whether its times may end at t = 0, where log(alpha / sigma) is infinite.
    """
    function: Callable
    order: int
    continuous: str
    discrete: str
    options: dict = field(default_factory=dict)
    needs: tuple = ("alpha", "sigma")
    to_zero: bool = True
    calls: int = 1

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


OF_LOG_SNR = ("alpha", "sigma", "lam")  # what solvers need that step in log(alpha / sigma)
SAMPLERS = {
    "ddim": Sampler(sample_ddim, 1, "uniform", "respaced", {"eta": _check_eta}),
    "ddpm": Sampler(sample_ddpm, 1, "uniform", "respaced", {"variance": _check_variance},
                    needs=("alpha", "sigma", "posterior")),
    "euler_maruyama_sde": Sampler(partial(sample_euler_maruyama, sde=True), 1, "euler", "euler",
                                  needs=("sigma", "beta")),
    "euler_maruyama_ode": Sampler(partial(sample_euler_maruyama, sde=False), 1, "euler", "euler",
                                  needs=("sigma", "beta")),
    "dpm_solver": Sampler(sample_dpm_fast, 3, "logsnr_fast", "logsnr_fast", needs=OF_LOG_SNR, to_zero=False),
    "dpmpp_fast": Sampler(sample_dpmpp_fast, 3, "uniform", "uniform", needs=OF_LOG_SNR, to_zero=False),
    "dpmpp_2m": Sampler(sample_dpmpp_2m, 2, "logsnr", "linspace", needs=OF_LOG_SNR),
}
# What an option is where it asks for nothing, so that a sampler without it can leave it out.
OFF = {"eta": (None, 0, 0.0), "variance": (None, "")}
OF_SPACINGS = {"logsnr": ("lam", "t_of_lam"), "logsnr_fast": ("lam", "t_of_lam")}


@dataclass(frozen=True)
class Prepared:
    """A sampler with its times: prepared(denoise, x, *, generator=None) -> x, as often as wanted. `make` makes it.

    name, steps, spacing: what it was made of, spacing by its name. options: what its function is given.
    times: float64 (calls + 1,), falling. calls: how often the network is called for one batch.
    """
    name: str
    steps: int | str
    spacing: str
    schedule: object
    times: torch.Tensor
    options: dict

    @property
    def calls(self):
        return SAMPLERS[self.name].calls * (len(self.times) - 1)

    def __call__(self, denoise, x, *, generator=None):
        return SAMPLERS[self.name](denoise, x, self.times, self.schedule, generator=generator, **self.options)


def make(name, steps, spacing, schedule, **options):
    """The sampler of that name on `steps` of `schedule`, a `Prepared`.

    Args:
        name: of SAMPLERS.
        steps: the number of network calls, or respacing text such as "ddim250" for ddim and ddpm.
        spacing: a name of `Schedule.times`; '' or None is the one that the sampler was published with.
        schedule: of diffusion.schedule.
        options: the sampler's own (eta, variance). One that it does not take is left out where its value asks for nothing.

    Raises:
        OptionError: a ValueError that names the options which do not go together, and others that would.
    """
    try:
        return _make(name, steps, spacing, schedule, options)
    except OptionError as error:
        given = dict(name=name, steps=steps, spacing=spacing, **options)
        working = [way for way in error.ways if _works(given | way, schedule)]
        error.ways = tuple(working or error.ways)
        raise


def _make(name, steps, spacing, schedule, options):
    if name not in SAMPLERS:
        close = difflib.get_close_matches(str(name), SAMPLERS, 1)
        raise OptionError(f"sampler {name!r}; known: {', '.join(SAMPLERS)}"
                          + (f". Did you mean {close[0]!r}?" if close else ""), "name", ways=tuple({"name": each} for each in close))
    sampler, taken = SAMPLERS[name], {}
    for option, value in options.items():
        if option in sampler.options:
            sampler.options[option](value)
            if value not in OFF[option]:
                taken[option] = value
        elif option not in OFF:
            raise OptionError(f"samplers have no option {option!r}; known: {', '.join(OFF)}", option)
        elif value not in OFF[option]:
            takers = [each for each, row in SAMPLERS.items() if option in row.options]
            raise OptionError(f"{name} takes no {option}, here {value!r}; it is an option of {', '.join(takers)}",
                              option, "name", ways=({option: OFF[option][-1]}, *({"name": each} for each in takers)))
    respaces = isinstance(steps, str) and sampler.discrete == "respaced"
    published = sampler.continuous if schedule.steps is None else sampler.discrete
    chosen = spacing or ("respaced" if respaces else published)
    needs = (*sampler.needs, *OF_SPACINGS.get(chosen, ()), *(("posterior",) if taken.get("eta") else ()))
    _check_schedule(name, schedule, needs)
    times = schedule.times(steps, spacing=chosen)
    if not sampler.to_zero and times[-1] == 0:
        raise OptionError(f"{name} with spacing={chosen!r}, whose times end at 0: there log(alpha/sigma), in which "
                          "this solver steps, is infinite", "spacing", "name",
                          ways=({"spacing": ""}, *({"name": each} for each, row in SAMPLERS.items() if row.to_zero)))
    return Prepared(name, steps, chosen, schedule, times, taken)


def _works(arguments, schedule):
    name, steps, spacing = (arguments.pop(key) for key in ("name", "steps", "spacing"))
    try:
        _make(name, steps, spacing, schedule, arguments)
    except OptionError:
        return False
    return True


def _check_schedule(name, schedule, needs):
    if missing := [each for each in dict.fromkeys(needs) if getattr(schedule, each, None) is None]:
        fitting = [each for each, row in SAMPLERS.items()
                   if all(getattr(schedule, need, None) is not None for need in row.needs)]
        raise OptionError(f"{name} needs {describe_choice(missing)} of a schedule, and {type(schedule).__name__} has "
                          "none", "name", ways=tuple({"name": each} for each in fitting))


def run(name, denoise, x, schedule, steps, *, spacing=None, generator=None, **own):
    """The sampler of that name (see SAMPLERS) from noise x: `steps` network calls at its published times.

    steps: a number, or respacing text such as "ddim250" for ddim and ddpm. spacing: other times, by a name of
    `Schedule.times`. own: the sampler's own arguments (eta, variance). See `make`, which a caller of many batches uses once.
    """
    return make(name, steps, spacing, schedule, **own)(denoise, x, generator=generator)
