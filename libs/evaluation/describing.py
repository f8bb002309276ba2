"""What a trained network is asked for: where its conditions, the descriptions among them, come from."""

import logging

import torch

from libs import data
from libs.evaluation.masks import check_code
from libs.pipeline import PROMPTS, Bank, Describer, Masks, Prompts, StoredDescriber, draw_conditions, parameters, parameters_table


def asked(config, dataset, pipeline, n, *, seed, prompts=None):
    """Conditions of images 0 .. n-1 of an evaluation; those of image i depend on (seed, i) alone.

    A network that takes masks is asked for those of the real images, each with its image's label: of `dataset`, or of the split
    that config.sample.masks names.

    Raises:
        ValueError: masks are needed and there are no images, or none with such masks.
    """
    masks = masks_asked(config, dataset, pipeline.masks_as) if "mask" in pipeline.takes else None
    return draw_conditions(dataset, pipeline.null, n, seed=seed, labels=config.sample.labels, prompts=prompts, masks=masks)


def masks_asked(config, dataset, code=None):
    """The data set whose masks an evaluation of a network asks for, see `asked`; `code` is the network's MaskCode."""
    split = config.sample.get("masks", "")
    found = data.held_out(config.dataset, split) if split and split != config.dataset.get("split", "") else dataset
    if found is None or found.masks_as is None:
        raise ValueError("this network is asked for images of masks, and " + (
            "the real images are not at hand: give config.dataset.path" if found is None else
            f"{found.name} has none: give a column mask_file_name, or a folder of masks (config.dataset.name=image_mask)"))
    check_code(code, found)
    return found


def preview_masks(dataset, labels, each, *, seed):
    """The masks of `each` images of every label of a preview, as `Masks`; the same at every call.

    labels: LongTensor (n,), or None for any images. Fewer images than `each` are asked for again.
    """
    if labels is None or dataset.labels is None:
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        return Masks(dataset, [int(order[i % len(order)]) for i in range(each if labels is None else len(labels))])
    rows = []
    for position, label in enumerate(labels.tolist()):
        own = (dataset.labels == label).nonzero().flatten()
        own = own if len(own) else torch.arange(len(dataset))
        rows.append(int(own[position % each % len(own)]))
    return Masks(dataset, rows)


def preview_prompts(config, prompts, each):
    """The texts of config.sample.validation_prompts, `each` times, as encoders.Prompts; None where there are none."""
    texts = config.sample.get("validation_prompts", ())
    return Prompts(prompts.encoder, [text for text in texts for _ in range(each)]) if texts else None


def tell_parameters(run, net, codec, encoder=None):
    """Say how large each part of the model is and how much of it is trained; parameters.json keeps it."""
    found = parameters(net, codec, encoder)
    if run.is_main:
        logging.info("\n%s", parameters_table(found))
    run.record("parameters.json", found)


def tell_cut(run, encoder, captions):
    """Say, before the long work, which descriptions exceed the window of the text encoder. captions: those of each image."""
    if run.is_main and captions is not None:
        cut = encoder.cut(sorted({text for texts in captions for text in ([texts] if isinstance(texts, str) else texts)}))
        logging.log(logging.WARNING if cut else logging.INFO, cut or "every description fits the window of the text encoder")


def stored_features(config, split, folder):
    """The feature store of one split, made for the run in `folder`, for its captions; None where it is not here."""
    place = data.feature_folder(config.features, split, folder)
    return data.Features(place) if config.features.path and place.is_dir() else None


def describer(config, folder, encoder, *, dataset=None, features=None):
    """Draws descriptions for images to come, by config.sample.prompts; None where no texts are known.

    Args:
        folder: of the run; its bank.json holds the class-specific prompt bank of the training captions.
        encoder: the text encoder; None for a network without text.
        dataset: the real images; features: the store. Either gives captions where there is no bank.json.

    config.sample.prompts: 'bank' draws from the bank of the class, 'unseen' composes attributes that no caption of the class
    has, the name of a split ('val', 'test') takes the captions of that split.

    Raises:
        ValueError: a split without captions.
    """
    if encoder is None:
        return None
    how = config.sample.get("prompts", "bank")
    words = {name: tuple(phrases) for name, phrases in config.metrics.get("attributes", {}).items()}
    if how not in PROMPTS:
        features = stored_features(config, how, folder)
        if features is not None and (features.captions is not None or features.text_shape):
            return Describer(bank_of(features), encoder) if features.captions is not None else StoredDescriber(features)
        try:
            held_out = data.held_out(config.dataset, how)
        except ValueError as error:
            raise ValueError(f"config.sample.prompts={how!r}: known are {', '.join(PROMPTS)}, and splits of the data or of "
                             f"{config.features.path}. {error}") from error
        if held_out.captions is None:
            raise ValueError(f"config.sample.prompts={how!r}: split {how!r} of the data has no captions; known besides splits: "
                             f"{', '.join(PROMPTS)}")
        return Describer(bank_of(held_out), encoder)
    if (folder / "bank.json").is_file():
        return Describer(Bank.load(folder / "bank.json"), encoder, how=how, words=words)
    for source in (features, dataset):
        if source is not None and source.captions is not None:
            return Describer(bank_of(source), encoder, how=how, words=words)
    return StoredDescriber(features) if features is not None and features.text_shape else None


def bank_of(source):
    """The prompt bank of a data set or store: its captions by class; of unlabelled data all under one nameless class."""
    labels = [0] * len(source) if source.labels is None else source.labels.tolist()
    return Bank.of(source.captions, labels, list(source.classes) if source.labels is not None else [""])
