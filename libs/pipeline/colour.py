"""Hybrid-level fine-tuning within a training (Med-Art): images made by the network as it is now, with gradients to its weights, and
the distance of their colours from those of the real images.
"""

import logging

import torch

from libs import diffusion
from libs.diffusion.colour import REDUCTIONS, colour_loss, sample_through


def check(config):
    """Raise ValueError where `config.colour` asks for what cannot be; nothing is checked where `every` is 0."""
    own = config.colour
    if own.every < 0:
        raise ValueError(f"config.colour.every is {own.every}; give a number of steps, or 0 for a training without the colour loss")
    if not own.every:
        return
    schedule = diffusion.schedule(**config.schedule)
    if schedule.steps is None:
        raise ValueError(f"config.schedule.name is {config.schedule.name!r}, which is continuous; the solver of config.colour takes "
                         "steps of a discrete one: set --config.schedule.name=linear, or --config.colour.every=0")
    if not 1 <= own.steps < schedule.steps:
        raise ValueError(f"config.colour.steps is {own.steps}; the solver takes 1 .. {schedule.steps - 1} of the {schedule.steps} "
                         "steps of the noise")
    if not 0 <= own.last <= own.steps:
        raise ValueError(f"config.colour.last is {own.last}; give how many of the {own.steps} steps have a gradient, 0 for all")
    if own.reduction not in REDUCTIONS:
        raise ValueError(f"config.colour.reduction is {own.reduction!r}; known: {', '.join(REDUCTIONS)}")
    if own.weight < 0:
        raise ValueError(f"config.colour.weight is {own.weight}; give a number above 0, or 0 for Med-Art's 1 / config.colour.steps")


def distance(sampler, batch, options, *, net, images=None):
    """The colour loss of images made under the descriptions of a batch, against its real images: scalar Tensor, with gradients.

    Args:
        sampler, options, net: as for `generate`.
        batch: as the data give it, of latents or of images.
        images: the data set that latents were made of, whose images are read again; None decodes the latents' means, whose
            colours are off by what the autoencoder loses.
    """
    made = generate(sampler, {"text": batch["text"]}, options, net=net)
    if "image" in batch:
        real = batch["image"]
    elif images is not None:  # mirrored or not, colours are the same
        real = images.batch(batch["index"].tolist())["image"].to(made.device)
    else:
        with torch.no_grad():
            real = sampler.codec.decode(sampler.codec.sample(batch["mean"]))
    return colour_loss(made, real, reduction=options.reduction).mean()


def generate(sampler, cond, options, *, net):
    """Images (N, C, H, W) about [-1, 1], not clamped, from fresh noise, with gradients to the weights of `net`.

    Med-Art's sampler: DPM-Solver++(2M) at evenly spaced steps, with classifier-free guidance against the empty conditions.
    Torch's default generator draws the noise.

    Args:
        sampler: `Pipeline`, of which codec, schedule and empty conditions are used.
        cond: conditions, a row for each image. Where `net` reads texts itself, it reads each once and not at every step, as the
            empty text, and its text encoder gets gradients too.
        options: config.colour.
        net: the network that is trained, bare. One that is wrapped for several processes would begin an exchange of gradients at
            each of its many calls; those of the bare one join the exchange of another loss in the same backward pass, for which
            the wrapped one was called once.
    """
    x = torch.randn(len(next(iter(cond.values()))), *sampler.shape, device=sampler.device)
    denoise = sampler.denoise(cond, net=net, guidance=options.guidance)
    z = sample_through("dpmpp_2m", denoise, x, sampler.schedule, options.steps, last=options.last,
                       checkpointed=options.checkpoint_steps, spacing="linspace")
    return sampler.codec.decode(z, checkpointed=options.checkpoint_decoder)


def add(loss, found, options, where):
    """A loss with the weighted distance `found` added, and the terms to log: the distance, and whether it was left out.

    A distance that is not finite is left out of the step, so that one bad sample does not end a training: a warning says `where`,
    a text, and the log counts it.
    """
    bad = not found.isfinite()
    terms = {"colour_left_out": torch.full_like(loss.detach(), float(bad))}
    if bad:
        logging.warning("%s: the colour loss is %s and is left out there", where, found.item())
        return loss, terms
    return loss + (options.weight or 1 / options.steps) * found, terms | {"colour": found}
