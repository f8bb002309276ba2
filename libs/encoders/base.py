"""What every text encoder offers: descriptions to token states of a fixed length."""

from torch import Tensor, nn

QUOTED = 160  # characters of a text that a message quotes


class Encoder(nn.Module):
    """A frozen map from texts to token states; subclasses define `encode`, `mask`, `lengths`, `fingerprint` and `_lost`.

    The states of a text depend on that text alone, not on the others of its batch.

    Attributes:
        shape: (L, D): tokens of the window, padding included, and width of a state.
        fingerprint: hex digest of all that decides the states: options, tokenizer, weights; the same on every machine.
    """

    shape = (0, 0)

    def train(self, mode: bool = True):
        """Frozen: stays in eval mode."""
        return super().train(False)

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def encode(self, texts: list[str]) -> Tensor:
        """N texts -> states (N, L, D), float32, on the encoder's device; what exceeds the window is cut off."""
        raise NotImplementedError

    def mask(self, texts: list[str]) -> Tensor:
        """N texts -> bool (N, L), True at tokens and False at padding; at least one token is True, also for ''."""
        raise NotImplementedError

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens that each text needs, uncut, special tokens included."""
        raise NotImplementedError

    @property
    def empty(self) -> Tensor:
        """States (L, D) of the empty text: the context of "no description"."""
        return self.encode([""])[0]

    def cut(self, texts: list[str]) -> str:
        """'' where every text fits; else a sentence: how many exceed the window, the longest, what of it is cut off."""
        lengths, window = self.lengths(texts), self.shape[0]
        exceeding = sum(length > window for length in lengths)
        if not exceeding:
            return ""
        longest = max(range(len(texts)), key=lengths.__getitem__)
        return (f"{exceeding} of {len(texts)} texts exceed the window of {window} tokens; the longest needs "
                f"{lengths[longest]}: {_quoted(texts[longest])} loses {_quoted(self._lost(texts[longest]))}")

    def _lost(self, text: str) -> str:
        """The end of a text that does not fit into the window."""
        raise NotImplementedError


def checked(texts: list[str]) -> list[str]:
    """The texts as a list; ValueError for a lone string, whose letters would be taken for texts, and for what is no text."""
    if isinstance(texts, str):
        raise ValueError(f"expected a list of texts, got the text {_quoted(texts)}: put it in a list")
    texts = list(texts)
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"expected a list of texts; {len(wrong)} of {len(texts)} are none, such as {wrong[0]!r}")
    return texts


def _quoted(text):
    return repr(text if len(text) <= QUOTED else f"{text[:QUOTED]}...")
