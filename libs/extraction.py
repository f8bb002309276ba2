"""Making the features of a data set, by a script or by the training that needs them: latents, masks and states of texts, once.

    features = extraction.ready(run, config, codec, encoder)
    images, examples, held_out = data.open_all(config.dataset, features, pipeline.identity(codec, encoder), ...)
"""

import logging
import shlex
import sys
import time
from itertools import chain

import torch

from . import data, pipeline

log = logging.getLogger(__name__)
AUTO = data.opening.AUTO  # as config.features.path: in the folder of the run


def ready(run, config, codec, encoder=None, *, masks=False, batch_size=64):
    """config.features with the path of stores that are there and fit: of config.dataset, and of config.train.validation_split.

    Those that are missing are made; one that was stopped half-way goes on. Every process of the run calls this.

    Args:
        run: engine.Run.
        config: of which `features`, `dataset`, `train` and, for readers of the store, `codec` and `encoder` are used. With
            features.path='auto' the stores lie in the run folder; '' asks for none, and is given back as it is.
        encoder: of texts; None stores none.
        masks: whether the training needs masks in the stores.
        batch_size: images, or texts, per call of codec or encoder.
    Returns:
        ConfigDict with path and dtype.
    Raises:
        ValueError: an augmentation that no store keeps, a store of something else (naming what differs), images that are
            neither at hand nor stored, or are faulty.
    """
    if not config.features.path:
        return config.features
    check(config)
    features = config.features.copy_and_resolve_references()
    features.path = folder(config.features, run.folder)
    identity, images = pipeline.identity(codec, encoder), data.at_hand(config.dataset)
    for split in splits(config):
        place, flips = data.feature_folder(features, split), _flips(config, split)
        dataset, remember = images, run.folder / "preflight.json"
        if images is not None and split != config.dataset.get("split", ""):
            dataset, remember = data.held_out(config.dataset, split), None
        finished = run.from_main((place / "manifest.json").is_file())  # one answer for all: to write is done together
        if dataset is None and not finished:
            data.get(**config.dataset)  # says what is missing
        if dataset is not None and not finished:
            write(run, config, dataset, codec, encoder, place, flips=flips, batch_size=batch_size, remember=remember)
        store = data.open_features(features, split, identity, dataset, random_flip=flips, options=config.dataset,
                                   shape=pipeline.latent_shape(config.nnet) if "nnet" in config else ())
        if masks and store.masks_as is None:
            raise ValueError(f"{place}: this feature store has no masks: delete the folder and have it made anew from images "
                             "with masks, or choose another config.features.path")
    return features


def folder(features, run_folder):
    """Where the stores lie, as a string, see `data.feature_root`."""
    return data.feature_root(features, run_folder)


def check(config):
    """ValueError where the data are augmented as no store can keep it."""
    if config.dataset.get("crop", "center") == "random" or config.dataset.get("random_vflip", False):
        raise ValueError("features are made once: config.dataset.crop='random' and config.dataset.random_vflip=True "
                         "are only for training on images; of augmentations, a store keeps random_flip. Set "
                         "--config.dataset.crop=center and --config.dataset.random_vflip=False, or where the training "
                         "can do without a store --config.features.path='', to encode at every step")


def splits(config):
    """The splits that a training needs: that of config.dataset, and config.train.validation_split where there is one."""
    held_out = config.train.get("validation_split", "") if "train" in config else ""
    return list(dict.fromkeys([config.dataset.get("split", ""), *([held_out] if held_out else [])]))


def make(run, config, split, codec, encoder=None, *, batch_size=64, say=log.info):
    """Make the store of one split at its place below config.features.path; see `write`."""
    dataset = data.get(**config.dataset) if split == splits(config)[0] else data.held_out(config.dataset, split)
    write(run, config, dataset, codec, encoder, data.feature_folder(config.features, split), flips=_flips(config, split),
          batch_size=batch_size, say=say)


def write(run, config, dataset, codec, encoder, path, *, flips, batch_size=64, say=log.info, remember=None):
    """Make the store of a data set at `path`, or finish it; the images are checked before.

    Args:
        flips: store the mirrored images too.
        say: what to do, on the main process, with sentences for the user.
        remember: where the images found good are noted, by default beside the store; see `data.preflight`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remember = remember or path.with_name(f"{path.name}_preflight.json")
    run.main_first(lambda: data.preflight(dataset, remember=remember))
    if encoder is not None:
        cut = _cut(dataset, encoder, path)
        if run.is_main:
            (log.warning if cut and say == log.info else say)(f"{path}: {cut or 'every text fits the encoder'}")
    latents, start = 0, time.perf_counter()

    def encode_images(images):
        nonlocal latents
        latents += len(images)
        mean, logvar = codec.moments(images.to(run.device)).chunk(2, dim=1)
        return mean, None if codec.deterministic else (logvar / 2).exp()

    data.store.write(path, dataset, encode_images=encode_images, encode_texts=encoder and encoder.encode,
                     empty=None if encoder is None else encoder.empty, identity=pipeline.identity(codec, encoder),
                     dtype=config.features.get("dtype", "float16"), flips=flips, batch_size=batch_size, rank=run.rank,
                     world=run.world, workers=config.train.get("workers", 0) if "train" in config else 0,
                     barrier=run.barrier, about={"command": shlex.join(sys.argv)} | {
                         part: config[part].to_dict() if part in config else {} for part in ("dataset", "codec", "encoder")})
    rate = run.gather_rows(torch.tensor([latents])).sum().item() / (time.perf_counter() - start)
    if run.is_main:
        say(f"{path}: {len(dataset):,} images; " + (f"{rate:.1f} latents/s" if rate else "it was finished before"))


def _flips(config, split):
    return split == splits(config)[0] and config.dataset.get("random_flip", False)


def _cut(dataset, encoder, path):
    """Which texts do not fit into the encoder's window, as a sentence: said before the work begins."""
    if dataset.captions is None:
        raise ValueError(f"{path}: config.encoder is {type(encoder).__name__}, but the data have no texts: give a column "
                         "'text' or config.dataset.captions, or leave out config.encoder")
    captions = ([text] if isinstance(text, str) else text for text in dataset.captions)
    return encoder.cut(list(dict.fromkeys(chain.from_iterable(captions))))
