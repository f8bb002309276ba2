"""Which weights of a run are sampled: the average or the raw ones, what is said of a short average, and the
way to newer ones."""

import json
import shutil

import pytest
from ml_collections import ConfigDict

from libs import engine, evaluation
from libs.engine import checkpoint
from libs.evaluation import weights

TINY = ("--config=configs/phantom32_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2", "--config.nnet.num_heads=2",
        "--config.nnet.patch_size=8", "--config.dataset.size=64", "--config.train.batch_size=8", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.lr_scheduler.warmup_steps=1", "--config.sample.sample_steps=2",
        "--config.train.validation_interval=0", "--config.train.save_interval=20", "--config.metrics.bootstrap=0")


@pytest.fixture(scope="module")
def run(inside, tmp_path_factory):
    """40 steps whose average is of rate 0.9999 without warm-up: the random start."""
    folder = tmp_path_factory.mktemp("short") / "run"
    inside("train.py", *TINY, "--config.train.n_steps=40", "--config.train.ema_rate=0.9999", "--config.train.ema_warmup=False",
           f"--workdir={folder}")
    return folder


def metadata(folder):
    return (folder / "metadata.csv").read_text()


def test_raw_weights_by_a_named_option(inside, run, tmp_path):
    sample = ("sample.py", f"--workdir={run}", "--label=all", "--n_samples=1", f"--config.sample.path={tmp_path}/out")
    average = inside(*sample)
    assert "moving average" in average.stdout and "100 % of the moving average" in average.stderr
    assert "--config.sample.weights=raw" in average.stderr
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("0*.png")}
    assert engine.weights_hash(run / "ckpts" / "40.ckpt") in metadata(tmp_path / "out")
    raw = inside(*sample, "--config.sample.weights=raw")
    assert "raw weights" in raw.stdout and "random start" not in raw.stderr
    after = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("0*.png")}
    assert before.keys() == after.keys() and all(before[name] != after[name] for name in before), "another request: images made anew"
    assert engine.weights_hash(run / "ckpts" / "40.ckpt", averaged=False) in metadata(tmp_path / "out")
    same = inside("sample.py", f"--workdir={run}", "--label=all", "--n_samples=1", f"--config.sample.path={tmp_path}/file",
                  f"--nnet_path={run}/ckpts/40.ckpt/nnet.safetensors")
    assert same and all((tmp_path / "file" / name).is_file() for name in after)
    from PIL import Image, ImageChops
    for name in after:
        pair = [Image.open(tmp_path / folder / name).convert("RGB") for folder in ("out", "file")]
        assert ImageChops.difference(*pair).getbbox() is None


def test_evaluation_of_raw_weights_says_so(inside, run):
    evaluate = ("eval.py", f"--workdir={run}", "--config.sample.n_samples=6", "--config.metrics.features=('colour',)")
    assert "--config.sample.weights=raw" in inside(*evaluate).stderr
    inside(*evaluate, "--config.sample.weights=raw")
    own = {name: json.loads((run / "eval" / name / "scores.json").read_text()) for name in ("40_6", "40_6_raw")}
    assert own["40_6_raw"]["weights"] == "raw" and "weights" not in own["40_6"]
    assert own["40_6"]["sha256"] == engine.weights_hash(run / "ckpts" / "40.ckpt") != own["40_6_raw"]["sha256"]


def test_an_unknown_name_and_a_contradiction(inside, run):
    failed = inside("sample.py", f"--workdir={run}", "--config.sample.weights=ema", fails=True).stderr
    assert "average" in failed and "raw" in failed and "'ema'" in failed
    with pytest.raises(ValueError, match="ema_rate=0.99"):
        evaluation.weights_options(ConfigDict(dict(weights="raw", ema_rate=0.99)))
    assert evaluation.weights_options(ConfigDict({})) == {"averaged": True, "ema_rate": 0.0}, "a config that is older than the option"


def test_a_warmed_up_average_is_not_complained_about(tmp_path, caplog):
    for number, (record, said) in enumerate([({"ema_rate": 0.9999, "step": 400}, True), ({"ema_rate": 0.0, "step": 400}, False),
                                             ({"ema_rate": 0.9999, "step": 400, "ema_warmup": True}, False),
                                             ({"ema_rate": 0.9999, "step": 29_000}, True), ({"ema_rate": 0.9999, "step": 30_000}, False)]):
        folder = tmp_path / f"{number}.ckpt"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        (folder / "state.json").write_text(json.dumps(record))
        caplog.clear()
        weights.warn_of_average(folder)
        assert ("random start" in caplog.text) == said, record
    assert weights.start_in_average(tmp_path / "0.ckpt") == pytest.approx(0.9999 ** 400)


def test_the_way_to_newer_weights_than_the_best(inside, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for step in checkpoint.steps(copy / "ckpts"):  # step 20 was the best one, as where a SIGTERM came before the next validation
        state = copy / "ckpts" / f"{step}.ckpt" / "state.json"
        record = json.loads(state.read_text())
        state.write_text(json.dumps(record | {"best": {"step": 20, "metric": "validation_loss", "value": 1.0, "judged_by": ["x"]}}))
        manifest = state.with_name("manifest.json")
        entries = json.loads(manifest.read_text())
        entries["state.json"] = {"bytes": state.stat().st_size, "sha256": checkpoint.sha256(state)}
        manifest.write_text(json.dumps(entries))
    said = inside("sample.py", f"--workdir={copy}", "--n_samples=1", f"--config.sample.path={tmp_path}/best")
    option = f"--nnet_path={copy}/ckpts/40.ckpt"
    assert "step 20" in said.stdout and option in said.stderr
    newest = inside("sample.py", f"--workdir={copy}", "--n_samples=1", f"--config.sample.path={tmp_path}/newest", option)
    assert "step 40" in newest.stdout and "--nnet_path" not in newest.stderr
