"""The checks of a whole config, before data are read: everything that is wrong with it, in one message."""

import difflib
import math
import os

import torch

from libs import backbones, codecs, config_options, data, diffusion, encoders, engine, metrics, pipeline
from libs.diffusion import samplers
from libs.diffusion.denoiser import PREDICTIONS
from libs.diffusion.loss import WEIGHTINGS
from libs.engine import loop, optim
from libs.metrics import suite

# Dotted names, wherever they occur in a config, and what their number must satisfy.
POSITIVE = ("train.batch_size", "train.n_steps", "train.accumulation", "train.keep_checkpoints", "optimizer.lr",
            "sample.sample_steps", "sample.n_samples", "sample.mini_batch_size", "metrics.sample_steps", "metrics.n_samples",
            "train.validation_size", "dataset.resolution", "nnet.embed_dim", "nnet.depth", "nnet.num_heads",
            "nnet.mlp_ratio", "nnet.patch_size")
NOT_NEGATIVE = ("seed", "train.log_interval", "train.eval_interval", "train.save_interval", "train.preview_interval",
                "train.validation_interval", "train.workers", "train.grad_clip", "optimizer.weight_decay",
                "lr_scheduler.warmup_steps", "sample.guidance",
                *(f"nnet.{key}" for key in (*config_options.SIDES, *config_options.CHANNELS)))
LOOP_SETTINGS = tuple(loop.SETTINGS)  # what every training reads of config.train
LARGEST_SEED = 2**63 - 1  # that PyTorch takes
PRECISIONS = ("", "auto", "no", "fp16", "bf16")
SHARES = ("train.p_uncond", "train.ema_rate")
# Tuples of so many numbers: (how many, whether () is one too, what they are).
LENGTHS = {"optimizer.betas": (2, False, "two numbers in [0, 1), such as \"(0.9,0.99)\""),
           "dataset.window": (2, True, "(low, high) in raw grey levels, or () for the full range"),
           "pairs.window": (2, True, "(low, high) in raw grey levels, or () for the full range"),
           "input.window": (2, True, "(low, high) in raw grey levels, or () for the full range"),
           "pool.real_window": (2, True, "(low, high) in raw grey levels, or () for the full range"),
           "sample.guidance_interval": (2, False, "(from, to) with 0 <= from < to <= 1, such as \"(0.1,0.75)\""),
           "dataset.cast": (3, False, "factors of red, green and blue, such as \"(1.0,0.9,0.7)\"")}
# What an option may be named.
CHOICES = {"denoiser.predicts": PREDICTIONS, "train.weighting": tuple(WEIGHTINGS),
           "train.attention": ("auto", "sdpa", "math", "xformers")}
# Kinds of networks of config.metrics.features.
FEATURES = ("inception", "dinov2", "colour", "timm", "torchvision", "classifier")
# Stands for sizes that only the data or a text encoder decide, while a network is checked without them.
STANDING_FOR_DATA = 8
WIDTHS = ("down_block_types", "up_block_types")  # one of each for every entry of block_out_channels


def check_values(config):
    """Raise ValueError for values that no run can mean: nan, negative sizes, probabilities beyond 1; all in one message.

    Types and unknown keys are refused by ml_collections before this.
    """
    fail(value_faults(config))


def check_whole(config, settings=(), *, sized=False, faults=()):
    """Raise ValueError for all that can be seen to be wrong with a config without opening data or weights, in one message.

    Args:
        config: the complete config.
        settings: what the script reads of config.train beside the keys of the loop; () for scripts that train nothing.
        sized: whether the network must fit the images of config.dataset.
        faults: what is known to be wrong already.
    """
    faults = [*faults, *value_faults(config)]
    if not value_faults(config):  # what follows computes with these numbers
        more = _section_faults(config, settings) + _sampling_faults(config)
        more += config_options.size_faults(config) if sized else []
        # building the network is the last check: what is wrong with its sizes is said better above
        if any(fault.startswith("--config.train.mode=uncond") for fault in faults):
            # guidance and classes are named there
            more = [fault for fault in more if not fault.startswith("sample guidance")]
        faults += more or (_network_faults(config) if settings and not faults else [])
    fail(faults)


def fail(faults):
    """One ValueError that lists every fault; nothing where there is none."""
    faults = list(dict.fromkeys(faults))
    if faults:
        raise ValueError(faults[0] if len(faults) == 1 else
                         "\n  ".join([f"{len(faults)} settings are not right:", *faults]))


def value_faults(config):
    """What is wrong with single values of a config, as sentences."""
    return [fault for path, value in leaves(config) if (fault := _value_fault(path, value))] + _tuple_faults(config)


def _value_fault(path, value):
    if value is None:
        return f"config.{path} is None, which the command line cannot override; use '' or 0 for off"
    if isinstance(value, float) and not math.isfinite(value):
        return f"config.{path} is {value}; a finite number is needed"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if path in POSITIVE and not value > 0:
            return f"config.{path} is {value}; it must be greater than 0"
        if path in NOT_NEGATIVE and value < 0:
            return f"config.{path} is {value}; it must not be negative"
        if path in SHARES and not 0 <= value <= 1:
            return f"config.{path} is {value}; it must lie between 0 and 1"
    if path == "seed" and value > LARGEST_SEED:
        return f"config.seed is {value}; it must be at most {LARGEST_SEED}"
    if path == "train.mixed_precision" and value not in PRECISIONS:
        return f"config.train.mixed_precision is {value!r}; known: {', '.join(PRECISIONS[1:])}, or '' for accelerate's"
    if path == "metrics.bootstrap" and (value < 0 or value == 1):
        return f"config.metrics.bootstrap is {value}; give at least 2 resamples, or 0 for no intervals"
    if path == "sample.labels" and value not in ("data", "balanced"):
        return f"config.sample.labels is {value!r}; known: data, balanced"
    return ""


def _tuple_faults(config):
    faults = []
    for path, (length, may_be_empty, what) in LENGTHS.items():
        section, key = path.split(".")
        if section not in config or key not in config[section]:
            continue
        value = config[section][key]
        right = isinstance(value, (tuple, list)) and all(_is_number(part) for part in value) and (
            len(value) == length or may_be_empty and not value)
        if right and path == "optimizer.betas":
            right = all(0 <= part < 1 for part in value)
        if not right:
            faults.append(f"config.{path} is {_shown(value)}; it must be {what}")
    nnet = config.get("nnet", {})
    for key in WIDTHS:
        if key in nnet and "block_out_channels" in nnet and len(nnet[key]) != len(nnet.block_out_channels):
            faults.append(f"config.nnet.block_out_channels is {_shown(nnet.block_out_channels)} and config.nnet.{key} has "
                          f"{len(nnet[key])} entries; give as many widths as {key}")
    return faults


def differing_types(former, config):
    """Where tuples of a config hold other types than those of `former`, the config before the command line, as sentences."""
    before, faults = dict(leaves(former)), []
    for path, value in leaves(config):
        old = before.get(path)
        if not (isinstance(value, (tuple, list)) and isinstance(old, (tuple, list)) and old) or value == old:
            continue
        numbers, texts = all(_is_number(part) for part in old), all(isinstance(part, str) for part in old)
        if numbers and not all(_is_number(part) for part in value):
            faults.append(f"config.{path} is {_shown(value)}; it must be numbers, such as \"{_typed(old)}\"")
        if texts and not all(isinstance(part, str) for part in value):
            faults.append(f"config.{path} is {_shown(value)}; it must be texts, such as \"{_typed(old)}\"")
    return faults


def _section_faults(config, settings):
    faults = _refusal(data.list_options, config.dataset.name) if "name" in config.get("dataset", {}) else []
    if "denoiser" in config and config.get("nnet", {}).get("name", backbones.NAMES[0]) not in backbones.NAMES:
        faults += _refusal(backbones.get, config.nnet.name)
    for section, room in (("codec", codecs), ("encoder", encoders)):
        if "denoiser" in config and config.get(section, {}).get("name", room.NAMES[0]) not in room.NAMES:
            faults += _refusal(room.get, config[section].name)
    for path, names in CHOICES.items():
        section, key = path.split(".")
        value = config.get(section, {}).get(key, names[0])
        if value not in names and (settings or section != "train"):
            faults.append(f"config.{path} is {value!r}; known: {', '.join(names)}")
    for name in config.get("metrics", {}).get("features", ()):
        if "/" not in name.partition("@")[0] and name.partition("@")[0].partition(":")[0] not in FEATURES:
            faults += [f"config.metrics.features: {fault}" for fault in _refusal(metrics.extractor, name)]
    if "names" in config.get("metrics", {}):
        faults += _refusal(suite.check_names, config.metrics.names)
    if settings and "train" in config:
        faults += _refusal(engine.check_settings, config.train, settings)
    if settings and "lr_scheduler" in config and "n_steps" in config.get("train", {}):
        longer = ": lower --config.lr_scheduler.warmup_steps, or raise --config.train.n_steps"
        faults += [fault + longer * ("warm-up" in fault)
                   for fault in _refusal(optim.lr_factor, 0, n_steps=config.train.n_steps, **config.lr_scheduler)]
    if settings and "optimizer" in config and config.optimizer.get("name", "adamw") not in (*optim.OPTIMIZERS, optim.EIGHT_BIT):
        faults.append(f"config.optimizer.name is {config.optimizer.name!r}; known: {', '.join(optim.OPTIMIZERS)}, "
                      f"{optim.EIGHT_BIT}")
    if "schedule" in config:
        faults += _refusal(diffusion.schedule, **config.schedule)
    if settings and "batch_size" in config.get("train", {}):
        faults += _refusal(data.check_batch, config.train.batch_size, int(os.environ.get("WORLD_SIZE", 1)))
    faults += _patch_faults(config.get("nnet", {}))
    mode = config.get("train", {}).get("mode", "cond")
    name = config.get("nnet", {}).get("name", "")
    if mode == "uncond" and backbones.takes_text(name) and backbones.numbers_null(name):
        faults.append(f"config.train.mode is 'uncond' but the network {name!r} needs classes: set "
                      "--config.nnet.name=uvit_t2i, which takes texts alone, or --config.train.mode=cond")
    if mode not in ("cond", "uncond"):
        faults.append(f"config.train.mode is {mode!r}; known: cond, uncond")
    elif mode == "cond" and "mode" in config.get("train", {}) and config.get("nnet", {}).get("num_classes", 0) < 0 \
            and not backbones.takes_text(config.nnet.get("name", "")):
        faults.append(f"config.train.mode is 'cond' but config.nnet.num_classes is {config.nnet.num_classes}; set "
                      "--config.nnet.num_classes=0, which takes what is needed, or --config.train.mode=uncond")
    return faults


def _patch_faults(nnet):
    patch = nnet.get("patch_size", 0)
    if not isinstance(patch, int) or patch < 1:
        return []
    return [f"config.nnet.{key}={nnet[key]} is not a multiple of config.nnet.patch_size={patch}: set --config.nnet.patch_size to a "
            "divisor of it" for key in config_options.SIDES if nnet.get(key, 0) % patch]


def _sampling_faults(config):
    if "sample" not in config or "denoiser" not in config:
        return []
    faults = []
    for section in ("sample", "metrics"):
        name = config.get(section, {}).get("algorithm", "")
        if name and name not in samplers.SAMPLERS:
            faults.append(f"config.{section}.algorithm: unknown sampling algorithm {name!r}; known: {', '.join(samplers.SAMPLERS)}")
    scale = pipeline.guidance_scale(config.sample)
    text = backbones.takes_text(config.get("nnet", {}).get("name", ""))
    if scale != 1.0 and config.get("train", {}).get("mode") == "uncond" and not text:
        off = "scale=0" if "scale" in config.sample else "guidance=1"
        faults.append(f"sample guidance {scale:g} needs conditions, and config.train.mode is 'uncond': set --config.sample.{off}")
    latent = [config.nnet[key] for key in config_options.CHANNELS if key in config.get("nnet", {})]
    faults += _refusal(pipeline.guidance_options, config.sample, latent[0]) if latent and latent[0] > 0 else []
    return faults


def _network_faults(config):
    """What the constructor of the network says against config.nnet; no weight takes memory."""
    if "denoiser" not in config or "nnet" not in config or "path" in config.nnet:
        return []
    nnet = config.nnet
    count = nnet.get("num_classes", -1)
    null = backbones.numbers_null(nnet.name)
    classes = [str(number) for number in range(max(count - null, 0) or 2)] if count >= 0 else []
    text = (nnet.get("num_clip_token", 0) or STANDING_FOR_DATA, nnet.get("clip_dim", 0) or STANDING_FOR_DATA)
    with torch.device("meta"):
        faults = _refusal(pipeline.build_net, config, classes, text,
                          mask_channels=nnet.get("conditioning_channels", 0) or STANDING_FOR_DATA)
    return [fault if "config." in fault else f"config.nnet: {fault}" for fault in faults]


def gather(function, *args, **kwargs):
    """(what a function of ours returns, what it says against its arguments): one of the two is None or []."""
    try:
        return function(*args, **kwargs), []
    except (ValueError, TypeError) as error:
        return None, [str(error)]


def _refusal(function, *args, **kwargs):
    """What a function of ours says against its arguments, in a list; [] where nothing."""
    return gather(function, *args, **kwargs)[1]


def leaves(config, path=""):
    """(dotted path, value) of every value of a config."""
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value):
    return tuple(value) if isinstance(value, list) else value


def _typed(value):
    return str(tuple(value)).replace(", ", ",")
