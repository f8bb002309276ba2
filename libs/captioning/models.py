"""Multimodal models that answer a question about an image.

Every model has `name` (for the table), `ask(prompt, image=None, *, seed=0, retry=False) -> str`, which may be
called from several threads, and `close()`, after which calls that wait end with CancelledError.
"""

import difflib

from PIL import Image

_TRANSFORMERS, _SERVER = "transformers", "server"
NAMES = ("transformers", "server")


class Unanswered(ValueError):
    """This question got no answer; others may."""


class Unusable(ValueError):
    """No question can be answered: wrong key, no such model, nobody there."""


def get(name: str, **kwargs):
    """The model `name`: 'transformers' (in this process) or 'server' (OpenAI-compatible), with its own options."""
    if name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        raise ValueError(f"unknown captioning model {name!r}; known: {', '.join(NAMES)}"
                         f"{f'; did you mean {close[0]!r}?' if close else ''}")
    if name == "server":
        from .server import Server as build
    else:
        from .local import Local as build
    return build(**kwargs)


def bounded(image: Image.Image, max_side: int) -> Image.Image:
    """`image` in RGB, shrunk so that its longer side has at most `max_side` pixels (0: as it is)."""
    image = image.convert("RGB")
    if max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def check_sampling(max_new_tokens, temperature, retry_temperature, top_p, top_k, max_side):
    """ValueError for options of a model that mean nothing."""
    for option, value, fine, right in (("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
                                       ("temperature", temperature, 0 <= temperature <= 2, "0 (greedy) .. 2"),
                                       ("retry_temperature", retry_temperature, 0 <= retry_temperature <= 2, "0 .. 2"),
                                       ("top_p", top_p, 0 < top_p <= 1, "above 0, at most 1"),
                                       ("top_k", top_k, top_k >= 0, "1 or more, or 0 for what the model does by itself"),
                                       ("max_side", max_side, max_side >= 0, "pixels, or 0 for the image's own size")):
        if not fine:
            raise ValueError(f"config.model.{option} is {value}; expected {right}")
