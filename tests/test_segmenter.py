"""The segmenter: Dice in closed form, it learns, repeats itself bit for bit, and its folder is whole or refused."""

import math

import pytest
import torch

from libs.metrics import dice, dice_scores, load_segmenter, segmenter, train_segmenter

NAMES = ["background", "disc", "core"]


def discs(n, size=16, seed=0):
    """Noisy pictures of a bright disc with a dark core, and their masks: uint8 (n, 3, size, size), int64 (n, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.6 * torch.rand(n, 2, 1, 1, generator=generator) - 0.3
    radius = 0.4 + 0.3 * torch.rand(n, 1, 1, generator=generator)
    axis = torch.linspace(-1, 1, size)
    far = ((axis[None, :] - centre[:, 0]) ** 2 + (axis[:, None] - centre[:, 1]) ** 2).sqrt()
    masks = (far < radius).long() + (far < radius / 2).long()
    images = torch.tensor([110.0, 200.0, 40.0])[masks][:, None].expand(-1, 3, -1, -1)
    noise = 15 * torch.randn(n, 3, size, size, generator=generator)
    return (images + noise).clamp(0, 255).to(torch.uint8), masks


@pytest.fixture(scope="module")
def trained():
    return train_segmenter(*discs(160), NAMES, steps=100, name="discs16", fingerprint="abc")


def test_dice_is_two_overlaps_by_the_sum_of_sizes():
    asked = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    obtained = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [0, 0]]])
    values = dice(asked, obtained, 4)
    assert values[0].tolist()[:3] == pytest.approx([2 / 3, 1 / 2, 0])  # class 2 was not asked for, and is there
    assert values[1, 0] == 1 and values[1, 1:].isnan().all() and values[0, 3].isnan()
    assert torch.equal(dice(obtained, asked, 4)[0, :3], values[0, :3])
    with pytest.raises(ValueError, match=r"expected equal \(N, H, W\)"):
        dice(asked, obtained[:1], 4)


def test_scores_are_means_over_the_images_that_have_a_class_and_over_the_foreground():
    nan = math.nan
    values = torch.tensor([[1.0, 0.5, nan, nan], [1.0, 0.7, 0.2, nan], [0.4, nan, nan, nan]], dtype=torch.float64)
    found = dice_scores(values, [*NAMES, "rim"])
    assert {name: (score["value"], score["n"]) for name, score in found.items()} == {
        "dice": (pytest.approx((0.6 + 0.2) / 2), 3), "dice_background": (pytest.approx(0.8), 3),
        "dice_disc": (pytest.approx(0.6), 2), "dice_core": (pytest.approx(0.2), 1)}
    assert all(score["low"] is score["high"] is None for score in found.values())
    many = dice_scores(torch.rand(300, 3, generator=torch.Generator().manual_seed(0)).double(), NAMES, resamples=100)
    for score in many.values():  # the mean of a uniform number: its error is sqrt(1/12/300) for one class
        assert score["low"] < score["value"] < score["high"]
    assert many["dice_disc"]["high"] - many["dice_disc"]["low"] == pytest.approx(2 * 1.96 * (1 / 12 / 300) ** 0.5, rel=0.2)
    assert many["dice"]["high"] - many["dice"]["low"] == pytest.approx(2 * 1.96 * (1 / 12 / 600) ** 0.5, rel=0.2)
    # 30 masks with ten equal images each say what 30 images of as many masks do
    masks, per_mask = torch.arange(300) % 30, torch.rand(30, 3, generator=torch.Generator().manual_seed(1)).double()
    few, plain = (dice_scores(each, NAMES, groups=groups, resamples=100) for each, groups in (
        (per_mask[masks], 7 * masks), (per_mask, None)))
    for name in few:
        assert [few[name][key] for key in ("value", "low", "high")] == pytest.approx([plain[name][key] for key in (
            "value", "low", "high")]) and few[name]["n"] == 10 * plain[name]["n"]
    assert few["dice_disc"]["high"] - few["dice_disc"]["low"] > 2 * (many["dice_disc"]["high"] - many["dice_disc"]["low"])
    one = dice_scores(per_mask[masks], NAMES, groups=0 * masks, resamples=100)["dice"]
    assert one["low"] is one["high"] is None and one["value"] == pytest.approx(few["dice"]["value"])
    perfect = dice_scores(torch.ones(5, 2).double(), NAMES[:2], resamples=100)["dice"]
    assert (perfect["value"], perfect["low"], perfect["high"]) == (1, 1, 1)
    assert dice_scores(torch.full((2, 2), nan), NAMES[:2]) == {}


def test_it_segments_new_images(trained):
    images, masks = discs(60, seed=1)
    found = dice_scores(dice(masks, trained.predict(images), 3), NAMES)
    assert found["dice_disc"]["value"] > 0.9 and found["dice_core"]["value"] > 0.85
    assert trained.report["dice"] == pytest.approx(found["dice"]["value"], abs=0.05)
    assert (trained.report["trained_on"], trained.report["held_out"], trained.report["classes"]) == (136, 24, NAMES)
    grey = images[:4, :1]
    assert torch.equal(trained.predict(grey), trained.predict(grey.expand(-1, 3, -1, -1)))
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)  # another size is resized, and the mask back
    assert dice(masks.repeat_interleave(2, 1).repeat_interleave(2, 2), trained.predict(large), 3)[:, 1].mean() > 0.85
    assert trained.predict(images[:0]).shape == (0, 16, 16)


def test_it_is_a_function_of_the_seed_and_of_the_images_trained_on():
    images, masks = discs(40)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_segmenter(images, masks, 3, steps=3, seed=3, held_out=range(20))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    spoilt = images.clone()
    spoilt[:20] = 0
    again = train_segmenter(spoilt, masks, 3, steps=3, seed=3, held_out=range(20))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert first.report["held_out"] == again.report["held_out"] == 20
    other = train_segmenter(images, masks, 3, steps=3, seed=4, held_out=range(20))
    assert not torch.equal(first.net.head.weight, other.net.head.weight)


def test_images_and_masks_are_mirrored_alike():
    """The discs lie anywhere, so that a network that saw images mirrored and their masks not would learn little."""
    images, masks = discs(120)
    masks = masks.clamp(max=1)
    net = train_segmenter(images, masks, 2, steps=60, flips=("horizontal", "vertical"))
    assert net.report["dice"] > 0.9 and net.report["flips"] == ["horizontal", "vertical"]


def test_weights_balance_the_classes_and_a_perfect_answer_costs_nothing():
    masks = torch.tensor([0] * 64 + [1] * 16 + [2] * 4).view(1, 12, 7)
    weight = segmenter.class_weights(masks, 4)
    assert weight[3] == 0 and (weight[1:3] / weight[0]).tolist() == pytest.approx([2, 4])
    assert weight[masks].mean().item() == pytest.approx(1)
    sure = 50.0 * torch.nn.functional.one_hot(masks, 4).permute(0, 3, 1, 2).float()
    assert segmenter.segmentation_loss(sure, masks, weight).item() == pytest.approx(0, abs=1e-6)
    # the same logits everywhere: ln 4 of cross entropy; Dice of class k is 2 n_k / 4 / (N / 4 + n_k)
    flat = segmenter.segmentation_loss(torch.zeros(1, 4, 12, 7), masks, weight).item()
    soft = sum(2 * n / 4 / (84 / 4 + n) for n in (64, 16, 4)) / 3
    assert flat == pytest.approx(math.log(4) + 1 - soft, rel=1e-5)


def test_its_folder_is_whole_or_refused(trained, tmp_path):
    trained.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]
    back = load_segmenter(tmp_path, fingerprint="abc")
    images = discs(5, seed=2)[0]
    assert back.report == trained.report and torch.equal(back.predict(images), trained.predict(images))
    with pytest.raises(ValueError, match="trained on other data: its fingerprint is 'abc'"):
        load_segmenter(tmp_path, fingerprint="xyz")
    with pytest.raises(FileNotFoundError, match="no segmenter at"):
        load_segmenter(tmp_path / "nowhere")
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="holds no usable segmenter; train it again: weights.safetensors is not the file"):
        load_segmenter(tmp_path)


def test_bad_input_is_named(trained):
    images, masks = discs(10)
    for kwargs, said in (({"steps": 0}, "steps 0 must be positive"), ({"flips": ("diagonal",)}, "diagonal"),
                         ({"batch_size": 1}, "batch_size 1"), ({"held_out": range(9)}, "1 images to train on and 9 held out"),
                         ({"resolution": 4}, "at least 8 pixels")):
        with pytest.raises(ValueError, match=said):
            train_segmenter(images, masks, 3, **kwargs)
    with pytest.raises(ValueError, match="masks hold 0 to 2; 2 classes are numbered 0 to 1"):
        train_segmenter(images, masks, 2)
    with pytest.raises(ValueError, match=r"masks are torch.int64 of shape \(9, 16, 16\).*expected whole numbers \(10, 16, 16\)"):
        train_segmenter(images, masks[1:], 3)
    with pytest.raises(ValueError, match="masks are torch.float32"):
        train_segmenter(images, masks.float(), 3)
    with pytest.raises(ValueError, match="uint8"):
        train_segmenter(images.float(), masks, 3)
    with pytest.raises(ValueError, match="classes 1 and width 16 must be at least 2"):
        train_segmenter(images, 0 * masks, 1)
    with pytest.raises(ValueError, match="3 channels; these have 2"):
        trained.predict(images[:, :2])
