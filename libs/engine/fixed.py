"""Settings that decide what the weights of a run mean: they stay as they are for the life of the run.

Others, such as the number of steps, the batch or the learning rate, may change from one session to the next.
"""

SECTIONS = ("nnet", "schedule", "denoiser", "codec", "encoder")
SINGLE = ("train.mode", "train.noised", "dataset.window")
# Options of those sections that change nothing of the meaning: memory, dropout, and where weights lie, whose identity
# is compared by their content.
FREE = ("use_checkpoint", "decode_batch", "path", "subfolder", "any_size", "attention")
# Numbers of which 0 means: as the data, the codec or another option say. Only two other numbers are compared.
AS_GIVEN = ("num_classes", "img_size", "image_size", "input_size", "sample_size", "in_chans", "in_channels",
            "out_channels", "channels", "conditioning_channels", "scale_factor", "lora_alpha")

# What options of config.dataset give where those are 0.
OF_DATA = {"resolution": ("img_size", "image_size", "input_size", "sample_size"),
           "channels": ("in_chans", "in_channels", "out_channels", "channels")}


def differences(before, now):
    """The fixed settings in which two configs differ: a list of (option, value before, value now), as plain dicts of JSON.

    What one of them lacks is not compared: a version may have added or dropped it.
    """
    differing = []
    for section in SECTIONS:
        differing += _of(before.get(section), now.get(section), section)
    for path in SINGLE:
        section, key = path.split(".")
        differing += _of({key: (before.get(section) or {}).get(key)}, {key: (now.get(section) or {}).get(key)}, section)
    return differing


def check(before, now, folder):
    """Raise ValueError where a run with weights in `folder` would go on with other fixed settings; names options and values."""
    differing = _by_data(differences(before, now), before, now)
    if differing:
        lines = "; ".join(f"`--config.{option}={_typed(new)}`, which was {_typed(old)}" for option, old, new in differing)
        back = " ".join(f"--config.{option}={_typed(old)}" for option, old, _ in differing)
        raise ValueError(f"{folder} holds weights that were trained with other settings: {lines}. They decide what "
                         f"the weights mean and stay for the life of a run. Set {back}, or give another --workdir")


def _by_data(differing, before, now):
    """The differences, with the option of config.dataset in place of the sizes and channels that follow from it."""
    for key, following in OF_DATA.items():
        old, new = ((config.get("dataset") or {}).get(key) for config in (before, now))
        rest = [each for each in differing if each[0].rsplit(".", 1)[-1] not in following]
        if len(rest) < len(differing) and old and new and old != new:
            differing = [(f"dataset.{key}", old, new), *rest]
    return differing


def _of(before, now, path):
    if isinstance(before, dict) and isinstance(now, dict):
        return [each for key in sorted(before.keys() & now.keys()) if key not in FREE and "drop" not in key
                for each in _of(before[key], now[key], f"{path}.{key}")]
    either_as_given = path.rsplit(".", 1)[-1] in AS_GIVEN and 0 in (before, now)
    return [] if before is None or now is None or before == now or either_as_given else [(path, before, now)]


def _typed(value):
    """A value as a shell and the command line take it."""
    if isinstance(value, list):
        return f'"{_tuple(value)}"'
    return f"'{value}'" if isinstance(value, str) and (not value or set(value) & set(" ()'\"$&;|*?")) else str(value)


def _tuple(value):
    return tuple(_tuple(each) if isinstance(each, list) else each for each in value)
