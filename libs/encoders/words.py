"""Hashed words: token states without a language model, for demos and tests that have no weights."""

import functools
import hashlib
import json
import re
import unicodedata

import numpy as np
import torch
from torch import Tensor

from libs import nn
from libs.encoders.base import Encoder, checked

# Order tells "a red lesion on brown skin" from "a brown lesion on red skin", so a state shows its position. The weight is
# small so that a word stays nearly the same vector wherever it stands (cosine above 0.95): it is learned once, not for
# each place anew.
POSITION = 0.3
START = ""  # no word is empty
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


class Words(Encoder):
    """Each word a fixed pseudo-random vector, with its position: a code for words that knows no meaning.

    Two synonyms are as unrelated as any two words, so a network learns each word from scratch and understands none that it
    was not trained on; a language model is the choice wherever one can be had. Case and punctuation are ignored, hyphenated
    words are one word. As BERT's, each text begins with a start token, so that the empty text has a state to attend to.
    Padding is zeros: the one vector that is no word, and nothing to a linear layer but its bias.

    Args:
        max_length: L, tokens of the window: the start and max_length - 1 words.
        dim: D, an even number. Entries have mean 0 and variance 1, the position adds 0.045.
        seed: of the code; another one gives every word another vector.
    """

    def __init__(self, *, max_length: int = 24, dim: int = 64, seed: int = 0):
        super().__init__()
        if max_length < 2:
            raise ValueError(f"encoder.max_length={max_length}: expected 2 or more, a start token and words")
        if dim < 2 or dim % 2:
            raise ValueError(f"encoder.dim={dim}: expected an even number of 2 or more")
        self.shape, self.seed = (max_length, dim), seed
        self.register_buffer("positions", POSITION * nn.timestep_embedding(torch.arange(max_length), dim), persistent=False)
        self.eval()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the options."""
        return hashlib.sha256(json.dumps(["words", *self.shape, self.seed, POSITION]).encode()).hexdigest()

    def encode(self, texts: list[str]) -> Tensor:
        """N texts -> states (N, L, D), float32; what exceeds the window is cut off."""
        states = np.zeros((len(checked(texts)), *self.shape), np.float32)
        for row, text in zip(states, texts):
            for place, word in zip(row, _tokens(text)):
                place[:] = _vector(word, self.shape[1], self.seed)
        states = torch.from_numpy(states).to(self.positions.device)
        return torch.where(self.mask(texts)[..., None], states + self.positions, states)

    def mask(self, texts: list[str]) -> Tensor:
        """N texts -> bool (N, L), True at the start token and at words."""
        lengths = torch.tensor(self.lengths(texts), device=self.positions.device)
        return torch.arange(self.shape[0], device=lengths.device) < lengths[:, None]

    def lengths(self, texts: list[str]) -> list[int]:
        """Words of each text, and the start token."""
        return [len(_tokens(text)) for text in checked(texts)]

    def _lost(self, text: str) -> str:
        return " ".join(_tokens(text)[self.shape[0]:])


def _tokens(text):
    return [START, *_WORD.findall(unicodedata.normalize("NFKC", text).lower())]


@functools.lru_cache(maxsize=1 << 14)
def _vector(word, dim, seed):
    """The vector of a word, the same on every machine: its hash seeds the generator."""
    digest = hashlib.sha256(f"{seed} {word}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).standard_normal(dim, dtype=np.float32)
