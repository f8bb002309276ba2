"""A trained network with what is needed to ask it for images: the one place where eval and sample scripts load a run."""

import json
import logging
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import ml_collections

from libs import data, engine, pipeline
from libs.data import Dataset
from libs.evaluation.describing import describer, stored_features
from libs.evaluation.identity import CODEC, IDENTITY, check_identity, same_scale
from libs.evaluation.masks import check_code
from libs.evaluation.references import statistics_there
from libs.evaluation.weights import log_newer, warn_of_average, weights_options
from libs.pipeline import stable_diffusion


# What may differ between the two stages of a ControlNet.
UNSHARED = {("nnet", "name"), ("nnet", "use_checkpoint"), ("nnet", "dropout"), ("nnet", "out_channels"), ("nnet", "num_classes"),
            ("codec", "path"), ("codec", "decode_batch"), ("codec", "scale_factor"), ("denoiser", "clip")}


class Trained(NamedTuple):
    """A run, opened: its sampler, class names, descriptions and real images.

    dataset: the real images, None where they are not at hand. prompts: see `describer`, None for networks without text.
    identity: pipeline.trained_with(...) of the codec and text encoder in use. weights: `weights_options` of
    what was taken.
    """

    sampler: pipeline.Pipeline
    classes: list
    encoder: object
    prompts: object
    dataset: Dataset | None
    step: int | None
    source: Path
    identity: dict | None = None
    weights: dict = MappingProxyType({})

    @property
    def weights_hash(self):
        """SHA-256 (first 16 hex digits) of the weights that were taken."""
        return engine.weights_hash(self.source, **self.weights)


def open_trained(run, config, workdir, nnet_path, *, with_data=True, with_prompts=True, exact=False, unscored=False,
                 alone=False):
    """The network of --nnet_path, or the best checkpoint of --workdir, as `Trained`.

    Args:
        with_data: whether the real images are needed (evaluation) or not (sampling).
        with_prompts: whether descriptions have to be drawn; without, `prompts` is the run's own bank or None.
        exact: keep the weights as they were saved also where images are made in lower precision.
        unscored: go on where there are neither images nor statistics of them.
        alone: one process opens it, which waits for no other, and on the CPU, so that no second network is where one is trained.

    A classifier in config.sample.gradient is opened with it.

    Raises:
        ValueError: classes or masks of the run and of the data differ, or no classes are known; codec or text
            encoder are not those of the training, see `check_identity`; weights are not finite.
        FileNotFoundError: no weights; or the images are needed and config.metrics.fid_stat does not stand in for them, unless
            `unscored`.
    """
    options = weights_options(config.sample)
    weights, step, source = engine.load_weights(nnet_path or workdir, **options)
    if run.is_main:
        warn_of_average(source, **options)
        log_newer(nnet_path or workdir, source, step)
    whole = stable_diffusion.start_from_folder(config, source)
    stable_diffusion.check_adapter(config, engine.adapter_settings(source))
    dataset = _images(config, unscored) if with_data else None
    device = "cpu" if alone else run.device
    encoder = pipeline.text_encoder(config, device) if alone else run.main_first(lambda: pipeline.text_encoder(config, device))
    home = next((folder for folder in (source.parent.parent, source.parent, Path(workdir)) if (folder / "classes.json").is_file()),
                Path(workdir))  # the run that the weights are of, or else the workdir
    features = stored_features(config, config.dataset.get("split", ""), home) if encoder is not None else None
    trained = engine.read_json(home / "classes.json", None)
    trained = engine.class_names(nnet_path) if trained is None and nnet_path else trained
    of_data = next((list(each.classes) for each in (dataset, features) if each is not None), None)
    classes = of_data if trained is None else trained
    classes = pipeline.classes_without_data(config) if classes is None else classes
    if config.train.mode == "cond" and trained and of_data and trained != of_data:
        raise ValueError(f"the network was trained on the classes {trained}, the data have {of_data}; "
                         "give the data of the run, or config.dataset.classes")
    asked = config.sample.gradient.classifier if "gradient" in config.sample else ""
    classifier = open_classifier(asked, config, device=device) if asked else None
    masks = engine.read_json(home / "masks.json", None)  # of a network that takes masks
    masks = masks and data.MaskCode(**masks)
    check_code(masks, dataset)
    sampler = pipeline.load(config, weights, classes=classes, device=device, encoder=encoder, classifier=classifier,
                            precision="no" if exact else run.accelerator.mixed_precision, masks_as=masks,
                            base=engine.base_of(source))
    identity = None
    if not alone:  # a training that opens its own run has codec and encoder at hand
        # One process hashes for all: gigabytes, which each has read from the same files.
        identity = run.from_main(pipeline.trained_with(sampler.codec, encoder) if run.is_main else None)
        if not whole and (home / "config.json").is_file() and source.resolve().is_relative_to(home.resolve()):
            check_identity(home, identity, config)
    bank, prompts = home / "bank.json", None
    if with_prompts:
        prompts = describer(config, home, encoder, dataset=dataset, features=features)
    elif bank.is_file():
        prompts = pipeline.Describer(pipeline.Bank.load(bank), encoder)
    return Trained(sampler, classes, encoder, prompts, dataset, step, source, identity, options)


def tie_to_base(run, net, config):
    """Note in the run folder what the frozen weights of a network were; a run that resumes has to have the same.

    Raises:
        ValueError: config.nnet.path holds other weights than those that the run began with.
    """
    # One process hashes for all: gigabytes, which each has read from the same files.
    base = run.from_main(stable_diffusion.base_of(net) if run.is_main else None)
    if base:
        if run.resumes:
            stable_diffusion.check_base(engine.read_json(run.folder / engine.BASE, base), net, config, now=base)
        run.record(engine.BASE, base, fixed=run.resumes)


def begin_with_lora(config, net):
    """Give a network the weights of config.train.init: another LoRA, or all weights where all are trained.

    Another base than theirs, or another precision of it, is a warning: LoRA may move on to it.

    Raises:
        ValueError: they do not fit, or their LoRA counted otherwise (rank, alpha, rslora) where they were trained.
    """
    weights, _, source = engine.load_weights(config.train.init)
    warn_of_average(source, advice="train it longer, or with --config.train.ema_warmup=True")
    of_run = engine.saved_config(source.parent.parent).get("nnet", {})  # where it is a checkpoint of ours
    said = {"lora_alpha": of_run.get("lora_alpha", 8.0) or of_run["lora_rank"],
            "use_rslora": of_run.get("use_rslora", False)} if of_run.get("lora_rank") else {}
    stable_diffusion.check_adapter(config, engine.adapter_settings(source) or said)
    base = engine.base_of(source)
    if base and base != stable_diffusion.base_of(net):
        logging.warning("config.train.init=%s was trained beside other weights than those of config.nnet.path=%s, or beside the "
                        "same in another config.nnet.base_dtype", config.train.init, config.nnet.path)
    pipeline.start_from(net, weights)


def base_weights(config, classes, codec):
    """The weights that a ControlNet starts from, those of config.train.ldm: a run of train_class_ldm.py, or what --nnet_path takes.

    Raises:
        ValueError: it was trained on other classes, latents, noise or network than this config says; names the option.
            Autoencoders are compared by their weights, wherever they lie.
    """
    path = config.train.ldm
    if not path:
        raise ValueError("config.train.ldm is '': a ControlNet starts from a trained UNet. Train one on the same images by "
                         "train_class_ldm.py and give its folder, --config.train.ldm=workdir/ldm")
    weights, step, source = engine.load_weights(path)
    warn_of_average(source, advice="train the first stage longer, or with --config.train.ema_warmup=True")
    home = next((folder for folder in (Path(path), *source.parents[:3]) if (folder / "config.json").is_file()
                 and (folder / "classes.json").is_file()), None)
    known = engine.read_json(home / "classes.json", None) if home else engine.class_names(source)
    if known and config.train.mode == "cond" and list(known) != list(classes):
        raise ValueError(f"{source} was trained on the classes {list(known)}, the data have {list(classes)}: give the data those "
                         "classes, in this order, by config.dataset.classes")
    before = engine.saved_config(home) if home else {}
    now = json.loads(config.to_json_best_effort())
    for section in ("schedule", "denoiser", "codec", "nnet"):
        for key, value in before.get(section, {}).items():
            if (section, key) not in UNSHARED and now[section].get(key, value) != value:
                raise ValueError(f"{home} was trained with config.{section}.{key}={value!r}, here it is {now[section][key]!r}: set "
                                 f"--config.{section}.{key}={value}")
    mine, known = pipeline.identity(codec)["codec"], None
    if home:
        known = engine.read_json(home / CODEC, None) or engine.read_json(home / IDENTITY, {}).get("codec")
        scale = engine.read_json(home / IDENTITY, {}).get("codec", {}).get("scale_factor") or before.get("codec", {}).get(
            "scale_factor", 0.0)
        if scale and not same_scale(scale, codec.scale_factor):
            raise ValueError(f"{home} was trained on latents of the scale factor {scale:g}, here it is "
                             f"{codec.scale_factor:g}: set "
                             f"--config.codec.scale_factor={scale:.6g}")
    if known and any(known[key] != mine[key] for key in ("name", "fingerprint")):
        told = [f"{each['name']} {each['fingerprint'][:16]} of {options.get('path', '') or 'no file'!r}"
                for each, options in ((known, before.get("codec", {})), (mine, now["codec"]))]
        raise ValueError(f"{home} was trained on the latents of another autoencoder, {told[0]}; here config.codec gives {told[1]}: "
                         "set config.codec.path to that one")
    logging.info("the ControlNet starts from %s, step %s", source, step)
    return weights


def open_classifier(path, config=None, *, device="cpu"):
    """The `NoisyClassifier` of a run folder of train_classifier.py (its best checkpoint), or of one checkpoint in it.

    Args:
        path: such a folder, or bare weights as guided-diffusion and MGDM publish them (.pt), which need no config.
        config: of the diffusion model, whose schedule bare weights are taken to share; a run folder has its own.
    Raises:
        ValueError, FileNotFoundError: there is no such run, or these are no weights of a classifier.
    """
    weights, step, source = engine.load_weights(path)
    warn_of_average(source, advice="train the classifier longer, or with --config.train.ema_warmup=True")
    home = next((folder for folder in (Path(path), *source.parents[:3]) if (folder / "config.json").is_file()), None)
    if home is None and source.is_file() and config is not None:
        return pipeline.published_classifier(config, weights, device=device, source=source)
    if home is None:
        raise ValueError(f"{path}: no config.json there; give the run folder of a classifier (train_classifier.py), or a .pt file")
    own = ml_collections.ConfigDict(engine.read_json(home / "config.json", {}))
    if own.get("nnet", {}).get("name") != "adm_classifier":
        raise ValueError(f"{home} is a run of {own.get('nnet', {}).get('name')!r}, not of a classifier of noisy images "
                         "(train_classifier.py)")
    return pipeline.noisy_classifier(own, weights, classes=engine.read_json(home / "classes.json", []), device=device,
                                     source=source, step=step)


def _images(config, unscored=False):
    """The real images, of the split whose descriptions are asked for; None where a statistics file stands in for them."""
    how = config.sample.get("prompts", "bank")
    options = config.dataset if how in pipeline.PROMPTS else {**config.dataset, "split": how}
    images = None if unscored and options.get("path") == "" else data.at_hand(options)
    if images is None:
        if not statistics_there(config.metrics.fid_stat):
            if unscored:
                return None
            raise FileNotFoundError(f"no images at config.dataset.path={config.dataset.path!r}, and no statistics of them at "
                                    f"config.metrics.fid_stat={config.metrics.fid_stat!r}. To keep images without scores, say "
                                    "where: --npz=FILE")
        logging.warning("no data at %s: only what %s allows is scored", config.dataset.path, config.metrics.fid_stat)
    return images
