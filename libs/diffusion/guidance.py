"""Guidance maps a denoiser to a denoiser that is steered by its conditions or by the gradient of an energy.

Guided denoisers are called guided(x, t) with a float t. Conditions come first and gradients around them:
by_gradient(classifier_free(denoise, cond, null, 2.0), energy("entropy", classifier), 5.0).
"""
import torch

from .denoiser import Denoiser, Estimate, Output, for_network
from .schedule import mix


def classifier_free(denoise, cond, null, scale, *, interval=(0.0, 1.0), channels=None):
    """Classifier-free guidance, uncond + scale (cond - uncond) (Ho & Salimans 2022), in one batch of 2N.

    denoise: a Denoiser, whose clipping comes after the guidance. cond, null: conditions of the whole batch;
    one that null lacks (a mask) stays on in both halves. scale: a number, 1 = off (then there is no second
    half), or a function of t. interval: the t to guide in (Kynkäänniemi et al. 2024), elsewhere conditional.
    channels: guide only the first ones (published DiT: 3 of 4); the rest is conditional, as is a learned
    variance.
    """
    if not isinstance(denoise, Denoiser):
        raise ValueError("classifier_free guides a Denoiser itself; put other guidance around it: "
                         "by_gradient(classifier_free(denoise, ...), ...)")
    if unknown := set(null) - set(cond):
        raise ValueError(f"null conditions {sorted(unknown)} without a condition; cond has {sorted(cond)}")
    on = callable(scale) or scale != 1
    both = {key: torch.cat([value, null.get(key, value)]) for key, value in cond.items()} if on else cond

    def guided(x, t):
        s = scale(t) if callable(scale) else scale
        if s == 1 or not interval[0] <= t <= interval[1]:
            return denoise(x, t, **cond)
        output = denoise.output(torch.cat([x, x]), t, **both)
        with_cond, without = output.prediction.chunk(2)
        mixed = torch.lerp(without, with_cond, s)
        if channels is not None:
            mixed = torch.cat([mixed[:, :channels], with_cond[:, channels:]], 1)
        return denoise.estimate(Output(mixed, None if output.v is None else output.v[:len(x)]), x, t)

    guided.schedule = denoise.schedule
    return guided


def by_gradient(denoise, energy, scale, *, on="x_t", window=(0.0, 1.0), clip_norm=None, reclip=False):
    """Guidance up a gradient: eps - sigma s grad, x0 + sigma^2/alpha s grad (Dhariwal & Nichol 2021, sec. 4).

    energy(x, t) -> (N,), larger is wanted: log p(y|x) for classifier guidance, an uncertainty for MGDM's
    measurement guidance. on: "x_t" takes energy and gradient at the noisy image; "x0" takes the energy of the
    estimated clean image (t is still that of x_t) and its gradient in x_t, through the network. scale: a
    number, 0 = off (returns `denoise`), or a function of t. window: the t to guide in. clip_norm: largest
    norm of an image's gradient, before the scale. reclip: clip x0 to [-1, 1] again; published, it is not.

    In sample_ddpm this moves the mean of a step by its variance times s grad (their algorithm 1), unless `reclip`.
    Works under torch.no_grad, not inference_mode; gradients of the sample pass through where x requires them.
    """
    if on not in ("x_t", "x0"):
        raise ValueError(f"on={on!r}; allowed: 'x_t', 'x0'")
    if not callable(scale) and scale == 0:
        return denoise

    def guided(x, t, **cond):
        s = scale(t) if callable(scale) else scale
        if s == 0 or not window[0] <= t <= window[1]:
            return denoise(x, t, **cond)
        through = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            y = x if through else x.detach().requires_grad_()
            estimate = denoise(y, t, **cond) if on == "x0" else None
            value = energy(y if on == "x_t" else estimate.x0, t)
            grad, = torch.autograd.grad(value.sum(), y, create_graph=through)
        if on == "x_t":
            estimate = denoise(x, t, **cond)
        elif not through:
            estimate = Estimate(*(part if part is None else part.detach() for part in estimate))
        if clip_norm is not None:
            norm = grad.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
            grad = grad * (clip_norm / norm.clamp(min=clip_norm))
        alpha, sigma = denoise.schedule.alpha(t), denoise.schedule.sigma(t)
        push = s * grad if estimate.push is None else torch.add(estimate.push, grad, alpha=s)
        x0 = torch.add(estimate.x0, grad, alpha=s * sigma ** 2 / alpha)
        if reclip:
            x0 = x0.clamp(-1, 1)
            return Estimate(x0, mix(1 / sigma, x, -alpha / sigma, x0), estimate.var)
        return Estimate(x0, torch.add(estimate.eps, grad, alpha=-s * sigma), estimate.var, push)

    guided.schedule = denoise.schedule
    return guided


# Measures of log-probabilities (N, K): ADM's of a class, and those of MGDM (Luo et al. 2024), which are
# larger where the classifier is less certain.
MEASURES = {
    "log_probability": lambda logp, label: logp.gather(1, label[:, None])[:, 0],
    "entropy": lambda logp, label: -(logp.exp() * logp).sum(1),
    "margin": lambda logp, label: logp.exp().topk(2, 1).values.diff(dim=1)[:, 0],
    "least_confidence": lambda logp, label: -logp.exp().amax(1),
}


def energy(name, classifier, label=None):
    """E(x, t) -> (N,) from classifier(x, t) -> logits (N, K), t being diffusion time (see `at_network_time`).

    name: log_probability (of label (N,) int64), entropy, margin (second less first probability), or
    least_confidence (minus the first).
    """
    if name not in MEASURES:
        raise ValueError(f"energy {name!r}; known: {', '.join(MEASURES)}")
    if name == "log_probability" and label is None:
        raise ValueError("energy 'log_probability' needs the label (N,) whose probability should grow")
    return lambda x, t: MEASURES[name](classifier(x, t).float().log_softmax(1), label)


def at_network_time(net, network_time):
    """classifier(x, t) for `energy` from a noisy classifier net(x, t) that is called at network time.

    network_time: that of the schedule it was trained on. MGDM's original classifiers were trained on the
    respaced index instead: lambda t: 250 * t - 0.25 for "ddim250".
    """
    return lambda x, t: net(x, for_network(network_time, x, t))
