"""What is asked of a network: labels, descriptions from banks and stores, prompts of users."""

import numpy as np
import pytest
import torch

from libs import encoders, pipeline

CLASSES = ["nevus", "melanoma"]
WORDS = {"size": ("small", "large"), "colour": ("red", "brown")}
BANK = {"nevus": ["a small red spot", "a small brown spot", "a large brown spot"], "melanoma": ["a large red spot"] * 3}


@pytest.fixture
def encoder():
    return encoders.get(name="words", max_length=6, dim=8)


def describer(encoder, **options):
    return pipeline.Describer(encoders.Bank(BANK), encoder, **options)


def test_descriptions_come_from_the_bank_of_their_class_and_depend_on_seed_and_index_alone(encoder):
    labels = torch.tensor([0, 1] * 50)
    drawn = describer(encoder).draw(labels, 100, seed=3)
    assert all(text in BANK[CLASSES[label]] for text, label in zip(drawn.texts, labels))
    assert set(drawn.texts[::2]) == set(BANK["nevus"])
    assert describer(encoder).draw(labels[:7], 7, seed=3).texts == drawn.texts[:7]
    assert describer(encoder).draw(labels, 100, seed=4).texts != drawn.texts
    assert torch.equal(drawn[[5, 0]], encoder.encode([drawn.texts[5], drawn.texts[0]]))


def test_a_network_without_label_is_described_from_all_classes_as_often_as_they_have_captions(encoder):
    texts = describer(encoder).draw(None, 400, seed=0).texts
    assert 0.4 < sum(text in BANK["melanoma"] for text in texts) / 400 < 0.6
    assert set(texts) == {text for own in BANK.values() for text in own}


def test_words_of_no_caption_are_not_asked_for(encoder):
    words = WORDS | {"colour": ("red", "pink", "brown")}
    texts = describer(encoder, how="unseen", words=words).draw(torch.tensor([0, 1] * 20), 40, seed=0).texts
    assert not any("pink" in text for text in texts) and "a large red spot" in texts


def test_unseen_descriptions_have_attributes_that_no_caption_of_the_class_has(encoder):
    texts = describer(encoder, how="unseen", words=WORDS).draw(torch.tensor([0, 1] * 20), 40, seed=0).texts
    assert set(texts[::2]) == {"a large red spot"}, "the one combination that nevi do not have"
    assert set(texts[1::2]) <= {"a small red spot", "a small brown spot", "a large brown spot"} and len(set(texts[1::2])) > 1
    with pytest.raises(ValueError, match="config.metrics.attributes"):
        describer(encoder, how="unseen")


def test_conditions_follow_the_keys_of_the_network(encoder):
    null = {"label": torch.tensor(2), "text": encoder.empty}
    cond = pipeline.draw_conditions(None, null, 6, seed=0, labels="balanced", prompts=describer(encoder))
    assert list(cond) == ["label", "text"] and cond["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert pipeline.draw_conditions(None, {}, 6, seed=0) == {}
    with pytest.raises(ValueError, match="no descriptions to draw from"):
        pipeline.draw_conditions(None, null, 6, seed=0)


class Stored:
    """Three images with 1, 2 and 2 captions whose strings are unknown."""

    labels = torch.tensor([0, 1, 1])

    def __len__(self):
        return 3

    def caption_counts(self, rows):
        return np.array([1, 2, 2])[rows]

    def texts(self, rows, which):
        return torch.tensor([[10.0 * row + k] for row, k in zip(rows, which)])


def test_states_of_a_store_without_strings_are_drawn_by_class():
    drawn = pipeline.StoredDescriber(Stored()).draw(torch.tensor([1] * 40 + [0]), 41, seed=0)
    assert set(drawn[list(range(40))].flatten().tolist()) == {10.0, 11.0, 20.0, 21.0}
    assert drawn[[40]].tolist() == [[0.0]] and drawn.texts is None and len(drawn) == 41


@pytest.mark.parametrize("prompt, label, expected", [
    ("a large melanoma", "", [1]), ("a nevus of 0 colours", "", [0]), ("a large spot", "nevus", [0]), ("a large brown spot", "", [0])])
def test_the_class_of_a_prompt(prompt, label, expected):
    """Given, or named in it, or that whose bank holds it."""
    labels, texts = pipeline.requested([(prompt, label)], "", CLASSES, 2, labelled=True, bank=encoders.Bank(BANK))
    assert labels == expected * 2 and texts == [prompt] * 2


@pytest.mark.parametrize("prompt, label, complaint", [
    ("a green spot", "", "names no class: give one with --label; known: nevus, melanoma"),
    ("a melanoma beside a nevus", "", "names several classes"),
    ("a green spot", "all", "a prompt is asked of one class at a time"),
    ("a green spot", "nevi", "label 'nevi' of prompt 'a green spot': no such class; known: nevus, melanoma")])
def test_a_prompt_without_a_known_class_is_refused(prompt, label, complaint):
    with pytest.raises(ValueError, match=complaint):
        pipeline.requested([(prompt, label)], "", CLASSES, 1, labelled=True)


def test_without_prompts_labels_alone_are_asked_for():
    assert pipeline.requested([], "all", CLASSES, 2, labelled=True) == ([0, 0, 1, 1], [])
    assert pipeline.requested([("a spot", "")], "", [], 3, labelled=False) == ([0, 0, 0], ["a spot"] * 3)


def test_prompt_files(tmp_path):
    (tmp_path / "lines.txt").write_text("a small red spot\n\n  a large spot, irregular  \n")
    assert pipeline.read_prompts(tmp_path / "lines.txt") == [("a small red spot", ""), ("a large spot, irregular", "")]
    (tmp_path / "table.csv").write_text('prompt,label\n"a spot, red",nevus\na spot,\n')
    assert pipeline.read_prompts(tmp_path / "table.csv") == [("a spot, red", "nevus"), ("a spot", "")]
    (tmp_path / "other.csv").write_text("text\na spot\n")
    (tmp_path / "empty.txt").write_text("\n")
    for name, complaint in (("other.csv", "'prompt' is needed"), ("empty.txt", "no prompt in it"), ("none.txt", "no such file")):
        with pytest.raises(ValueError, match=complaint):
            pipeline.read_prompts(tmp_path / name)
