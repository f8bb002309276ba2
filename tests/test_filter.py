"""The filter of ratings: its embeddings, its network and folder, what it learns from answers, how it is judged."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from libs import metrics
from libs.ratings import Answer, Axis, Filter, Item, embedding, judged, learning, load_filter, training
from libs.ratings.filter import Judge, joint, seen_in
from tests.ratings_pools import AXES, tiny_pool

WORDS = dict(name="words", max_length=16, dim=32)


@pytest.fixture(scope="module")
def colours():
    return embedding.get("pair", images="colour", text=WORDS)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return tiny_pool(tmp_path_factory.mktemp("pool"), 60, 4)


def pictures(n, seed=0, side=16):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def untrained(of, seed=0, axes=AXES):
    torch.manual_seed(seed)
    return Filter(Judge(of.blocks, of.dims[1], [len(axis.levels) for axis in axes]), of, axes, threshold=0.25)


def answers(pool, scores, rater="ana"):
    """Answers of a rater, {item: (quality, congruence)}."""
    return [Answer(number, rater, name, {"quality": q, "congruence": c}, (), "", 1.0, "2026-01-01T00:00:00+00:00")
            for number, (name, (q, c)) in enumerate(scores.items(), 1)]


# -- embeddings -----------------------------------------------------------------------------------------------------------------


def test_images_of_several_sizes_are_embedded_as_one_by_one(colours):
    mixed = [*pictures(3), *pictures(2, side=24), pictures(1, seed=1)[0]]
    found = colours.images(mixed)
    assert found.shape == (6, colours.dims[0]) == (6, 6)
    for row, image in zip(found, mixed):
        assert torch.equal(row, colours.images(image[None])[0])


def test_several_image_networks_stand_side_by_side():
    both = embedding.get("pair", images=("colour", "timm:test_resnet@random"), text=WORDS)
    assert both.blocks[0] == 6 and sum(both.blocks) == both.dims[0]
    assert torch.equal(both.images(pictures(2))[:, :6], embedding.get("pair", images=("colour",), text=WORDS).images(pictures(2)))
    assert both.images(pictures(2)[:, :1]).shape == (2, both.dims[0])  # grey ones too


def test_a_text_is_the_mean_of_its_words_whatever_stands_beside_it(colours):
    one = colours.texts(["a red nevus"])
    assert torch.equal(colours.texts(["a much longer text about something else", "a red nevus"])[1], one[0])
    assert torch.allclose(one[0], colours.encoder.encode(["a red nevus"])[0, :4].mean(0), atol=1e-6)
    assert not torch.allclose(colours.texts(["a black nevus"]), one, atol=0.01)


def test_the_fingerprint_is_that_of_what_decides_vectors(colours):
    assert embedding.get("pair", images="colour", text=WORDS).fingerprint == colours.fingerprint
    assert embedding.get("pair", images="colour", text=WORDS | dict(seed=1)).fingerprint != colours.fingerprint


@pytest.mark.parametrize("options, message", [
    (dict(kind="clap"), "encoder.kind='clap': known are clip, pair"),
    (dict(kind="pair", images="colour", text=WORDS, path="x"), "encoder.path is no option of kind='pair'"),
    (dict(kind="pair", images=(), text=WORDS), r"encoder.images=\(\)"),
    (dict(kind="pair", images="colour", text=dict(name="tokens", path="x")), "gives numbers of words, not states"),
    (dict(kind="clip", path="/no/such/folder"), "'/no/such/folder': there is no such folder; .* encoder.kind=pair"),
    (dict(kind="clip", path=""), "there is no such folder"),
])
def test_encoders_that_cannot_be(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        embedding.get(**options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a tiny CLIP, without training."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "black", "nevus"])}
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=9, max_position_embeddings=12, eos_token_id=3, bos_token_id=4, pad_token_id=0, **small),
        vision_config=dict(image_size=8, patch_size=4, **small), projection_dim=10)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=12).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def test_clip_gives_its_own_normalised_projections(clip):
    transformers = pytest.importorskip("transformers")
    of = embedding.get("clip", path=str(clip))
    assert of.aligned and of.dims == (10, 10) and embedding.get("clip", path=str(clip)).fingerprint == of.fingerprint
    images, texts = pictures(3), ["a red nevus", "a black nevus", "nevus"]
    net = transformers.CLIPModel.from_pretrained(clip).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clip)(texts, padding=True, return_tensors="pt")
    pixels = transformers.AutoImageProcessor.from_pretrained(clip)(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        whole = net(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    assert torch.allclose(of.images(images), whole.image_embeds, atol=1e-5)
    assert torch.allclose(of.texts(texts), whole.text_embeds, atol=1e-5)
    assert of.texts(["a red nevus " * 20]).shape == (1, 10)  # longer than the window
    assert of.images(images[:, :1]).shape == (3, 10)


def test_a_folder_that_is_no_clip_is_refused_by_one_message(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.BertModel(transformers.BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                                   intermediate_size=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it holds BertModel, which embeds no pairs of image and text"):
        embedding.get("clip", path=str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(clip, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match="no CLIP or SigLIP could be loaded"):
        embedding.get("clip", path=str(broken))


# -- network and folder -----------------------------------------------------------------------------------------------------------


def test_log_odds_of_higher_levels_fall_and_the_joint_score_stays_below_each_axis():
    judge = Judge([4, 3], 5, [3, 4], members=2, dropout=0.0)
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter)
    values = judge.eval()(torch.randn(6, 7), torch.randn(6, 5))
    assert values.shape == (2, 6, 2)
    for axis, levels in enumerate((3, 4)):
        logits = judge.logits(values, axis)
        assert logits.shape == (2, 6, levels - 1) and bool((logits.diff(dim=-1) < 0).all())
        assert torch.allclose(judge.logits(values[1:], axis, 1), logits[1:])
    good = torch.randn(50, 2)
    whole = joint(good, torch.ones(2), torch.zeros(2))
    assert bool((whole < good.sigmoid().amin(1)).all())
    assert torch.allclose(joint(good[:, :1], torch.tensor([2.0]), torch.tensor([0.5])), torch.sigmoid(2 * good[:, 0] + 0.5))


def test_every_block_of_image_features_weighs_alike():
    judge = Judge([2, 50], 5, [3])
    image = torch.randn(400, 52) * torch.linspace(0.1, 9, 52) + 3
    judge.standardise(image, torch.randn(400, 5))
    seen = ((image - judge.image_mean) * judge.image_scale).square().mean(0)
    assert torch.allclose(seen[:2].sum(), seen[2:].sum(), rtol=1e-3) and torch.allclose(seen.sum(), torch.tensor(52.0), rtol=1e-3)


def test_a_saved_filter_gives_the_same_scores(colours, tmp_path):
    made = untrained(colours)
    made.calibration = {"slope": [1.5, 0.5], "shift": [0.1, -0.2]}
    prompts = [f"nevus {i}" for i in range(5)]
    made.save(tmp_path / "filter")
    again = load_filter(tmp_path / "filter")
    assert torch.equal(again.score(pictures(5), prompts), made.score(pictures(5), prompts))
    assert again.score(pictures(5), prompts).dtype == torch.float32 and again.fingerprint == made.fingerprint
    assert (again.threshold, again.useful, again.axes, again.folder) == (0.25, False, list(AXES), tmp_path / "filter")
    levels = again.judged(pictures(5), prompts)[1]
    assert set(levels) == {"quality", "congruence"} and all(bool(((value >= 1) & (value <= 3)).all()) for value in levels.values())
    assert load_filter(tmp_path).fingerprint == made.fingerprint  # of the run's folder
    told = json.loads((tmp_path / "filter" / "config.json").read_text())
    assert told["axes"][0]["levels"]["1"] == "unusable" and told["higher_is_better"]  # the meaning lies beside the numbers
    other = untrained(colours, seed=1)
    assert other.fingerprint != made.fingerprint
    assert made.score(pictures(0), []).shape == (0,)
    with pytest.raises(ValueError, match="5 images and 4 prompts"):
        made.score(pictures(5), prompts[:4])


def test_a_filter_takes_its_own_image_network_along(tmp_path):
    labels = torch.arange(20) % 2
    metrics.train_classifier(pictures(20) // 2 + labels.byte()[:, None, None, None] * 100, labels, epochs=1).save(tmp_path / "net")
    made = untrained(embedding.get("pair", images=("colour", f"classifier:{tmp_path / 'net'}"), text=WORDS))
    expected = made.score(pictures(3), ["a", "b", "c"])
    made.save(tmp_path / "one" / "filter")
    shutil.rmtree(tmp_path / "net")
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    again = load_filter(tmp_path / "elsewhere" / "filter")
    assert torch.equal(again.score(pictures(3), ["a", "b", "c"]), expected)
    again.save(tmp_path / "elsewhere" / "filter")  # into its own folder
    assert load_filter(tmp_path / "elsewhere").fingerprint == made.fingerprint


def test_folders_that_hold_no_filter(colours, tmp_path):
    with pytest.raises(FileNotFoundError, match="no filter at .*train_filter.py writes them"):
        load_filter(tmp_path)
    folder = untrained(colours).save(tmp_path / "filter")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_fingerprint": "0"}))
    with pytest.raises(ValueError, match="is another than the one that the filter was trained with"):
        load_filter(folder)
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ValueError, match="format 99, expected 1"):
        load_filter(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(ValueError, match="is not the file that config.json describes"):
        load_filter(folder)


@pytest.mark.parametrize("damage, message", [
    (dict(calibration={"slope": [1.0], "shift": [0.0]}), "expected finite numbers for each of 2 axes"),
    (dict(calibration={"slope": [1.0, float("nan")], "shift": [0.0, 0.0]}), "expected finite numbers"),
    (dict(calibration={"slope": [1.0, -1.0], "shift": [0.0, 0.0]}), "slopes above 0"),
    (dict(calibration={"slope": [2.0, 1.0], "shift": [0.0, 0.0]}), "not those of its fingerprint"),
    (dict(threshold=float("nan")), "threshold nan"), (dict(threshold=1.5), "threshold 1.5"),
    (dict(threshold=None), "threshold None"),
    (dict(useful="false"), "useful 'false'"), (dict(report=None), "report NoneType"), (dict(axes=[]), "is not that of its weights"),
    (dict(fingerprint="0"), "not those of its fingerprint"), (dict(axes=None), ""), (dict(encoder=None), ""),
    *[({name: KeyError}, f"lacks or garbles '{name}'") for name in ("calibration", "useful", "axes", "encoder", "report")]])
def test_damaged_folders_are_refused_by_one_message(colours, tmp_path, damage, message):
    folder = untrained(colours).save(tmp_path / "filter")
    config = json.loads((folder / "config.json").read_text()) | damage
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not KeyError}))
    with pytest.raises(ValueError, match=f"holds no usable filter; train it again: .*{message}"):
        load_filter(folder)


def test_images_and_words_of_another_kind_are_told_once(colours, tmp_path, caplog):
    made = untrained(colours)
    made.score(pictures(2), ["x", "y"])  # nothing is known of its training
    made.seen = seen_in(pictures(3), ["a red nevus", "a black nevus"], colours)
    made.save(tmp_path / "filter")
    again = load_filter(tmp_path / "filter")
    again.score(pictures(2), ["A black, red nevus.", "nevus"])
    assert not caplog.records
    other = pictures(2, side=24)[:, :1].expand(-1, 3, -1, -1)
    for _ in range(2):
        again.score(other, ["a blue nevus", "a " + " ".join(f"word{i}" for i in range(10, 22))])
    assert [record.message for record in caplog.records] == [
        "the filter scores images of 24 x 24 pixels, and it was trained on 16 x 16",
        "the filter scores grey images, and it was trained on images in colour",
        "the filter scores words that stood in no prompt of its training, and say nothing to it: blue, "
        + ", ".join(f"word{i}" for i in range(10, 19)) + " ..."]


# -- what is learned from ----------------------------------------------------------------------------------------------------------


def test_the_bias_of_raters_of_all_images_is_the_difference_of_their_means():
    merit = torch.tensor([1.0, 2.0, 3.0]).repeat(100)
    scores, rows = torch.cat([merit, merit - 0.6]), torch.arange(300).repeat(2)
    bias = learning.rater_bias(scores, rows, torch.arange(2).repeat_interleave(300))
    assert abs(float(bias[0] - bias[1]) - 0.6) < 0.02 and abs(float(bias.sum())) < 1e-6


def test_raters_who_saw_other_images_are_compared_and_few_answers_are_not_believed():
    generator = torch.Generator().manual_seed(0)
    merit = torch.randint(1, 4, (400,), generator=generator).float()
    rater = torch.arange(400) // 200  # the first half is the one's, the second the other's
    bias = learning.rater_bias(merit - rater, torch.arange(400), rater)
    assert 0.7 < float(bias[0] - bias[1]) < 1.2
    scores = torch.cat([merit, torch.ones(2)])  # a third one calls two images bad, that others called best
    rows = torch.cat([torch.arange(400), (merit == 3).nonzero().flatten()[:2]])
    third = learning.rater_bias(scores, rows, torch.cat([torch.zeros(400), torch.ones(2)]).long())[1]
    assert -1.2 < float(third) < -0.2  # the difference is -2


def test_targets_are_shares_of_answers_with_repeats_joined(pool):
    originals = [item for item in pool.items if not item.repeat_of]
    repeat = next(item for item in pool.items if item.repeat_of)
    given = {item.item: (1 + i % 3, 3 - i % 3) for i, item in enumerate(originals)}
    given[repeat.item] = given[repeat.repeat_of]
    given.pop(originals[-1].item) if originals[-1].item != repeat.repeat_of else given.pop(originals[-2].item)
    found = learning.rated(pool, answers(pool, given))
    assert len(found.items) == len(originals) - 1 and not any(item.repeat_of for item in found.items)  # one without answer
    assert "one rater only, ana" in found.warnings[0] and found.bias["quality"] == {"ana": 0.0}
    for item, targets, good in zip(found.items, found.targets, found.good):
        quality, congruence = given[item.item]
        assert targets.tolist() == [[float(quality > 1), float(quality > 2)], [float(congruence > 1), float(congruence > 2)]]
        assert good.tolist() == [quality > 1, congruence > 1]
    joined = next(i for i, item in enumerate(found.items) if item.item == repeat.repeat_of)
    assert found.weights[joined] == 2 * found.weights[joined - 1] and abs(float(found.weights.mean()) - 1) < 1e-6
    assert torch.equal(found.passed, found.good.all(1))


def test_a_strict_rater_beside_a_mild_one_moves_no_target(pool):
    names = [item.item for item in pool.items if not item.repeat_of]
    mild = {name: (2 + i % 2, 2 + i % 2) for i, name in enumerate(names)}
    strict = {name: (q - 1, c - 1) for name, (q, c) in mild.items()}
    found = learning.rated(pool, answers(pool, mild) + answers(pool, strict, "bob"))
    assert abs(found.bias["quality"]["ana"] - 0.5) < 0.02 and abs(found.bias["quality"]["bob"] + 0.5) < 0.02
    alike = found.targets[:, 0, 0]  # 2 and 1 of the worse images become 1.5, 3 and 2 of the better ones 2.5
    assert torch.allclose(alike, torch.tensor([0.5 if i % 2 == 0 else 1.0 for i in range(len(names))]), atol=0.03)
    assert len(found.warnings) == 0


def test_the_newest_answer_counts(pool):
    given = {item.item: (1 + i % 3, 1 + i % 2) for i, item in enumerate(pool.items) if not item.repeat_of}
    first = answers(pool, given)
    changed = first[0].__class__(999, "ana", first[0].item, {"quality": 3, "congruence": 2}, (), "", 1.0, "")
    found = learning.rated(pool, [changed, *first])
    row = next(i for i, item in enumerate(found.items) if item.item == changed.item)
    assert found.targets[row, 0].tolist() == [1.0, 1.0] and found.fingerprint != learning.rated(pool, first).fingerprint


def test_answers_nothing_can_be_learned_from(pool, tmp_path):
    names = [item.item for item in pool.items]
    with pytest.raises(ValueError, match="all 64 scores of congruence are 2: nothing can be learned"):
        learning.rated(pool, answers(pool, {name: (1 + i % 3, 2) for i, name in enumerate(names)}))
    with pytest.raises(ValueError, match="1 of the rated items are none of the pool .*, such as 'other': these are ratings of"):
        learning.rated(pool, answers(pool, {"other": (1, 2)}))
    with pytest.raises(ValueError, match="says quality=7; the pool's scale has 1, 2, 3"):
        learning.rated(pool, answers(pool, {names[0]: (7, 2)}))
    with pytest.raises(ValueError, match="no ratings of the pool"):
        learning.rated(pool, [])
    lax = tiny_pool(tmp_path / "lax", axes=(Axis("quality", "?", {1: "a", 2: "b"}, good=1),))
    with pytest.raises(ValueError, match="axis 'quality': good=1 of 2 levels leaves nothing to tell apart"):
        learning.rated(lax, answers(lax, {}))


def test_a_table_of_answers(pool, tmp_path):
    names, path = [item.item for item in pool.items], tmp_path / "ratings.csv"
    path.write_text(f"rater,item,quality,congruence,remark\nana,{names[0]},3,1,\"a, b\"\nana,{names[1]},2,2,\n")
    found = learning.answers_of_table(path, pool)
    assert [(each.item, *each.scores.values()) for each in found] == [(names[0], 3, 1), (names[1], 2, 2)]
    path.write_text(f"rater,item,quality,congruence\nana,{names[0]},3,1\nana,{names[1]},good,2\n")
    with pytest.raises(ValueError, match=r"ratings.csv:3: scores \['good', '2'\] of quality, congruence"):
        learning.answers_of_table(path, pool)
    path.write_text("rater,item,quality\n")
    with pytest.raises(ValueError, match="column 'congruence' is missing"):
        learning.answers_of_table(path, pool)


def rated(prompts, labels=None, images=None, seed=0):
    """`Rated` images of these prompts, with scores at random."""
    generator = torch.Generator().manual_seed(seed)
    labels, images = labels or [""] * len(prompts), images or range(len(prompts))
    items = [Item(f"i{i}", f"images/{i}.png", str(images[i]), prompt, prompt, labels[i]) for i, prompt in enumerate(prompts)]
    targets = torch.rand(len(items), 2, 2, generator=generator).sort(descending=True).values
    good = targets[..., 0] > 0.5
    return learning.Rated(items, list(AXES), targets, torch.ones(len(items)), good, good.all(1), {}, "")


def test_no_prompt_and_no_image_stands_in_two_parts():
    prompts = [f"A {word} lesion" if i % 2 else f"a  {word} lesion." for i in range(4) for word in map(str, range(30))]
    images = [i % 100 for i in range(120)]  # twenty images stand under two prompts
    found = rated(prompts, images=images)
    rows, how = learning.divide(found, calibration=0.2, test=0.3, seed=1)
    assert how.startswith("by prompt") and rows == learning.divide(found, calibration=0.2, test=0.3, seed=1)[0]
    assert rows != learning.divide(found, calibration=0.2, test=0.3, seed=2)[0]
    for a, b in (("train", "test"), ("train", "calibration"), ("calibration", "test")):
        assert not {learning.plain(prompts[i]) for i in rows[a]} & {learning.plain(prompts[i]) for i in rows[b]}
        assert not {images[i] for i in rows[a]} & {images[i] for i in rows[b]}
    assert len(rows["test"]) == 36 and len(rows["calibration"]) > 12


@pytest.mark.parametrize("found, options, message", [
    (rated([f"p{i}" for i in range(20)]), {}, "20 rated images: at least 30 are needed"),
    (rated(["a", "b", "c"] * 20, ["a", "b", "c"] * 20), {}, "3 different prompts among 60 .* at least 10.*split.by='image'"),
    (rated([f"p{i}" for i in range(60)], ["a", "b", "c"] * 20), dict(by="image"), "60 prompts and 3 labels.*split.by='prompt'"),
    (rated([f"p{i}" for i in range(60)]), dict(by="patient"), "known are 'prompt' and 'image'"),
    (rated([f"p{i}" for i in range(60)]), dict(test=0.9), "shares above 0, less than 1 together"),
])
def test_splits_that_cannot_be(found, options, message):
    with pytest.raises(ValueError, match=message):
        learning.divide(found, **dict(calibration=0.2, test=0.2) | options)


def test_class_names_may_be_split_by_image():
    rows, how = learning.divide(rated(["a", "b", "c"] * 20, ["a", "b", "c"] * 20), calibration=0.2, test=0.2, by="image")
    assert how.startswith("by image: the 3 prompts are class names") and sorted(sum(rows.values(), [])) == list(range(60))


def test_the_calibration_finds_the_logistic_curve_that_outcomes_come_from():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 1, generator=generator)
    passed = torch.rand(4000, generator=generator) < torch.sigmoid(0.5 * logits[:, 0] + 1)
    found = learning.calibrated(logits, passed)
    assert abs(found["slope"][0] - 0.5) < 0.06 and abs(found["shift"][0] - 1) < 0.15
    alone = learning.calibrated(torch.tensor([[5.0], [4.0], [-5.0], [-4.0]]), torch.tensor([True, True, False, False]))
    assert alone["slope"][0] < 3  # separable outcomes do not make it sure


def test_the_threshold_reaches_the_precision_expected_or_says_that_none_does():
    scores = torch.tensor([0.99, 0.97, 0.9, 0.8, 0.5, 0.3, 0.1, 0.1])
    threshold, how = learning.chosen_threshold(scores, scores > 0.4, precision=0.9)
    assert threshold == pytest.approx(0.8) and "least with an expected precision of 0.9" in how  # (.99+.97+.9+.8)/4 = .915
    threshold, how = learning.chosen_threshold(scores / 2, scores > 0.4, precision=0.9)
    assert threshold == pytest.approx(0.25) and "best F1: none" in how
    threshold, how = learning.chosen_threshold(scores, scores > 0.4, precision=0.1)
    assert threshold == 0 and "none is needed" in how


# -- training and judgement -------------------------------------------------------------------------------------------------------

COLOURS, SIZES = ["red", "blue", "green", "black"], ["small", "large", "huge", "tiny"]


def worded(n, of, seed, wrong=0.4):
    """`Rated` images whose embedding (N, 8) shows colour and size, under prompts that name them, some of them wrongly."""
    random = np.random.default_rng(seed)
    colour, size = random.integers(0, 4, n), random.integers(0, 4, n)
    image = torch.from_numpy(random.normal(0, 0.3, (n, 8))).float()
    image[range(n), colour] += 1
    image[range(n), 4 + size] += 1
    false = random.random(n) < wrong
    said = np.where(false, (colour + random.integers(1, 4, n)) % 4, colour)
    prompts = [f"a {SIZES[s]} {COLOURS[c]} lesion" for s, c in zip(size, said)]
    found = rated(prompts, [COLOURS[c] for c in said])
    found.targets[:, 0] = torch.from_numpy(np.where(random.random(n) < 0.5, 1.0, 0.0)).float()[:, None]
    found.targets[:, 1] = torch.from_numpy(~false).float()[:, None]
    flipped = torch.from_numpy(random.random(n) < 0.15)
    found.targets[flipped, 1] = 1 - found.targets[flipped, 1]
    found.good = found.targets[..., 0] > 0.5
    found.passed = found.good[:, 1]
    return found, image, of.texts(prompts), torch.from_numpy(~false)


@pytest.fixture(scope="module")
def learned(colours):
    """A judge of 150 rated images without prompts of red and huge together, and images of just these prompts."""
    found, image, text, _ = worded(220, colours, 0)
    seen = [i for i, prompt in enumerate(found.prompts) if "huge red" not in prompt and "tiny blue" not in prompt][:150]
    examples = training.rated_examples(image, text, found).part(seen)
    judge = training.train(examples, AXES, epochs=60, members=3, seed=1)
    later, image, text, right = worded(3000, colours, 1)
    unseen = [i for i, prompt in enumerate(later.prompts) if "huge red" in prompt or "tiny blue" in prompt]
    return examples, judge, (image[unseen], text[unseen], right[unseen])


def test_words_are_judged_in_company_in_which_none_rated_them(learned):
    _, judge, (image, text, right) = learned
    with torch.inference_mode():
        values = judge(image, text).mean(0)[:, 1]
    assert len(right) > 200 and roc_auc_score(right, values) > 0.82


def test_the_same_seed_gives_the_same_filter(learned):
    examples, judge, _ = learned
    state = torch.random.get_rng_state()
    again = training.train(examples, AXES, epochs=60, members=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, judge.state_dict()[name]) for name, value in again.state_dict().items())


def examples_of(prompts, by="prompt"):
    """`Examples` of random embeddings under these prompts, with labels of the same names."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(len(prompts), 6, generator=generator), torch.randn(len(prompts), 5, generator=generator)
    return training.rated_examples(image, text, rated(prompts, prompts), by=by)


@pytest.mark.parametrize("n, by", [(3, "image"), (3, "prompt"), (6, "prompt")])
def test_every_member_holds_something_out_of_fewer_prompts_than_members(n, by, monkeypatch):
    held_out, train_member = [], training._train_member
    monkeypatch.setattr(training, "_train_member", lambda judge, member, own, *rest, **options: (
        held_out.append((set(own[0].units), set(own[1].units))), train_member(judge, member, own, *rest, **options)))
    judge = training.train(examples_of([f"class {i % n}" for i in range(60)], by), AXES, epochs=2, members=8)
    assert len(held_out) == 8 and all(inside and outside and not inside & outside for inside, outside in held_out)
    assert len(held_out[0][0] | held_out[0][1]) == (60 if by == "image" else n)  # by image, all class names stay in training
    assert all(bool(value.isfinite().all()) for value in judge.state_dict().values())


def test_one_prompt_alone_holds_nothing_out():
    with pytest.raises(ValueError, match="all 40 images to train on have one prompt"):
        training.train(examples_of(["a lesion"] * 40), AXES, epochs=1, members=2)


def test_members_keep_the_cut_points_they_were_trained_to(monkeypatch):
    after, train_member = [], training._train_member

    def kept(judge, member, *rest, **options):
        train_member(judge, member, *rest, **options)
        after.append((judge.firsts[member].detach().clone(), judge.steps[member].detach().clone()))

    monkeypatch.setattr(training, "_train_member", kept)
    judge = training.train(examples_of([f"p{i}" for i in range(60)]), AXES, epochs=10, members=3, weight_decay=0.5)
    for member, (firsts, steps) in enumerate(after):
        assert torch.equal(judge.firsts[member], firsts) and torch.equal(judge.steps[member], steps) and bool(firsts.any())


def test_swapped_prompts_teach_what_few_ratings_do_not(colours):
    found, image, text, _ = worded(60, colours, 0, wrong=0.1)
    later, *tested, right = worded(1000, colours, 1)
    reached = {}
    for swaps in (0.0, 1.0):
        judge = training.train(training.rated_examples(image, text, found), AXES, swaps=swaps, ranking=0, epochs=40, members=2)
        with torch.inference_mode():
            reached[swaps] = roc_auc_score(right, judge(*tested).mean(0)[:, 1])
    assert reached[1.0] > reached[0.0] + 0.1


def test_real_pairs_alone_teach_which_words_belong_to_which_image(colours):
    found, image, text, _ = worded(60, colours, 0)
    found.targets[:, 1] = found.targets[torch.randperm(60, generator=torch.Generator().manual_seed(0)), 1]  # ratings say nothing
    examples = training.rated_examples(image, text, found)
    true, image, text, _ = worded(300, colours, 2, wrong=0)
    pairs = training.real_examples(image, text, AXES, [item.label for item in true.items], true.prompts)
    assert pairs.targets[:, :, 0].eq(1).all() and pairs.targets[:, :, 1].isnan().all()  # good, how good is not known
    later, *tested, right = worded(1000, colours, 1)
    judge = training.train(examples, AXES, pairs=pairs, pair_weight=2.0, epochs=40, members=2)
    with torch.inference_mode():
        assert roc_auc_score(right, judge(*tested).mean(0)[:, 1]) > 0.85


def test_scales_without_such_an_axis(learned):
    examples, *_ = learned
    with pytest.raises(ValueError, match="config.filter.matches='fit' is no axis of the pool's scale: known are quality"):
        training.train(examples, AXES, matches="fit")
    judge = training.train(examples, AXES, matches="", epochs=2, members=1)  # no swapped prompts then
    assert judge.levels == [3, 3]


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    good, scores = random.random(200) < 0.3, random.integers(0, 20, 200) / 20  # with ties
    assert judged.auroc(scores, good) == pytest.approx(roc_auc_score(good, scores))
    assert np.isnan(judged.auroc(scores, np.ones(200, bool)))


def report(signal, n=120, seed=0, threshold=0.5, base=0.5, each=2, by="prompt", easy=0.0):
    """The report of scores that are `signal` times what the raters say, plus noise.

    each: images of a prompt. easy: share of them that are real images and controls, which are told apart without fail.
    """
    found = rated([f"prompt {i // each}" for i in range(n)], ["ab"[i % 2] for i in range(n)])
    generator = torch.Generator().manual_seed(seed)
    found.passed = torch.rand(n, generator=generator) < base
    found.good = torch.stack([found.passed, found.passed], dim=1)
    logits = signal * (found.passed.float() - 0.5) + torch.randn(n, generator=generator)
    for i in range(round(easy * n)):
        found.items[i] = replace(found.items[i], **{"kind": "real"} if i % 2 else {"control": "blurred"})
        found.passed[i], found.good[i], logits[i] = bool(i % 2), bool(i % 2), 9 * (i % 2) - 4.5
    return judged.report(logits.sigmoid(), {axis.name: torch.stack([logits, logits - 1], 1) for axis in AXES}, found,
                         threshold=threshold, by=by)


def test_a_filter_that_knows_something_is_called_useful_with_what_it_costs():
    found = report(2)
    assert found["useful"] and found["verdict"].startswith("Useful: AUROC 0.") and found["prompts"] == 60
    whole, kept = found["scores"]["auroc"], found["scores"]["kept_good"]
    assert 0.5 < whole["low"] < whole["value"] < whole["high"] <= 1 and kept["value"] > found["scores"]["rated_good"]["value"] + 0.2
    shares = [row["kept"]["value"] for row in found["grid"]]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)
    assert sum(each["n"] for each in found["calibration"]) == 120 and set(found["per_class"]) == {"a", "b"}
    json.dumps(found, allow_nan=False)
    assert "Useful" in judged.told(found)
    told = judged.scores_json(found, encoder="colour", nnet="x", seed=0)
    assert all(entry["meaning"] for entry in told["scores"].values()) and told["n"] == 120


@pytest.mark.parametrize("options, words", [
    (dict(signal=0, seed=1), "is not beyond chance|below chance"), (dict(signal=-3), "Not useful: it scores below chance"),
    (dict(signal=4, threshold=1.0), "it keeps no image"), (dict(signal=4, threshold=0.0), "Not useful at its threshold"),
    (dict(signal=4, base=1.0), "raters call 100% of the test images good, which tests nothing")])
def test_a_filter_at_chance_or_below_says_so(options, words):
    found = report(**options)
    assert not found["useful"] and re.search(words, found["verdict"]) and found["verdict"] in found["warnings"]
    json.dumps(found, allow_nan=False)


def test_few_test_images_are_told():
    assert any("30 images in the test" in text for text in report(4, n=30)["warnings"])


def test_what_controls_and_real_images_add_is_told_apart():
    found = report(1, n=200, easy=0.3)
    table, alone = found["scores"], found["generated"]
    assert alone["n"] == 140 and alone["auroc"] == table["auroc_generated"] and table["kept_good_generated"]["n"] < 140
    assert table["auroc"]["value"] > alone["auroc"]["value"] + 0.05 and alone["auroc"]["low"] > 0.5
    assert found["useful"] and found["shown_on_generated"] and "On the 140 generated images alone: AUROC 0." in found["verdict"]
    assert "auroc_generated" in judged.told(found)
    told = judged.scores_json(found, encoder="colour", nnet="x", seed=0)
    assert {"auroc_generated", "kept_good_generated", "rated_good_generated"} <= set(told["scores"])
    json.dumps(found, allow_nan=False)


def test_a_filter_that_tells_real_images_and_controls_alone_is_not_useful():
    chance = report(0, n=200, easy=0.5, seed=2)
    alone = chance["generated"]["auroc"]
    assert chance["scores"]["auroc"]["low"] > 0.5 and alone["low"] < 0.5 and not chance["shown_on_generated"]
    assert alone["value"] > 0.5 and "generated images alone it is not shown to do better than chance" in chance["verdict"]
    assert chance["verdict"] in chance["warnings"]
    below = report(-1, n=200, easy=0.6)
    assert below["scores"]["auroc"]["low"] > 0.5 and not below["useful"]
    assert "comes from real images and controls" in below["verdict"]
    assert report(1, n=200, easy=1.0)["verdict"].endswith("no generated images in the test, and nothing is shown of them.")


def test_few_prompts_in_the_test_show_no_use():
    found = report(4, n=120, each=10)
    assert not found["useful"] and "too few prompts in the test to tell, 12 with" in found["verdict"]
    assert report(4, n=120, each=6)["useful"]
    assert "too few prompts" in report(4, n=120, base=0.02)["verdict"]
    found = rated([f"prompt {i // 20}" for i in range(40)])  # good, and not: half of the resamples test nothing
    found.passed = torch.arange(40) < 20
    scores = torch.linspace(1, 0, 40)
    for seed in range(4):
        logits = {axis.name: torch.stack([scores, scores], 1) for axis in AXES}
        told = judged.report(scores, logits, found, threshold=0.5, seed=seed)
        assert not told["useful"] and judged.told(told)


def test_a_split_by_image_is_told_as_one():
    found = report(4, n=120, each=40, by="image")
    assert found["useful"] and found["prompts"] == 3
    assert "120 images that it was not trained on, of 3 prompts that it was" in found["verdict"]
    told = judged.scores_json(found, encoder="colour", nnet="x", seed=0)
    assert told["interval"].endswith("120 images of the test, which training did not see; their 3 prompts it did")
    assert "too few images in the test" in report(4, n=16, each=8, by="image")["verdict"]
