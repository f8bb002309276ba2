"""From a config to images: what previews, evaluation and sample.py share.

Image i of seed s depends on (s, i) alone: its starting noise and all later noise come from one generator of its own,
so that batch size and number of processes change nothing.
"""

import numpy as np
import torch

from libs import backbones, codecs, cond as conditions, diffusion
from libs.diffusion import guidance, samplers


class Pipeline:
    """(conditions, seed, indices) -> images, for one network, schedule, codec and sampler.

    Attributes:
        shape: (C, H, W) of what the network denoises; image_shape: of an image.
        null: the empty conditions without batch axis; their keys are the conditions that the network takes.
    """

    def __init__(self, net, config, *, codec, schedule, null, algorithm="", steps=0):
        """
        Args:
            net: the network, usually the averaged one.
            config: the sections nnet (for the shape), denoiser and sample are used.
            codec: codecs.get(...); images leave through its `decode`.
            schedule: diffusion.schedule(...).
            null: `dataset.null`; {} for an unconditional network.
            algorithm, steps: in place of those of config.sample.
        """
        self.net, self.codec, self.schedule, self.null = net, codec, schedule, null
        self.denoiser = diffusion.Denoiser(net, schedule, **config.denoiser)
        self.shape = latent_shape(config.nnet)
        self.image_shape = codec.image_shape(self.shape)
        self.algorithm, self.steps = algorithm or config.sample.algorithm, steps or config.sample.sample_steps
        self.guidance = guidance_scale(config.sample)
        self.own = {key: config.sample[key] for key in ("eta", "spacing") if key in config.sample}
        if self.guidance != 1.0 and not null:
            raise ValueError(f"sample guidance {self.guidance} needs conditions, and this network has none; set it to 1")
        for asked in (self.algorithm, config.sample.algorithm):
            if asked not in samplers.SAMPLERS:
                raise ValueError(f"unknown sampling algorithm {asked!r}; known: {', '.join(samplers.SAMPLERS)}")

    @torch.no_grad()
    def __call__(self, cond, *, seed, indices):
        """Images `indices` of `seed` under the conditions `cond`.

        Args:
            cond: dict of tensors with one row per image; only the keys of `null` are used.
            seed: int.
            indices: ints; which images of the endless sequence of that seed.

        Returns:
            float32 Tensor (N, C, H, W) in [-1, 1] on the network's device.
        """
        device = next(self.net.parameters()).device
        generators = [image_generator(seed, index) for index in indices]
        x = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators]).to(device)
        cond = {key: cond[key].to(device) for key in self.null}
        null = conditions.null(self.null, cond)
        denoise = guidance.classifier_free(self.denoiser, cond, null, self.guidance)
        z = samplers.run(self.algorithm, denoise, x, self.schedule, self.steps, generator=generators, **self.own)
        return self.codec.decode(z).clamp(-1.0, 1.0).float()

    def describe(self):
        """The sampler in words, for reports."""
        return f"{self.algorithm}, {self.steps} steps" + (
            f", guidance {self.guidance:g}" if self.guidance != 1.0 else "")


def guidance_scale(sample):
    """The classifier-free scale s of uncond + s (cond - uncond); 1 is off.

    New configs write `guidance` = s. Configs under a published name keep U-ViT's and VAP's `scale` = s - 1, which is
    converted here and nowhere else.
    """
    return 1.0 + sample.scale if "scale" in sample else float(sample.get("guidance", 1.0))


def latent_shape(nnet):
    """(C, H, W) of what a network denoises, read off its constructor's arguments."""
    side = next(nnet[key] for key in ("img_size", "image_size", "input_size", "sample_size") if key in nnet)
    return nnet.in_chans if "in_chans" in nnet else nnet.in_channels, side, side


def load(config, weights, *, classes, device, **own):
    """The pipeline of a trained network.

    Args:
        config: the run's config.
        weights: {name: Tensor}, see engine.load_weights.
        classes: class names, [] for an unconditional network.
        own: further arguments of Pipeline.
    """
    net = build_net(config, classes)
    # What was never trained is in no checkpoint of ours.
    frozen = {name: weight for name, weight in net.named_parameters() if not weight.requires_grad}
    backbones.load(net, frozen | weights)
    null = {"label": torch.tensor(len(classes))} if config.train.mode == "cond" else {}
    return Pipeline(net.to(device).eval(), config, codec=codecs.get(**config.codec),
                    schedule=diffusion.schedule(**config.schedule), null=null, **own)


def build_net(config, classes):
    """The network of `config.nnet`; `num_classes` = 0 there means: as many as the data have, and the null class.

    Raises:
        ValueError: the data are unlabelled but the network asks for a label, or it knows fewer classes than the data.
    """
    kwargs = dict(config.nnet)
    conditional = config.train.mode == "cond"
    if config.train.mode not in ("cond", "uncond"):
        raise ValueError(f"config.train.mode is {config.train.mode!r}; known: cond, uncond")
    if conditional and not classes:
        raise ValueError("config.train.mode is 'cond' but the data have no labels: give them class folders or a label "
                         "column, or set --config.train.mode=uncond and --config.nnet.num_classes=-1")
    if conditional:
        if kwargs.get("num_classes") == 0:
            kwargs["num_classes"] = len(classes) + 1
        needed = len(classes) + (config.train.get("p_uncond", 0.0) > 0 or guidance_scale(config.sample) != 1.0)
        if kwargs.get("num_classes", needed) < needed:
            raise ValueError(f"config.nnet.num_classes is {kwargs['num_classes']}, but {len(classes)} classes"
                             f"{' and the null class' if needed > len(classes) else ''} need {needed}; 0 takes what is needed")
    elif kwargs.get("num_classes", -1) >= 0:
        raise ValueError(f"config.train.mode is 'uncond' but config.nnet.num_classes is {kwargs['num_classes']}; set it to -1")
    return backbones.get(**kwargs)


def classes_without_data(config):
    """Class names where neither a run folder nor the data tell them: the numbers of config.nnet.num_classes, or none."""
    if config.train.mode != "cond":
        return []
    if config.nnet.num_classes < 1:
        raise ValueError("the class names are unknown: give the --workdir of the run that has classes.json, or the data "
                         "(config.dataset.path)")
    return [str(number) for number in range(config.nnet.num_classes)]


def choose_labels(asked, classes, n, *, conditional):
    """Labels of the images to make.

    `asked` is a class name for n images of it, 'all' for n of each class, or '' for n images of the classes in turn.

    Returns:
        list of int, one for each image (0 where the network takes no label).
    """
    if not conditional:
        if asked not in ("", "all"):
            raise ValueError(f"--label={asked}: this network takes no label")
        return [0] * n
    if asked == "all":
        return [label for label in range(len(classes)) for _ in range(n)]
    if asked and asked not in classes:
        raise ValueError(f"--label={asked}: no such class; known: all, {', '.join(classes)}")
    return [classes.index(asked)] * n if asked else [i % len(classes) for i in range(n)]


def draw_conditions(dataset, null, n, *, seed, labels="data"):
    """Conditions of images 0 .. n-1; those of image i depend on (seed, i) alone.

    Args:
        dataset: data set whose conditions are drawn; None draws each label with equal probability.
        null: the empty conditions of the network; {} gives {}.
        labels: 'data' draws the conditions of a real image, so that classes are as frequent as in the data;
            'balanced' takes class i modulo K.

    Returns:
        dict of tensors with n rows.
    """
    if labels not in ("data", "balanced"):
        raise ValueError(f"config.sample.labels is {labels!r}; known: data, balanced")
    if not null:
        return {}
    only_label = set(null) == {"label"}
    if only_label and labels == "balanced":
        return {"label": torch.arange(n) % int(null["label"])}
    size = int(null["label"]) if dataset is None else len(dataset)
    rows = [int(np.random.default_rng([seed, i]).integers(size)) for i in range(n)]
    if dataset is None:
        return {"label": torch.tensor(rows)}
    return {"label": dataset.labels[rows]} if only_label else conditions.take(dataset.batch(rows))


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
