"""Which weights of a run are used, the average or those of the last step, and what must be said of them."""

import difflib
import logging
import shlex
from pathlib import Path

from libs import engine
from libs.engine import checkpoint
from libs.engine.checkpoint import MANIFEST, steps

AVERAGE, RAW = WEIGHTS = ("average", "raw")
LARGEST_START = 0.05  # share of the random start in an average, above which it is said


def weights_options(sample):
    """What config.sample says of the weights, as arguments of engine.load_weights and engine.weights_hash.

    weights: 'average', also where a config of older times does not say, or 'raw'. ema_rate: which of several
    averages.

    Raises:
        ValueError: another name; a rate of an average beside 'raw'.
    """
    name, rate = sample.get("weights", AVERAGE), sample.get("ema_rate", 0.0)
    if name not in WEIGHTS:
        close = difflib.get_close_matches(str(name).lower(), WEIGHTS, 1)
        raise ValueError(f"config.sample.weights is {name!r}; known: average, the moving average of the "
                         f"training, and raw, the weights "
                         f"of the last step{f'. Did you mean {close[0]!r}?' if close else ''}")
    if name == RAW and rate:
        raise ValueError(f"config.sample.weights is 'raw', which is no average, and "
                         f"config.sample.ema_rate={rate:g} names one: set "
                         "--config.sample.ema_rate=0. or --config.sample.weights=average")
    return {"averaged": name == AVERAGE, "ema_rate": rate}


def weights_used(trained, ema_rate=0.0, averaged=True):
    """Which weights made the images, in words."""
    source, how = Path(trained.source), "weights as they are"
    if (source / MANIFEST).is_file():
        # train.ema_rate=0 keeps nothing of earlier steps
        rate = ema_rate or engine.read_json(source / "state.json", {}).get("ema_rate", 1.0)
        how = f"moving average{f' of rate {ema_rate:g}' if ema_rate else ''}" if rate else "the weights themselves"
        how = how if averaged else "the raw weights of the last step, no average"
    elif any((folder / "unet_ema" / "config.json").is_file() for folder in (source, source.parent)):  # see engine.foreign
        how = "moving average (unet_ema)"
    return f"{source}{'' if trained.step is None else f', step {trained.step}'}, {how}"


def start_in_average(source, ema_rate=0.0):
    """How much of the random start is left in the average of a checkpoint of ours, a share in [0, 1]; 0 where
    none is averaged.

    Checkpoints that do not say whether their average was warmed up are older than the warm-up.
    """
    record = engine.read_json(Path(source) / "state.json", {})
    rate = ema_rate or record.get("ema_rate", 0.0)
    if not rate or not record.get("step"):
        return 0.0
    return engine.start_share(rate, record["step"], warmup=record.get("ema_warmup", False))


def warn_of_average(source, *, averaged=True, ema_rate=0.0, advice="--config.sample.weights=raw takes the "
                                                                   "raw weights"):
    """Log a warning where an average is used that is still in part the random start, or where 'raw' chooses
    nothing.

    Args:
        source: what engine.load_weights read.
        averaged, ema_rate: as given to it.
        advice: what to do, the end of the warning.
    """
    source = Path(source)
    if not (source / MANIFEST).is_file():
        if not averaged:
            logging.warning("config.sample.weights=raw: %s is no checkpoint of a run here, its weights are "
                            "taken as they are", source)
        return
    share = start_in_average(source, ema_rate) if averaged else 0.0
    if share > LARGEST_START:
        logging.warning("%s: %.0f %% of the moving average is still the random start of the training, so "
                        "that images are noise to that "
                        "degree: %s", source, 100 * share, advice)


def log_newer(path, source, step):
    """Say where a run folder's best checkpoint is used and a newer one is there, and how to take that.

    Args:
        path: what was asked for, a run folder or its ckpts/; of a checkpoint that is named nothing is said.
        source, step: what engine.load_weights chose.
    """
    source = Path(source)
    asked = Path(path).resolve()
    if source.resolve() == asked or not (source / MANIFEST).is_file():
        return
    newest = max(steps(source.parent), default=step)
    if newest > step and checkpoint.is_whole(source.parent / f"{newest}.ckpt"):  # a damaged one was named in the log
        logging.info("step %d has the best score of this run and is used; for the newest weights: "
                     "--nnet_path=%s", step,
                     shlex.quote(str(source.parent / f"{newest}.ckpt")))
