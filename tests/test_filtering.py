"""Rejection sampling in sample.py and the evaluations: which draws are taken, what is told of the others, what follows a stop."""

import csv
import json
import math
import re
import shutil

import ml_collections
import numpy as np
import pytest
import torch

from configs.common import filtering as section
from libs import engine, ratings, report
from libs.evaluation import filtering, generation
from libs.evaluation.filtering import Rejection, acceptance, attempt_seed
from tests.test_scripts import TINY

RUN = ("--config.train.n_steps=2", "--config.train.eval_interval=0", "--config.train.preview_interval=0",
       "--config.train.validation_interval=0")


class ByBrightness:
    """In place of a trained filter: the score is the mean of an image's red channel, so that draws of one prompt differ."""

    threshold, useful, fingerprint, folder = 0.5, True, "0123456789abcdef0123", "workdir/filter"
    report = {}

    def __init__(self):
        self.seen = []

    def score(self, images, prompts):
        assert len(images) == len(prompts)
        self.seen += prompts
        return images[:, 0].float().mean((1, 2)) / 255


class FromNoise:
    """A pipeline whose images are the brightness of their noise, so that it can be known beforehand."""

    image_shape, steps = (3, 2, 2), 1

    def __init__(self):
        self.net = torch.nn.Linear(1, 1)
        self.batches = []

    def __call__(self, cond, *, seed, indices):
        self.batches.append(len(indices))
        return torch.stack([torch.full((3, 2, 2), brightness(seed, index)) for index in indices])


def brightness(seed, index):
    return 2 * np.random.default_rng([seed % 2**32, index]).random() - 1


class Alone:
    """A run of one process, or of two that are asked one after the other."""

    rank, world, is_main = 0, 1, True

    class accelerator:
        @staticmethod
        def autocast():
            return torch.autocast("cpu", enabled=False)

    @staticmethod
    def gather_rows(tensor):
        return tensor


def rejection(**options):
    found = dict(filter=ByBrightness(), threshold=0.5, max_attempts=4, best_of=0, keep_rejects=False) | options
    return Rejection(**found)


def drawn(asked, n=40, *, batch_size=8, seed=3, without=(), pipeline=None):
    pipeline = pipeline or FromNoise()
    prompts = [f"prompt {index}" for index in range(n)]
    return list(filtering.draws(Alone, pipeline, {}, n, seed=seed, batch_size=batch_size, rejection=asked, prompts=prompts,
                                without=without))


def taken(draws):
    return {draw.indices[row]: (draw.attempt, draw.images[row, 0, 0, 0].item()) for draw in draws
            for row in draw.taken.nonzero().flatten().tolist()}


def first_good(seed, index, attempts=4):
    levels = [generation.to_uint8(torch.tensor(brightness(attempt_seed(seed, k), index))).item() for k in range(attempts)]
    return next(((k, level) for k, level in enumerate(levels) if level / 255 >= 0.5), None)


def test_each_image_is_its_first_draw_that_the_filter_accepts():
    wanted = {index: first_good(3, index) for index in range(40)}
    found = taken(drawn(rejection()))
    assert found == {index: each for index, each in wanted.items() if each}
    assert 1 < len({attempt for attempt, _ in found.values()}) and len(found) > 30


@pytest.mark.parametrize("options", [{}, {"best_of": 3}])
def test_what_is_taken_depends_on_seed_and_image_alone(options):
    usual = taken(drawn(rejection(**options)))
    assert taken(drawn(rejection(**options), batch_size=5)) == usual
    assert taken(drawn(rejection(**options), batch_size=40)) == usual
    later = taken(drawn(rejection(**options), without=range(30)))
    assert later == {index: each for index, each in usual.items() if index >= 30}


def test_the_first_draws_are_the_images_without_a_filter():
    plain, filtered = drawn(None), [draw for draw in drawn(rejection()) if draw.attempt == 0]
    assert torch.equal(torch.cat([draw.images for draw in plain]), torch.cat([draw.images for draw in filtered]))
    assert all(draw.taken.all() and draw.scores is None for draw in plain)


def test_the_best_of_several_draws_is_taken_whatever_its_score():
    found = taken(drawn(rejection(best_of=5, threshold=0.99)))
    levels = {index: [generation.to_uint8(torch.tensor(brightness(attempt_seed(3, k), index))).item() for k in range(5)]
              for index in range(40)}
    assert found == {index: (int(np.argmax(each)), max(each)) for index, each in levels.items()}


def test_rounds_draw_in_full_batches_only_what_is_missing():
    pipeline = FromNoise()
    draws = drawn(rejection(max_attempts=2), n=64, batch_size=8, pipeline=pipeline)
    rejected = sum(int((~draw.taken).sum()) for draw in draws if not draw.attempt)
    assert sum(pipeline.batches) == 64 + rejected < 128
    assert len(pipeline.batches) <= 8 + 8


def test_the_filter_reads_the_prompt_of_each_image():
    asked = rejection()
    draws = drawn(asked)
    assert asked.filter.seen == [f"prompt {index}" for draw in draws for index in draw.indices]


def test_acceptance_counts_draws_by_kind():
    asked = rejection(max_attempts=10)
    found = acceptance(asked, {0: 0, 1: 4, 3: 1}, ["nevus", "nevus", "angioma", "angioma"])
    assert (found["asked"], found["made"], found["drawn"]) == (4, 3, 1 + 5 + 10 + 2)
    assert found["rate"] == pytest.approx(3 / 18) and found["low"] < 3 / 18 < found["high"]
    assert found["per_kind"]["angioma"] | {"low": 0, "high": 0} == {"asked": 2, "made": 1, "drawn": 12, "rate": 1 / 12, "low": 0,
                                                                   "high": 0}
    # Wilson's interval, by its formula
    z, p, n = 1.959963984540054, 3 / 18, 18
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert (found["low"], found["high"]) == pytest.approx((middle - half, middle + half))
    assert "rate" not in acceptance(rejection(best_of=3), {0: 2}, [""])


def test_lines_of_acceptance_begin_with_what_is_missing():
    found = acceptance(rejection(), {0: 0}, ["nevus", "angioma"])
    lines = filtering.acceptance_told(found).splitlines()
    assert lines[0].startswith("filter: 1 of 2 images, 5 draws, 20.0%") and lines[1].startswith("  angioma: 0 of 1")


@pytest.mark.parametrize("options, said", [
    ({"max_attempts": 0}, "max_attempts=0"), ({"best_of": 1}, "best_of"), ({"best_of": -2}, "best_of"),
    ({"threshold": 1.0}, "threshold=1.0"), ({"threshold": -0.1}, "threshold=-0.1")])
def test_options_out_of_range_are_rejected(options, said, monkeypatch):
    monkeypatch.setattr(ratings, "load_filter", lambda path, device: ByBrightness())
    config = ml_collections.ConfigDict({"filter": section().to_dict() | {"path": "there"} | options})
    with pytest.raises(ValueError, match=re.escape(said)):
        filtering.open_filter(config)


def test_a_filter_no_better_than_chance_is_rejected(monkeypatch):
    useless = ByBrightness()
    useless.useful = False
    monkeypatch.setattr(ratings, "load_filter", lambda path, device: useless)
    config = ml_collections.ConfigDict({"filter": section().to_dict() | {"path": "there"}})
    with pytest.raises(ValueError, match="better than chance"):
        filtering.open_filter(config)
    config.filter.allow_useless = True
    assert filtering.open_filter(config).threshold == 0.5
    config.filter.path = ""
    assert filtering.open_filter(config) is None


def test_prompts_are_worded_as_raters_saw_them():
    cond = {"label": torch.tensor([1, 0])}
    assert filtering.prompts_of(cond, 2, ["nevus", "angioma"]) == ["angioma", "nevus"]

    class Texts:
        texts = ["a red lesion", "a nevus on tan skin"]

    assert filtering.prompts_of(cond | {"text": Texts()}, 2, ["nevus", "angioma"]) == ["angioma: a red lesion",
                                                                                       "a nevus on tan skin"]
    with pytest.raises(ValueError, match="without text and class name"):
        filtering.prompts_of({}, 2, [])
    with pytest.raises(ValueError, match="states only"):
        filtering.prompts_of({"text": torch.zeros(2, 3, 4)}, 2, [])


# ---- through the command line -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(inside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    inside("train.py", *TINY, *RUN, f"--workdir={folder}")
    return folder


@pytest.fixture
def judged(monkeypatch):
    """load_filter gives the stand-in, at a threshold that about half of the images of this hardly trained network pass."""
    stand_in = ByBrightness()
    monkeypatch.setattr(ratings, "load_filter", lambda path, device: stand_in)
    return stand_in


def rows(folder):
    with open(folder / "metadata.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def median_score(inside, trained, out):
    inside("sample.py", f"--workdir={trained}", "--n_samples=24", f"--config.sample.path={out}")
    from PIL import Image
    return float(np.median([np.asarray(Image.open(out / row["file_name"]))[..., 0].mean() / 255 for row in rows(out)]))


def test_sampling_with_a_filter_from_the_command_line(inside, trained, judged, tmp_path):
    middle = median_score(inside, trained, tmp_path / "plain")
    out = tmp_path / "chosen"
    options = [f"--workdir={trained}", "--n_samples=24", f"--config.sample.path={out}", "--config.filter.path=there",
               f"--config.filter.threshold={middle}", "--config.filter.max_attempts=4", "--config.filter.keep_rejects=True"]
    said = inside("sample.py", *options).stdout
    found, rejected = rows(out), rows(out / "rejected")
    assert 12 <= len(found) <= 24 and all(float(row["score"]) >= middle for row in found)
    assert rejected and all(float(row["score"]) < middle for row in rejected)
    assert f"{len(found)} images in" in said and "draws" in said
    whole = json.loads((out / "acceptance.json").read_text())
    assert whole["drawn"] == len(found) + len(rejected) and whole["made"] == len(found)
    assert sum(part["drawn"] for part in whole["per_kind"].values()) == whole["drawn"]
    plain = {row["index"]: row["image_sha256"] for row in rows(tmp_path / "plain")}
    firsts = {row["index"] for row in found if row["attempt"] == "0"}
    assert 0 < len(firsts) < len(found)

    from PIL import Image
    for row in found:
        same = np.array_equal(np.asarray(Image.open(out / row["file_name"])),
                              np.asarray(Image.open(tmp_path / "plain" / row["file_name"])))
        assert same == (row["attempt"] == "0")
    assert {"steps", "guidance", "seed", "sha256", "image_sha256", "filter", "rule"} <= set(found[0])
    assert len(set(plain.values())) == 24

    # stopped: what is missing is made again, the rest is left alone
    lost, kept = out / found[3]["file_name"], out / found[5]["file_name"]
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (out / "metadata.csv").unlink()
    inside("sample.py", *options)
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == stamp and rows(out) == found
    # another rule is another request: none of the old images stays, but what a user has put there
    shutil.copy(tmp_path / "plain" / "000000_nevus.png", out / "rejected" / "my_own.png")
    inside("sample.py", *options, "--config.filter.best_of=2")
    again, lost = rows(out), rows(out / "rejected")
    assert len(again) == len(lost) == 24 and {row["rule"] for row in again + lost} == {"best of 2"}
    best = {row["index"]: float(row["score"]) for row in again}
    assert all(float(row["score"]) <= best[row["index"]] for row in lost)
    inside("sample.py", *options[:3])
    assert not (out / "acceptance.json").exists() and [file.name for file in (out / "rejected").iterdir()] == ["my_own.png"]


def test_a_filter_that_accepts_nothing_says_so(inside, trained, judged, tmp_path):
    done = inside("sample.py", f"--workdir={trained}", "--n_samples=8", f"--config.sample.path={tmp_path / 'none'}",
                  "--config.filter.path=there", "--config.filter.threshold=0.999", "--config.filter.max_attempts=2", fails=True)
    assert "accepted none" in done.stderr and "16 draws" in done.stderr
    assert not (tmp_path / "none" / "metadata.csv").exists()


def test_an_evaluation_shows_what_filtering_did(inside, trained, judged, tmp_path):
    middle = median_score(inside, trained, tmp_path / "plain")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    inside("eval.py", f"--workdir={run}", "--config.sample.n_samples=24", "--name=plain")
    done = inside("eval.py", f"--workdir={run}", "--config.sample.n_samples=24", "--config.filter.path=there",
                  f"--config.filter.threshold={middle}", "--config.filter.max_attempts=2", "--name=filtered",
                  f"--npz={tmp_path / 'images.npz'}")
    found = engine.read_json(run / "eval" / "filtered" / "scores.json", {})
    plain = engine.read_json(run / "eval" / "plain" / "scores.json", {})
    made = found["filter"]["acceptance"]["made"]
    assert found["n"] == made < 24 and any(f"for {made} of 24" in warning for warning in found["warnings"])
    assert {name for name in found["unfiltered"]} == {name for name in found["scores"]}
    assert {score["n"] for score in found["unfiltered"].values()} == {made}
    assert found["sampling"]["draws_per_image"] > 1 and "draws_per_image" not in plain["sampling"]
    assert "unfiltered" in done.stdout and "filter" not in plain
    with np.load(tmp_path / "images.npz", allow_pickle=False) as archive:
        images = archive["arr_0"]
    assert images.shape == (made, 32, 32, 3) and (images[..., 0].mean((1, 2)) / 255 >= middle - 1e-6).all()
    with np.load(run / "eval" / "filtered" / "shown.npz", allow_pickle=False) as shown:
        rejected, judged_as = shown["arr_11"], shown["arr_13"]
    assert len(rejected) == len(judged_as) == len(found["rejected_texts"]) and (judged_as < middle).all()
    page = report.write(run).read_text()
    assert "Accepted and rejected" in page


def test_without_refusals_the_scores_are_those_without_a_filter(inside, trained, judged, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    inside("eval.py", f"--workdir={run}", "--config.sample.n_samples=12", "--name=plain")
    inside("eval.py", f"--workdir={run}", "--config.sample.n_samples=12", "--config.filter.path=there",
           "--config.filter.threshold=1e-9", "--name=all")
    plain, every = (engine.read_json(run / "eval" / name / "scores.json", {}) for name in ("plain", "all"))
    assert every["scores"] == plain["scores"] == every["unfiltered"]
    assert every["filter"]["acceptance"]["rate"] == 1.0


def test_runs_older_than_the_filter_take_it(inside, trained, judged, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(trained, run)
    config = engine.read_json(run / "config.json", {})
    del config["filter"]
    (run / "config.json").write_text(json.dumps(config))
    inside("sample.py", f"--workdir={run}", "--n_samples=4", "--config.filter.path=there", "--config.filter.best_of=2",
           f"--config.sample.path={tmp_path / 'some'}")
    assert len(rows(tmp_path / "some")) == 4


@pytest.fixture(scope="module")
def real_filter(tmp_path_factory):
    """The folder of a filter with random weights, at a threshold that about half of all images pass."""
    from libs.ratings import Axis, Filter, embedding
    from libs.ratings.filter import Judge
    axes = [Axis("quality", "Good?", {1: "no", 2: "yes"}, 2), Axis("congruence", "Fits?", {1: "no", 2: "yes"}, 2)]
    of = embedding.get("pair", images=("colour",), text=dict(name="words", max_length=8, dim=16))
    torch.manual_seed(0)
    judge = Judge(of.blocks, of.dims[1], [2, 2]).eval()
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = Filter(judge, of, axes, threshold=0.5, useful=True)
    found.threshold = float(found.score(images, ["nevus"] * 40).median())
    return found.save(tmp_path_factory.mktemp("filter") / "filter")


def test_two_processes_take_the_same_images_as_one(script, inside, trained, real_filter, tmp_path):
    options = [f"--workdir={trained}", "--n_samples=20", "--label=nevus", f"--config.filter.path={real_filter}",
               "--config.filter.max_attempts=3"]
    plain = tmp_path / "plain"
    inside("sample.py", *options, f"--config.sample.path={plain}", "--config.filter.threshold=0.0001")
    scores = sorted(float(row["score"]) for row in rows(plain))
    options.append(f"--config.filter.threshold={scores[10]}")
    inside("sample.py", *options, f"--config.sample.path={tmp_path / 'one'}")
    script("sample.py", *options, f"--config.sample.path={tmp_path / 'two'}", processes=2)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one == two and {row["attempt"] for row in one} > {"0"} and len(one) >= 10


def test_accepted_images_are_the_next_data_of_any_training(inside, trained, real_filter, tmp_path):
    """Rejection sampling, then weights from the filter, then a training that begins where the generator stood."""
    chosen, next_round = tmp_path / "chosen", tmp_path / "next"
    inside("sample.py", f"--workdir={trained}", "--n_samples=24", f"--config.filter.path={real_filter}",
           "--config.filter.threshold=0.0001", f"--config.sample.path={chosen}")
    inside("scripts/apply_filter.py", f"--filter={real_filter}", f"--images={chosen}", "--threshold=0", "--weights",
           f"--output={next_round}")
    weights = [float(row["weight"]) for row in rows(next_round)]
    assert np.mean(weights) == pytest.approx(1, abs=1e-3) and len(set(weights)) > 10
    tuned = tmp_path / "tuned"
    own = ("--config=configs/folder64_uvit_label.py", "--config.dataset.resolution=32", "--config.nnet.img_size=32",
           "--config.dataset.holdout=0", "--config.dataset.split=", "--config.train.validation_split=",
           *[each for each in TINY[1:] if "dataset" not in each])
    done = inside("train.py", *own, *RUN, f"--config.dataset.path={next_round}", f"--config.train.init={trained}",
                  "--config.optimizer.lr=1e-12", "--config.lr_scheduler.warmup_steps=0", f"--workdir={tuned}")
    assert "24 images with weights" in done.stderr
    (before, _, _), (after, _, _) = (engine.load_weights(folder) for folder in (trained, tuned))
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_stable_diffusion_takes_a_folder_of_samples_as_its_table(inside, tmp_path):
    """train_sd_finetune.py on the table that sample.py and apply_filter.py write, with weights."""
    from PIL import Image
    from tests import tiny_sd
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(images / f"{k}.png")
    (images / "metadata.csv").write_text("file_name,text,score,weight\n" + "".join(
        f"{k}.png,{'red' if k % 2 else 'green'},{k / 10},{k / 2.5}\n" for k in range(6)))
    done = inside("train_sd_finetune.py", "--config=configs/medical512_sd_finetune.py",
                  f"--config.nnet.path={tiny_sd.save(tmp_path / 'sd')}", "--config.nnet.sample_size=8",
                  "--config.encoder.max_length=12",
                  f"--config.dataset.path={images / 'metadata.csv'}", "--config.dataset.path_column=file_name",
                  "--config.dataset.text_column=text", "--config.dataset.resolution=16", "--config.train.batch_size=2",
                  "--config.train.accumulation=1", "--config.train.workers=0", "--config.sample.sample_steps=2",
                  "--config.metrics.sample_steps=2", *RUN, f"--workdir={tmp_path / 'tuned'}")
    assert "6 images with weights 0 to 2" in done.stderr and (tmp_path / "tuned" / "pipeline").is_dir()
