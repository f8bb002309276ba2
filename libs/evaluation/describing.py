"""Where the descriptions come from that a trained network is asked for."""

from libs import data
from libs.pipeline import PROMPTS, Bank, Describer, StoredDescriber


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
        stored = data.feature_folder(config.features, how)
        if stored.is_dir():
            features = data.Features(stored)
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
