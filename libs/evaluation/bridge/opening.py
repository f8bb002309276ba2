"""What a bridge begins with: the guidance that it takes, one network or two, and the images to carry."""

import logging
import math
from pathlib import Path

import ml_collections

from libs import data, engine, pipeline
from libs.evaluation.bridge.carrying import Bridge
from libs.evaluation.trained import open_trained


def settle(sample, guidance=""):
    """Make config.sample that of the bridge, with the guidance asked for and the measure's own name ('' at scale 0); returns
    what results are called after."""
    scale = _number(guidance)
    if pipeline.guidance_scale(sample) != scale:
        logging.info("decoding with classifier-free guidance %g (--guidance), not the %g of config.sample", scale,
                     pipeline.guidance_scale(sample))
    _set_guidance(sample, scale)
    gradient, names = sample.get("gradient"), [f"cfg{scale:g}"] if scale != 1 else []
    if gradient is not None:
        measure = pipeline.measure_name(gradient.measure)
        if measure and not gradient.scale:
            logging.warning("config.sample.gradient.scale is 0: no gradient guides, whatever the measure")
        gradient.measure = measure if gradient.scale else ""
        names += [f"{gradient.measure}{gradient.scale:g}"] if gradient.scale else []
    return "_".join(names) or "unguided"


def _number(guidance):
    """The scale that --guidance says; '' is 1, off."""
    try:
        scale = float(guidance or 1)
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ValueError(f"--guidance={guidance}: give the scale of classifier-free guidance, a number from 0 on; 1 is off")
    return scale


def _set_guidance(sample, scale):
    """Write a scale of uncond + s (cond - uncond) where `pipeline.guidance_scale` reads it."""
    with sample.unlocked():
        sample["scale" if "scale" in sample else "guidance"] = scale - 1 if "scale" in sample else scale


def open_bridge(run, config, workdir, nnet_path, target_workdir, *, to_noise):
    """The bridge of one network to itself, or to that of --target_workdir, which then takes all of config.sample."""
    gradient = config.sample.get("gradient", {})
    if not target_workdir:
        encoder = decoder = open_trained(run, config, workdir, nnet_path, with_data=False, with_prompts=False)
    else:
        saved = Path(target_workdir) / "config.json"
        if not saved.is_file():
            raise ValueError(f"--target_workdir={target_workdir}: no config.json there; give the run folder of a training")
        other = ml_collections.ConfigDict(engine.read_json(saved, {}))
        other.sample = config.sample
        decoder = open_trained(run, other, target_workdir, "", with_data=False, with_prompts=False)
        encoder = open_trained(run, _plain(config), workdir, nnet_path, with_data=False, with_prompts=False)
    return Bridge(encoder, decoder, to_noise=to_noise, classifier=decoder.sampler.classifier,
                          legacy_steps=gradient.get("legacy_steps", 0))


def _plain(config):
    """The config without guidance, which an encoder does not need and its network may not allow."""
    config = config.copy_and_resolve_references()
    _set_guidance(config.sample, 1.0)
    if "gradient" in config.sample:
        config.sample.gradient.update(measure="", scale=0.0, classifier="")
    return config


# Options of config.dataset by which the images of --input_path are read, as those of the training were.
INPUT_OPTIONS = ("window", "upscale", "crop", "unlisted_files", "follow_links", "ignore_files", "mask_like_files",
                 "doubled_files")


def open_images(config, path, shape):
    """(the images to carry, as the network takes them, and where they come from)."""
    if path:
        own = {name: config.dataset[name] for name in INPUT_OPTIONS if name in config.dataset}
        if own.get("crop") == "random":  # of a training: an image has one result
            own.pop("crop")
        return data.get("folder", path=path, channels=shape[0], resolution=shape[1], **own), Path(path)
    source = Path(config.dataset.get("path", "") or config.dataset.name)
    dataset = data.at_hand(config.dataset)
    if dataset is None:
        raise ValueError(f"no images at config.dataset.path={config.dataset.path!r}: give --input_path")
    if tuple(dataset.shape) != tuple(shape):
        raise ValueError(f"{source} gives images {tuple(dataset.shape)}, the network takes {tuple(shape)}: give --input_path")
    return dataset, source
