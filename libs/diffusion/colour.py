"""Hybrid-level fine-tuning (Med-Art): the colours of sampled images against those of real ones, with gradients through the sampler.

The denoising loss sees one step of an image; what a whole chain of steps makes of its colours shows in the sample alone. So the
statistics of each channel are compared there, and the gradient goes back through the steps of the solver into the network.
"""
import torch
from torch.utils.checkpoint import checkpoint

from . import samplers

REDUCTIONS = ("sum", "mean")


def colour_loss(generated, real, *, reduction="sum"):
    """Squared differences of the mean and of the standard deviation of each channel, (N,): L_color of Med-Art.

    sum_c (mu_c(generated) - mu_c(real))^2 + (sd_c(generated) - sd_c(real))^2, each of one image, sd unbiased.

    generated, real: (N, C, H, W), of equal N and C, about [-1, 1]; decoded images are not to be clamped, which would stop the
    gradient where it is needed most. Half precision is computed in float32. reduction: over the channels, "sum" as in the paper,
    or "mean" as in its published code, a third of that for three channels.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} of the colour loss (config.colour.reduction); known: sum, as in the paper, and "
                         "mean, as in its code")
    if generated.ndim != 4 or real.ndim != 4 or generated.shape[:2] != real.shape[:2]:
        raise ValueError(f"colours of images {tuple(generated.shape)} cannot be compared with those of {tuple(real.shape)}: both "
                         "must be (N, C, H, W) with the same N and C")
    (mean, deviation), (wanted_mean, wanted_deviation) = statistics(generated), statistics(real)
    difference = (mean - wanted_mean).square() + (deviation - wanted_deviation).square()
    return difference.sum(1) if reduction == "sum" else difference.mean(1)


def statistics(images):
    """Mean and unbiased standard deviation of each channel, two (N, C), at least float32, of images (N, C, H, W)."""
    if images[0, 0].numel() < 2:
        raise ValueError(f"images of shape {tuple(images.shape)}: a standard deviation needs two pixels or more")
    pixels = images.to(torch.promote_types(images.dtype, torch.float32)).flatten(2)
    return pixels.mean(2), pixels.std(2)


def sample_through(name, denoise, x, schedule, steps, *, last=0, checkpointed=True, spacing=None, **own):
    """`samplers.run` as a differentiable function: x_0 like x, whose gradient goes through the steps into the network.

    last: keep gradients of the last so many steps; those before are taken as given. 0 keeps those of all.
    checkpointed: call `denoise` again for each step in the backward pass, so that what is kept of a step is its image and not the
        activations of the network. Gradients are the same; what `denoise` draws, such as dropout, is drawn alike both times.
    steps: a number. spacing, own: as for `samplers.run`.

    Everything that `denoise` reads gets its gradient: weights, and conditions that were computed from others.
    """
    if not isinstance(steps, int) or not 0 <= last <= steps:
        raise ValueError(f"last={last} of steps={steps!r} (config.colour): steps is a whole number from 1, and of the last 0 .. "
                         f"{steps} have a gradient, 0 being all")
    free, done = steps - last if last else 0, 0

    def step(x, t):
        nonlocal done
        done += 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and done > free):
            if checkpointed and torch.is_grad_enabled():
                return checkpoint(denoise, x, t, use_reentrant=False)
            return denoise(x, t)

    return samplers.run(name, step, x.detach() if free else x, schedule, steps, spacing=spacing, **own)
