"""Training losses, one number per image, for the caller to weight, mask and average."""
import math
from typing import NamedTuple

import torch

from .denoiser import Output
from .schedule import grid_on, mix

# A weighting is a weight on |error of x0|^2 as a function of the SNR, whatever the network predicts.
WEIGHTINGS = {
    "eps": lambda snr, gamma: snr,                              # Ho et al. 2020; U-ViT, DiT, Stable Diffusion
    "x0": lambda snr, gamma: torch.ones_like(snr),
    "v": lambda snr, gamma: snr + 1,                            # Salimans & Ho 2022
    "truncated_snr": lambda snr, gamma: snr.clamp(min=1),       # Salimans & Ho 2022
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma),         # Hang et al. 2023
    "clamped_snr": lambda snr, gamma: snr.clamp(1, gamma),          # both bounds: no image of noise is worth nothing
    "mgdm": lambda snr, gamma: snr / (1 + snr).sqrt(),          # MGDM's code: eps error / sqrt(1 + SNR)
}
# |error of the prediction|^2 where |error of x0|^2 is 1
_UNITS = {"eps": lambda snr: snr, "x0": torch.ones_like, "v": lambda snr: snr + 1}


def weight(denoise, t, weighting="eps", *, gamma=5.0):
    """The factor (N,) from the squared error of what `denoise` predicts at t (N,) to the weighting's loss.

    The SNR is clamped to [1e-5, 1e5], so that no pair of prediction and weighting divides by zero at an end
    of time. The discrete schedules lie within, but for the last steps of `cosine`.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}; known: {', '.join(WEIGHTINGS)}")
    snr = denoise.schedule.snr(t).clamp(1e-5, 1e5)
    return WEIGHTINGS[weighting](snr, gamma) / _UNITS[denoise.predicts](snr)


def batch_mean(losses, weights=None):
    """What a training minimises: the mean over a batch of weight * loss, of losses (N,) and weights (N,), None: all 1.

    Reward-weighted fine-tuning (Lee et al. 2023, arXiv 2302.12192): generated images count as much as a judge of them says,
    real ones once. Weights are not normalised, so that an image counts the same whatever else is in its batch, and parts of a
    batch, one after the other or on several processes, add up to the whole; weights of another mean than 1 are a loss of
    another size.
    """
    return (losses if weights is None else losses * weights).mean()


def draw_noise(x0, offset=0.0):
    """Standard normals like x0 (N, C, H, W), plus `offset` times one more for each image and channel.

    The latter lets a network learn to change the mean of an image, which Stable Diffusion hardly does (offset noise,
    Guttenberg 2023; 0.1 there).
    """
    noise = torch.randn_like(x0)
    return torch.add(noise, torch.randn_like(x0[..., :1, :1]), alpha=offset) if offset else noise


def simple(denoise, x0, t, noise=None, *, weighting="eps", gamma=5.0, input_perturbation=0.0, **cond):
    """Weighted mean squared error (N,) of a Denoiser's prediction; a learned variance is left alone.

    x0 (N, C, H, W) clean, t (N,) of `schedule.sample_times`, noise like x0 (drawn here if None), gamma of
    min_snr. input_perturbation: x_t is made with noise + this times more noise, while the target stays that of the
    noise itself (Ning et al. 2023; 0.1 there). The conditions go to the network; with_losses=True among them makes the
    result (loss, {name: auxiliary loss}).
    """
    _, output, mse = _errors(denoise, x0, t, noise, weighting, gamma, cond, input_perturbation)
    return (mse, output.losses) if cond.get("with_losses") else mse


class Hybrid(NamedTuple):
    """The hybrid loss and its parts per image, each (N,): mse as weighted, vb in bits per dimension."""
    loss: torch.Tensor
    mse: torch.Tensor
    vb: torch.Tensor


def hybrid(denoise, x0, t, noise=None, *, times=None, weighting="eps", gamma=5.0,
           rescale_learned_sigmas=False, use_kl=False, **cond):
    """`simple` plus the variational bound, for learned variances (L_hybrid of Nichol & Dhariwal 2021).

    x0 (N, C, H, W) of 8-bit images in [-1, 1]. times: the grid of `schedule.times`, falling to 0, that t
    comes from where training is respaced; all N steps by default. The bound trains only the variance: in it
    the prediction is detached. Its published scalings on a grid of T steps: one step's term as it is;
    rescale_learned_sigmas: times T/1000; use_kl: times T, and then it is the whole loss, prediction included.
    """
    schedule = denoise.schedule
    if not denoise.learned_var or schedule.steps is None:
        raise ValueError("the hybrid loss needs learned_var=True and a discrete schedule (linear, cosine), "
                         f"not learned_var={denoise.learned_var} and {type(schedule).__name__}")
    if times is None:
        grid = torch.arange(schedule.steps + 1, dtype=torch.float64, device=t.device) / schedule.steps
    else:
        grid = grid_on(times, t.device).flip(0)
    if len(grid) < 3:
        raise ValueError(f"times={times}: the variances of the hybrid loss need at least two steps")
    x_t, output, mse = _errors(denoise, x0, t, noise, weighting, gamma, cond)
    prediction = output.prediction if use_kl else output.prediction.detach()
    estimate = denoise.estimate(Output(prediction, output.v), x_t, t, clip=False)

    # The step from grid[k] to grid[k-1]. Of the first one the posterior variance is 0: it takes the second's.
    k = torch.searchsorted(grid, t.double() - 0.5 / schedule.steps).clamp(1, len(grid) - 1)
    step, second = schedule.posterior(grid[k], grid[k - 1]), k.clamp(min=2)
    low = _like(schedule.posterior(grid[second], grid[second - 1]).small.log(), x0)
    log_var = low + estimate.var * (_like(step.large.log(), x0) - low)
    mean = mix(step.x0, estimate.x0, step.xt, x_t)
    kl = normal_kl(mix(step.x0, x0, step.xt, x_t), low, mean, log_var)
    nll = -discretised_log_likelihood(x0, mean, 0.5 * log_var)
    vb = _per_image(torch.where(_like(k, x0) == 1, nll, kl)) / math.log(2)

    terms = len(grid) - 1
    if use_kl:
        return Hybrid(vb * terms, mse.detach(), vb * terms)
    vb = vb * terms / 1000 if rescale_learned_sigmas else vb
    return Hybrid(mse + vb, mse, vb)


def normal_kl(mean1, log_var1, mean2, log_var2):
    """KL(N(mean1, exp log_var1) || N(mean2, exp log_var2)), elementwise, in nats."""
    return 0.5 * (log_var2 - log_var1 + torch.exp(log_var1 - log_var2) - 1
                  + (mean1 - mean2).square() * torch.exp(-log_var2))


def discretised_log_likelihood(x, mean, log_std):
    """log P in nats, elementwise, of 8-bit x scaled to [-1, 1] under a normal; the outer bins are open.

    With the tanh form of the normal distribution function and a floor of 1e-12, as in the published code.
    """
    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
    above, below = (cdf((x - mean + edge) * torch.exp(-log_std)) for edge in (1 / 255, -1 / 255))
    inside = torch.where(x > 0.999, 1 - below, torch.where(x < -0.999, above, above - below))
    return inside.clamp(min=1e-12).log()


def _errors(denoise, x0, t, noise, weighting, gamma, cond, perturbation=0.0):
    """x_t, the network's Output there, and its weighted mean squared error (N,)."""
    noise = torch.randn_like(x0) if noise is None else noise
    seen = torch.add(noise, torch.randn_like(noise), alpha=perturbation) if perturbation else noise
    x_t = denoise.schedule.add_noise(x0, seen, t)
    output = denoise.output(x_t, t, **cond)
    mse = _per_image((output.prediction - denoise.target(x0, noise, t)).square())
    return x_t, output, mse * weight(denoise, t, weighting, gamma=gamma).to(mse.dtype)


def _per_image(x):
    return x.flatten(1).mean(1)


def _like(per_image, x):
    return per_image.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
