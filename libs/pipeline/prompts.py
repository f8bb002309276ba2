"""What is asked of a network: labels and descriptions, drawn from the data's statistics or given by a user.

Conditions are dicts with one entry per image. Descriptions stay texts until images of them are made: `cond['text']` may be
lazy (`encoders.Prompts`), so that thousands of them need no memory.
"""

import re
from pathlib import Path

import numpy as np
import torch

from libs import encoders, names, tables

NO_TEXT = (".json", ".tsv", ".xlsx", ".xls", ".ods", ".doc", ".docx", ".pdf", ".rtf", ".parquet", ".gz",
           ".zip")
PROMPTS = ("bank", "unseen")
_COUNT = re.compile(r'(?:^|,)((?:"(?:[^"]|"")*"|[^,])*)')  # one "name"=number of --counts


def choose_labels(asked, classes, n, *, conditional):
    """Labels of the images to make.

    `asked` is a class name for n images of it, 'all' for n of each class, or '' for n images of the classes in turn. A name in
    double quotes is always that of a class: '"all"' is the class of that name.

    Returns:
        list of int, one for each image (0 where the network takes no label).
    """
    if not conditional:
        if asked not in ("", "all"):
            raise ValueError(f"--label={asked}: this network takes no label")
        return [0] * n
    asked = names.match(asked, classes)
    if asked == "all":
        return [label for label in range(len(classes)) for _ in range(n)]
    asked = _unquoted(asked) if asked not in classes else asked
    if asked and asked not in classes:
        raise ValueError(f"--label={asked}: no such class; known: all, {', '.join(map(_quoted, classes))}")
    return [classes.index(asked)] * n if asked else [i % len(classes) for i in range(n)]


def _quoted(name):
    """A class's name as --label and --counts take it: in double quotes where it would mean something else."""
    return '"' + name.replace('"', '""') + '"' if name == "all" or "," in name or '"' in name else name


def _unquoted(name):
    """'a, b' of '"a, b"'; other names as they are."""
    return name[1:-1].replace('""', '"') if len(name) > 2 and name[0] == name[-1] == '"' else name


def count_labels(text, classes):
    """Labels of the images that 'nevus=45,melanoma=372' asks for: so many of each class, in this order.

    A class whose name holds a comma stands in double quotes: '"nevus, blue"=45,melanoma=372'; a quote of the name is doubled there.

    Raises:
        ValueError: no such class, a class twice, or no whole number of at least 1.
    """
    labels, seen = [], set()
    for part in _COUNT.findall(text):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        name = names.match(name, classes)
        name = _unquoted(name) if name not in classes else name
        if name not in classes or name in seen:
            raise ValueError(f"--counts={text}: {name or part!r} is {'there twice' if name in seen else 'no class'}; known: "
                             f"{', '.join(map(_quoted, classes))}; write class=number,class=number, and a name that holds a comma in double quotes: "
                             "'\"a, b\"=5'")
        if not number.isdigit() or int(number) < 1:
            raise ValueError(f"--counts={text}: {number!r} images of {name}; a whole number of at least 1 is needed")
        seen.add(name)
        labels += [classes.index(name)] * int(number)
    return labels


def read_prompts(path):
    """[(prompt, class name or '')] of a text file with a prompt in each line, or of a .csv with columns prompt[, label, modality].

    A modality stands before its prompt as it does in training (data set 'path_text'): 'OCT: retina with drusen'.

    Raises:
        ValueError: no such file, no prompt in it, or no column 'prompt'.
    """
    return [(prompt, label) for prompt, label, _ in _prompt_rows(path)]


def read_modalities(path):
    """{prompt as `read_prompts` gives it: modality} of those that a .csv gives one; {} for '' and for other files."""
    return {prompt: modality for prompt, _, modality in _prompt_rows(path) if modality} if path else {}


def _prompt_rows(path):
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a text file with one description in each line, or a .csv")
    if path.suffix.lower() in (".csv", ".jsonl"):
        found = _rows_of_table(path)
    elif path.suffix.lower() in NO_TEXT:
        raise ValueError(f"{path}: expected a text file with one description in each line, or a table saved "
                         "as .csv in UTF-8")
    else:
        lines = tables.read_lines(path)
        if re.fullmatch(r'\ufeff?"?prompt"?\s*[,;\t].*', lines[0][1] if lines else "", re.IGNORECASE):
            raise ValueError(f"{path}: its first line is the header of a table: rename it to {path.stem}.csv")
        found = [(line, "", "") for _, line in lines]
    found = [(f"{modality}: {prompt}" if modality and not prompt.lower().startswith(f"{modality.lower()}:") else prompt, label,
              modality) for prompt, label, modality in found if prompt]
    if not found:
        raise ValueError(f"{path}: no prompt in it")
    return found


def _rows_of_table(path):
    """[(prompt, label, modality)] of a .csv or .jsonl, read as strictly as a table of images."""
    header, records = tables.read(path, loose=True, first="prompt")
    column = {name.strip().lower(): name for name in reversed(header)}
    if "prompt" not in column:
        raise ValueError(f"{path}: its columns are {header}; 'prompt' is needed, 'label' and 'modality' may "
                         "follow")
    found, problems = [], []
    for line, record in records:
        values = [record.get(column.get(key)) for key in ("prompt", "label", "modality")]
        for key, value in zip(("prompt", "label", "modality"), values):
            is_text = value is None or isinstance(value, str) or type(value) is int and key == "label"
            if not is_text:
                problems.append(f"{path}:{line}: {key} is {value!r:.80}: write one text in quotes")
        prompt, label, modality = (str(value).strip() if isinstance(value, str | int) else ""
                                   for value in values)
        if tables.is_missing(prompt) and not any(f"{path}:{line}:" in each for each in problems):
            problems.append(f"{path}:{line}: prompt is {repr(prompt) if prompt else 'empty'}: write one, or "
                            "delete the line")
        found.append((prompt, label, "" if tables.is_missing(modality) else modality))
    tables.refuse(path, problems)
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
    """The label of a prompt: of the class `name`, or else the one class that it names, or whose bank holds it."""
    if name:
        name = names.match(name, classes)
        if name not in classes:
            raise ValueError(f"label {name!r} of prompt {prompt!r}: no such class; known: {', '.join(classes)}"
                             + ("; a prompt is asked of one class at a time" if name == "all" else ""))
        return classes.index(name)
    named = [each for each in classes if not each.isdigit() and encoders.read_attributes(prompt, {"class": (each,)})["class"] == 0]
    found = [each for each in named if not any(each in other and each != other for other in named)]  # 'blue nevus' over 'nevus'
    found = found or [each for each in classes if bank is not None and bank.has(prompt, each)]
    if len(found) != 1:
        raise ValueError(f"prompt {prompt!r} names {'several classes' if found else 'no class'}: give one with --label; known: "
                         f"{', '.join(classes)}")
    return classes.index(found[0])


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


def draw_conditions(dataset, null, n, *, seed, labels="data", prompts=None, masks=None):
    """Conditions of images 0 .. n-1; those of image i depend on (seed, i) alone.

    Args:
        dataset: data set whose labels are drawn from; None draws each label with equal probability.
        null: the empty conditions of the network; {} gives {}.
        labels: see `draw_labels`.
        prompts: a `Describer` for networks that take text.
        masks: for a network that takes masks, the data set whose masks are asked for, each with the label of its image.

    Returns:
        dict with n rows for each condition.
    """
    cond = {}
    if masks is not None:
        rows = draw_rows(masks, int(null["label"]) if "label" in null else 0, n, seed=seed, how=labels)
        cond["mask"] = Masks(masks, rows)
        if "label" in null and masks.labels is not None:
            cond["label"] = masks.labels[rows]
    if "label" in null and "label" not in cond:
        cond["label"] = draw_labels(None if dataset is None else dataset.labels, int(null["label"]), n, seed=seed, how=labels)
    if "text" in null:
        cond["text"] = described(prompts).draw(cond.get("label"), n, seed=seed)
    return cond


def draw_rows(dataset, classes, n, *, seed, how="data"):
    """LongTensor (n,): of which images the masks are asked for; row i depends on (seed, i) alone.

    how: 'data' takes any image, 'balanced' one of class i modulo `classes`, if the data set has labels.
    """
    if how == "data" or dataset.labels is None or not classes:
        return torch.tensor([int(np.random.default_rng([seed, i]).integers(len(dataset))) for i in range(n)])
    rows = []
    for i, label in enumerate(draw_labels(dataset.labels, classes, n, seed=seed, how=how).tolist()):
        own = (dataset.labels == label).nonzero().flatten()
        if not len(own):
            raise ValueError(f"{dataset.name}: class {dataset.classes[label]!r} has no image whose mask could be asked for; set "
                             "config.sample.labels='data'")
        rows.append(int(own[np.random.default_rng([seed, i, 3]).integers(len(own))]))
    return torch.tensor(rows)


class Masks:
    """The masks of the images `rows` of a data set as a condition, read as they are asked for."""

    def __init__(self, dataset, rows):
        self.dataset, self.rows = dataset, [int(row) for row in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        """float32 (n, K, H, W)."""
        return torch.stack([self.dataset.item(self.rows[i])["mask"] for i in indices])


def described(prompts):
    """`prompts` itself; ValueError where it is None, which says where descriptions could come from."""
    if prompts is None:
        raise ValueError("this network takes text, and there are no descriptions to draw from: give --prompt, the --workdir of "
                         "the run (it holds bank.json), the captions of the data, or the features")
    return prompts


class Describer:
    """Descriptions for images to come, from the class-specific prompt bank of VAP-Diffusion.

    Args:
        bank: encoders.Bank of the training captions.
        encoder: text -> states.
        how: 'bank' draws a caption of the class; 'unseen' exchanges its attribute words for a combination that no
            caption of the class has, to measure what a network does beyond its data.
        words: {attribute: phrases} for 'unseen'; phrases that stand in no caption at all are not used.
    """

    def __init__(self, bank, encoder, *, how="bank", words=None):
        if how == "unseen" and not words:
            raise ValueError("config.sample.prompts='unseen' needs config.metrics.attributes: the words that may be exchanged")
        self.bank, self.encoder, self.how = bank, encoder, how
        self.words = _known(words, bank) if how == "unseen" else {}
        counts = np.array([len(texts) for texts in bank.captions.values()])
        self._share = np.cumsum(counts) / max(1, counts.sum())

    def draw(self, labels, n, *, seed):
        """encoders.Prompts of n texts; text i depends on (seed, i) and its label alone.

        labels: LongTensor (n,); None for a network that takes no label: then captions of all classes, as often as they are.
        """
        return encoders.Prompts(self.encoder, [self._text(None if labels is None else int(labels[i]),
                                                          np.random.default_rng([seed, i, 1])) for i in range(n)])

    def _text(self, label, rng):
        name = self.bank.classes[int(np.searchsorted(self._share, rng.random(), "right")) if label is None else label]
        return self.bank.draw(name, rng) if self.how == "bank" else self.bank.unseen(name, self.words, rng)


def _known(words, bank):
    """The phrases of `words` that stand in a caption of the bank."""
    seen = {(name, at) for texts in bank.captions.values() for text in set(texts)
            for name, at in encoders.read_attributes(text, words).items()}
    return {name: tuple(phrase for at, phrase in enumerate(phrases) if (name, at) in seen) for name, phrases in words.items()}


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
