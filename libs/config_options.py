"""The options of a config's sections: completed where a config file does not list them, and settled where they follow from others.

A config file lists what its experiment chose. A section that is a call, such as `dataset`, takes every option of what it calls:
`--config.dataset.upscale=True` works with any config, whether or not its file lists `upscale`. Image sizes and channels of a
network may be 0, "as the data"; `train.mode=uncond` turns labels and guidance off.
"""

import difflib
import inspect
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from libs import backbones, codecs, data, encoders
from libs.backbones import unet_label, uvit
from libs.diffusion.denoiser import Denoiser
from libs.diffusion.schedule import SCHEDULES

SIDES = ("img_size", "image_size", "input_size", "sample_size")  # of a network's input in pixels or latents, by family
CHANNELS = ("in_chans", "in_channels")
PUBLISHED_CODEC = (4, 8)  # channels of a latent and pixels along its side: Stable Diffusion's autoencoders, and U-ViT's
FIXED_SIDES = {"cifar10": 32}  # data sets without an option `resolution`

# Options that libs/ reads and a config file may leave out, with the value that counts then.
UNLISTED = {
    "train": {"accumulation": 1, "balanced": False, "compile": False, "attention": "auto", "workers": 0, "init": "",
              "init_without": (), "p_uncond": 0.0, "mixed_precision": "", "keep_checkpoints": 3, "log_interval": 10,
              "preview_interval": 0, "eval_interval": 0, "save_interval": 1000, "validation_interval": 0, "validation_split": "",
              "validation_size": 512, "best_metric": "", "ema_warmup": True, "more_ema_rates": (), "fp16_scale_growth": 0.0,
              "tf32": False, "respacing": "", "time_sampler": "uniform", "rescale_learned_sigmas": True, "use_kl": False,
              "grad_clip": 0.0, "weighting": "eps", "noised": True, "ldm": ""},
    "optimizer": {"betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-8},
    "lr_scheduler": {"warmup_steps": 0},
    "sample": {"eta": 0.0, "spacing": "", "guided_channels": "all", "guidance_interval": (0.0, 1.0), "ema_rate": 0.0,
               "weights": "average", "controlnet_scale": 1.0, "labels": "data", "prompts": "bank", "masks": "",
               "validation_prompts": (), "path": "", "npz": ""},
    "metrics": {"bootstrap": 30, "measure": "classifier", "fid_stat": ""},
    "features": {"dtype": "float16"},
    "study": {"task": "classification"},
}
_DATA = ("dataset", "pairs", "input")  # sections that say which data set they mean
_FOLDERS = ("synthetic",)  # sections of a folder, without a name
# Networks whose constructors hand further options on, and the constructors that take them.
_FURTHER = {"uvit": (uvit.UViT,), "uvit_t2i": (uvit.UViT,), "uvit_t2i_label": (uvit.UViT,),
            "uvit_t2i_prototype": (uvit.PrototypeUViT, uvit.uvit_t2i_label, uvit.UViT),
            "controlnet": (unet_label.LabelUNet,)}
# Options of a trunk that networks without such tokens refuse.
_NOT_TAKEN = {"uvit": ("clip_dim", "num_clip_token"), "uvit_t2i": ("num_classes",)}
_HOME = re.compile(r"(^|[,@:]\s*)~(?=/|$)")
_OTHER_HOME = re.compile(r"^~[A-Za-z_][\w.-]*/")


_OPTION = re.compile(r"(?<![\w.\-])(?:([a-z_]+)\.)?([a-z_]+)=('[^'\s]*'|\((?:[^()]|\([^()]*\))*\)|[\w.]+)")
_LEADS = re.compile(r"\b(?:set|or|give|by|use|see|try|mean)\s+$", re.I)  # words before what is to be typed
# An option of a config's section, advised with its section.
_IN_SECTION = re.compile(r"(\b(?:set|give|by|with|use|or|choose another) )(config\.(?:[a-z_0-9]+\.)+[a-z_0-9]+)"
                         r"(?:='([^'\s]*)')?")
_FOLLOWS = re.compile(r"\s+(?:leaves?|says|takes?|makes?|keeps?|pairs?)\b")
_WEIGHTS = re.compile(r"give weights=(/[^\s,;)]*[^\s,;).])")  # of a feature network, which config.metrics.features names
_UNTYPED_SECTIONS = ("pool",)  # raters' tools say pool.resolution, in messages and in the pool's own files
_GENERAL = ("name", "path", "seed", "steps", "size", "dim", "weights")  # options of several sections, by their bare name


class Called(NamedTuple):
    """What a section calls. what: in words. options: {name: default}."""

    what: str
    options: dict[str, Any]


def expand_home(text):
    """`text` with every `~` that begins a path replaced by the home folder: '~/a', 'a,~/b', 'inception@~/weights.pth'."""
    text = os.path.expanduser(text) if _OTHER_HOME.match(text) else text
    return _HOME.sub(lambda at: at[1] + os.path.expanduser("~"), text)


def expand_homes(section):
    """Replace `~` in every text of a config, in place; also in tuples."""
    for key, value in section.items():
        if hasattr(value, "items"):
            expand_homes(value)
        elif isinstance(value, str) and "~" in value:
            section[key] = expand_home(value)
        elif isinstance(value, (tuple, list)) and any(isinstance(part, str) and "~" in part for part in value):
            section[key] = type(value)(expand_home(part) if isinstance(part, str) else part for part in value)


def complete(config, typed, settings=()):
    """Give the sections of an unlocked config the options that a command line sets and its file does not list, at their defaults.

    Where the command line chooses another data set, network, codec, encoder or schedule than the file, options of the file's
    that it does not take are left out.

    Args:
        config: ConfigDict, changed in place.
        typed: {dotted path: text} of the options on the command line, in their order.
        settings: names of config.train that the script reads; () where it trains nothing.
    Returns:
        {dotted path: what is wrong with it} of the options that nothing takes, with the nearest name.
    """
    faults = {}
    for name in list(config):
        if hasattr(config[name], "items"):
            chosen = {path.split(".", 1)[1]: text for path, text in typed.items()
                      if path.count(".") == 1 and path.startswith(f"{name}.")}
            faults |= _complete_section(config, name, chosen, settings)
            if name == "test" and "name" in config.get("dataset", {}):
                _complete_differing(config[name], chosen, called("dataset", config.dataset))
    return faults | {path: fault for path in typed
                     if path not in faults and (fault := _unknown(config, path, settings))}


def called(name, section):
    """The `Called` of `config.<name>`; None where it is no call of ours, or calls something unknown, which is refused later."""
    if name in _FOLDERS:
        return Called("a folder of images", _defaults(data.list_options("folder")))
    if name == "denoiser":
        return Called("the denoiser", _signature(Denoiser, without=("net", "schedule")))
    kind = section.get("name", "")
    if name in _DATA:
        try:
            return Called(f"the data set {kind!r}", _defaults(data.list_options(kind)))
        except ValueError:
            return None
    tables = {"nnet": ("network", backbones.CONSTRUCTORS), "codec": ("codec", codecs.CONSTRUCTORS),
              "encoder": ("text encoder", encoders.CONSTRUCTORS), "schedule": ("schedule", SCHEDULES)}
    if name not in tables or kind not in tables[name][1]:
        return None
    what, constructors = tables[name]
    builds = (constructors[kind], *(_FURTHER.get(kind, ()) if name == "nnet" else ()))
    if kind == "dit":
        builds = (*builds, inspect.signature(constructors[kind]).return_annotation)
    options = {}
    for build in builds:
        options = _signature(build, without=_NOT_TAKEN.get(kind, ()) if name == "nnet" else ()) | options
    return Called(f"the {what} {kind!r}", options)


def _complete_section(config, name, chosen, settings):
    section, faults = config[name], {}
    former = called(name, section)
    if "name" in chosen and "name" in section:
        section.name = chosen["name"]
    call = called(name, section)
    if call is None:
        unlisted = _unlisted(name, settings)
        for key in chosen:
            if key not in section and key in unlisted:
                section[key] = unlisted[key]
        return {}
    changed = former is not None and former.what != call.what
    for key in [key for key in section if key != "name" and key not in call.options]:
        if key in chosen and changed:
            fault = f"config.{name}.{key}={chosen[key]}: {call.what} has no option {key!r}"
            faults[f"{name}.{key}"] = f"{fault}; it has {', '.join(call.options)}{_near(key, call.options, name)}"
        elif changed:
            del section[key]
    own_images = name in _DATA and changed and section.name in data.OWN_IMAGES
    for key, value in call.options.items():
        if value is inspect.Parameter.empty and changed and key not in section:
            if key in ("path", "resolution", *SIDES, *CHANNELS):
                section[key] = "" if key == "path" else 0
        elif value is inspect.Parameter.empty or value is None:
            if key in chosen and key not in section and key in ("path", "resolution", *SIDES, *CHANNELS):
                section[key] = "" if key == "path" else 0
        elif key in chosen and key not in section:
            section[key] = value
        elif own_images and key in section and key not in chosen and section[key] == former.options.get(key):
            section[key] = value  # what stood at the default of one form of own images stands at that of the other
    if changed and name == "nnet" and not any(key in section for key in SIDES):
        for key in call.options:
            if key in (*SIDES, *CHANNELS):
                section[key] = 0
    return faults


def _complete_differing(section, chosen, call):
    """Give a section that says what test images have differently the options of the real ones that are typed."""
    for key, value in (call.options if call else {}).items():
        if key in chosen and key not in section and value is not inspect.Parameter.empty and value is not None:
            section[key] = value


def _unlisted(name, settings):
    """The `UNLISTED` options of a section that a script reads: of config.train `settings` alone, where there are any."""
    unlisted = UNLISTED.get(name, {})
    if name == "train" and settings:
        return {key: value for key, value in unlisted.items() if key in settings}
    return unlisted


def _signature(build, without=()):
    """{option: default} of a callable's own parameters."""
    parameters = inspect.signature(build).parameters.values()
    return {each.name: each.default for each in parameters
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.name not in without}


def _defaults(options):
    return {key: {} if key == "without" and value is None else value for key, value in options.items()}


def _near(key, options, section):
    """How a message about an unknown option ends: the data set that has it, or the nearest name; '' for neither."""
    if section in _DATA:
        having = [name for name in data.NAMES if key in data.list_options(name)]
        if having:
            give = f": add --config.{section}.name={having[0]}" if len(having) == 1 else ""
            return f". {key!r} is an option of {', '.join(map(repr, having))}{give}"
    close = difflib.get_close_matches(key, options, n=1)
    return f'. Did you mean "{close[0]}"?' if close else ""


def _unknown(config, path, settings=()):
    """What is wrong with the option `path` of the command line; '' where the config has it."""
    section, parts = config, path.split(".")
    for depth, key in enumerate(parts):
        so_far = ".".join(["config", *parts[:depth]])
        if not hasattr(section, "keys"):
            return f"{so_far} is {section!r}, which has no {key!r}"
        if key not in section:
            call = called(parts[0], section) if depth == 1 else None
            options = list(section)
            if call:
                options = [*(["name"] if "name" in section else []), *call.options]
            elif depth == 1:
                options += [each for each in _unlisted(parts[0], settings) if each not in section]
            return (f"{so_far} has no option {key!r}; it has {', '.join(options)}"
                    f"{_near(key, options, parts[0] if depth == 1 else '')}")
        section = section[key]
    if hasattr(section, "keys"):
        return f"config.{path} is a section: set its options, --config.{path}.OPTION=VALUE; it has {', '.join(section)}"
    return ""


def restore_zeros(config):
    """Put 0 where an unlocked config's file says that a size follows the data (configs/common.py: `as_data`), in place."""
    for name in ("nnet", "codec"):
        if name in config:
            values = dict(config[name].items(preserve_field_references=True))
            zeros = [key for key, value in values.items() if isinstance(value, FieldReference)
                     and key in (*SIDES, *CHANNELS, "channels")]
            order = json.loads(config[name].to_json_best_effort())  # that of the file; a ConfigDict iterates in that of the alphabet
            config[name] = ConfigDict({key: 0 if key in zeros else values[key] for key in order})


def imply(config, typed):
    """Set what `train.mode=uncond` means for labels and guidance, in place, unless the command line says otherwise.

    Args:
        typed: {dotted path: value} of the options on the command line.
    Returns:
        What was set, in words; '' for nothing.
    Raises:
        ValueError: the command line says train.mode=uncond and asks for labels or guidance.
    """
    if "train" not in config or config.train.get("mode") != "uncond":
        return ""
    wanted = {"nnet.num_classes": -1, "train.balanced": False}
    if "nnet" in config and not backbones.takes_text(config.nnet.get("name", "")):
        wanted |= {"sample.guidance": 1.0, "sample.scale": 0.0}
    implied, problems = [], []
    require = tuple(config.get("dataset", {}).get("require", ()))
    if "label" in require:
        wanted["dataset.require"] = tuple(what for what in require if what != "label")
    for path, value in wanted.items():
        section, key = path.split(".")
        present = config[section][key] if section in config and key in config[section] else value
        if present == value or path == "nnet.num_classes" and present < 0:
            continue
        if path in typed:
            problems.append(f"--config.{path}={present}")
        else:
            config[section][key] = value
            implied.append(f"{section}.{key}={value}")
    if problems:
        raise ValueError(f"--config.train.mode=uncond trains without labels, which {' and '.join(problems)} "
                         f"{'ask' if len(problems) > 1 else 'asks'} for. Leave one of them out")
    return f"train.mode=uncond: {', '.join(implied)}" if implied else ""


def image_shape(config):
    """(channels, side) of the images of config.dataset; None where it does not say."""
    if "dataset" not in config or "name" not in config.dataset:
        return None
    try:
        options = data.list_options(config.dataset.name)
    except ValueError:
        return None
    side = config.dataset.get("resolution", options.get("resolution", FIXED_SIDES.get(config.dataset.name, 0)))
    channels = config.dataset.get("channels", options.get("channels", 3))
    return None if inspect.Parameter.empty in (side, channels) or not side or not channels else (channels, side)


def codec_shape(config):
    """((channels of a latent, pixels along its side), whether that is certain) of config.codec.

    Channels are 0 where latents are the images themselves. Read off the config.json of a local folder; what lies elsewhere is taken
    for one of Stable Diffusion's.
    """
    codec = config.get("codec", {})
    if codec.get("name", "pixels") == "pixels":
        return (0, 1), True
    path = codec.get("path", "") or config.get("nnet", {}).get("path", "")
    for part in (codec.get("subfolder", ""), "vae", "autoencoder", "") if path else ():
        file = Path(path).expanduser() / part / "config.json"
        if file.is_file():
            try:
                settings = json.loads(file.read_text())
                blocks = settings.get("block_out_channels" if codec.name == "kl" else "num_encoder_blocks") or ()
                if blocks and settings.get("latent_channels"):
                    return (settings["latent_channels"], 2 ** (len(blocks) - 1)), True
            except (OSError, ValueError, AttributeError):
                break  # the codec, when it is opened, says what is wrong with it
    return PUBLISHED_CODEC, False


def needed_shape(config):
    """((channels, side) that the network of a config must have, whether that is certain); None where the data do not say."""
    images = image_shape(config)
    if images is None:
        return None
    (channels, factor), certain = codec_shape(config)
    return (channels or images[0], images[1] // factor), certain


def settle_sizes(config):
    """Replace the zeros in sizes and channels of config.nnet and config.codec by those of the data, in place.

    Raises:
        ValueError: there is a 0 and config.dataset does not say what it stands for. An unknown data set is left to
            config_checks.
    """
    zeros = [key for key in (*SIDES, *CHANNELS) if "nnet" in config and config.nnet.get(key, 1) == 0]
    if config.get("codec", {}).get("name", "pixels") not in codecs.NAMES:
        return  # which is refused with all that is wrong
    needed = needed_shape(config)
    if needed is None:
        if zeros and config.get("dataset", {}).get("name", "") not in data.NAMES and "dataset" in config:
            return
        if zeros:
            raise ValueError(f"config.nnet.{zeros[0]} is 0, as the data, and config.dataset does not say their size: set "
                             "--config.dataset.resolution and --config.dataset.channels, or name a number")
        return
    for key in zeros:
        config.nnet[key] = needed[0][1] if key in SIDES else needed[0][0]
    if config.get("codec", {}).get("channels", 1) == 0:
        config.codec.channels = image_shape(config)[0]


def size_faults(config):
    """What of config.nnet does not fit the images of config.dataset, as sentences that end with what to type."""
    needed = needed_shape(config) if "nnet" in config and "path" not in config.nnet else None
    if needed is None or not needed[1] or not any(key in config.nnet for key in SIDES):
        return []
    (channels, side), (own_channels, own_side), faults = needed[0], image_shape(config), []
    factor = codec_shape(config)[0][1]
    sides = [key for key in SIDES if config.nnet.get(key, side) != side]
    takes = called("dataset", config.dataset).options
    if sides:
        there = config.nnet[sides[0]]
        other = (f" or --config.dataset.resolution={there * factor}" if "resolution" in takes else "")
        what = f"{own_side} pixels" + (f", latents of {side}" if factor > 1 else "")
        faults.append(f"config.nnet.{sides[0]} is {there}, but the images have {what} a side: set "
                      f"--config.nnet.{sides[0]}={side} (0 takes that of the data){other}")
    differing = [key for key in CHANNELS if config.nnet.get(key, channels) != channels]
    if differing:
        other = (f" or --config.dataset.channels={config.nnet[differing[0]]}"
                 if factor == 1 and "channels" in takes and config.nnet[differing[0]] in (1, 3) else "")
        what = f"the images have {own_channels} channels" if factor == 1 else f"the codec's latents have {channels} channels"
        faults.append(f"config.nnet.{differing[0]} is {config.nnet[differing[0]]}, but {what}: set "
                      f"--config.nnet.{differing[0]}={channels} (0 takes those of the data){other}")
    kept = config.get("codec", {}).get("channels", own_channels)
    if kept != own_channels:
        faults.append(f"config.codec.channels is {kept}, but the images have {own_channels}: set "
                      f"--config.codec.channels={own_channels} (0 takes those of the data)")
    return faults


def name_options(text, config):
    """A message for a person at the command line: the options that it advises, as they are typed there.

    libs/ says `upscale=True`, as one writes in Python; a user of a script types `--config.dataset.upscale=True`. What only states
    a fact, such as "smaller than resolution=64", stays as it is.
    """
    begins = re.match(r"config\.(\w+)", text)
    sections = [name for name in (*_DATA, *_FOLDERS) if name in config]
    if begins and begins[1] in sections:
        sections.insert(0, begins[1])
    if sections and sections[0] != "dataset":  # a data set says --config.dataset, whatever section it is built from
        text = text.replace("--config.dataset.", f"--config.{sections[0]}.")
    of = {}
    for name in (*sections, "nnet", "train", "sample"):
        section = config.get(name, {})
        call = called(name, section) if hasattr(section, "keys") else None
        for option in (*section, *(call.options if call else UNLISTED.get(name, {}))):
            if option not in _GENERAL:
                of.setdefault(option, name)

    def typed(match):
        before, after = text[:match.start()], text[match.end():]
        if not (_LEADS.search(before) or _FOLLOWS.match(after)):
            return match[0]
        name, option, value = match[1], match[2], match[3]
        if name in _UNTYPED_SECTIONS:
            return match[0]
        name = name or of.get(option, "")
        if name not in config:
            return match[0]
        value = f'"{value}"' if value.startswith("(") else value[1:-1] if value.startswith("'") else value
        return f"--config.{name}.{option}={value}"

    text = _IN_SECTION.sub(lambda at: f"{at[1]}--{at[2]}" + (f"={at[3]}" if at[3] is not None else ""), text)
    text = _OPTION.sub(typed, text)
    if "features" in config.get("metrics", {}):
        network = re.search(r"weights of (\S+) are missing", text)
        network = network[1] if network else "inception" if "inception" in text else "timm:NETWORK"
        text = _WEIGHTS.sub(lambda at: f"give --config.metrics.features=\"('{network}@{at[1]}',)\"", text)
    return text


def log_implied(text):
    """Log what other options follow from train.mode."""
    if text:
        logging.info(text)
