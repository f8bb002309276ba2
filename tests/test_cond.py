"""Conditions: taking, emptying and dropping them."""

import pytest
import torch

from libs import cond

NULL = {"label": torch.tensor(7), "text": torch.zeros(3, 2), "text_mask": torch.zeros(3, dtype=torch.bool)}


def batch(n):
    return {"label": torch.arange(n) % 7, "text": torch.ones(n, 3, 2),
            "text_mask": torch.ones(n, 3, dtype=torch.bool)}


def test_take_keeps_the_known_conditions():
    label, mask = torch.zeros(2), torch.zeros(2, 1, 4, 4)
    batch = {"image": torch.zeros(2, 3, 4, 4), "label": label, "mask": mask, "index": torch.arange(2)}
    taken = cond.take(batch)
    assert list(taken) == ["label", "mask"] and taken["label"] is label and taken["mask"] is mask
    assert cond.take({"image": torch.zeros(1)}) == {}


def test_null_expands_without_copying():
    empty = cond.null(NULL, batch(5))
    assert {key: tuple(value.shape) for key, value in empty.items()} == {"label": (5,), "text": (5, 3, 2),
                                                                         "text_mask": (5, 3)}
    assert torch.equal(empty["label"], torch.full((5,), 7))
    assert all(empty[key].data_ptr() == NULL[key].data_ptr() for key in NULL)
    assert cond.null({}, {}) == {} and cond.null(NULL, {}) == {}


def test_null_takes_the_types_and_keys_of_the_conditions():
    empty = cond.null(NULL, {"text": torch.ones(2, 3, 2, dtype=torch.float16)})
    assert list(empty) == ["text"] and empty["text"].dtype == torch.float16


def test_a_mask_without_an_empty_one_stays():
    given = {"label": torch.zeros(2, dtype=torch.long), "mask": torch.ones(2, 1, 4, 4)}
    assert cond.null(NULL, given)["mask"] is given["mask"]
    assert cond.drop(given, NULL, 1.0)["mask"] is given["mask"]
    assert not cond.null(NULL | {"mask": torch.zeros(1, 4, 4)}, given)["mask"].any()


def test_drop_is_joint_over_keys_and_has_its_rate():
    n, p = 20000, 0.1
    dropped = cond.drop(batch(n), NULL, p, generator=torch.Generator().manual_seed(0))
    by_label = dropped["label"] == 7
    assert torch.equal(by_label, (dropped["text"] == 0).all(dim=(1, 2)))
    assert torch.equal(by_label, ~dropped["text_mask"].any(dim=1))
    assert torch.equal(dropped["label"][~by_label], batch(n)["label"][~by_label])
    # four standard deviations of a binomial frequency
    assert abs(by_label.float().mean().item() - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_drop_depends_on_the_generator_alone():
    a, b = (cond.drop(batch(64), NULL, 0.5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    c = cond.drop(batch(64), NULL, 0.5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(a["label"], b["label"]) and not torch.equal(a["label"], c["label"])
    torch.manual_seed(3)
    assert not torch.equal(cond.drop(batch(64), NULL, 0.5)["label"], cond.drop(batch(64), NULL, 0.5)["label"])


def test_drop_never_and_always():
    given = batch(4)
    kept = cond.drop(given, NULL, 0.0)
    assert all(kept[key] is given[key] for key in given) and kept is not given
    gone = cond.drop(given, NULL, 1.0)
    assert all(torch.equal(gone[key], value) for key, value in cond.null(NULL, given).items())
    assert torch.equal(given["label"], batch(4)["label"])
    assert cond.drop({}, NULL, 0.5) == {}


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probabilities_outside_the_unit_interval(p):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        cond.drop(batch(2), NULL, p)


def test_conditions_that_do_not_fit():
    for function in (lambda given: cond.null({"label": NULL["label"]}, given),
                     lambda given: cond.drop(given, {"label": NULL["label"]}, 0.5)):
        with pytest.raises(ValueError, match="no empty condition for 'text'.* null has 'label'"):
            function(batch(2))
        with pytest.raises(ValueError, match="unknown condition 'class'"):
            function({"class": torch.zeros(2)})
    for function in (lambda: cond.null(NULL, {"text": torch.ones(2, 4, 2)}),
                     lambda: cond.drop({"text": torch.ones(2, 4, 2)}, NULL, 0.5)):
        with pytest.raises(ValueError, match=r"empty text has shape \(3, 2\), one item's has \(4, 2\)"):
            function()
