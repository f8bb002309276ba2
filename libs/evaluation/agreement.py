"""Agreement between what texts ask for and what pictures show, attribute by attribute.

`config.metrics.attributes` names the attributes and their words: {'size': ('small', 'medium', 'large'), ...}. A word counts
where it stands in a text as a whole word or phrase. What a picture shows is read by `config.metrics.measure`:

    phantoms    geometry and colour of a drawn lesion (libs/data/phantom_measure.py): size, shape, colour, skin
    classifier  for each attribute a small classifier, trained once on the real images and the words of their captions

Either is tried on real images first, and that number stands beside the other: it is the most that can be hoped for.
"""

import logging

import torch

from libs import data, metrics
from libs.data.base import fingerprint
from libs.evaluation.references import trained_once
from libs.pipeline import read_attributes, to_uint8

MEASURES = ("phantoms", "classifier")
FEWEST = 5  # real images that a word needs to be learned


class Agreement:
    """Reads attributes off pictures, and says how often they are those of the texts.

    Attributes:
        words: {attribute: words} of the attributes that can be read.
        of_real: {attribute: share of real images whose picture agrees with their own text}.
        judge: hash of the networks that read, or the name of what reads without one.
    """

    def __init__(self, words, read, of_real, readable=None, judge="phantoms"):
        """
        Args:
            read: uint8 images (N, C, H, W) -> LongTensor (N, number of attributes), the position of the word; -1: none.
            readable: {attribute: positions of the words that `read` can give}; None: all.
        """
        self.words, self.read, self.of_real, self.judge = words, read, of_real, judge
        self.readable = readable or {name: range(len(phrases)) for name, phrases in words.items()}

    def scores(self, texts, shown, *, seed=0, resamples=0):
        """{'agreement_<attribute>': score, ..., 'agreement_all': score} of texts and what `read` gave for their pictures.

        A text that does not mention an attribute, or by a word that nobody can read off a picture, does not count for it.
        """
        asked = torch.tensor([[found[name] if found[name] in self.readable[name] else -1 for name in self.words] for found in
                              (read_attributes(text, self.words) for text in texts)])
        right, said = asked == shown, asked >= 0
        columns = {name: right[said[:, k], k] for k, name in enumerate(self.words)}
        columns["all"] = (right | ~said).all(1)[said.any(1)]
        return {f"agreement_{name}": metrics.share(column.double(), resamples=resamples, seed=seed)
                for name, column in columns.items() if len(column)}


def agreement(config, dataset, device="cpu"):
    """The `Agreement` of config.metrics.attributes; None where none are named, none can be read, or real images have no texts.

    device: that the networks that read are trained and used on.

    Raises:
        ValueError: an unknown measure, or other words than the phantoms have.
    """
    words = {name: tuple(phrases) for name, phrases in config.metrics.get("attributes", {}).items()}
    if not words or dataset is None or dataset.captions is None:
        return None
    measure = config.metrics.get("measure", "classifier")
    if measure not in MEASURES:
        raise ValueError(f"config.metrics.measure is {measure!r}; known: {', '.join(MEASURES)}")
    return _of_phantoms(words, dataset) if measure == "phantoms" else _of_classifiers(words, dataset, config.seed,
                                                                                    device)


def _of_phantoms(words, dataset):
    from libs.data import phantoms
    measured = {name: phrases for name, phrases in words.items() if name in ("size", "shape", "colour", "skin")}
    if len(measured) < len(words):
        logging.info("not measured on phantoms: %s", ", ".join(words.keys() - measured.keys()))
    words = measured
    for name, phrases in words.items():
        if list(phantoms.ATTRIBUTES[name]) != [phrase.removesuffix(" skin") for phrase in phrases]:
            raise ValueError(f"config.metrics.attributes.{name} is {phrases}; the phantoms have {phantoms.ATTRIBUTES[name]}, in "
                             "this order")

    def read(images):
        rows = [phantoms.measure(image.permute(1, 2, 0).numpy()) for image in images]
        known = {name: phantoms.ATTRIBUTES[name] for name in words}
        return torch.tensor([[known[name].index(row[name]) if row[name] else -1 for name in words] for row in rows])

    found = Agreement(words, read, {})
    chosen = data.some(dataset, 500)
    shown = read(to_uint8(torch.stack([dataset[i]["image"] for i in chosen]),
                          lambda row: dataset.file_name(chosen[row])))
    found.of_real = _values(found.scores([_caption(dataset, i) for i in chosen], shown))
    return found


def _of_classifiers(words, dataset, seed, device):
    said = torch.tensor([[found[name] for name in words] for found in
                         (read_attributes(_caption(dataset, i), words) for i in range(len(dataset)))])
    readers, of_real = {}, {}
    for k, (name, phrases) in enumerate(words.items()):
        column = said[:, k]
        counts = torch.bincount(column[column >= 0], minlength=len(phrases))
        kept = (counts >= FEWEST).nonzero().flatten()
        if len(kept) < 2:
            logging.warning("attribute %r is not judged: its words are in the captions of %s images, and two of them need %d "
                            "each", name, counts.tolist(), FEWEST)
            continue
        rows = torch.isin(column, kept).nonzero().flatten()
        folder = trained_once(dataset, torch.searchsorted(kept, column[rows]), [phrases[i] for i in kept], seed=seed,
                              rows=rows.tolist(), of=name, device=device)
        if len(kept) < len(phrases):
            logging.warning("attribute %r: not judged are %s, of which fewer than %d images are described", name,
                            ", ".join(phrase for i, phrase in enumerate(phrases) if i not in kept), FEWEST)
        readers[name] = metrics.extractor(f"classifier:{folder}", device=device), kept
        of_real[name] = round(metrics.load_classifier(folder).report["accuracy"], 4)
    if not readers:
        logging.warning("config.metrics.attributes: none of %s can be learned from the captions of %s; are the words written "
                        "as there?", ", ".join(words), dataset.name)
        return None

    def read(images):
        return torch.stack([kept[network.both(images)[1].argmax(1).cpu()] for network, kept in readers.values()], 1)

    return Agreement({name: words[name] for name in readers}, read, of_real,
                     {name: kept.tolist() for name, (_, kept) in readers.items()},
                     judge=fingerprint(*((name, network.fingerprint) for name, (network, _) in readers.items())))


def _values(scores):
    return {name.removeprefix("agreement_"): round(score["value"], 4) for name, score in scores.items()}


def _caption(dataset, i):
    """The first caption of an image."""
    caption = dataset.captions[i]
    return caption if isinstance(caption, str) else caption[0]
