"""What is asked of a network: labels and descriptions, drawn from the data's statistics or given by a user.

Conditions are dicts with one entry per image. Descriptions stay texts until images of them are made: `cond['text']` may be
lazy (`encoders.Prompts`), so that thousands of them need no memory.
"""

import csv
from pathlib import Path

import numpy as np
import torch

from libs import encoders

PROMPTS = ("bank", "unseen")


def choose_labels(asked, classes, n, *, conditional):
    """Labels of the images to make.

    `asked` is a class name for n images of it, 'all' for n of each class, or '' for n images of the classes in turn.

    Returns:
        list of int, one for each image (0 where the network takes no label).
    """
    if not conditional:
        if asked not in ("", "all"):
            raise ValueError(f"--label={asked}: this network takes no label")
        return [0] * n
    if asked == "all":
        return [label for label in range(len(classes)) for _ in range(n)]
    if asked and asked not in classes:
        raise ValueError(f"--label={asked}: no such class; known: all, {', '.join(classes)}")
    return [classes.index(asked)] * n if asked else [i % len(classes) for i in range(n)]


def read_prompts(path):
    """[(prompt, class name or '')] of a text file with one prompt in each line, or of a .csv with columns prompt[, label].

    Raises:
        ValueError: no such file, no prompt in it, or no column 'prompt'.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a text file with one description in each line, or a .csv")
    with open(path, newline="", encoding="utf-8-sig") as stream:
        if path.suffix.lower() == ".csv":
            table = csv.DictReader(stream, skipinitialspace=True)
            if "prompt" not in (table.fieldnames or ()):
                raise ValueError(f"{path}: its columns are {table.fieldnames}; 'prompt' is needed, 'label' may follow")
            found = [((row["prompt"] or "").strip(), (row.get("label") or "").strip()) for row in table]
        else:
            found = [(line.strip(), "") for line in stream]
    found = [(prompt, label) for prompt, label in found if prompt]
    if not found:
        raise ValueError(f"{path}: no prompt in it")
    return found


def requested(asked, label, classes, n, *, labelled, bank=None):
    """Labels and texts of the images that a user asks for: n of each prompt.

    Args:
        asked: [(prompt, class name or '')]; [] asks by label alone, see `choose_labels`.
        label: the class name for prompts that bring none; '' finds the one that a prompt names, or whose bank holds it.
        labelled: whether the network takes a label.
        bank: encoders.Bank or None.
    Returns:
        (labels, texts): a number for each image, and a text for each, [] where no prompt was given.
    """
    if not asked:
        return choose_labels(label, classes, n, conditional=labelled), []
    texts = [text for text, _ in asked for _ in range(n)]
    if not labelled:
        return choose_labels(label, classes, len(texts), conditional=False), texts
    numbers = [_label_of(text, name or label, classes, bank) for text, name in asked]
    return [number for number in numbers for _ in range(n)], texts


def _label_of(prompt, name, classes, bank):
    if name:
        if name not in classes:
            raise ValueError(f"label {name!r} of prompt {prompt!r}: no such class; known: {', '.join(classes)}")
        return classes.index(name)
    named = encoders.read_attributes(prompt, {"class": tuple(classes)})["class"]
    holding = [] if bank is None else [i for i, each in enumerate(bank.classes) if bank.has(prompt, each)]
    found = [named] if named >= 0 else holding
    if len(found) != 1:
        raise ValueError(f"prompt {prompt!r} names no class: give one with --label; known: {', '.join(classes)}")
    return found[0]


def draw_labels(labels, classes, n, *, seed, how="data"):
    """LongTensor (n,): label i depends on (seed, i) alone.

    Args:
        labels: those of the real images, or None where they are unknown: then every class is as likely.
        classes: number of classes.
        how: 'data' draws the label of a real image, so that classes are as frequent as in the data; 'balanced' takes
            class i modulo K.
    """
    if how not in ("data", "balanced"):
        raise ValueError(f"config.sample.labels is {how!r}; known: data, balanced")
    if how == "balanced":
        return torch.arange(n) % classes
    size = classes if labels is None else len(labels)
    rows = [int(np.random.default_rng([seed, i]).integers(size)) for i in range(n)]
    return torch.tensor(rows) if labels is None else labels[rows]


def draw_conditions(dataset, null, n, *, seed, labels="data", prompts=None):
    """Conditions of images 0 .. n-1; those of image i depend on (seed, i) alone.

    Args:
        dataset: data set whose labels are drawn from; None draws each label with equal probability.
        null: the empty conditions of the network; {} gives {}.
        labels: see `draw_labels`.
        prompts: a `Describer` for networks that take text.

    Returns:
        dict with n rows for each key of `null`.
    """
    cond = {}
    if "label" in null:
        cond["label"] = draw_labels(None if dataset is None else dataset.labels, int(null["label"]), n, seed=seed, how=labels)
    if "text" in null:
        if prompts is None:
            raise ValueError("this network takes text, and there are no descriptions to draw from: give the --workdir of the "
                             "run (it holds bank.json), the captions of the data, or the features")
        cond["text"] = prompts.draw(cond.get("label"), n, seed=seed)
    return {key: cond[key] for key in null}


class Describer:
    """Descriptions for images to come, from the class-specific prompt bank of VAP-Diffusion.

    Args:
        bank: encoders.Bank of the training captions.
        encoder: text -> states.
        how: 'bank' draws a caption of the class; 'unseen' exchanges its attribute words for a combination that no
            caption of that class has, to measure what a network does beyond its data.
        words: {attribute: phrases} for 'unseen'.
    """

    def __init__(self, bank, encoder, *, how="bank", words=None):
        if how == "unseen" and not words:
            raise ValueError("config.sample.prompts='unseen' needs config.metrics.attributes: the words that may be exchanged")
        self.bank, self.encoder, self.how, self.words = bank, encoder, how, words

    def draw(self, labels, n, *, seed):
        """encoders.Prompts of n texts; text i depends on (seed, i) and its label alone."""
        names = [self.bank.classes[0 if labels is None else int(labels[i])] for i in range(n)]
        return encoders.Prompts(self.encoder, [self._text(name, np.random.default_rng([seed, i, 1]))
                                               for i, name in enumerate(names)])

    def _text(self, name, rng):
        return self.bank.draw(name, rng) if self.how == "bank" else self.bank.unseen(name, self.words, rng)


class StoredDescriber:
    """Descriptions from a feature store whose texts are known only as states, such as the published folders.

    Args:
        features: the store; `texts(indices, which)` and `labels` are used.
    """

    def __init__(self, features):
        self.features = features
        self.rows = {None: np.arange(len(features))}
        if features.labels is not None:
            self.rows |= {int(label): np.flatnonzero(features.labels.numpy() == label) for label in features.labels.unique()}

    def draw(self, labels, n, *, seed):
        """Lazy states of n captions, each of an image of the label that is asked for."""
        rows = [self.rows[None if labels is None else int(labels[i])] for i in range(n)]
        chosen = [int(own[np.random.default_rng([seed, i, 1]).integers(len(own))]) for i, own in enumerate(rows)]
        counts = self.features.caption_counts(chosen)
        which = [int(np.random.default_rng([seed, i, 2]).integers(count)) for i, count in enumerate(counts)]
        return _StoredTexts(self.features, chosen, which)


class _StoredTexts:
    texts = None  # the strings are unknown

    def __init__(self, features, rows, which):
        self.features, self.rows, self.which = features, rows, which

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        return self.features.texts([self.rows[i] for i in indices], [self.which[i] for i in indices])
