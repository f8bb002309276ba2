"""What a run folder keeps: settings that stay for its life, nothing written where nothing is trained, precision that was used."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from ml_collections import ConfigDict

from libs import engine
from libs.engine import checkpoint, devices, fixed, run as run_room
from tests.conftest import ROOT

TINY = ("--config=configs/phantom32_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.train.batch_size=8", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.train.validation_interval=0", "--config.dataset.size=64",
        "--config.lr_scheduler.warmup_steps=0", "--config.train.n_steps=2")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    script("train.py", *TINY, f"--workdir={folder}")
    return folder


def content(folder):
    """{name: (bytes, time of change)} of every file of a run but its lock."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("option, was", [
    ("denoiser.predicts=eps", "x0"), ("schedule.name=linear", "vpsde"), ("nnet.depth=4", "2"), ("nnet.qkv_bias=True", "False"),
    ("train.mode=uncond", "cond"), ("denoiser.clip=False", "True")])
def test_what_decides_the_meaning_of_the_weights_stays_for_the_life_of_a_run(inside, finished, option, was):
    before = content(finished)
    for more in ((), ("--config.train.n_steps=9",)):
        said = inside("train.py", *TINY, *more, f"--config.{option}", f"--workdir={finished}", fails=True).stderr
        line = said.splitlines()[-1]
        assert f"`--config.{option}`, which was {was}" in line and f"--config.{option.split('=')[0]}={was}" in line
        assert line.startswith("error: ") and "another --workdir" in line
        assert content(finished) == before


def test_starting_a_finished_run_again_writes_nothing(inside, finished):
    before = content(finished)
    said = inside("train.py", *TINY, "--config.seed=9", "--config.train.batch_size=4", "--config.train.n_steps=1",
                  f"--workdir={finished}").stderr
    assert content(finished) == before
    assert "has its 2 steps already (train.n_steps=1): nothing is trained" in said and "continues with another setting" not in said
    assert "of no effect, the run has its steps: train.batch_size was 8, is now 4" in said


def test_free_settings_stay_free(inside, finished, tmp_path):
    import shutil
    shutil.copytree(finished, tmp_path / "run")
    said = inside("train.py", *TINY, "--config.train.n_steps=3", "--config.train.batch_size=4", "--config.optimizer.lr=1e-5",
                  "--config.nnet.use_checkpoint=True", f"--workdir={tmp_path / 'run'}").stderr
    assert "continues with another setting: optimizer.lr was" in said
    assert checkpoint.steps(tmp_path / "run" / "ckpts")[-1] == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["n_steps"] == 3


def test_options_of_another_version_are_not_compared():
    before = {"nnet": {"name": "uvit", "depth": 3, "gone": 1}, "schedule": {"name": "linear"}}
    now = {"nnet": {"name": "uvit", "depth": 3, "new": True, "use_checkpoint": True}, "schedule": {"name": "linear", "steps": 1000},
           "denoiser": {"predicts": "eps"}, "train": {"mode": "cond"}}
    assert fixed.differences(before, now) == []


@pytest.mark.parametrize("key, before, now, differs", [
    ("num_classes", 0, 4, False), ("num_classes", 3, 4, True), ("img_size", 64, 0, False), ("img_size", 64, 32, True),
    ("path", "a", "b", False), ("dropout", 0.0, 0.1, False), ("depth", 0, 4, True), ("lora_alpha", 0.0, 8.0, False),
    ("blocks", [1, 2], [1, 2], False), ("blocks", [1, 2], [1, 3], True)])
def test_which_options_count(key, before, now, differs):
    assert bool(fixed.differences({"nnet": {key: before}}, {"nnet": {key: now}})) is differs


def test_the_options_that_a_refusal_names_can_be_typed(tmp_path):
    with pytest.raises(ValueError, match=r'Set --config.nnet.a="\(1, 2\)" --config.nnet.b=\'\' --config.codec.name=kl, or give'):
        fixed.check({"nnet": {"a": [1, 2], "b": ""}, "codec": {"name": "kl"}}, {"nnet": {"a": [1], "b": "x"}, "codec": {"name": "tiny"}},
                    tmp_path)


def test_a_run_without_weights_may_begin_with_other_settings(tmp_path):
    for depth in (2, 3):
        run = engine.start(ConfigDict({"seed": 0, "nnet": {"depth": depth}}), tmp_path)
        run.describe()
        run.finish()
    assert json.loads((tmp_path / "config.json").read_text())["nnet"]["depth"] == 3


def test_fp16_is_refused_where_the_processor_trains(inside, tmp_path):
    said = inside("train.py", *TINY, "--config.train.mixed_precision=fp16", f"--workdir={tmp_path / 'a'}", fails=True).stderr
    assert "`--config.train.mixed_precision=fp16` is not computed by a processor" in said
    assert "`--config.train.mixed_precision=no`" in said and not (tmp_path / "a").exists()
    said = inside("train.py", *TINY, "--config.train.mixed_precision=", f"--workdir={tmp_path / 'a'}", fails=True,
                  env={"ACCELERATE_MIXED_PRECISION": "fp16"}).stderr
    assert "`accelerate launch --mixed_precision=fp16` is not computed by a processor" in said
    said = inside("train.py", *TINY, "--config.train.mixed_precision=half", f"--workdir={tmp_path / 'a'}", fails=True).stderr
    assert "config.train.mixed_precision is 'half'; known: auto, no, fp16, bf16" in said and "fp8" not in said


@pytest.mark.parametrize("asked, launched, device, expected", [
    ("auto", "no", "bf16", "bf16"), ("auto", "", "fp16", "fp16"), ("auto", "", "cpu", "no"), ("auto", "bf16", "fp16", "bf16"),
    ("auto", "fp16", "bf16", "fp16"), ("", "fp16", "bf16", "fp16"), ("", "no", "bf16", "no"), ("", "", "bf16", "no"),
    ("no", "fp16", "bf16", "no"), ("bf16", "fp16", "bf16", "bf16"), ("fp16", "", "fp16", "fp16")])
def test_config_launcher_and_device_choose_the_precision(monkeypatch, caplog, asked, launched, device, expected):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device != "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0) if device == "bf16" else (7, 5))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert devices.choose_precision(asked, training=True) == expected
    said = launched in ("fp16", "bf16") and asked in ("auto", "no", "bf16") and asked != launched
    assert bool(caplog.text) is said
    if (asked, device) == ("auto", "fp16") and not launched:
        assert devices.choose_precision(asked, training=True, fp16=False) == "no"


@pytest.mark.parametrize("asked, launched, recorded, expected", [
    ("", "", "bf16", "bf16"), ("", "no", "bf16", "bf16"), ("", "", "fp16", "no"), ("fp16", "", "bf16", "no"), ("no", "", "bf16", "no"),
    ("", "bf16", "no", "bf16"), ("", "", "", "no"), ("auto", "", "bf16", "bf16"), ("auto", "", "no", "no")])
def test_what_reads_a_run_takes_the_precision_of_its_last_session(monkeypatch, tmp_path, asked, launched, recorded, expected):
    """On a processor; fp16, which it has not, becomes float32 where nothing is trained."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "run.json").write_text(json.dumps({"sessions": [{"precision": "no"}, {"precision": recorded}]}))
    seen = {}

    class Accelerator:
        """Notes the precision that a run asks for."""
        num_processes, process_index, is_main_process, device, scaler = 1, 0, True, torch.device("cpu"), None

        def __init__(self, **options):
            seen.update(options)

        def wait_for_everyone(self):
            pass

    monkeypatch.setattr(run_room, "Accelerator", Accelerator)
    run = engine.start(ConfigDict({"seed": 0, "train": {"mixed_precision": asked}}), tmp_path, claim=False)
    assert run.precision == seen["mixed_precision"] == expected


def test_bf16_of_a_gpu_is_not_emulated_by_a_processor(monkeypatch):
    monkeypatch.setattr(devices, "has_fp16", lambda: False)
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: False)
    assert devices.recorded_precision({"precision": "bf16", "device_type": "cuda"}) == ""
    assert devices.recorded_precision({"precision": "bf16", "device_type": "cpu"}) == "bf16"
    assert devices.recorded_precision({"precision": "fp8"}) == devices.recorded_precision({}) == ""
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    assert devices.recorded_precision({"precision": "bf16", "device_type": "cuda"}) == "bf16"


def test_what_is_made_of_a_run_is_made_again_only_for_newer_weights(tmp_path):
    run = engine.Run(tmp_path)
    assert run.is_stale(tmp_path / "pipeline") and run.is_to_write("bank.json", 2)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "bank.json").write_text("{}")
    checkpoint.write(tmp_path / "ckpts", 2, {"nnet": {"a": torch.ones(1)}}, {"step": 2})
    os.utime(tmp_path / "pipeline", (1, 1))
    assert run.is_stale(tmp_path / "pipeline") and run.is_to_write("bank.json", 3) and not run.is_to_write("bank.json", 2)
    (tmp_path / "pipeline" / "file").touch()
    assert not run.is_stale(tmp_path / "pipeline")
    (tmp_path / "bank.json").unlink()
    assert run.is_to_write("bank.json", 2)
    run.finish()


def test_run_json_holds_the_precision_that_was_used(inside, finished, tmp_path):
    session = json.loads((finished / "run.json").read_text())["sessions"][-1]
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    asked = "bf16" if native else "no"  # the config says auto
    assert session["precision"] in (asked, "no") and session["tf32"] is False
    inside("train.py", *TINY, "--config.train.mixed_precision=bf16", f"--workdir={tmp_path}")
    assert engine.last_session(tmp_path)["precision"] == "bf16"


@pytest.mark.parametrize("config, training, recorded, used", [
    (None, True, None, True), (False, True, None, False), (True, True, None, True), (None, False, True, True),
    (None, False, False, False), (False, False, True, False), (None, False, None, False)])
def test_tf32_is_on_where_the_config_does_not_say(config, training, recorded, used):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        run_room.use_tf32(False)
        assert run_room.choose_tf32(torch.device("cuda"), config, training=training, recorded=recorded) is used
        assert (torch.get_float32_matmul_precision() != "highest") is used
        assert run_room.choose_tf32(torch.device("cpu"), True, training=True) is False
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("device, precision, tf32, warned", [
    ("cuda", "no", False, True), ("cuda", "no", True, False), ("cuda", "bf16", False, False), ("cpu", "no", False, False)])
def test_float32_without_tf32_on_cuda_is_said(caplog, device, precision, tf32, warned):
    devices.warn_of_slow_products(torch.device(device), precision, tf32, "Test card")
    assert ("float32 without TF32 on Test card" in caplog.text and "--config.train.tf32=True" in caplog.text) is warned


def threads(arguments, **environment):
    """torch's threads in a process that a launcher, itself a process with this environment, started with OMP_NUM_THREADS=1."""
    inner = ("from libs.engine import devices; import torch; torch.set_num_threads(1); devices.use_threads(); "
             "print(torch.get_num_threads())")
    outer = (f"import os, subprocess, sys; os.environ.update(OMP_NUM_THREADS='1', LOCAL_WORLD_SIZE='1'); "
             f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)")
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    return int(subprocess.run([sys.executable, "-c", outer, *arguments], capture_output=True, text=True, check=True, cwd=ROOT,
                              env={**clean, **environment}).stdout)


def test_one_thread_that_the_launcher_chose_becomes_all_that_are_there():
    mine = len(os.sched_getaffinity(0))
    assert threads([]) == mine
    assert threads([], OMP_NUM_THREADS="1") == 1, "the user said so"
    assert threads(["--num_cpu_threads_per_process=1"]) == 1, "the user said so to accelerate launch"


def test_threads_are_left_alone_without_a_launcher(monkeypatch):
    for name in devices.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(devices, "given_by_user", lambda _: False)
    monkeypatch.setattr(torch, "set_num_threads", pytest.fail)
    devices.use_threads()


def test_the_gpu_of_a_mac_is_not_used_and_that_is_said(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert not devices.has_accelerator() or torch.cuda.is_available()
    devices.log_unused()
    assert "Mac (MPS) is not used" in caplog.text or torch.cuda.is_available()


def test_a_workdir_that_is_a_file_and_a_negative_seed(inside, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        said = inside("train.py", *TINY, f"--workdir={folder}", fails=True).stderr
        assert f"`--workdir={folder}`: {tmp_path / 'file'} is a file" in said and "Errno" not in said
    with pytest.raises(ValueError, match="`config.seed` is -1.*`--config.seed=1234`"):
        engine.Run(tmp_path / "run", seed=-1)
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "run").exists()


def test_a_damaged_line_in_the_midst_of_the_metrics_is_left_out_alone(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "kind": "train", "loss": 1.0}', '{"step": 2, "ki\x00', '[3]', '{"step": 4, "kind": "train", "loss": Infinity}',
             '{"step": 5, "kind": "eval"}']
    path.write_bytes("\n".join(lines).encode() + b'\n\xff\xfe\n{"step": 6, "kind": "tra')
    assert [line["step"] for line in engine.read_metrics(path)] == [1, 4, 5]
    assert [f"{path}: line {number} is damaged" in caplog.text for number in range(1, 8)] == [False, True, True, False, False, True, False]
    run = engine.Run(tmp_path)
    run.rewind_log(4)
    run.finish()
    kept = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 4] and kept[1]["loss"] is None


def test_numbers_that_are_not_finite_are_left_out_of_the_metrics(tmp_path):
    run = engine.Run(tmp_path)
    run.log(3, "eval", {"fid": float("nan"), "kid": 0.5, "recall": float("inf")})
    run.finish()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [{"step": 3, "kind": "eval", "kid": 0.5}]


def test_a_damaged_config_json_is_named(inside, finished, tmp_path):
    import shutil
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"seed": 1,')
    said = inside("train.py", *TINY, "--config.train.n_steps=3", f"--workdir={tmp_path / 'run'}", fails=True).stderr
    assert f"error: {tmp_path / 'run' / 'config.json'} is not JSON" in said
