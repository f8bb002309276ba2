"""The command line of every script: --config, --config.a.b=value, --workdir, --nnet_path.

A script ends with `cli.main(train)`; `train(config, workdir)` gets a locked, validated config. What a user did wrong
ends in one line that names the thing, not in a traceback (`--verbosity=1` shows it).
"""

import difflib
import hashlib
import inspect
import logging
import math
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_JSON_CONFIG = Path(__file__).parent.parent / "configs" / "from_run.py"

# Dotted names, wherever they occur in a config, and what their number must satisfy.
_POSITIVE = ("train.batch_size", "train.n_steps", "train.accumulation", "train.keep_checkpoints", "optimizer.lr",
             "sample.sample_steps", "sample.n_samples", "sample.mini_batch_size", "metrics.sample_steps", "metrics.n_samples",
             "train.validation_size", "dataset.resolution", "nnet.embed_dim", "nnet.depth", "nnet.num_heads", "nnet.mlp_ratio")
_NOT_NEGATIVE = ("seed", "train.log_interval", "train.eval_interval", "train.save_interval", "train.preview_interval",
                 "train.validation_interval", "train.workers", "train.grad_clip", "optimizer.weight_decay",
                 "lr_scheduler.warmup_steps", "sample.guidance")
_SHARE = ("train.p_uncond", "train.ema_rate")

# Errors whose message is written for the user; others may be ours, and say where to look.
_SAID_IN_FULL = (ValueError, OSError, FloatingPointError, ImportError)

_FLAGS = {
    "workdir": "folder of the run; by default workdir/<config>/<overrides, or default>",
    "nnet_path": "weights: a .pth or .safetensors file, a <step>.ckpt folder or a run folder; by default the best "
                 "checkpoint of --workdir",
}


def main(script, **own_flags):
    """Parse the command line and call `script`.

    Args:
        script: script(config, workdir[, nnet_path][, <own flag> ...]); its parameter names say which flags it takes.
        own_flags: {flag name: (default, help)} that only this script has; a str, int or bool default gives the type.
    """
    takes = [name for name in inspect.signature(script).parameters if name != "config"]
    for name in takes:
        if name in own_flags:
            default, text = own_flags[name]
            kind = next(kind for kind in (bool, int, str) if isinstance(default, kind))  # a bool is an int as well
            define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string}[kind]
            define(name, default, text)
        else:
            flags.DEFINE_string(name, "", _FLAGS[name])
    config_flags.DEFINE_config_file("config", None, "the experiment, a file in configs/", lock_config=True)

    def run(argv):
        _set_up_log()
        try:
            if len(argv) > 1:
                raise ValueError(f"unexpected argument {argv[1]!r}: options are written --name=value")
            config = flags.FLAGS.config
            if config is None:
                raise ValueError("--config=FILE is missing: name a file in configs/, or give the --workdir of a run")
            find_assets(config)
            check(config)
            values = {name: flags.FLAGS[name].value for name in takes}
            if "workdir" in values and not values["workdir"]:
                values["workdir"] = default_workdir(flags.FLAGS["config"])
            script(config, **values)
        except (*_SAID_IN_FULL, KeyError, TypeError, RuntimeError) as error:
            logging.debug("", exc_info=True)
            rank = os.environ.get("RANK")
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            more = "" if isinstance(error, _SAID_IN_FULL) else f" ({type(error).__name__}; --verbosity=1 shows where)"
            sys.exit(f"error{f' on process {rank}' if rank else ''}: {text}{more}")

    sys.argv = _with_config_of_the_run(sys.argv)  # config_flags reads the overrides from there
    app.run(run, flags_parser=_parse)


def check(config):
    """Raise ValueError for numbers that no run can mean: nan, negative sizes, probabilities beyond 1.

    Types and unknown keys are refused by ml_collections before this.
    """
    for path, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.{path} is {value}; a finite number is needed")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if path in _POSITIVE and not value > 0:
                raise ValueError(f"config.{path} is {value}; it must be greater than 0")
            if path in _NOT_NEGATIVE and value < 0:
                raise ValueError(f"config.{path} is {value}; it must not be negative")
            if path in _SHARE and not 0 <= value <= 1:
                raise ValueError(f"config.{path} is {value}; it must lie between 0 and 1")
        if path == "metrics.bootstrap" and (value < 0 or value == 1):
            raise ValueError(f"config.metrics.bootstrap is {value}; give at least 2 resamples, or 0 for no intervals")
        if path == "sample.labels" and value not in ("data", "balanced"):
            raise ValueError(f"config.sample.labels is {value!r}; known: data, balanced")
        if value is None:
            raise ValueError(f"config.{path} is None, which the command line cannot override; use '' or 0 for off")


def find_assets(config):
    """Where a script is called outside of the repository, let paths of configs that begin with assets/ mean
    those of the repository.

    A path that is there in the current folder stays as it is.
    """
    for section in [config, *(value for value in config.values() if hasattr(value, "items"))]:
        for key, value in section.items():
            if isinstance(value, str) and value.startswith("assets/"):
                section[key] = _in_repository(value)


def _in_repository(path):
    """A path below the repository, as text, where the current folder has none such and the repository has;
    else as it is.

    A '{' in the name of a file stands for several: there its folder decides.
    """
    def there(candidate):
        return candidate.parent.is_dir() if "{" in candidate.name else candidate.exists()

    found = Path(__file__).parent.parent / path
    return str(found) if not there(Path(path)) and there(found) else path


def default_workdir(flag):
    """workdir/<config stem>/<overrides joined by '-', or 'default'>, as U-ViT names its runs."""
    stem = Path(flag.config_filename.split(":")[0]).stem
    named = {path: value for path, value in sorted(flag.override_values.items())
             if path.split(".")[0] not in ("sample", "metrics")}
    parts = [f"{path.rsplit('.', 1)[-1]}={value}".replace(os.sep, "_").replace(" ", "") for path, value in named.items()]
    name = "-".join(parts)
    if len(name) > 200:  # longer than a file system likes
        name = f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return os.path.join("workdir", stem, name or "default")


def _leaves(config, path=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _with_config_of_the_run(argv):
    """Where no --config is given but --workdir is a run, take the config that the run wrote down."""
    options = dict(part.lstrip("-").split("=", 1) for part in argv[1:] if part.startswith("-") and "=" in part)
    saved = Path(options.get("workdir", "")) / "config.json"
    asked = any(part.lstrip("-").split("=")[0] == "config" for part in argv[1:] if part.startswith("-"))
    if not asked and "workdir" in options and saved.is_file():
        return [argv[0], f"--config={_JSON_CONFIG}:{saved}", *argv[1:]]
    return argv


def _parse(argv):
    """absl's parser; an option that the config does not have ends in one line as well."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        fault = _unknown_option(argv)
        if not fault:
            raise
        sys.exit(f"error: {fault}")


def _unknown_option(argv):
    """What is wrong with the first --config.a.b=value that names no option of the config; '' where each does."""
    file = next((part.split("=", 1)[1] for part in argv[1:] if part.lstrip("-").startswith("config=")), "")
    config = flags.FLAGS["config"].parser.parse(file) if file else {}
    for part in argv[1:] if file else ():
        section, path = config, part.lstrip("-").split("=")[0].split(".")
        for depth, key in enumerate(path[1:] if part.startswith("-") and path[0] == "config" else (), 1):
            if not hasattr(section, "keys"):
                return f"{'.'.join(path[:depth])} is {section!r}, which has no {key!r}" if depth > 1 else ""
            if key not in section:
                close = difflib.get_close_matches(key, section, n=1)
                return (f"{'.'.join(path[:depth])} has no option {key!r}; it has {', '.join(section)}"
                        + (f'. Did you mean "{close[0]}"?' if close else ""))
            section = section[key]
    return ""


def _set_up_log():
    rank = os.environ.get("RANK")
    logging.basicConfig(format=f"%(asctime)s{f' [{rank}]' if rank else ''} %(message)s", datefmt="%H:%M:%S", force=True,
                        level=logging.DEBUG if flags.FLAGS.verbosity > 0 else logging.INFO)
    for noisy in ("PIL", "matplotlib", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
