"""Descriptions as token numbers, for a network that embeds them itself because its text encoder is trained with it."""

import hashlib
import json

import torch
from torch import Tensor

from libs.encoders import pretrained
from libs.encoders.base import checked
from libs.encoders.huggingface import Tokenized


class Tokens(Tokenized):
    """Texts -> token numbers (N, L) int64 on the CPU, in place of states; `shape` is (L,).

    Args:
        path: a local folder, which is read without a network, or a name on the hub.
        max_length: L, tokens of the window, special tokens included.
        subfolder: where the tokenizer lies, 'tokenizer' in a pipeline of diffusers.
        lower_case: read texts in lower case; CLIP's tokenizer does so by itself, T5's does not.

    Raises:
        OSError: nothing at `path`. ValueError: no tokenizer there, or its window is shorter.
    """

    def __init__(self, path: str, *, max_length: int = 77, subfolder: str = "", lower_case: bool = False):
        super().__init__()
        self.lower_case = lower_case
        self.tokenizer = pretrained.load_tokenizer(path, subfolder)
        if not 2 <= max_length <= self.tokenizer.model_max_length:
            raise ValueError(f"encoder.max_length={max_length}: expected 2 .. {self.tokenizer.model_max_length}, the window of "
                             f"{path}")
        self.shape = (max_length,)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of options, tokenizer and window; not of the path."""
        state = [self.shape, self._tokenizer_state(), *(["lower_case"] if self.lower_case else [])]
        return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()

    def encode(self, texts: list[str]) -> Tensor:
        """N texts -> token numbers (N, L) int64; what exceeds L is cut off."""
        if not checked(texts):
            return torch.empty(0, *self.shape, dtype=torch.int64)
        return self._tokens(texts)["input_ids"]
