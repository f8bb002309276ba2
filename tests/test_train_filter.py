"""train_filter.py and scripts/apply_filter.py: from rated images to sorted ones, and the page of such a run."""

import csv
import hashlib
import json
import shutil
from dataclasses import asdict, replace

import ml_collections
import numpy as np
import pytest
import torch
from PIL import Image

from libs import report
from libs.evaluation import rated_pairs, references
from libs.ratings import Pool, load_filter, wording
from libs.ratings.judged import auroc
from libs.ratings.pool import FILE, ITEMS, fingerprint
from libs.ratings.store import Store, new_token
from tests.ratings_pools import CLASSES, tiny_pool

CONFIG = "--config=configs/filter_words.py"
QUICK = ("--config.encoder.text.dim=32", "--config.filter.epochs=40", "--config.filter.members=2")
SMALL = ("--config.encoder.images=('colour',)", *QUICK)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """90 images of which 30 stand under the prompt of another class, rated by two people of whom one is strict."""
    pool = tiny_pool(tmp_path_factory.mktemp("pool"), 90, 6, controls=30)
    random = np.random.default_rng(0)
    with Store.of(pool) as store:
        for rater, strict in (("ana", 0), ("bob", 1)):
            store.add_rater(rater)
            for item in pool.items:
                fits = 1 if item.control else 3
                scores = {"quality": int(random.integers(2 - strict, 4 - strict)), "congruence": max(1, fits - strict)}
                store.answer(rater, item.item, scores=scores, token=new_token())
    return pool


@pytest.fixture(scope="module")
def trained(pool, inside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "filter_run"
    done = inside("train_filter.py", CONFIG, *SMALL, f"--config.ratings.pool={pool.folder}", f"--workdir={folder}",
                  "--config.filter.precision=0.8")
    return folder, done.stdout


def test_the_run_leaves_a_filter_and_what_it_is_worth(pool, trained):
    folder, out = trained
    judge = load_filter(folder / "filter")
    told = json.loads((folder / "filter" / "config.json").read_text())
    assert told["pool"] == pool.fingerprint and told["parts"] == {"train": 54, "calibration": 18, "test": 18}
    assert told["seen"]["sizes"] == [[24, 24]] and {"nevus", "small", "89"} <= set(told["seen"]["words"])
    assert set(told["rater_bias"]) == {"quality", "congruence"} and "ana" not in (folder / "filter" / "config.json").read_text()
    assert judge.report["n"] == 18 and judge.report["verdict"] in out and str(folder / "filter") in out
    scores = json.loads((folder / "eval" / "filter" / "scores.json").read_text())
    assert scores["scores"]["auroc"]["value"] == judge.report["scores"]["auroc"]["value"] and scores["n"] == 18
    for name in ("calibration", "yield", "accepted_rejected"):
        with Image.open(folder / "eval" / "filter" / f"{name}.png") as image:
            assert image.size[0] > 300
    assert "base64" in report.write(folder).read_text() and judge.report["scores"]["auroc_congruence"]["value"] > 0.7


def test_wrong_images_are_scored_lower_than_right_ones(pool, trained):
    judge = load_filter(trained[0])
    items = [item for item in pool.items if not item.repeat_of]
    pictures = [torch.from_numpy(np.array(Image.open(pool.folder / item.image))).permute(2, 0, 1) for item in items]
    scores, levels = judge.judged(pictures, [item.prompt for item in items])
    right = np.array([not item.control for item in items])
    assert auroc(levels["congruence"].numpy(), right) > 0.85 and auroc(scores.numpy(), right) > 0.85


def test_an_exported_table_gives_the_same_filter(pool, trained, inside, tmp_path):
    inside("rate.py", "--config=configs/rating.py", f"--pool={pool.folder}", f"--export={tmp_path / 'ratings.csv'}")
    again = tmp_path / "again"
    inside("train_filter.py", CONFIG, *SMALL, f"--config.ratings.pool={pool.folder}", "--config.filter.precision=0.8",
           f"--config.ratings.path={tmp_path / 'ratings.csv'}", f"--workdir={again}")
    assert load_filter(again).fingerprint == load_filter(trained[0]).fingerprint


def test_real_pairs_train_the_image_network_and_are_taken_along(pool, inside, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "NETWORKS", tmp_path / "networks")
    images = tmp_path / "real"
    random = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (images / name).mkdir(parents=True)
        for number in range(12):
            picture = np.array(colour) + random.integers(-20, 20, (24, 24, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(images / name / f"{number}.png")
    folder = tmp_path / "run"
    inside("train_filter.py", CONFIG, *QUICK, "--config.encoder.images=('classifier','colour')",
           f"--config.ratings.pool={pool.folder}", f"--config.pairs.path={images}", "--config.pairs.resolution=24",
           f"--workdir={folder}")
    told = json.loads((folder / "filter" / "config.json").read_text())
    assert told["real_pairs"] == 36 and told["encoder"]["images"] == ["classifier:{filter}/images0", "colour"]
    assert load_filter(folder).embedding.dims[0] == 64 + 6


def real_images(folder, side=24, n=6):
    """A folder of classes with a table of texts and modalities, and its rows: two classes, every text there once in each."""
    random, rows = np.random.default_rng(1), []
    folder.mkdir()
    for number in range(n):
        for name in ("nevus", "angioma"):
            picture = np.array(CLASSES[name]) + random.integers(-20, 20, (side, side, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{name}{number}.png")
            rows.append([f"{name}{number}.png", name, f"a lesion, no. {number}", "dermoscopy"])
    with open(folder / "metadata.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["file_name", "label", "text", "modality"], *rows])
    return folder


def beside(pool, folder, unseen=(), side=24, **options):
    section = ml_collections.ConfigDict(dict(name="folder", path=str(folder), resolution=side, split="", **options))
    pictures = [torch.from_numpy(np.array(Image.open(pool.folder / item.image))).permute(2, 0, 1) for item in pool.items]
    return rated_pairs.beside(section, pool, pictures=pictures, unseen=unseen)


def left_out(pairs):
    return tuple(pairs.left_out.values())


def test_real_pairs_are_no_images_of_the_pool(tmp_path, caplog):
    pool, folder = tiny_pool(tmp_path / "pool", real=3), real_images(tmp_path / "real")
    assert left_out(beside(pool, folder)) == (0, 0, 0)
    places = [i for i, item in enumerate(pool.items) if item.kind == "real"]
    pool.items[places[0]] = replace(pool.items[places[0]], source={"folder": str(folder), "file_name": "nevus2.png"})
    shutil.copyfile(folder / "angioma4.png", pool.folder / pool.items[places[1]].image)  # of a source that has another name
    found = beside(pool, folder)
    names = [found.dataset.file_name(i) for i in found.rows]
    assert left_out(found) == (2, 0, 0) and len(names) == 10 and not {"nevus2.png", "angioma4.png"} & set(names)
    assert found.unrated == found.rows and left_out(beside(pool, folder, side=12)) == (2, 0, 0)
    with caplog.at_level("INFO"):
        beside(pool, folder)
    assert "real pairs: 10 of 12 images; left out: 2 images of the pool" in caplog.text


def test_real_pairs_are_worded_as_the_pool_is_and_leave_its_test_alone(tmp_path, caplog):
    pool, folder = tiny_pool(tmp_path / "pool"), real_images(tmp_path / "real")
    assert beside(pool, folder).prompts[0] == "nevus: a lesion, no. 0"  # as generated images have no modality
    for i, item in enumerate(pool.items):
        pool.items[i] = replace(item, modality="dermoscopy", prompt=wording(item.text, item.label, "dermoscopy"))
    assert beside(pool, folder).prompts[0] == "dermoscopy: nevus: a lesion, no. 0"
    item = replace(pool.items[0], text="dermoscopy: a lesion, no. 3", label="nevus", modality="",
                   prompt="nevus: dermoscopy: a lesion, no. 3")  # as of a data set that writes modalities into its texts
    found = beside(pool, folder, [item])
    assert left_out(found) == (0, 0, 1) and "nevus3.png" not in [found.dataset.file_name(i) for i in found.rows]
    every = [replace(item, text=text, label=label, prompt=wording(text, label)) for label in ("nevus", "angioma")
             for text in (f"a lesion, no. {i}" for i in range(6))]
    with caplog.at_level("INFO"):
        assert beside(pool, folder, every).rows == [] and len(beside(pool, folder, every).unrated) == 12
    assert caplog.records[-1].levelname == "WARNING" and "12 under prompts held out" in caplog.text


def of_class_names(pool, source, rated=0):
    """The pool with prompts that are class names, whose first `rated` nevi and angiomas are images of a folder."""
    items, files = [], sorted(source.glob("*.png"))[:rated]
    for item in pool.items:
        if files and item.kind == "real":
            file = files.pop()
            shutil.copyfile(file, pool.folder / item.image)
            item = replace(item, source={"folder": str(source), "file_name": file.name})
        sha256 = hashlib.sha256((pool.folder / item.image).read_bytes()).hexdigest()
        items.append(replace(item, text="", prompt=item.label, sha256=sha256))
    told = json.loads((pool.folder / FILE).read_text())
    told["fingerprint"] = fingerprint(pool.axes, pool.tags, items)
    (pool.folder / ITEMS).write_text("".join(f"{json.dumps(asdict(item))}\n" for item in items))
    (pool.folder / FILE).write_text(json.dumps(told))
    return Pool(pool.folder)


def test_class_names_are_split_by_image_with_real_pairs_of_other_images(inside, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "NETWORKS", tmp_path / "networks")
    folder = real_images(tmp_path / "real", n=12)
    pool = of_class_names(tiny_pool(tmp_path / "pool", 90, 0, controls=30, real=4), folder, rated=4)
    (tmp_path / "ratings.csv").write_text("rater,item,quality,congruence\n" + "".join(
        f"ana,{item.item},{2 + i % 2},{1 if item.control else 3}\n" for i, item in enumerate(pool.items)))
    options = ("--config.encoder.images=('classifier','colour')", "--config.split.by=image", f"--config.ratings.pool={pool.folder}",
               f"--config.ratings.path={tmp_path / 'ratings.csv'}", f"--config.pairs.path={folder}",
               "--config.pairs.resolution=24", "--config.encoder.text.dim=32", "--config.filter.epochs=2")
    out = inside("train_filter.py", CONFIG, *options, f"--workdir={tmp_path / 'run'}").stdout
    told = json.loads((tmp_path / "run" / "filter" / "config.json").read_text())
    assert told["real_pairs"] == 20 and told["pairs_left_out"]["images of the pool"] == 4
    assert "18 images that it was not trained on, of 3 prompts that it was" in out and told["report"]["by"] == "image"
    network, = (tmp_path / "networks").iterdir()
    known = json.loads((network / "config.json").read_text())
    assert "unrated-images" in network.name and known["trained_on"] + known["held_out"] == 20


def test_messages_of_what_cannot_be_trained(pool, inside, tmp_path):
    def error(*options, of=pool.folder):
        done = inside("train_filter.py", CONFIG, *(QUICK if options else SMALL), f"--config.ratings.pool={of}", *options,
                      f"--workdir={tmp_path / 'run'}", fails=True)
        return done.stderr.strip().splitlines()[-1]

    empty = tiny_pool(tmp_path / "empty").folder
    assert "no ratings of the pool" in error(of=empty) and "is no pool of ratings" in error(of=tmp_path / "none")
    assert "'classifier', a network that is trained on config.pairs" in error("--config.encoder.images=('classifier',)")
    assert "config.split.by='image' is for pools whose prompts are class names" in error("--config.split.by=image")
    shutil.copyfile(pool.folder / "ratings.sqlite", empty / "ratings.sqlite")
    assert "other images" in error(of=empty)
    assert not (tmp_path / "run" / "filter").exists()


# -- scripts/apply_filter.py ------------------------------------------------------------------------------------------------------


def test_one_process_trains_a_filter(script, pool, tmp_path):
    done = script("train_filter.py", CONFIG, *SMALL, f"--config.ratings.pool={pool.folder}", f"--workdir={tmp_path / 'two'}",
                  processes=2, fails=True)
    assert "2 processes, where one trains a filter" in done.stderr and not (tmp_path / "two" / "filter").exists()


@pytest.fixture
def images(pool, tmp_path):
    """A folder as sample.py writes it."""
    folder = tmp_path / "images"
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "label", "text", "seed"])
        for number, item in enumerate(item for item in pool.items if not item.repeat_of):
            shutil.copyfile(pool.folder / item.image, folder / f"{number}.png")
            table.writerow([f"{number}.png", item.label, item.text, 1])
    return folder


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_is_sorted_and_weighted(trained, images, inside, tmp_path):
    before = (images / "metadata.csv").read_bytes()
    out = inside("scripts/apply_filter.py", f"--filter={trained[0]}", f"--images={images}", "--threshold=0.5", "--weights=1",
                 f"--output={tmp_path / 'kept'}").stdout
    scores, kept, left = (rows(images / f"{name}.csv") for name in ("scores", "accepted", "rejected"))
    assert (images / "metadata.csv").read_bytes() == before
    assert len(scores) == 90 == len(kept) + len(left) and kept and left
    assert min(float(row["score"]) for row in kept) >= 0.5 > max(float(row["score"]) for row in left)
    assert list(kept[0]) == ["file_name", "label", "text", "seed", "score", "weight"] and "weight" not in left[0]
    weights = [float(row["weight"]) for row in kept]
    assert sum(weights) / len(weights) == pytest.approx(1, abs=1e-4)
    assert weights.index(max(weights)) == np.argmax([float(row["score"]) for row in kept])
    assert f"{len(kept)} of 90 accepted" in out and all(name in out for name in CLASSES)
    judge = load_filter(trained[0])
    picture = torch.from_numpy(np.array(Image.open(images / "7.png"))).permute(2, 0, 1)
    assert float(scores[7]["score"]) == pytest.approx(float(judge.score(picture[None], [scores[7]["prompt"]])), abs=1e-5)
    assert rows(tmp_path / "kept" / "metadata.csv") == kept
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.png")) == sorted(row["file_name"] for row in kept)


def test_what_was_kept_is_a_data_set_of_these_weights(trained, images, inside, tmp_path):
    from libs import data
    inside("scripts/apply_filter.py", f"--filter={trained[0]}", f"--images={images}", "--threshold=0", "--weights=1",
           f"--output={tmp_path / 'kept'}")
    dataset = data.get("folder", path=str(tmp_path / "kept"), resolution=24)
    assert len(dataset) == 90 and float(dataset.weights.mean()) == pytest.approx(1, abs=1e-4)
    listed = data.get("path_text", path=str(images / "accepted.csv"), resolution=24, path_column="file_name", text_column="text")
    assert len(listed) == 90 and torch.allclose(listed.weights.sort().values, dataset.weights.sort().values)


def test_by_default_the_threshold_is_the_filters_own(trained, images, inside):
    inside("scripts/apply_filter.py", f"--filter={trained[0]}", f"--images={images}")
    own = load_filter(trained[0]).threshold
    assert all(float(row["score"]) >= own - 1e-6 for row in rows(images / "accepted.csv"))
    assert all(float(row["score"]) < own + 1e-6 for row in rows(images / "rejected.csv"))


@pytest.mark.parametrize("weights", [0, 1])
def test_weights_that_were_there_stay_unless_new_ones_are_asked_for(trained, images, inside, weights):
    table = rows(images / "metadata.csv")
    with open(images / "metadata.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, [*table[0], "weight"])
        writer.writeheader()
        writer.writerows(row | {"weight": "7"} for row in table)
    inside("scripts/apply_filter.py", f"--filter={trained[0]}", f"--images={images}", "--threshold=0", f"--weights={weights}")
    kept = rows(images / "accepted.csv")
    assert [name for name in kept[0] if name == "weight"] == ["weight"] and all((row["weight"] == "7") != weights for row in kept)


@pytest.mark.parametrize("table, options, message", [
    ("", (), "has no metadata.csv"),
    ("file_name,seed\n0.png,1\n", (), "its columns are file_name, seed; file_name and text or label are needed"),
    ("file_name,text\n0.png,a lesion\n1.png,\n", (), "image 2, '1.png', has neither text nor label"),
    ("file_name,text\n../secret.png,a lesion\n", (), "'../secret.png' leads out of the folder"),
    ("file_name,text\nnone.png,a lesion\n", (), "none.png"),
    ("file_name,text\n", (), "names no image"),
    ("file_name,text\n0.png,a lesion\n", ("--threshold=2",), "--threshold=2: a score is a probability"),
])
def test_folders_that_cannot_be_sorted(trained, images, inside, table, options, message):
    (images / "metadata.csv").write_text(table) if table else (images / "metadata.csv").unlink()
    done = inside("scripts/apply_filter.py", f"--filter={trained[0]}", f"--images={images}", *options, fails=True)
    assert message in done.stderr.strip().splitlines()[-1] and not (images / "scores.csv").exists()


# -- scripts/test_filter.py -------------------------------------------------------------------------------------------------------


def test_the_pool_of_the_training_is_no_test(pool, trained, inside, tmp_path):
    options = ("scripts/test_filter.py", f"--filter={trained[0]}", "--truth=controls")
    out = inside(*options, f"--pool={pool.folder}", "--threshold=0").stdout
    assert out.startswith("warning: ") and "is the pool that this filter was trained on" in out and "90 images" in out
    other = tiny_pool(tmp_path / "other", 30, 0, controls=10, seed=1)
    assert "warning" not in inside(*options, f"--pool={other.folder}").stdout
    for threshold in ("-0.5", "1.5"):
        done = inside(*options, f"--pool={other.folder}", f"--threshold={threshold}", fails=True)
        assert f"--threshold={threshold}: a score is a probability" in done.stderr
