"""Guidance up a gradient, as `config.sample.gradient` describes it: a noisy classifier, a measure of its belief, and a scale.

    measure     log_probability (of the label asked for), entropy, margin, least_confidence; '' is off
    scale       0 is off
    profile     how the scale goes with t: constant, early (scale t, strongest in noise), late (scale (1 - t))
    on          'x_t' the classifier sees the noisy image, 'x0' the estimated clean one, through the network
    first, last guidance begins at t = first and ends at t = last
    clip_norm   largest norm of an image's gradient before the scale, 0 is off; reclip: x0 is clipped to [-1, 1] again
    legacy_steps  250 for classifiers trained by MGDM's code on "ddim250", which numbers the kept steps 0..249; 0 is off
"""

import difflib

import torch

from libs import backbones, diffusion
from libs.backbones import adm
from libs.diffusion import guidance
from libs.diffusion.denoiser import for_network

PROFILES = {"constant": lambda t: 1.0, "early": lambda t: t, "late": lambda t: 1.0 - t}


class NoisyClassifier:
    """p(class | x_t), opened: the classifier that guidance asks.

    Attributes:
        net: frozen network (N, C, H, W), network time (N,) -> logits (N, K).
        schedule: the noise schedule it was trained on.
        classes: names of its K classes, or their number where bare weights know no names.
        shape: (C, H, W) of the images it looks at.
        noised: False if it was trained on clean images only, which it is then always told.
        source, step: where its weights come from.
    """

    def __init__(self, net, schedule, *, classes, shape, noised=True, source="", step=None):
        self.net = net.eval().requires_grad_(False)
        self.named = not isinstance(classes, int)
        self.classes = list(classes) if self.named else [str(k) for k in range(classes)]
        self.schedule, self.shape = schedule, tuple(shape)
        self.noised, self.source, self.step = noised, source, step

    def logits(self, x, t, schedule, *, legacy_steps=0):
        """Logits (N, K) of x_t at the float time t of the `schedule` that x_t was noised by.

        The classifier is told the time at which its own schedule has the same noise level.
        """
        return self.net(x, for_network(lambda time: self.network_time(time, schedule, legacy_steps), x, t))

    def network_time(self, t, schedule, legacy_steps=0):
        """The time that the network is told, a float."""
        lowest = 1 / self.schedule.steps if self.schedule.steps else 0.0
        if legacy_steps and schedule.steps is None:
            raise ValueError(f"config.sample.gradient.legacy_steps={legacy_steps} numbers the steps of a discrete schedule "
                             "(linear, cosine), and this one is continuous")
        if legacy_steps:
            return max(legacy_steps * (t - 1 / schedule.steps), 0.0)
        if not self.noised or t <= 0:
            return self.schedule.network_time(lowest)
        lam = schedule.lam(t)
        if abs(self.schedule.lam(t) - lam) > 1e-9:
            t = 1.0 if lam <= self.schedule.lam(1.0) else self.schedule.t_of_lam(lam)
        return self.schedule.network_time(max(t, lowest))

    def in_order_of(self, classes):
        """This classifier with its classes numbered as in `classes`; ValueError where they are not the same."""
        if self.classes == list(classes) or not classes or not self.named and len(self.classes) == len(classes):
            return self
        if sorted(self.classes) != sorted(classes):
            raise ValueError(f"the classifier {self.source} tells {self.classes} apart, the network makes {list(classes)}: train "
                             "one on the same classes (train_classifier.py)")
        order = torch.tensor([self.classes.index(name) for name in classes])
        return NoisyClassifier(Reordered(self.net, order), self.schedule, classes=classes, shape=self.shape, noised=self.noised,
                               source=self.source, step=self.step)


class Reordered(torch.nn.Module):
    """A classifier whose logits come in another order: `order` (K,) int64 follows the network from device to device."""

    def __init__(self, net, order):
        super().__init__()
        self.net = net
        # beside the weights, for an index on another device would be copied at every step
        self.register_buffer("order", order.to(next(net.parameters(), order).device), persistent=False)

    def forward(self, x, t):
        return self.net(x, t)[:, self.order]


def noisy_classifier(config, weights, *, classes, device="cpu", source="", step=None):
    """The `NoisyClassifier` of a run of train_classifier.py, from its config and weights."""
    net = backbones.get(**{**config.nnet, "out_channels": config.nnet.out_channels or len(classes)})
    backbones.load(net, weights)
    shape = config.nnet.in_channels, config.nnet.image_size, config.nnet.image_size
    return NoisyClassifier(net.to(device), diffusion.schedule(**config.schedule), classes=classes, shape=shape,
                           noised=config.train.get("noised", True), source=source, step=step)


def published_classifier(config, weights, *, device="cpu", source=""):
    """The `NoisyClassifier` of bare weights, such as guided-diffusion's 256x256_classifier.pt, whose shapes tell the network.

    `config` is that of the diffusion model: the published classifiers were trained on its schedule and image size.
    """
    arguments = {"image_size": config.nnet.image_size, **adm.classifier_arguments(weights)}
    net = backbones.load(adm.Classifier(**arguments), weights)
    shape = arguments["in_channels"], arguments["image_size"], arguments["image_size"]
    return NoisyClassifier(net.to(device), diffusion.schedule(**config.schedule), shape=shape, source=source,
                           classes=arguments["out_channels"])


def measure_name(asked):
    """The name of a measure, which may be spelt as MGDM does (Entropy, Margin, LeastConf, classifier); '' stays ''.

    Raises:
        ValueError: no such measure.
    """
    known = {name: name for name in guidance.MEASURES} | {"leastconf": "least_confidence", "classifier": "log_probability", "": ""}
    if asked.lower() in known:
        return known[asked.lower()]
    close = difflib.get_close_matches(asked.lower(), [name for name in known if name], 1)
    raise ValueError(f"config.sample.gradient.measure is {asked!r}; known: {', '.join(guidance.MEASURES)}"
                     + (f". Did you mean {known[close[0]]!r}?" if close else ""))


def check(gradient, classifier, *, classes, shape, schedule=None):
    """Raise ValueError for a section `gradient` that asks for what cannot be, or not on this noise schedule, and a classifier of
    other images."""
    measure_name(gradient.measure)
    for option, known in (("profile", PROFILES), ("on", ("x_t", "x0"))):
        if gradient[option] not in known:
            close = difflib.get_close_matches(str(gradient[option]).lower(), known, 1)
            raise ValueError(f"config.sample.gradient.{option} is {gradient[option]!r}; known: {', '.join(known)}"
                             + (f". Did you mean {close[0]!r}?" if close else ""))
    if gradient.scale < 0 or gradient.clip_norm < 0 or not 0 <= gradient.last <= gradient.first <= 1:
        raise ValueError(f"config.sample.gradient: scale={gradient.scale}, clip_norm={gradient.clip_norm} must not be "
                         f"negative, and 0 <= last={gradient.last} <= first={gradient.first} <= 1")
    if gradient.legacy_steps < 0 or gradient.legacy_steps and schedule is not None and schedule.steps is None:
        raise ValueError(f"config.sample.gradient.legacy_steps is {gradient.legacy_steps}; it numbers the steps of a discrete schedule "
                         "(linear, cosine), of which there are 250 in MGDM: set --config.sample.gradient.legacy_steps=0, which is off")
    if bool(gradient.measure) != (gradient.scale > 0):
        raise ValueError(f"config.sample.gradient has measure={gradient.measure!r} and scale={gradient.scale}: both are needed, or "
                         "neither")
    if gradient.scale and classifier is None:
        raise ValueError("config.sample.gradient guides by a classifier: give the run folder of one (train_classifier.py) as "
                         "config.sample.gradient.classifier")
    if classifier is not None and classifier.shape != tuple(shape):
        raise ValueError(f"the classifier {classifier.source} looks at images {classifier.shape} (channels, height, width), the "
                         f"network denoises {tuple(shape)}")
    if measure_name(gradient.measure) == "log_probability" and not classes:
        raise ValueError("config.sample.gradient.measure='log_probability' needs a network that is asked for classes")


def by_gradient(denoise, gradient, classifier, label=None):
    """`denoise` guided as the section `gradient` says."""
    schedule = denoise.schedule

    def logits(x, t):
        return classifier.logits(x, t if gradient.on == "x_t" else 0.0, schedule, legacy_steps=gradient.legacy_steps)

    def scale(t):
        return gradient.scale * PROFILES[gradient.profile](t)

    return guidance.by_gradient(denoise, guidance.energy(measure_name(gradient.measure), logits, label),
                                gradient.scale if gradient.profile == "constant" else scale, on=gradient.on,
                                window=(gradient.last, gradient.first), clip_norm=gradient.clip_norm or None,
                                reclip=gradient.reclip)
