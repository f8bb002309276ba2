"""Captioning models: a tiny vision-language model on disk, and a small OpenAI-compatible server in many moods."""

import base64
import http.server
import io
import json
import logging
import shutil
import socket
import threading
import time
from concurrent.futures import CancelledError

import pytest
from PIL import Image

from libs import captioning


class Server:
    """`answer(prompt, image or None, n)` -> text, (status, body) or None for silence; `asked` counts requests."""

    def __init__(self, port=0):
        self.answer, self.key, self.asked, self.lock = colour_of, "", 0, threading.Lock()
        self.bodies, self.served = [], {"data": [{"id": "eye"}]}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.reply(200, json.dumps(outer.served))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked += 1
                    outer.bodies.append(body)
                    n = outer.asked
                found = outer.answer(*question(body), n)
                if isinstance(found, str):
                    choice = {"message": {"role": "assistant", "content": found}, "finish_reason": "stop"}
                    found = 200, json.dumps({"choices": [choice]})
                if found is None:
                    time.sleep(1)
                self.reply(*(found or (200, "")))

            def reply(self, status, text):
                if outer.key and self.headers.get("Authorization") != f"Bearer {outer.key}":
                    status, text = 401, f"bad key {self.headers.get('Authorization')}"
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        self.http.handle_error = lambda *_: None  # a client that no longer waits
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def model(self, **options):
        known = {"path": "eye", "base_url": self.url, "backoff": 0.01, "timeout": 5.0}
        return captioning.get_model("server", **known | options)


def question(body):
    """(prompt, image or None) of a request."""
    prompt = image = None
    for part in body["messages"][0]["content"]:
        if part["type"] == "text":
            prompt = part["text"]
        else:
            header, encoded = part["image_url"]["url"].split(",")
            image = Image.open(io.BytesIO(base64.b64decode(encoded)))
            assert header == f"data:image/{image.format.lower()};base64"
    return prompt, image


def colour_of(prompt, image, n=0):
    return "many colours" if image is None else "A lesion of colour {} {} {}.".format(*image.convert("RGB").getpixel((0, 0)))


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("CAPTION_KEY", raising=False)


def test_a_question_reaches_the_server_with_its_image(server):
    model = server.model(max_side=20, temperature=0.2, retry_temperature=0.9)
    assert model.ask("What?", Image.new("L", (40, 30), 7), seed=5) == "A lesion of colour 7 7 7."
    assert model.ask("What?", retry=True) == "many colours"
    body = server.bodies[0]
    assert question(body)[1].size == (20, 15) and body["seed"] == 5 and body["model"] == "eye"
    assert [body["temperature"] for body in server.bodies] == [0.2, 0.9] and "top_k" not in body, "which not every server knows"
    assert server.model(top_k=50).ask("") and server.bodies[-1]["top_k"] == 50
    red = Image.new("RGB", (9, 9), "red")
    server.model(image_format="jpeg").ask("", red)
    assert question(server.bodies[-1])[1].format == "JPEG"
    assert server.model(path="").name == "eye"


def test_an_answer_torn_by_the_limit_loses_its_last_sentence(server):
    choice = {"message": {"content": "A red lesion. Its bor"}, "finish_reason": "length"}
    server.answer = lambda *_: (200, json.dumps({"choices": [choice]}))
    assert server.model().ask("") == "A red lesion."


NONSENSE = ["<html>", "[]", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}', "\x00\xff"]


@pytest.mark.parametrize("bad", [(500, "oops"), (503, "loading"), (429, "slow down"), *((200, text) for text in NONSENSE)])
def test_passing_trouble_is_tried_again(server, bad):
    server.answer = lambda prompt, image, n: bad if n < 3 else "good"
    assert server.model(tries=3).ask("") == "good" and server.asked == 3
    with pytest.raises(captioning.Unanswered, match=r"\(2 requests\)"):
        server.answer = lambda *_: bad
        server.model(tries=2).ask("")


def test_silence_is_tried_again(server):
    server.answer = lambda prompt, image, n: None if n == 1 else "good"
    assert server.model(timeout=0.2, tries=2).ask("") == "good" and server.asked == 2
    server.answer = lambda *_: None
    with pytest.raises(captioning.Unanswered, match="no answer within 0.1 s"):
        server.model(timeout=0.1, tries=1).ask("")


@pytest.mark.parametrize("status, kind, words, tries", [
    (401, captioning.Unusable, "api_key_env", 1), (404, captioning.Unusable, "no such model as 'eye'", 1),
    (307, captioning.Unusable, "base_url", 1), (400, captioning.Unanswered, "HTTP 400", 1)])
def test_lasting_trouble_is_said_at_once(server, status, kind, words, tries):
    server.answer = lambda *_: (status, "no")
    with pytest.raises(kind, match=words):
        server.model().ask("")
    assert server.asked == tries


def test_a_server_that_cannot_be_used_is_told_before_the_first_image(server, monkeypatch):
    for options, words in (({"base_url": "http://127.0.0.1:9/v1"}, "cannot be reached.*is the server running"),
                           ({"path": "ear"}, "does not serve 'ear'; it serves eye"),
                           ({"base_url": "localhost:8000"}, "such as http://localhost"), ({"tries": 0}, "tries=0"),
                           ({"startup": -1.0}, "startup=-1"),
                           ({"api_key_env": "CAPTION_KEY"}, "CAPTION_KEY, which is not set"),
                           ({"temperature": -1.0}, "temperature is -1"), ({"top_k": -1}, "top_k is -1"),
                           ({"image_format": "gif"}, "known: png, jpeg")):
        with pytest.raises(ValueError, match=words):
            server.model(**options)
    server.served = {"data": [{"id": "eye"}, {"id": "ear"}]}
    with pytest.raises(ValueError, match="lists 2 models; name one: eye, ear"):
        server.model(path="")
    with pytest.raises(ValueError, match="did you mean 'server'"):
        captioning.get_model("servers")


def test_the_key_reaches_the_server_and_nothing_else(server, monkeypatch):
    server.key = "sk-right"
    monkeypatch.setenv("CAPTION_KEY", "sk-right")
    assert server.model(api_key_env="CAPTION_KEY").ask("") == "many colours"
    monkeypatch.setenv("CAPTION_KEY", "sk-wrong")
    with pytest.raises(captioning.Unusable, match=r"401.*bad key Bearer \*\*\*") as caught:
        server.model(api_key_env="CAPTION_KEY")
    assert "sk-" not in str(caught.value)


def unused_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def test_a_server_that_still_loads_is_waited_for(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    port, naps, late = unused_port(), [], []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 12:
            late.append(Server(port))

    monkeypatch.setattr("libs.captioning.server.time.sleep", nap)
    model = captioning.get_model("server", path="eye", base_url=f"http://127.0.0.1:{port}/v1", startup=600.0, tries=1)
    assert model.ask("") == "many colours" and naps == [1.0] * 12
    assert caplog.text.count("refuses connections: waiting for the server to load its model") == 2, "every ten seconds"
    late[0].stop()


def test_waiting_for_a_server_ends(monkeypatch):
    naps = []
    sleep = time.sleep
    monkeypatch.setattr("libs.captioning.server.time.sleep", lambda seconds: (naps.append(seconds), sleep(seconds)))
    options = {"path": "eye", "base_url": f"http://127.0.0.1:{unused_port()}/v1"}
    for startup, waits in ((0.0, 0), (0.2, 1)):
        with pytest.raises(captioning.Unusable, match="cannot be reached.*is the server running"):
            captioning.get_model("server", **options, startup=startup)
        assert len(naps) >= waits and sum(naps) <= startup
    naps.clear()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(socket.gaierror(-2, "unknown name")))
    with pytest.raises(captioning.Unusable, match="cannot be reached"):
        captioning.get_model("server", path="eye", base_url="http://mistyped.invalid:8000/v1", startup=5.0)
    assert not naps, "another fault than a refused connection does not pass"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A LLaVA of 20,000 random weights with processor, in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig,
                              LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast)
    words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *"a large red round brown lesion with pale border on skin".split()]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                        pad_token="<pad>", additional_special_tokens=["<image>"])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "initializer_range": 0.5}
    torch.manual_seed(0)
    network = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **sizes),
        text_config=LlamaConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=3, **sizes),
        image_token_id=4, vision_feature_layer=-1, vision_feature_select_strategy="default"))
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), tokenizer, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
                      "{{ part['text'] }}{% endif %}{% endfor %}")
    folder = tmp_path_factory.mktemp("tiny")
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_local_model_answers_about_the_image_and_repeats_itself(tiny):
    model = captioning.get_model("transformers", path=str(tiny), device="cpu", max_new_tokens=12, retry_temperature=1.0)
    red, blue = Image.new("RGB", (40, 30), (250, 0, 0)), Image.new("L", (20, 20), 9)
    first = model.ask("a lesion", red, seed=1)
    assert first == model.ask("a lesion", red, seed=2) != model.ask("a lesion", blue), "greedy, and it sees the image"
    warm = [model.ask("a lesion", red, seed=seed, retry=True) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2], "sampled answers follow from the seed"
    one = captioning.get_model("transformers", path=str(tiny), device="cpu", max_new_tokens=12, temperature=1.0, top_k=1)
    assert one.ask("a lesion", red, seed=1) == first, "of one token there is no choice"
    assert model.ask("a lesion") and set(first.split()) <= {"a", "large", "red", "round", "brown", "lesion", "with", "pale",
                                                            "border", "on", "skin"}
    model.close()
    with pytest.raises(CancelledError):
        model.ask("a lesion")


def test_a_missing_local_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, OSError), match="nowhere"):
        captioning.get_model("transformers", path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="config.model.path is empty"):
        captioning.get_model("transformers", path="")


@pytest.mark.parametrize("file, changes", [
    ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Config",
                                                       "AutoModelForImageTextToText": "own.Net"}}),
    ("processor_config.json", {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Processor"}})])
def test_code_that_comes_with_weights_is_neither_run_nor_asked_about(tiny, tmp_path, monkeypatch, file, changes):
    folder, trace, asked = tmp_path / "own_code", tmp_path / "trace", []
    shutil.copytree(tiny, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    with pytest.raises(ValueError, match="own_code comes with code of its own.*served by vLLM: config.model.name=server"):
        captioning.get_model("transformers", path=str(folder), device="cpu")
    assert not trace.exists() and not asked
