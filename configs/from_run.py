"""The config that a run wrote down: --config=configs/from_run.py:RUN/config.json.

The scripts take it by themselves where only --workdir is given.
"""

import json

import ml_collections

from configs.common import filtering


def get_config(path):
    with open(path) as stream:
        content = json.load(stream)

    def restore(value):  # JSON knows no tuples, and ml_collections overrides only those
        if isinstance(value, dict):
            return {key: restore(part) for key, part in value.items()}
        return tuple(value) if isinstance(value, list) else value

    config = ml_collections.ConfigDict(restore(content))
    if "sample" in config and "filter" not in config:  # a run that is older than the filter
        config.filter = filtering()
    if config.get("dataset", {}).get("name") in ("folder", "path_text", "image_mask") and "weight_column" not in config.dataset:
        config.dataset.weight_column = ""  # a run that is older than weights did without them
    if "train" in config and "ema_rate" in config.train and "ema_warmup" not in config.train:
        config.train.ema_warmup = False  # a run that is older than the warm-up of the average did without it
    if "denoiser" in config and "sample" in config and "weights" not in config.sample:
        config.sample.weights = "average"
    return config
