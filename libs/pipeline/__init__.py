"""From a config to images: what previews, evaluation and sample.py share.

Image i of seed s depends on (s, i) alone: its starting noise and all later noise come from one generator of its own. What
batch an image is in changes only how products are rounded, and batches are the same for any number of processes.
"""

import logging

import numpy as np
import torch

from libs import backbones, codecs, cond as conditions, diffusion, encoders
from libs.diffusion import samplers
from libs.diffusion.guidance import classifier_free
from libs.encoders import Bank, Prompts, read_attributes
from libs.pipeline import stable_diffusion
from libs.pipeline.building import (build_net, check_classes, check_images, check_labels, check_masks, classes_without_data,
                                    guidance_options, guidance_scale, latent_shape, null_conditions, start_controlnet, start_from)
from libs.pipeline.parameters import parameters, parameters_table
from libs.pipeline.prompts import (Describer, Masks, PROMPTS, StoredDescriber, choose_labels, count_labels, described,
                                   draw_conditions, draw_labels, draw_rows, read_modalities, read_prompts, requested)
from libs.pipeline.steering import (NoisyClassifier, by_gradient, check as check_gradient, measure_name, noisy_classifier,
                                    published_classifier)

__all__ = ["Bank", "build_net", "check_classes", "check_images", "check_labels", "check_masks", "choose_labels", "classes_without_data",
           "count_labels", "described", "Describer", "draw_conditions", "draw_labels", "draw_rows", "grid", "guidance_options",
           "guidance_scale", "identity", "image_codec", "image_generator", "latent_shape", "load", "Masks", "measure_name",
           "noisy_classifier", "NoisyClassifier", "null_conditions", "parameters", "parameters_table", "Pipeline", "PROMPTS",
           "Prompts", "published_classifier", "read_attributes", "read_modalities", "read_prompts", "requested",
           "start_controlnet", "start_from", "StoredDescriber", "text_encoder", "to_uint8"]

STEERED = {"on": "x_t", "profile": "constant", "first": 1.0, "last": 0.0, "clip_norm": 0.0, "reclip": False, "legacy_steps": 0}
LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Pipeline:
    """(conditions, seed, indices) -> images, for one network, schedule, codec and sampler.

    Attributes:
        shape: (C, H, W) of what the network denoises; image_shape: of an image.
        takes: the conditions that the network takes.
        null: the empty ones among them, without batch axis; a mask has none, so that guidance keeps it.
        masks_as: how masks are told in classes (a MaskCode of libs.data), or None.
        classifier: the NoisyClassifier that `config.sample.gradient` guides by, or None.
        codec: latents become images by its `decode`, which is differentiable, as all samplers are.
    """

    def __init__(self, net, config, *, codec, schedule, null, classifier=None, algorithm="", steps=0, masks_as=None):
        """
        Args:
            net: the network, usually the averaged one.
            config: the sections nnet (for the shape), denoiser and sample are used; kept as `config`.
            codec: codecs.get(...); images leave through its `decode`.
            schedule: diffusion.schedule(...).
            null: see `null_conditions`; {} for an unconditional network.
            classifier: for config.sample.gradient; without one images are not guided by a gradient (previews in training).
            algorithm, steps: in place of those of config.sample.
        """
        device = next(net.parameters()).device
        self.net, self.codec, self.schedule, self.takes, self.masks_as = net, codec, schedule, tuple(net.takes), masks_as
        self.config = config
        self.null = {key: value.to(device) for key, value in null.items()}
        self.denoiser = diffusion.Denoiser(self._network, schedule, **config.denoiser)
        self.shape = latent_shape(config.nnet)
        self.image_shape = codec.image_shape(self.shape)
        self.algorithm, self.steps = algorithm or config.sample.algorithm, steps or config.sample.sample_steps
        self.guidance, self.guided = guidance_scale(config.sample), guidance_options(config.sample, self.shape[0])
        self.own = {key: config.sample[key] for key in ("eta", "spacing") if key in config.sample}
        self.gradient, self.classifier = config.sample.get("gradient"), classifier
        self.controlnet_scale = config.sample.get("controlnet_scale", 1.0)
        if self.guidance != 1.0 and not null:
            raise ValueError(f"sample guidance {self.guidance} needs conditions, and this network has none; set it to 1")
        if self.guidance != 1.0 and "train" in config and not config.train.get("p_uncond", 0.0):
            logging.warning("guidance %g asks the network without conditions, which it never saw in training "
                            "(config.train.p_uncond=0)", self.guidance)
        for asked in (self.algorithm, config.sample.algorithm):
            if asked not in samplers.SAMPLERS:
                raise ValueError(f"unknown sampling algorithm {asked!r}; known: {', '.join(samplers.SAMPLERS)}")

    @torch.no_grad()
    def __call__(self, cond, *, seed, indices):
        """Images `indices` of `seed` under the conditions `cond`.

        Args:
            cond: dict of tensors with one row per image; only the keys of `takes` are used.
            seed: int.
            indices: ints; which images of the endless sequence of that seed.

        Returns:
            float32 Tensor (N, C, H, W) in [-1, 1] on the network's device.
        """
        generators = [image_generator(seed, index) for index in indices]
        x = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators]).to(self.device)
        z = samplers.run(self.algorithm, self.denoise(cond), x, self.schedule, self.steps, generator=generators, **self.own)
        return self.codec.decode(z).clamp(-1.0, 1.0).float()

    @torch.no_grad()
    def encode(self, images, cond, *, to_noise=True):
        """The latents that `decode` brings back to these images: DDIM along rising times, without guidance or clipping.

        The image is taken for x at the lowest time (MGDM's and DDIB's encoding).

        Args:
            images: float32 (N, C, H, W) in [-1, 1].
            cond: their own conditions, a row each.
            to_noise: as many network calls as `decode` makes, the last of which leaves the predicted noise; False stops one
                call earlier, at x of the highest time, which reconstructs better where the network predicts well there
                (Dhariwal & Nichol 2021, appendix F).

        Returns:
            float32 (N, *shape) on the network's device.
        """
        plain = diffusion.Denoiser(self._network, self.schedule, self.denoiser.predicts, self.denoiser.learned_var)
        cond = self._with_states(self.net, self._conditions(cond))[0]
        z = self.codec.sample(self.codec.moments(images.to(self.device)).chunk(2, dim=1)[0])  # its mean: no draw
        return samplers.sample_ddim(lambda x, t: plain(x, t, **cond), z, self._bridge_times()[:-1].flip(0), self.schedule,
                                    to_noise=to_noise)

    @torch.no_grad()
    def decode(self, latents, cond):
        """Images (N, C, H, W) in [-1, 1] from latents of `encode`: DDIM along falling times, with all guidance."""
        z = samplers.sample_ddim(self.denoise(cond), latents.to(self.device), self._bridge_times(), self.schedule)
        return self.codec.decode(z).clamp(-1.0, 1.0).float()

    def denoise(self, cond, *, net=None, guidance=None):
        """The denoiser under conditions (a row for each image), with the guidance of config.sample: classifier-free first,
        the gradient around it. A network with a text encoder of its own reads the texts here, once, and not at every step.

        Gradients flow: `samplers.run(name, pipeline.denoise(cond, net=net), x, ...)` and `codec.decode` of its result are
        differentiable in the weights of `net`, those of its text encoder among them.

        Args:
            net: in place of the pipeline's own network (the averaged one, without gradients): that of a training, wrapped or not.
            guidance: the classifier-free scale, in place of that of config.sample; 1 is off.

        Returns:
            denoise(x, t) -> Estimate for a float t, as the samplers call it.
        """
        denoiser = self.denoiser if net is None else diffusion.Denoiser(net, self.schedule, **self.config.denoiser)
        cond, null = self._with_states(self.net if net is None else net, self._conditions(cond))
        denoise = classifier_free(denoiser, cond, conditions.null(null, cond), self.guidance if guidance is None else guidance,
                                  **self.guided)
        return by_gradient(denoise, self.gradient, self.classifier, cond.get("label")) if self.guides else denoise

    @property
    def guides(self):
        """Whether a classifier's gradient guides."""
        return self.classifier is not None and self.gradient.scale > 0

    @property
    def device(self):
        return next(self.net.parameters()).device

    def _network(self, x, t, **cond):
        """The network's output; a ControlNet's at the scale of config.sample, which the losses of a training do not see."""
        if not hasattr(self.net, "conditioning_scale"):
            return self.net(x, t, **cond)
        before, self.net.conditioning_scale = self.net.conditioning_scale, self.controlnet_scale
        try:
            return self.net(x, t, **cond)
        finally:
            self.net.conditioning_scale = before

    def _conditions(self, cond):
        return {key: cond[key].to(self.device, non_blocking=True) for key in self.takes}

    def _with_states(self, net, cond):
        """Conditions and empty ones, texts as the states that the network's own text encoder, if it has one, makes of them."""
        states = getattr(getattr(net, "module", net), "states", None)  # a training wraps its network
        if states is None or "text" not in cond:
            return cond, self.null
        return cond | {"text": states(cond["text"])}, self.null | {"text": states(self.null["text"][None])[0]}

    def _bridge_times(self):
        return self.schedule.times(self.steps, spacing=self.own.get("spacing") or None)

    def describe(self):
        """All that decides the images but weights and seed, in words: for reports, and to tell samples apart."""
        words = [f"{self.algorithm}, {self.steps} steps"]
        words += [f"spacing {self.own['spacing']}"] if self.own.get("spacing") else []
        words += [f"eta {self.own['eta']:g}"] if self.own.get("eta") else []
        if self.guidance != 1.0:
            channels, (first, last) = self.guided["channels"], self.guided["interval"]
            words.append(f"guidance {self.guidance:g}" + (f" of the first {channels} channels" if channels else "")
                         + (f" for t in [{first:g}, {last:g}]" if (first, last) != (0.0, 1.0) else ""))
        words += [f"controlnet scale {self.controlnet_scale:g}"] if self.controlnet_scale != 1.0 else []
        words += ["x0 clipped"] if self.denoiser.clip else []
        if self.guides:
            one = self.gradient
            words.append(f"gradient of {measure_name(one.measure)}, scale {one.scale:g}")
            words += [f"{key} {one[key]}" for key, usual in STEERED.items() if one[key] != usual]
        return ", ".join(words)


def load(config, weights, *, classes, device, encoder=None, empty_text=None, classifier=None, precision="no", masks_as=None,
         base=None, **own):
    """The pipeline of a trained network.

    Args:
        config: the run's config.
        weights: {name: Tensor}, see engine.load_weights.
        classes: class names, [] for an unlabelled network.
        encoder: of a network that takes text, see `text_encoder`.
        empty_text: (L, D) states of the empty text, in place of the encoder's.
        classifier: NoisyClassifier for config.sample.gradient; its classes are numbered as the network's.
        precision: 'bf16' or 'fp16' rounds the weights once, as autocast, under which the network then runs, does at each call.
        masks_as: MaskCode of a network that takes masks.
        base: what the run says of its frozen weights, see `stable_diffusion.check_base`.
        own: further arguments of Pipeline.
    """
    if empty_text is None and encoder is not None:
        empty_text = encoder.empty
    net = build_net(config, classes, None if empty_text is None else tuple(empty_text.shape),
                    mask_channels=masks_as.channels if masks_as else 0)
    if "mask" in net.takes and not any(name.startswith("unet.") for name in weights):
        raise ValueError("these weights hold a ControlNet without the UNet that it was trained on: give its run folder, where "
                         "frozen.safetensors lies beside ckpts/, or both files with a comma between them, ldm.pt,controlnet.pt")
    # What was never trained is in no checkpoint of ours, but what a run keeps beside them.
    frozen = {name: weight for name, weight in net.named_parameters() if not weight.requires_grad}
    weights = stable_diffusion.fit_weights(net, weights)
    if base:
        stable_diffusion.check_base(base, net, config)
    backbones.load(net, frozen | weights)
    if classifier is not None:
        classifier = classifier.in_order_of(classes)
    for each in (net, classifier and classifier.net) if precision in LOWER else ():
        if each is not None:
            backbones.lower(each, LOWER[precision])
    if "gradient" in config.sample:
        check_gradient(config.sample.gradient, classifier, classes=classes, shape=latent_shape(config.nnet))
    return Pipeline(net.to(device).eval(), config, codec=image_codec(config, device),
                    schedule=diffusion.schedule(**config.schedule),
                    null=null_conditions(net, classes, empty_text), classifier=classifier, masks_as=masks_as, **own)


def text_encoder(config, device="cpu"):
    """The frozen text encoder of config.encoder on `device`; None where the config has none."""
    return encoders.get(**stable_diffusion.part(config, "encoder")).to(device) if "encoder" in config else None


def image_codec(config, device="cpu"):
    """The codec of config.codec on `device`."""
    return codecs.get(**stable_diffusion.part(config, "codec")).to(device)


def identity(codec, encoder=None):
    """What decides whether stored features fit: codec and encoder, by name and by the hash of what they compute with."""
    return {"codec": {"name": type(codec).__name__, "fingerprint": codec.fingerprint},
            "encoder": {"name": type(encoder).__name__, "fingerprint": encoder.fingerprint,
                        "shape": list(encoder.shape)} if encoder is not None else {}}


def image_generator(seed, index):
    """The generator of image `index` of `seed`; a CPU generator, so that every device draws the same noise."""
    state = np.random.SeedSequence([seed, int(index)]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def to_uint8(images):
    """[-1, 1] -> uint8, rounded, on the CPU: (N, C, H, W) -> (N, C, H, W)."""
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def grid(images, columns):
    """uint8 (N, C, H, W) -> one uint8 array (rows*H, columns*W, 3), two pixels of white between images."""
    from torchvision.utils import make_grid
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return make_grid(images, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()
