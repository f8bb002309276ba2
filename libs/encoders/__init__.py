"""Text encoders: descriptions to token states, the context of a text-conditional network.

    encoder = encoders.get(name='clip', path='openai/clip-vit-large-patch14')
    states = encoder.encode(['a large red lesion'])      # (1, 77, 768)

`base.Encoder` says what every encoder offers. Beside them `Prompts` encodes many texts as they are asked for, `Bank`
keeps the descriptions of each class, and `read_attributes` finds attribute words in a text.
"""

import difflib

from libs.encoders.attributes import read_attributes
from libs.encoders.bank import Bank
from libs.encoders.base import Encoder
from libs.encoders.huggingface import CLIP, T5, HuggingFace, Sentence
from libs.encoders.prompts import Prompts
from libs.encoders.tokens import Tokens
from libs.encoders.words import Words

__all__ = ["NAMES", "Bank", "Encoder", "Prompts", "get", "read_attributes"]

CONSTRUCTORS = {"words": Words, "clip": CLIP, "hf": HuggingFace, "t5": T5, "sentence": Sentence,
                 "tokens": Tokens}
NAMES = tuple(CONSTRUCTORS)


def get(name: str, **kwargs) -> Encoder:
    """The text encoder of that name, frozen and in eval mode. Raises ValueError for an unknown name."""
    if name not in CONSTRUCTORS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown encoder {name!r}; known: {', '.join(NAMES)}{hint}")
    return CONSTRUCTORS[name](**kwargs)
