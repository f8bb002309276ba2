"""From a config to a network that fits the data: its sizes, what it may start from, and what does not go together."""

import difflib

import torch

from libs import backbones
from libs.pipeline import stable_diffusion

EMBEDDINGS = {"unet_label": "class_embedder", "dit": "y_embedder"}  # weights with a row for each class, where not label_emb
SIDES = ("img_size", "image_size", "input_size", "sample_size")  # of what a network denoises, by family
GUIDED_CHANNELS = {"all": None, "first_three": 3}


def build_net(config, classes, text_shape=None, *, mask_channels=0):
    """The network of `config.nnet`, whose sizes may be left to the data by a 0.

    `num_classes` = 0 there means: as many as the data have, and the null class where the network numbers it. `out_channels`
    = 0 means: what the denoiser needs. `num_clip_token` = 0 and `clip_dim` = 0 mean: those of the text encoder,
    `text_shape` = (L, D). `conditioning_channels` = 0 means: those of the masks, `mask_channels`.

    Raises:
        ValueError: the data are unlabelled but the network asks for a label, it knows fewer classes than the data, or
            its text tokens are not the encoder's, or its masks not those of the data.
    """
    kwargs = dict(config.nnet)
    name, labelled = kwargs["name"], _labelled(config, classes)
    leaves_out = config.train.get("p_uncond", 0.0) > 0 or guidance_scale(config.get("sample", {})) != 1.0
    if labelled:
        null = backbones.numbers_null(name)
        kwargs["num_classes"] = kwargs["num_classes"] or len(classes) + null
        needed = len(classes) + (null and leaves_out)
        if kwargs["num_classes"] < needed:
            raise ValueError(f"config.nnet.num_classes is {kwargs['num_classes']}, but {len(classes)} classes"
                             f"{' and the null class' if needed > len(classes) else ''} need {needed}; 0 takes what is needed")
        if not null and kwargs["num_classes"] != len(classes):
            raise ValueError(f"config.nnet.num_classes is {kwargs['num_classes']}, but the data have {len(classes)} classes, and "
                             "the number after the last one must mean no class; 0 takes what is needed. Weights of other classes: "
                             f"--config.train.init=WEIGHTS {backbones.init_without([EMBEDDINGS.get(name, 'label_emb')])}")
    if "out_channels" in kwargs:
        needed = kwargs["in_channels"] * (2 if config.denoiser.get("learned_var", False) else 1)
        kwargs["out_channels"] = kwargs["out_channels"] or needed
        if kwargs["out_channels"] != needed:
            raise ValueError(f"config.nnet.out_channels is {kwargs['out_channels']}; {kwargs['in_channels']} channels with "
                             f"config.denoiser.learned_var={needed > kwargs['in_channels']} need {needed}; 0 takes what is needed")
    if name == "dit":
        if labelled and leaves_out and not kwargs.get("class_dropout_prob", 0.1) > 0:
            raise ValueError(f"config.nnet.class_dropout_prob is {kwargs['class_dropout_prob']}: the network has no row for no "
                             "class, which config.train.p_uncond above 0 and guidance ask for: set config.nnet.class_dropout_prob "
                             "above 0, such as 0.1, or --config.train.p_uncond=0. --config.sample.guidance=1.")
        learned = config.denoiser.get("learned_var", False)
        if kwargs.setdefault("learn_sigma", learned) != learned:
            raise ValueError(f"config.nnet.learn_sigma is {kwargs['learn_sigma']}, config.denoiser.learned_var is {learned}: leave "
                             "learn_sigma out, it follows")
    if "conditioning_channels" in kwargs and mask_channels:
        kwargs["conditioning_channels"] = kwargs["conditioning_channels"] or mask_channels
        if kwargs["conditioning_channels"] != mask_channels and not kwargs.get("legacy"):
            raise ValueError(f"config.nnet.conditioning_channels is {kwargs['conditioning_channels']}, the masks of the data have "
                             f"{mask_channels} (config.dataset.mask_values); 0 takes what they have")
    if "num_clip_token" in kwargs:
        for key, size in zip(("num_clip_token", "clip_dim"), text_shape or (0, 0)):
            if not kwargs[key]:
                kwargs[key] = size
            if kwargs[key] != size and text_shape:
                raise ValueError(f"config.nnet.{key} is {kwargs[key]}, but the text encoder gives {size}; 0 takes what it gives")
    return backbones.get(**kwargs)


def check_labels(config, classes):
    """Raise ValueError where a network is to learn classes and the data have none, before they are decoded."""
    _labelled(config, classes)


def check_classes(config, classes):
    """Raise ValueError where a network is to learn classes and the data have none, or one only, which asks nothing of it."""
    _labelled(config, classes)
    if config.train.mode == "cond" and "num_classes" in config.nnet and len(classes) == 1:
        raise ValueError(f"the data have one class only, {classes[0]!r}: give two class folders or more, or train without classes: "
                         "--config.train.mode=uncond")


def _labelled(config, classes):
    """Whether the network is asked for labels; ValueError where the data have none, or the config says both."""
    labelled = config.nnet.get("num_classes", -1) >= 0
    if config.train.mode not in ("cond", "uncond"):
        raise ValueError(f"config.train.mode is {config.train.mode!r}; known: cond, uncond")
    if config.train.mode == "uncond" and labelled:
        raise ValueError(f"config.train.mode is 'uncond' but config.nnet.num_classes is {config.nnet.num_classes}; set "
                         "--config.nnet.num_classes=-1")
    if labelled and not classes or config.train.mode == "cond" and not (labelled or backbones.takes_text(config.nnet.name)):
        raise ValueError("config.train.mode is 'cond' but the data have no labels: give them class folders or a label "
                         "column, or train without classes: --config.train.mode=uncond" if not classes else
                         "config.train.mode is 'cond' but config.nnet.num_classes is negative: set --config.nnet.num_classes=0, "
                         "which takes what is needed")
    return labelled


def check_images(config, codec, shape):
    """Raise ValueError unless images of `shape` (C, H, W) are what the network of `config.nnet` is built for."""
    wanted = tuple(codec.image_shape(latent_shape(config.nnet)))
    if tuple(shape) != wanted:
        raise ValueError(f"the data give images {tuple(shape)} (channels, height, width), config.nnet is built for {wanted}: "
                         f"{_fitting_options(config, codec, tuple(shape))}")
    if "conditioning_embedding_out_channels" in config.nnet:
        halvings, side = len(config.nnet.conditioning_embedding_out_channels) - 1, latent_shape(config.nnet)[1]
        if shape[1] != side << halvings:
            raise ValueError(f"masks of {shape[1]} pixels, halved {halvings} times, do not become the {side} of the latents: "
                             "config.nnet.conditioning_embedding_out_channels needs one entry more than the codec halves images")


def _fitting_options(config, codec, shape):
    """What to type so that config.nnet takes the latents of images of `shape`."""
    try:
        needed = codec.latent_shape(shape)
    except ValueError as error:
        return str(error)
    now = latent_shape(config.nnet)
    side = next(key for key in SIDES if key in config.nnet)
    channels = "in_chans" if "in_chans" in config.nnet else "in_channels"
    options = [f"--config.nnet.{side}={needed[1]}"] if needed[1] != now[1] else []
    options += [f"--config.nnet.{channels}={needed[0]}"] if needed[0] != now[0] else []
    if not options:  # the codec makes these latents of images of other channels
        options = [f"--config.dataset.channels={codec.image_shape(now)[0]}"]
    return f"set {' '.join(options)}"


def check_masks(dataset):
    """How the masks of a data set are told in classes, a MaskCode; ValueError where it has none."""
    if dataset.masks_as is None:
        raise ValueError(f"{dataset.name}: the images have no masks: give the table a column mask_file_name, or "
                         "--config.dataset.name=image_mask with folders of images and of masks; of phantoms "
                         "--config.dataset.masks=True")
    return dataset.masks_as


def start_controlnet(net, weights):
    """Copy the weights of a class-conditional UNet into a fresh ControlNet: its UNet, and the way down that the ControlNet copies.

    Weights that hold a ControlNet already are taken as they are.

    Raises:
        ValueError: they do not fit.
    """
    own = net.state_dict()
    whole = any(name.startswith("controlnet.") for name in weights)
    # The class tokens of an unconditional first stage have no place in a legacy network, and the other way round.
    fitting = {name: value for name, value in weights.items() if name in own or not name.startswith("class_embedder.")}
    fresh = {} if whole else {name: own[name] for name in own if name.split(".")[0] not in ("unet", "class_embedder")}
    backbones.load(net, fresh | fitting)
    if not whole:
        net.copy_unet()


def start_from(net, weights, *, without=()):
    """Copy the weights of another training into a fresh network, but those whose names begin with one of `without`.

    Of a DiT `without` may hold 'y_embedder', for other classes: what the weights know of no class, the last row of that table, is
    kept all the same; and 'pos_embed', for another size: the table of positions, which is computed and not learned, is then that
    of the new size.

    Raises:
        ValueError: they do not fit; where that is because of classes or size, says what to leave out. A prefix of `without` that
            no weight has.
    """
    own, weights = net.state_dict(), stable_diffusion.fit_weights(net, weights)
    for prefix in without:
        if not any(name.startswith(prefix) for name in own):
            raise ValueError(f"config.train.init_without={tuple(without)}: no weight's name begins with {prefix!r}")
    fresh = {name: value for name, value in own.items() if name.startswith(tuple(without))}
    table = getattr(net, "class_table", "")
    if table in fresh and table in weights and len(fresh[table]) > net.num_classes \
            and fresh[table].shape[1:] == weights[table].shape[1:]:
        fresh[table] = torch.cat([fresh[table][:-1], weights[table][-1:].to(fresh[table])])
    # what is computed and never trained need not be in a checkpoint
    fixed = {name: own[name] for name, weight in net.named_parameters() if not weight.requires_grad and name not in weights}
    weights = {name: value for name, value in weights.items() if not name.startswith(tuple(without))} | fresh | fixed
    differing = backbones.adaptations(net, weights)
    if differing:
        said = ", ".join(f"{key}={theirs} in place of {ours}" for key, (theirs, ours, _) in differing.items())
        prefixes = [*without, *(prefix for *_, prefix in differing.values())]
        raise ValueError(f"the weights of config.train.init are of another task: {said}. To begin with all of them but what "
                         f"depends on that: {backbones.init_without(prefixes)}")
    backbones.load(net, weights)


def classes_without_data(config):
    """Class names where neither a run folder nor the data tell them: the numbers of config.nnet.num_classes, or none.

    The last of them is the null class where guidance needs one.
    """
    if config.train.mode != "cond" or "num_classes" not in config.nnet:
        return []
    if config.nnet.num_classes < 1:
        raise ValueError("the class names are unknown: give the --workdir of the run that has classes.json, or the data "
                         "(config.dataset.path)")
    null = config.train.get("p_uncond", 0.0) > 0 or guidance_scale(config.sample) != 1.0
    return [str(number) for number in range(config.nnet.num_classes - (null and backbones.numbers_null(config.nnet.name)))]


def null_conditions(net, classes, empty_text=None):
    """The empty conditions of a network, without batch axis, for the conditions that it takes.

    `label` is the number after the last class, `text` the states (L, D) of the empty text. A mask is never left out.
    """
    if "text" in net.takes and empty_text is None:
        raise ValueError("the network takes text: give config.encoder")
    known = {"label": torch.tensor(len(classes)), "text": empty_text}
    return {key: known[key] for key in net.takes if key != "mask"}


def guidance_scale(sample):
    """The classifier-free scale s of uncond + s (cond - uncond); 1 is off.

    New configs write `guidance` = s. Configs under a published name keep U-ViT's and VAP's `scale` = s - 1, which is
    converted here and nowhere else.
    """
    return 1.0 + sample.scale if "scale" in sample else float(sample.get("guidance", 1.0))


def guidance_options(sample, channels):
    """What config.sample says of classifier-free guidance beside its scale, as arguments of guidance.classifier_free.

    guided_channels: 'all', or 'first_three', by which the published DiT was evaluated: the rest of the `channels` that the
    network denoises stay as the condition has them. guidance_interval: (from, to), the t within which images are guided.

    Raises:
        ValueError: another name; no interval in [0, 1]; three channels or fewer of which the first three were asked for.
    """
    name, interval = sample.get("guided_channels", "all"), sample.get("guidance_interval", (0.0, 1.0))
    if name not in GUIDED_CHANNELS:
        close = difflib.get_close_matches(str(name).lower(), GUIDED_CHANNELS, 1)
        raise ValueError(f"config.sample.guided_channels is {name!r}; known: {', '.join(GUIDED_CHANNELS)}"
                         + (f". Did you mean {close[0]!r}?" if close else ""))
    if name == "first_three" and channels <= 3:
        raise ValueError(f"config.sample.guided_channels='first_three' leaves something unguided only where there are more than 3 "
                         f"channels, and this network denoises {channels}: set it to 'all'")
    if not (isinstance(interval, (tuple, list)) and len(interval) == 2 and all(isinstance(t, (int, float)) for t in interval)
            and 0 <= interval[0] < interval[1] <= 1):
        raise ValueError(f"config.sample.guidance_interval is {interval!r}; two times (from, to) with 0 <= from < to <= 1 are "
                         "needed, noise being at 1; (0., 1.) guides always")
    return {"channels": GUIDED_CHANNELS[name], "interval": (float(interval[0]), float(interval[1]))}


def latent_shape(nnet):
    """(C, H, W) of what a network denoises, read off its constructor's arguments."""
    side = next(nnet[key] for key in SIDES if key in nnet)
    return nnet.in_chans if "in_chans" in nnet else nnet.in_channels, side, side
