"""What a training opens: the images where they are at hand, the features where they are used, the held-out split."""

from pathlib import Path
from typing import NamedTuple

from . import weights
from .base import Dataset

AUTO = "auto"  # as config.features.path: in the folder of the run

class Opened(NamedTuple):
    """images: real images, None where only features are at hand; examples: what is trained on (features or images);
    held_out: the same of the validation split, or None."""

    images: Dataset | None
    examples: Dataset
    held_out: Dataset | None


def open_all(options, features, identity, *, validation_split="", shape=()):
    """The data of a training on latents, as `Opened`.

    Args:
        options: the images, config.dataset.
        features: config.features; its `path` holds one store for each split, '' trains on the images themselves.
        identity: pipeline.identity(...) of the codec and encoder in use, which the stores must be made by.
        validation_split: name of the held-out split, '' for none.
        shape: (C, h, w) of the latents that the network takes, () where they are not to be compared with those of the store.
    Raises:
        ValueError: a store that is missing, unfinished, or made from other images, at another resolution, by another codec or
            encoder.
    """
    images = at_hand(options)
    if not features["path"]:
        if images is None:
            raise ValueError(f"config.dataset.path={options.get('path')!r}: no such folder, and config.features.path is ''")
        return Opened(images, images, _held_out(options, validation_split) if validation_split else None)
    split = options.get("split", "")
    examples = open_features(features, split, identity, images, random_flip=options.get("random_flip", False), options=options,
                             shape=shape)
    if images is not None and list(images.classes) != list(examples.classes):
        raise ValueError(f"{feature_folder(features, split)} numbers the classes as {list(examples.classes)}, the images as "
                         f"{list(images.classes)}: give config.dataset.classes in the order of the features, or convert them "
                         "again with --class_names (scripts/convert_features.py)")
    held_out = None
    if validation_split:
        unseen = None if images is None else _held_out(options, validation_split)
        held_out = open_features(features, validation_split, identity, unseen, options=options, shape=shape)
    return Opened(images, examples, held_out)


def validation(held_out, train, run):
    """() -> this process's batches of at most train.validation_size held-out examples; None without a held-out split.

    Args:
        train: config.train. run: engine.Run, of which rank and world are used.
    """
    if held_out is None:
        return None
    from . import in_order, some
    chosen = some(held_out, train["validation_size"])[run.rank::run.world]
    return lambda: in_order(held_out, chosen, max(1, train["batch_size"] // run.world))


def at_hand(options):
    """The data set of these options, or None where its folder is not on this machine."""
    from . import get
    return None if options.get("path") and not Path(options["path"]).expanduser().exists() else get(**options)


def open_features(features, split, identity, images=None, *, random_flip=False, options=None, shape=()):
    """The store of one split, checked against codec, encoder, the latents that a network takes and, where they are at hand, the
    images of `options`; where they are not, against the resolution they are said to have.

    Its weights are those that the images have now, so that weights which change need no features made anew; of images that are
    not at hand those kept with the features.
    """
    from . import Features, store
    folder = feature_folder(features, split)
    if not identity["encoder"]:  # a network without text may be trained on a store that has texts
        identity = identity | {"encoder": store.read(folder)["identity"]["encoder"]}
    store.check(folder, identity, "" if images is None else images.fingerprint, options=options)
    found = Features(folder, random_flip=random_flip)
    of = found.manifest["about"].get("dataset", {}).get("resolution")
    made = f"{'x'.join(map(str, found.shape))} (channels, height, width)" + (f", of images of {of} pixels" if of else "")
    right = (f"make config.dataset.resolution and the image size of config.nnet agree with it, or extract features anew (delete "
             f"{folder}, or choose another config.features.path)")
    if images is None and options and of and options.get("resolution", of) != of:
        raise ValueError(f"{folder}: the store holds latents {made}; config.dataset.resolution is {options['resolution']}: {right}")
    if shape and tuple(shape) != tuple(found.shape):
        raise ValueError(f"{folder}: the store holds latents {made}; config.nnet is built for {'x'.join(map(str, shape))}: {right}")
    found.weights = _weights(found, images, (options or {}).get("weight_column", weights.COLUMN))
    return found


def feature_root(features, run_folder):
    """Where the stores lie, as a string: config.features.path, or in the run folder where it is 'auto'; '' where there are none."""
    return str(Path(run_folder) / "features") if features["path"] == AUTO else features["path"]


def feature_folder(features, split, run_folder=""):
    """The folder of the store of one split below config.features.path; `run_folder` is needed where that may be 'auto'."""
    return Path(feature_root(features, run_folder)) / (split or "all")


def _weights(features, images, column):
    """How much the images of a store count, FloatTensor (N,) or None; see `open_features`. column: dataset.weight_column."""
    if images is not None:
        if images.weights is not None and not features.manifest["data"]["fingerprint"] and (
                len(images) != len(features) or any(images.file_name(i) != features.file_name(i) for i in range(len(images)))):
            raise ValueError(f"{features.path}: these features were converted, and their files are not named as those of the table "
                             f"whose column {column!r} has weights, so that none can be given: {weights.NONE_MEANT}")
        return images.weights
    of = features.manifest["about"].get("dataset", {}).get("weight_column", weights.COLUMN)
    if not column or (features.weights is None and column == weights.COLUMN):
        return None
    if features.weights is None or column != of:
        kept = "no weights" if features.weights is None else f"the weights of column {of!r}"
        raise ValueError(f"{features.path}: the store holds {kept}, not those of config.dataset.weight_column={column!r}, and the "
                         "images' table is not at hand: give config.dataset.path, or set dataset.weight_column=''")
    weights.tell(f"{features.path} (as when the features were made)", features.weights)
    return features.weights


def _held_out(options, split):
    from . import held_out
    return held_out(options, split)
