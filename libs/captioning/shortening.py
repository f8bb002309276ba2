"""Descriptions that are too long said in fewer words by a second model: T5, as Med-Art's Visual Symptom Generator has it."""

import threading

import torch

from .local import no_own_code


class T5Simplify:
    """`simplify(text) -> text`, by a T5 of transformers with beam search; equal texts give equal answers.

    Texts are simplified one at a time, also where several threads ask.

    Args:
        path: hub name, or a folder of `save_pretrained`, with its tokenizer.
        prefix: what T5 reads before the text.
        max_length, min_length: bounds of the answer in tokens of this T5, its first and its last one included.
        num_beams: 1 is greedy.
        window: tokens of prefix and text that T5 reads; the rest is cut off.
        device: 'auto' (a GPU where there is one), 'cpu', 'cuda', 'cuda:1', ...
    Raises:
        ValueError: for bounds that cannot be, and a model that is no encoder with a decoder or brings its own code.
        OSError: where there is no such model.
    """

    def __init__(self, *, path: str = "t5-large", prefix: str = "simplify: ", max_length: int = 120, min_length: int = 90,
                 num_beams: int = 4, window: int = 512, device: str = "auto"):
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        if not 0 <= min_length <= max_length or max_length < 2 or num_beams < 1 or window < 2:
            raise ValueError(f"config.t5_simplify: min_length={min_length}, max_length={max_length}, num_beams={num_beams}, "
                             f"window={window}; expected 0 <= min_length <= max_length, and 2, 1 and 2 at least")
        if not path:
            raise ValueError("config.t5_simplify.path is empty: give a hub name such as t5-large, or a local folder")
        with no_own_code(path, "name another one by config.t5_simplify.path"):
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            self.network = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=False).eval()
        self.network.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.prefix, self.window = prefix, window
        # max_length counts the token that the decoder starts with; max_new_tokens, which some configs set, would win over it.
        self._how = {"max_new_tokens": max_length - 1, "min_new_tokens": max(min_length - 1, 0), "num_beams": num_beams,
                     "early_stopping": num_beams > 1, "do_sample": False}
        self._lock = threading.Lock()

    def __call__(self, text: str) -> str:
        """The text in other words, as one line."""
        with self._lock, torch.inference_mode():
            tokens = self.tokenizer(self.prefix + text, truncation=True, max_length=self.window, return_tensors="pt")
            tokens = {key: tokens[key].to(self.network.device) for key in ("input_ids", "attention_mask")}
            found = self.network.generate(**tokens, **self._how)
        return " ".join(self.tokenizer.decode(found[0], skip_special_tokens=True).split())
