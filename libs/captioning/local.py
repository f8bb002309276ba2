"""Any image-text-to-text model of transformers, in this process."""

import contextlib
import threading
from concurrent.futures import CancelledError

import torch
from PIL import Image

from .checks import whole_sentences
from .models import bounded, check_sampling


class Local:
    """A vision-language model from a hub name or a local folder; questions are answered one at a time.

    Args:
        path: hub name, or a folder of `save_pretrained`, with its processor and chat template.
        dtype: 'auto' (as stored), 'float16', 'bfloat16' or 'float32'.
        device: 'auto' (spread over the GPUs, else the CPU), 'cpu', 'cuda', 'cuda:1', ...
        max_new_tokens: limit of an answer; a sentence that it tears is left out.
        temperature: 0 is greedy, the same answer each time; above, answers follow from the seed.
        retry_temperature: the least temperature after a description failed its checks, so that another one comes.
        top_p: share of the probability that sampling draws from.
        top_k: how many of the likeliest tokens it draws from; 0 leaves that to the model's own generation config.
        max_side: longest side of the image in pixels, 0 = as it is; the processor has its own bounds besides.
    Raises:
        ValueError, OSError: where there is no such model, it is no such model, or one that brings its own code, which is
            not run.
    """

    def __init__(self, *, path: str, dtype: str = "auto", device: str = "auto", max_new_tokens: int = 300,
                 temperature: float = 0.0, retry_temperature: float = 0.7, top_p: float = 1.0, top_k: int = 0,
                 max_side: int = 0):
        from transformers import AutoModelForImageTextToText, AutoProcessor
        check_sampling(max_new_tokens, temperature, retry_temperature, top_p, top_k, max_side)
        if not path:
            raise ValueError("config.model.path is empty: give a hub name or a local folder of an image-text-to-text model")
        place = {"device_map": "auto"} if device == "auto" and torch.cuda.is_available() else {}
        with no_own_code(path):
            self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"{path}: its processor has no chat template; take the instruction-tuned variant of the model")
        with no_own_code(path):
            self.network = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, trust_remote_code=False,
                                                                       **place).eval()
        if not place:
            self.network.to("cpu" if device == "auto" else device)
        self.name, self.max_new_tokens, self.max_side = path, max_new_tokens, max_side
        self._drawing = {"top_p": top_p} | ({"top_k": top_k} if top_k else {})
        self.temperatures = (temperature, max(temperature, retry_temperature))
        self._lock, self._closed = threading.Lock(), False

    def ask(self, prompt: str, image: Image.Image | None = None, *, seed: int = 0, retry: bool = False) -> str:
        """The model's answer; equal (prompt, image, seed, retry) give equal answers."""
        content = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image", "image": bounded(image, self.max_side)})
        temperature = self.temperatures[retry]
        how = {"do_sample": True, "temperature": temperature, **self._drawing} if temperature else {"do_sample": False}
        with self._lock, torch.inference_mode(), torch.random.fork_rng():
            if self._closed:
                raise CancelledError
            torch.manual_seed(seed)
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt").to(self.network.device, self.network.dtype)
            tokens = self.network.generate(**inputs, max_new_tokens=self.max_new_tokens, **how)
        tokens = tokens[0, inputs["input_ids"].shape[1]:]
        answer = self.processor.decode(tokens, skip_special_tokens=True)
        return whole_sentences(answer) if len(tokens) >= self.max_new_tokens else answer

    def close(self):
        """Let further questions end with CancelledError."""
        self._closed = True


@contextlib.contextmanager
def no_own_code(path: str, instead: str = "models that bring their own code are served by vLLM: config.model.name=server"):
    """transformers' advice to trust the code in a repository, as a ValueError that says what to do `instead`."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{path} comes with code of its own, which is not run here; {instead}") from None
