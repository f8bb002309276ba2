"""The class-specific prompt bank of VAP-Diffusion (Huang et al., MICCAI 2025): the training descriptions of each class."""

import difflib
import itertools
import json
import os
import tempfile
from pathlib import Path

from libs.encoders.attributes import exchange, frozen, read_attributes


class Bank:
    """Descriptions by class, to draw from when images of a class are asked for.

    Args:
        captions: {class name: texts}, in the order of the labels; a text counts as often as it is given.

    `len` is the number of descriptions, `classes` the list of class names.
    """

    def __init__(self, captions: dict[str, list[str]]):
        self.captions = {name: list(texts) for name, texts in captions.items()}
        self.classes = list(self.captions)
        self._distinct = {name: set(texts) for name, texts in self.captions.items()}
        self._seen = {}

    @classmethod
    def of(cls, captions, labels, classes):
        """The bank of a data set.

        Args:
            captions: a text, or a list of texts, for each image. Blank texts are left out.
            labels: the label of each image. classes: their names; a class without images stays, with no descriptions.
        Raises:
            ValueError: another number of labels than captions, a label without a class, two classes of one name.
        """
        labels, classes = [int(label) for label in labels], list(classes)
        if len(captions) != len(labels):
            raise ValueError(f"prompt bank: {len(captions)} images with captions, but {len(labels)} labels")
        outside = sorted({label for label in labels if not 0 <= label < len(classes)})
        if outside:
            raise ValueError(f"prompt bank: labels {outside[:5]} are outside 0..{len(classes) - 1}, one for each of "
                             f"{len(classes)} classes")
        if len(set(classes)) < len(classes):
            raise ValueError(f"prompt bank: two classes of one name among {classes}")
        found = {name: [] for name in classes}
        for texts, label in zip(captions, labels):
            found[classes[label]] += [text for text in ([texts] if isinstance(texts, str) else texts) if text.strip()]
        return cls(found)

    @classmethod
    def load(cls, path):
        """The bank in a file that `save` wrote; ValueError where it is none, FileNotFoundError where there is no file."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            whole = isinstance(content, dict) and all(
                isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in content.values())
            fault = "" if whole else "expected {class name: [descriptions]}"
        except ValueError as error:
            fault = f"it is damaged ({error})"
        if fault:
            raise ValueError(f"{path} is no prompt bank: {fault}. Delete it and start the training again, which writes it "
                             "anew from the captions of the data")
        return cls(content)

    def save(self, path):
        """Write the bank as JSON; the file appears whole or not at all, also where processes write it at once."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(self.captions, file, ensure_ascii=False, indent=0)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(staged, 0o644)  # mkstemp's files are for their owner alone
            os.replace(staged, path)
        except BaseException:
            os.unlink(staged)
            raise

    def __len__(self):
        return sum(map(len, self.captions.values()))

    def has(self, text: str, name: str | None = None) -> bool:
        """Whether `text` is a description of class `name`, or of any class."""
        if name is None:
            return any(text in texts for texts in self._distinct.values())
        self._of_class(name)
        return text in self._distinct[name]

    def describe(self) -> dict[str, dict[str, int]]:
        """{class name: {'captions': how many, 'distinct': how many different ones}}."""
        return {name: {"captions": len(texts), "distinct": len(self._distinct[name])}
                for name, texts in self.captions.items()}

    def draw(self, name: str, rng) -> str:
        """A description of class `name`, drawn by a numpy Generator; frequent ones come more often.

        Raises:
            ValueError: an unknown class, or one without descriptions.
        """
        texts = self._described(name)
        return texts[int(rng.integers(len(texts)))]

    def unseen(self, name: str, words: dict, rng, tries: int = 200) -> str:
        """A description of class `name` with a mixture of attributes that no description of the class has.

        A description is drawn and its attribute phrases are exchanged. What it does not mention stays unmentioned, and its
        mixture is unseen where no description of the class agrees in all that it does mention.

        Args:
            words: {attribute: phrases}, see `read_attributes`.
            rng: numpy Generator.
            tries: descriptions drawn before giving up.
        Raises:
            ValueError: an unknown class, one without descriptions, no attribute in them, or all mixtures occur.
        """
        self._described(name)
        seen, exhausted = self._mixtures(name, words), set()
        for _ in range(tries):
            text = self.draw(name, rng)
            said = tuple(attribute for attribute, at in read_attributes(text, words).items() if at >= 0)
            if said and said not in exhausted:
                composed = _compose(text, words, said, {tuple(each[key] for key in said) for each in seen}, rng)
                if composed:
                    return composed
                exhausted.add(said)
        if exhausted:
            raise ValueError(f"class {name!r}: no unseen mixture of {', '.join(words)} in {tries} tries: all combinations "
                             "occur in its descriptions. Name more words or attributes in config.metrics.attributes")
        raise ValueError(f"class {name!r}: none of the words of {', '.join(words)} is in its descriptions, such as "
                         f"{self.captions[name][0]!r}. Write them in config.metrics.attributes as they stand there")

    def _mixtures(self, name, words):
        key = name, frozen(words)
        if key not in self._seen:
            self._seen[key] = [dict(each) for each in {tuple(read_attributes(text, words).items())
                                                       for text in self._distinct[name]}]
        return self._seen[key]

    def _described(self, name):
        texts = self._of_class(name)
        if not texts:
            raise ValueError(f"class {name!r} has no descriptions in the prompt bank: give its images captions, or give a "
                             "prompt")
        return texts

    def _of_class(self, name):
        if name not in self.captions:
            by_lower = {each.lower(): each for each in self.classes}
            close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
            raise ValueError(f"class {name!r} is not in the prompt bank, which has {', '.join(map(repr, self.classes))}"
                             + (f"; did you mean {by_lower[close[0]]!r}?" if close else ""))
        return self.captions[name]


def _compose(text, words, said, seen, rng):
    """`text` with the first mixture in random order that is not in `seen` and reads as meant; '' where there is none."""
    phrases = [rng.permutation(len(words[attribute])).tolist() for attribute in said]
    unseen = (mixture for mixture in itertools.product(*phrases) if mixture not in seen)
    for mixture in itertools.islice(unseen, 100):  # ambiguous wordings apart, the first one is good
        composed = exchange(text, words, dict(zip(said, mixture)))
        found = read_attributes(composed, words)
        if tuple(found[attribute] for attribute in said) == mixture and sum(at >= 0 for at in found.values()) == len(said):
            return composed
    return ""
