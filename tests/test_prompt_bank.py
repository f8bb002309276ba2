"""Descriptions: encoded when they are asked for, drawn by class, composed to mixtures that no training caption has."""

import collections
import json
import threading

import numpy as np
import pytest
import torch

from libs import encoders
from libs.encoders import prompts as prompts_file
from libs.encoders.attributes import exchange, locate

WORDS = {"size": ("small", "large"), "colour": ("brown", "red", "light brown"), "skin": ("light", "brown"),
         "shape": ("irregular", "round")}


class Counting(encoders.Encoder):
    """States that tell the length of a text; remembers what it was asked for."""

    shape = (2, 3)

    def __init__(self):
        super().__init__()
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        return torch.tensor([float(len(text)) for text in texts])[:, None, None].expand(-1, 2, 3)


def test_prompts_encode_only_what_is_asked_for_and_each_text_once():
    prompts = encoders.Prompts(Counting(), ["a", "bb", "a", "ccc", "bb", "dddd"], batch_size=2)
    assert len(prompts) == 6 and prompts.texts[3] == "ccc" and not prompts.encoder.calls
    assert prompts[[3, 0, 2]][:, 0, 0].tolist() == [3, 1, 1] and prompts.encoder.calls == [["ccc", "a"]]
    states = prompts[torch.tensor([1, 3, 4])]
    assert states.shape == (3, 2, 3) and states[:, 1, 2].tolist() == [2, 3, 2] and states.dtype == torch.float32
    assert prompts.encoder.calls[1:] == [["bb"]]
    assert prompts[np.arange(6)][:, 0, 0].tolist() == [1, 2, 1, 3, 2, 4] == prompts[:][:, 0, 0].tolist()
    assert prompts.encoder.calls[2:] == [["dddd"]]
    assert prompts[[]].shape == (0, 2, 3) and prompts[-1:].shape == (1, 2, 3)
    with pytest.raises(IndexError):
        prompts[[6]]
    with pytest.raises(ValueError, match="batch_size=0"):
        encoders.Prompts(Counting(), [], batch_size=0)


def test_prompts_encode_in_batches_and_keep_the_last_ones(monkeypatch):
    monkeypatch.setattr(prompts_file, "KEPT", 3)
    prompts = encoders.Prompts(Counting(), ["x" * n for n in range(5)], batch_size=2)
    assert prompts[range(5)][:, 0, 0].tolist() == [0, 1, 2, 3, 4], "also more than are kept"
    assert list(map(len, prompts.encoder.calls)) == [2, 2, 1]
    prompts.encoder.calls.clear()
    prompts[[2]], prompts[[0]], prompts[[2, 4]]
    assert prompts.encoder.calls == [[""]], "3 was used least recently, and had to go"
    prompts[[3]]
    assert prompts.encoder.calls == [[""], ["xxx"]]
    assert all(state.untyped_storage().nbytes() == 4 * 6 for state in prompts._kept.values())


def test_attributes_are_whole_phrases_the_longest_first():
    read = encoders.read_attributes
    assert read("A Large light  brown lesion on brown skin", WORDS) == {"size": 1, "colour": 2, "skin": 1, "shape": -1}
    assert read("enlarged, redder; non-irregular, small-sized", WORDS) == dict.fromkeys(WORDS, -1)
    assert read("a red and brown lesion", {"colour": ("brown", "red")}) == {"colour": 1}, "the first in the text"
    assert read("brown", WORDS)["colour"] == 0 and read("brown", WORDS)["skin"] == -1, "one stretch, one attribute"
    assert read("brown skin tone", {"a": ("light brown skin",), "b": ("brown skin", "brown skin tone")}) == {"a": -1, "b": 1}
    assert read("", WORDS) == dict.fromkeys(WORDS, -1) and read("naevus", {"class": ("",)}) == {"class": -1}
    text = "small light brown (dot)"
    found = locate(text, {**WORDS, "mark": ("(dot)",)})
    assert [text[start:end] for start, end, *_ in found] == ["small", "light brown", "(dot)"]


def test_exchanged_phrases_leave_the_rest_as_it_is():
    assert exchange("A round, red lesion on light skin", WORDS, {"shape": 0, "skin": 1}) == (
        "An irregular, red lesion on brown skin")
    assert exchange("an  irregular lesion", WORDS, {"shape": 1}) == "a  round lesion"
    assert exchange("Large: red, with a red rim", WORDS, {"size": 0, "colour": 2}) == (
        "Small: light brown, with a light brown rim")
    assert exchange("a round lesion", WORDS, {"shape": 1, "size": 0}) == "a round lesion"
    assert exchange("a red x", {"c": ("red", "uniform", "ochre")}, {"c": 1}) == "a uniform x"


CAPTIONS = {"nevus": ["a small round lesion", "a small round lesion", "a small round lesion", "a large round lesion"],
            "melanoma": ["an irregular brown lesion on light skin"], "angioma": []}


def test_bank_of_a_data_set():
    bank = encoders.Bank.of([["one", "two"], "three", " ", ["two"]], torch.tensor([1, 0, 0, 1]), ["a", "b", "c"])
    assert bank.captions == {"a": ["three"], "b": ["one", "two", "two"], "c": []} and len(bank) == 4
    assert bank.classes == ["a", "b", "c"]
    assert bank.describe()["b"] == {"captions": 3, "distinct": 2} and bank.describe()["c"] == {"captions": 0, "distinct": 0}
    assert bank.has("two") and not bank.has("tw") and bank.has("two", "b") and not bank.has("two", "a")
    assert encoders.Bank.of(["x"], [0], [""]).has("x", ""), "unlabelled data have one nameless class"
    with pytest.raises(ValueError, match="2 images with captions, but 1 labels"):
        encoders.Bank.of(["a", "b"], [0], ["a"])
    with pytest.raises(ValueError, match=r"labels \[2, 7\] are outside 0..1"):
        encoders.Bank.of(["a", "b", "c"], [7, 0, 2], ["a", "b"])
    with pytest.raises(ValueError, match="two classes of one name"):
        encoders.Bank.of(["a"], [0], ["a", "a"])


def test_drawing_follows_the_frequencies():
    bank = encoders.Bank(CAPTIONS)
    rng = np.random.default_rng(0)
    counts = collections.Counter(bank.draw("nevus", rng) for _ in range(4000))
    assert set(counts) == set(CAPTIONS["nevus"])
    assert abs(counts["a small round lesion"] / 4000 - .75) < .03  # 4 standard deviations
    assert bank.draw("nevus", np.random.default_rng(5)) == bank.draw("nevus", np.random.default_rng(5))
    with pytest.raises(ValueError, match="'Nevi' is not in the prompt bank, .*did you mean 'nevus'"):
        bank.draw("Nevi", rng)
    with pytest.raises(ValueError, match="class 'angioma' has no descriptions"):
        bank.draw("angioma", rng)
    with pytest.raises(ValueError, match="'x' is not in the prompt bank"):
        bank.has("one", "x")


def test_unseen_mixtures_are_unseen():
    words = {"size": ("small", "medium", "large"), "colour": ("red", "brown", "light brown"),
             "shape": ("round", "oval", "irregular")}
    rng = np.random.default_rng(1)
    texts = [f"a {rng.choice(words['size'])} {rng.choice(words['colour'])} lesion, {rng.choice(words['shape'])} in shape"
             for _ in range(30)] + ["a red thing", "a brown thing", "a light brown thing"]
    bank = encoders.Bank({"x": texts, "other": ["a small red lesion, round in shape"]})
    seen = {tuple(encoders.read_attributes(text, words).values()) for text in texts}
    made = [bank.unseen("x", words, np.random.default_rng(seed)) for seed in range(200)]
    mixtures = {tuple(encoders.read_attributes(text, words).values()) for text in made}
    assert not mixtures & seen and all(min(mixture) >= 0 for mixture in mixtures), "each colour alone occurs already"
    every = {(s, c, f) for s in range(3) for c in range(3) for f in range(3)}
    assert mixtures == every - seen, "any of the unseen ones may come"
    assert all(text.endswith(" in shape") and " lesion, " in text for text in made)
    assert bank.unseen("x", words, np.random.default_rng(3)) == made[3]


def test_an_unseen_mixture_agrees_with_no_fuller_description():
    """'a red round lesion' is no new mixture where a red round lesion on brown skin is known."""
    words = {"colour": ("red", "black"), "shape": ("round", "oval"), "skin": ("brown", "light")}
    texts = ["a red round lesion", "a black oval lesion on brown skin", "a black round lesion on brown skin"]
    made = {encoders.Bank({"x": texts}).unseen("x", words, np.random.default_rng(seed)) for seed in range(60)}
    assert "a red oval lesion" in made and not made & {"a black oval lesion", "a black round lesion"}
    assert {text for text in made if "skin" not in text} == {"a red oval lesion"}


def test_where_nothing_is_unseen():
    bank = encoders.Bank(CAPTIONS | {"full": ["a small mark", "a large mark"]})
    with pytest.raises(ValueError, match="class 'full': no unseen mixture of size.*all combinations"):
        bank.unseen("full", {"size": ("small", "large")}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="none of the words of hue is in its descriptions, such as 'a small mark'"):
        bank.unseen("full", {"hue": ("red",)}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'angioma' has no descriptions"):
        bank.unseen("angioma", WORDS, np.random.default_rng(0))


def test_a_bank_on_disk_is_whole(tmp_path):
    bank = encoders.Bank(CAPTIONS | {"naïve": ["ä \"quoted\"\nline"]})
    path = tmp_path / "run" / "bank.json"
    writers = [threading.Thread(target=bank.save, args=(path,)) for _ in range(4)]
    [each.start() for each in writers], [each.join() for each in writers]
    loaded = encoders.Bank.load(path)
    assert loaded.captions == bank.captions and loaded.classes == bank.classes
    assert [each.name for each in path.parent.iterdir()] == ["bank.json"]

    before = path.read_bytes()
    with pytest.raises(TypeError):
        encoders.Bank({"a": ["x"], "b": [object()]}).save(path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1, "a failed write leaves the old file"

    for torn in (before[:len(before) // 2], b"", b"\xff\xfe{", json.dumps({"a": [1]}).encode(), b"[]"):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match="bank.json is no prompt bank.*start the training again"):
            encoders.Bank.load(path)
    with pytest.raises(FileNotFoundError):
        encoders.Bank.load(tmp_path / "none.json")
