"""Any OpenAI-compatible server: vLLM, llama.cpp, Ollama, a hosted service."""

import base64
import io
import itertools
import logging
import os
import random
import threading
import time
from concurrent.futures import CancelledError

import requests
from PIL import Image

from .checks import whole_sentences
from .models import Unanswered, Unusable, bounded, check_sampling

logger = logging.getLogger(__name__)

_AGAIN = (408, 409, 425, 429)  # and 5xx: the same question may succeed later
_REFUSED = (400, 413, 422)  # this question is at fault, others may be fine


class Server:
    """A vision-language model behind POST <base_url>/chat/completions.

    Args:
        path: the name under which the model is served; '' takes the only one there is.
        base_url: such as http://localhost:8000/v1
        api_key_env: name of the environment variable that holds the key, '' = none. The key is written nowhere.
        max_new_tokens, temperature, retry_temperature, top_p: as for `local.Local`; the seed is sent along.
        top_k: as there, and sent only where it is not 0: vLLM and llama.cpp know it, the hosted services of OpenAI do not.
        max_side: longest side of the image that is sent, in pixels; 0 = as it is.
        image_format: 'png' (exact) or 'jpeg' (a tenth of the size).
        timeout: seconds without a sign of life after which a request has failed.
        tries: requests per question, the first included; timeouts, lost connections, 429 and 5xx are tried again.
        startup: seconds to wait for a server that loads its model and refuses connections as yet; 0 does not wait.
        backoff, max_wait: seconds before the second request, doubled each time with jitter, and their bound.
    Raises:
        ValueError: for options that cannot be.
        Unusable: where nobody answers at base_url, the key is refused or the model is not served.
    """

    def __init__(self, *, path: str, base_url: str, api_key_env: str = "", max_new_tokens: int = 300,
                 temperature: float = 0.0, retry_temperature: float = 0.7, top_p: float = 1.0, top_k: int = 0,
                 max_side: int = 1024, image_format: str = "png", timeout: float = 120.0, tries: int = 5, backoff: float = 1.0,
                 max_wait: float = 60.0, startup: float = 0.0):
        check_sampling(max_new_tokens, temperature, retry_temperature, top_p, top_k, max_side)
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"config.server.base_url is {base_url!r}; expected such as http://localhost:8000/v1")
        if image_format not in ("png", "jpeg"):
            raise ValueError(f"config.server.image_format is {image_format!r}; known: png, jpeg")
        if timeout <= 0 or tries < 1 or min(backoff, max_wait, startup) < 0:
            raise ValueError(f"config.server: timeout={timeout}, tries={tries}, backoff={backoff}, max_wait={max_wait}, "
                             f"startup={startup}; expected timeout above 0, tries 1 or more, the others 0 or more")
        if api_key_env and not os.environ.get(api_key_env):
            raise ValueError(f"config.server.api_key_env names {api_key_env}, which is not set in the environment")
        self._key = os.environ.get(api_key_env, "") if api_key_env else ""
        self.base_url, self.max_side, self.image_format = base_url.rstrip("/"), max_side, image_format
        self.timeout, self.tries, self.backoff, self.max_wait = timeout, tries, backoff, max_wait
        self.temperatures = (temperature, max(temperature, retry_temperature))
        self._options = {"max_tokens": max_new_tokens, "top_p": top_p} | ({"top_k": top_k} if top_k else {})
        self._closed, self._mine = threading.Event(), threading.local()
        self.name = self._served(path, startup)

    def ask(self, prompt: str, image: Image.Image | None = None, *, seed: int = 0, retry: bool = False) -> str:
        """The server's answer to one question.

        Raises Unanswered where there is none after `tries` requests, Unusable where there can be none.
        """
        content = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": self._data_url(image)}})
        body = {"model": self.name, "messages": [{"role": "user", "content": content}], "seed": seed,
                "temperature": self.temperatures[retry], **self._options}
        jitter, why, wanted = random.Random(seed), "", 0.0
        for k in range(self.tries):
            if k:
                wait = min(self.max_wait, max(wanted, self.backoff * 2 ** (k - 1) * jitter.uniform(0.5, 1.5)))
                logger.log(logging.INFO if k > 1 else logging.DEBUG, "%s: %s; again in %.1f s (request %d of %d)",
                           self.base_url, why, wait, k + 1, self.tries)
                self._closed.wait(wait)
            if self._closed.is_set():
                raise CancelledError
            answer, why, wanted = self._request(body)
            if not why:
                return answer
        raise Unanswered(f"{why} ({self.tries} requests)")

    def close(self):
        """Let waiting calls end with CancelledError instead of asking again."""
        self._closed.set()

    def _request(self, body):
        """(answer, '', 0) or ('', why not, seconds that the server asks to wait)."""
        try:
            reply = self._session().post(f"{self.base_url}/chat/completions", json=body, **self._call())
        except requests.RequestException as error:
            return "", self._words(error), 0.0
        if reply.status_code in _AGAIN or reply.status_code >= 500:
            asked = reply.headers.get("Retry-After", "")
            return "", self._status(reply), float(asked) if asked.isdigit() else 0.0
        if reply.status_code in _REFUSED:
            raise Unanswered(self._status(reply))
        if reply.status_code != 200:
            raise Unusable(f"{self.base_url}: {self._status(reply)}; {_hint(reply.status_code, self.name)}")
        try:
            choice = reply.json()["choices"][0]
            answer = choice["message"]["content"]
            if not isinstance(answer, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError):
            return "", f"not the answer of a chat server: {self._excerpt(reply)}", 0.0
        return whole_sentences(answer) if choice.get("finish_reason") == "length" else answer, "", 0.0

    def _served(self, path, startup):
        """The name of the model to ask for, where the server lists its models checked against the list."""
        try:
            reply = self._models(startup)
        except requests.ReadTimeout:
            reply = None
        except requests.RequestException as error:
            raise Unusable(f"{self.base_url}: {self._words(error)}; is the server running, for example "
                           f"`vllm serve {path or '<model>'}`?") from None
        if reply is not None and reply.status_code in (401, 403):
            raise Unusable(f"{self.base_url}: {self._status(reply)}; {_hint(reply.status_code, path)}")
        try:
            names = [entry["id"] for entry in reply.json()["data"]]
        except (AttributeError, ValueError, KeyError, TypeError):  # not every server lists its models
            names = []
        if path and names and path not in names:
            raise Unusable(f"{self.base_url} does not serve {path!r}; it serves {', '.join(names[:20])}")
        if not path and len(names) != 1:
            raise Unusable(f"config.model.path is empty and {self.base_url} lists {len(names)} models; "
                           f"name one{': ' + ', '.join(names[:20]) if names else ''}")
        return path or names[0]

    def _models(self, startup):
        """The reply that lists the models, of a server that accepts connections within `startup` seconds."""
        begin = time.monotonic()
        for second in itertools.count():
            try:
                return self._session().get(f"{self.base_url}/models", **self._call())
            except requests.ConnectionError as error:
                waited = time.monotonic() - begin
                if waited >= startup or not _refused(error):
                    raise
            if second % 10 == 0:
                logger.info("%s refuses connections: waiting for the server to load its model, %.0f s of up to %.0f s "
                            "(config.server.startup)", self.base_url, waited, startup)
            time.sleep(min(1.0, startup - waited))

    def _session(self):
        if not hasattr(self._mine, "session"):
            self._mine.session = requests.Session()
        return self._mine.session

    def _call(self):
        """Options of every request; an explicit `auth` also keeps ~/.netrc from replacing the key."""
        def auth(request):
            if self._key:
                request.headers["Authorization"] = f"Bearer {self._key}"
            return request
        return {"auth": auth, "timeout": self.timeout, "allow_redirects": False}

    def _data_url(self, image):
        stream = io.BytesIO()
        bounded(image, self.max_side).save(stream, self.image_format, quality=95)
        return f"data:image/{self.image_format};base64,{base64.b64encode(stream.getvalue()).decode()}"

    def _words(self, error):
        """A requests error in words, without the key."""
        if isinstance(error, requests.Timeout):
            return f"no answer within {self.timeout:g} s"
        kind = "cannot be reached" if isinstance(error, requests.ConnectionError) else "failed"
        return f"{kind} ({type(error).__name__}: {self._hidden(str(error))[-120:]})"

    def _status(self, reply):
        return f"HTTP {reply.status_code} {reply.reason}: {self._excerpt(reply)}"

    def _excerpt(self, reply):
        return self._hidden(" ".join(reply.text.split()))[:200] or "(empty)"

    def _hidden(self, text):
        return text.replace(self._key, "***") if self._key else text


def _refused(error):
    """Whether nobody listens at the port, and not another fault such as an unknown host."""
    while error and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _hint(status, name):
    if status in (401, 403):
        return "the key is missing or refused: name its environment variable, --config.server.api_key_env=..."
    if status == 404:
        return f"no such model as {name!r}, or base_url lacks its /v1"
    return "check --config.server.base_url"
