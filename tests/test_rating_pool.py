"""Building a pool: shares as asked, nothing that tells raters what an image is, and refusals before anything is lost."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scipy.stats import mannwhitneyu

from libs.ratings import Pool, building, wording
from libs.ratings.pool import APART, RATINGS
from libs.ratings.store import Store, new_token

LABELS = ("nevus", "melanoma", "angioma")
CONFIG = "--config=configs/rating.py"


def folder_of_samples(folder, n=30, *, side=16, seed=0, texts=True, mode="RGB", columns=None, masks=False):
    """A folder as sample.py leaves it; image i is of label i % 3, and of one of 5 texts of its label."""
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, n, side])
    rows = []
    for i in range(n):
        told = PngImagePlugin.PngInfo()
        told.add_text("seed", "secret")
        levels = random.integers(0, 65536 if mode == "I;16" else 256, (side, side, 3)[:3 if mode == "RGB" else 2])
        Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.uint8)).save(folder / f"{i:06d}.png", pnginfo=told)
        row = {"file_name": f"{i:06d}.png", "label": LABELS[i % 3]}
        row |= {"text": f"a lesion of kind {i // 3 % 5}"} if texts else {}
        if masks:
            Image.fromarray(np.tri(side, dtype=np.uint8) * (1 + i % 2)).save(folder / f"{i:06d}-mask.png")
            row["mask_file_name"] = f"{i:06d}-mask.png"
        rows.append(row | {"index": i, "seed": 7, "sampler": "ddim"} | (columns or {}))
    write_table(folder, rows)
    return folder


def write_table(folder, rows):
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    return {"a": folder_of_samples(root / "a" / "images_seed0", seed=1),
            "b": folder_of_samples(root / "b" / "images_seed0", seed=2),
            "real": folder_of_samples(root / "atlas", seed=3, side=20)}


@pytest.fixture(scope="module")
def pool(folders, tmp_path_factory, inside):
    """40 images: 8 real, 4 swapped, 1 of each damage, 24 others of two models; 10 shown twice."""
    return built(inside, tmp_path_factory.mktemp("pool") / "pool", folders["a"], folders["b"], **{
        "real": folders["real"], "size": 40, "repeat_share": 0.25, "controls.swapped": 0.1, "controls.blurred": 0.025,
        "controls.noisy": 0.025, "controls.occluded": 0.025, "controls.cast": 0.025})


def built(inside, folder, *models, fails=False, seed=3, **options):
    given = [f"--config.pool.{key}={value}" for key, value in options.items()]
    done = inside("scripts/build_rating_pool.py", CONFIG, f"--models={','.join(map(str, models))}", f"--output={folder}",
                  f"--config.seed={seed}", *given, fails=fails)
    return done.stderr if fails else Pool(folder)


def test_shares_are_those_asked_for_and_models_and_prompts_take_turns(pool):
    own = [item for item in pool.items if not item.repeat_of]
    assert Counter(item.control for item in own) == {"": 32, "swapped": 4, "blurred": 1, "noisy": 1, "occluded": 1, "cast": 1}
    assert Counter(item.kind for item in own) == {"synthetic": 32, "real": 8} and len(pool.items) == 50
    right = [item for item in own if not item.control and item.kind == "synthetic"]
    made = [item for item in own if item.kind == "synthetic"]
    assert Counter(item.source["model"] for item in made) == {"a/images_seed0": 16, "b/images_seed0": 16}
    prompts = {model: Counter(wording(item.source["text"], item.source["label"]) for item in made if item.source["model"] == model)
               for model in ("a/images_seed0", "b/images_seed0")}
    assert all(len(each) == 15 and max(each.values()) == 2 for each in prompts.values())  # 16 images of 15 prompts
    assert all(item.prompt == wording(item.source["text"], item.source["label"]) for item in right)
    assert len({(item.source["folder"], item.source["file_name"]) for item in own}) == 40  # no image twice
    assert not any(item.repeat_of and item.control for item in pool.items)


def test_nothing_but_the_pixels_tells_what_an_image_is(pool):
    for item in pool.items:
        raw = (pool.folder / item.image).read_bytes()
        with Image.open(pool.folder / item.image) as image:
            assert image.info == {} and image.size == (16, 16) and image.mode == "RGB"
        assert b"secret" not in raw and b"tEXt" not in raw and b"tIME" not in raw
        assert re.fullmatch("[0-9a-f]{12}", item.item)
    assert {path.name for path in (pool.folder / "images").iterdir()} == {f"{item.item}.png" for item in pool.items}
    for order in (range(len(pool.items)), np.argsort([item.item for item in pool.items])):  # in the file, and by name
        for told in (lambda item: item.kind == "real", lambda item: item.control, lambda item: item.repeat_of,
                     lambda item: item.source["model"].startswith("a"), lambda item: item.label == "nevus"):
            marked = np.array([bool(told(pool.items[k])) for k in order])
            assert 0 < marked.sum() < len(marked) and mannwhitneyu(np.nonzero(marked)[0], np.nonzero(~marked)[0]).pvalue > 0.01


def test_repeats_show_the_same_file_under_another_name(pool):
    again = [item for item in pool.items if item.repeat_of]
    for item in again:
        first = pool.by_name[item.repeat_of]
        assert (item.sha256, item.prompt, item.kind) == (first.sha256, first.prompt, first.kind) and item.item != first.item
    assert len({item.repeat_of for item in again}) == 10


def test_each_rater_has_an_order_of_their_own_with_repeats_apart(pool):
    orders = {rater: pool.order(rater) for rater in ("anna", "bob", "Zoë")}
    assert orders["anna"] == pool.order("anna") and len({tuple(order) for order in orders.values()}) == 3
    for rater in map(str, range(30)):
        order = pool.order(rater)
        assert sorted(order) == sorted(pool.by_name)
        for item in pool.items:
            if item.repeat_of:
                assert abs(order.index(item.item) - order.index(item.repeat_of)) >= min(APART, 10)


def test_swapped_prompts_are_of_another_label_and_damage_leaves_the_prompt(pool, folders):
    for item in pool.items:
        if item.control == "swapped":
            assert item.label != item.source["label"] and item.prompt == wording(item.text, item.label)
        elif item.control:
            assert item.label == item.source["label"]
        original = np.asarray(Image.open(f"{item.source['folder']}/{item.source['file_name']}"))
        shown = np.asarray(Image.open(pool.folder / item.image))
        damaged = item.control not in ("", "swapped")
        assert item.kind == "real" or np.array_equal(original, shown) != damaged


def test_the_seed_alone_decides_the_pool(folders, tmp_path, inside):
    options = {"size": 12, "real_share": 0, "controls.swapped": 0.1}
    first, again = (built(inside, tmp_path / name, folders["a"], **options) for name in ("one", "two"))
    other = built(inside, tmp_path / "three", folders["a"], seed=4, **options)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert [item.prompt for item in first.items] != [item.prompt for item in other.items]


def test_a_pool_with_ratings_or_a_folder_of_something_else_is_never_replaced(folders, tmp_path, inside):
    pool = built(inside, tmp_path / "pool", folders["a"], size=8)
    before = pool.fingerprint
    assert built(inside, tmp_path / "pool", folders["a"], size=9).fingerprint != before  # nobody has answered yet
    with Store.of(Pool(pool.folder)):
        pass  # the page was started once, and nobody was there
    pool = built(inside, tmp_path / "pool", folders["a"], size=8)
    assert pool.fingerprint == before and not (pool.folder / RATINGS).exists()
    with Store.of(pool) as store:
        store.add_rater("anna")
        assert "raters (1 in" in built(inside, tmp_path / "pool", folders["a"], size=9, fails=True)
        scores = {axis.name: 1 for axis in pool.axes}
        store.answer("anna", pool.items[0].item, scores=scores, token=new_token())
        assert "holds ratings (1 answers" in built(inside, tmp_path / "pool", folders["a"], size=9, fails=True)
        assert len(store.answers()) == 1
    (pool.folder / RATINGS).write_bytes(b"answers")
    assert "cannot be read" in built(inside, tmp_path / "pool", folders["a"], size=9, fails=True)
    assert (pool.folder / RATINGS).read_bytes() == b"answers" and Pool(pool.folder).fingerprint == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    assert "is no pool" in built(inside, tmp_path / "thesis", folders["a"], fails=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years"


@pytest.mark.parametrize("options, message", [
    ({"size": 100}, "needs 100 generated images, and there are 30"),
    ({"size": 3}, "too small"),
    ({"size": 20, "controls.swapped": 0.99}, "too small"),
    ({"controls.swapped": 1.5}, "share is at least 0 and below 1"),
    ({"repeat_share": 0.99, "controls.swapped": 0.3}, "are no controls"),
])
def test_impossible_numbers_are_told(folders, tmp_path, inside, options, message):
    assert message in built(inside, tmp_path / "pool", folders["a"], fails=True, **options)
    assert not (tmp_path / "pool").exists()


def test_folders_that_cannot_serve_are_told(folders, tmp_path, inside):
    def fault(*models, **options):
        return built(inside, tmp_path / "pool", *models, fails=True, **options)
    (tmp_path / "empty").mkdir()
    assert "has no metadata.csv" in fault(tmp_path / "empty")
    assert "is there twice" in fault(folders["a"], folders["a"])
    other = folder_of_samples(tmp_path / "larger", side=24)
    assert "different sizes" in (said := fault(folders["a"], other)) and "smallest side: pool.resolution=16" in said
    assert "has a side of 16" in (said := fault(folders["a"], other, resolution=20)) and "Set pool.resolution=16 or less" in said
    said = fault(other, real=folders["real"])
    assert "has a side of 20 pixels, less than the 24 of the pool" in said and "upscale" not in said
    (other / "000003.png").unlink()
    assert "000003.png" in fault(other)
    (other / "000003.png").write_bytes(b"no image")
    assert "000003.png" in fault(other, resolution=16)
    assert "--models" in inside("scripts/build_rating_pool.py", CONFIG, f"--output={tmp_path / 'pool'}", fails=True).stderr
    silent = folder_of_samples(tmp_path / "silent", 6)
    write_table(silent, [{"file_name": f"{i:06d}.png", "index": i} for i in range(6)])
    assert "no text and no label" in fault(silent)
    unlike = folder_of_samples(tmp_path / "unlike")
    write_table(unlike, [{"file_name": f"{i:06d}.png", "label": LABELS[i % 3]} for i in range(30)])
    assert "real ones none" in fault(folders["a"], real=unlike)
    one = folder_of_samples(tmp_path / "one", 8)
    write_table(one, [{"file_name": f"{i:06d}.png", "text": "a lesion"} for i in range(8)])
    assert "pool.controls.swapped=0" in fault(one, **{"controls.swapped": 0.3})


def test_images_of_several_sizes_are_brought_to_one(folders, tmp_path, inside):
    other = folder_of_samples(tmp_path / "larger", side=24)
    pool = built(inside, tmp_path / "pool", folders["a"], other, resolution=16, real=folders["real"], size=20)
    assert {Image.open(pool.folder / item.image).size for item in pool.items} == {(16, 16)}


def test_columns_of_a_table_do_not_rename_the_model(tmp_path, inside):
    made = folder_of_samples(tmp_path / "made", 12, columns={"model": "best one", "folder": "elsewhere"})
    pool = built(inside, tmp_path / "pool", made)
    assert {(item.source["model"], item.source["folder"]) for item in pool.items} == {("made", str(made))}


def test_real_images_are_asked_about_as_generated_ones_are(folders, tmp_path, inside):
    """Where models take labels alone, a real image's report would give it away."""
    plain = folder_of_samples(tmp_path / "plain", texts=False)
    pool = built(inside, tmp_path / "pool", plain, real=folders["real"], real_share=0.4)
    assert {item.prompt for item in pool.items} == set(LABELS)
    assert any(item.kind == "real" for item in pool.items)


def candidates(n, *, text="", label="", modality="", kind="synthetic"):
    return [building.Candidate(lambda: np.zeros((8, 8, 3), np.uint8), text, label, modality, kind,
                               source={"folder": kind, "file_name": f"{i}.png"}) for i in range(n)]


def drawn(synthetic, real, size=10, real_share=0.4):
    chosen = building.choose(synthetic, real, size=size, real_share=real_share, controls={}, random=np.random.default_rng(0))
    return [shown.asked for shown in chosen if shown.asked.kind == "real"]


def test_a_prompt_has_the_form_of_generated_ones_or_its_real_image_is_left_out():
    made = candidates(6, text="a lesion", label="nevus", modality="OCT")
    whole, no_text, no_modality = (candidates(4, **{"text": "a lesion", "label": "nevus", "modality": "OCT", "kind": "real"} | part)
                                   for part in ({}, {"text": ""}, {"modality": ""}))
    assert {each.prompt for each in drawn(made, no_text + whole + no_modality)} == {"OCT: nevus: a lesion"}
    with pytest.raises(ValueError, match="have a modality and the real ones none"):
        drawn(made, no_modality)
    with pytest.raises(ValueError, match="have text and label and modality, and the real ones label and modality or text"):
        drawn(made, no_text + no_modality)
    plain = candidates(6, label="nevus")  # whatever generated images never have is not shown
    assert {each.prompt for each in drawn(plain, no_text + whole)} == {"nevus"}


def test_real_images_have_labels_of_generated_ones_in_their_spelling():
    made = candidates(6, label="Nevus")
    known, others = candidates(4, label="nevus", kind="real"), candidates(9, label="melanoma", kind="real")
    assert {each.prompt for each in drawn(made, others + known)} == {"Nevus"}
    with pytest.raises(ValueError, match="they have 'Nevus', and the real ones 'melanoma'"):
        drawn(made, others)
    with pytest.raises(ValueError, match="needs 4 real images, and there are 3 of 12 with labels and prompts like"):
        drawn(made, others + known[:3])
    assert len(drawn(candidates(6, text="a lesion"), others + candidates(4, text="an OCT", kind="real"))) == 4  # no labels at all


def test_deep_grey_is_shown_in_its_window_and_the_modality_stands_before_the_text(tmp_path, inside):
    made = folder_of_samples(tmp_path / "made", 12, mode="L", columns={"modality": "OCT"})
    real = folder_of_samples(tmp_path / "real", 12, mode="I;16", columns={"modality": "OCT"})
    pool = built(inside, tmp_path / "pool", made, real=real, real_window=(1000, 2000), real_share=0.3)
    item = next(item for item in pool.items if item.kind == "real")
    raw = np.asarray(Image.open(real / item.source["file_name"])).astype(float)
    shown = np.asarray(Image.open(pool.folder / item.image))
    assert np.abs(shown[..., 0] - ((raw - 1000) / 1000).clip(0, 1) * 255).max() <= 1
    assert all(item.prompt.startswith("OCT: ") and item.modality == "OCT" for item in pool.items)


def test_masks_are_shown_where_all_images_have_one(folders, tmp_path, inside):
    masked = folder_of_samples(tmp_path / "masked", 12, masks=True)
    pool = built(inside, tmp_path / "pool", masked)
    for item in pool.items:
        mask = np.asarray(Image.open(pool.folder / item.mask))
        second = int(item.source["index"]) % 2  # number of the only class, less one
        assert mask.shape == (16, 16, 3) and {tuple(each) for each in mask.reshape(-1, 3).tolist()} == {
            building.COLOURS[0], building.COLOURS[1 + second]}
    assert not any(item.mask for item in built(inside, tmp_path / "mixed", masked, folders["a"]).items)


@pytest.mark.parametrize("axes, message", [
    ({}, "no axis"),
    ({"quality": dict(question="?", levels=("bad",), good=1)}, "two or more"),
    ({"quality": dict(question="?", levels=("bad", ""), good=2)}, "two or more"),
    ({"quality": dict(question="?", levels=("bad", "good"), good=3)}, "one of 2 .. 2"),
    ({"rater": dict(question="?", levels=("bad", "good"), good=2)}, "none of"),
    ({"Image quality": dict(question="?", levels=("bad", "good"), good=2)}, "small letters"),
])
def test_a_scale_that_nobody_can_answer_on_is_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        building.scale(axes)


def test_unknown_controls_and_orders_are_told():
    with pytest.raises(ValueError, match="'melted' is unknown; known: swapped, blurred"):
        building.choose([], [], size=8, real_share=0, controls={"melted": 0.1}, random=np.random.default_rng(0))
    with pytest.raises(ValueError, match="'beauty' is no axis"):
        building.scale({"quality": dict(question="?", levels=("bad", "good"), good=2)}, ("beauty",))
