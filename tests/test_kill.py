"""kill -9 at random moments, half of them while a checkpoint is being written: nothing is lost but the steps since a save.

Each life of the run is a forked child, so that its start costs nothing and 20 of them fit into a test. The parent is a
process of its own: a fork of pytest's, with the threads that other tests left behind, might wait for ever.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from ml_collections import ConfigDict

from libs import engine
from libs.engine import checkpoint
from tests.conftest import ROOT
from tests.test_engine import Batches

STEPS, EVERY, KILLS = 120, 3, 20


def live(folder):
    """One life: train to the end, or to the kill."""
    torch.set_num_threads(1)
    run = engine.start(ConfigDict({"seed": 3}), folder)
    net = torch.nn.Sequential(torch.nn.Linear(3, 700), torch.nn.Linear(700, 700), torch.nn.Linear(700, 3))
    state = engine.State(run, net, optimizer={"lr": 1e-3}, lr_scheduler={"warmup_steps": 5}, n_steps=STEPS, ema_rate=0.9)

    def loss_fn(net, batch):
        return (net(batch["x"]) - torch.randn_like(batch["x"])).square().mean(), {}

    engine.fit(run, state, Batches(), loss_fn, ConfigDict(dict(n_steps=STEPS, log_interval=1, save_interval=EVERY,
                                                               keep_checkpoints=2)))


def begin(folder):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            live(folder)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child):
    pid, status = os.waitpid(child, os.WNOHANG)
    return pid != 0 and (os.waitstatus_to_exitcode(status),)


def kill(child, folder, in_save, rng):
    """Kill the child at a random moment of a life; returns its exit code if it ended before."""
    if in_save:
        until = time.time() + 60
        while not any((folder / "ckpts").glob(".staging-*")):
            done = ended(child)
            if done or time.time() > until:
                return done
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
    else:
        time.sleep(rng.uniform(0.3, 1.5))
    done = ended(child)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return done


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in found if line["kind"] == "train"]


def twenty_kills(tmp_path):
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = begin(whole)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    kills, in_save, safe = 0, 0, 0
    while kills < KILLS or in_save < KILLS // 2:
        assert kills < 2 * KILLS, f"only {in_save} of {kills} kills fell into a save"
        child = begin(killed)
        aim = 2 * in_save <= kills
        done = kill(child, killed, aim, rng)
        if done:  # finished before the kill: that life must have been a good one; the next begins anew
            assert done == (0,)
            assert lines(killed) == lines(whole)
            killed, safe = tmp_path / f"killed{kills}", 0
            continue
        kills += 1
        in_save += any((killed / "ckpts").glob(".staging-*"))
        durable = max((step for step in checkpoint.steps(killed / "ckpts")), default=0)
        assert durable >= safe, "a checkpoint was lost"
        if durable:
            found = checkpoint.read_latest(killed / "ckpts")
            assert found is not None and found[2]["step"] == durable, "the newest checkpoint is torn"
        logged = (killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").is_file() else []
        reached = max((json.loads(line)["step"] for line in logged if line.endswith("}")), default=0)
        assert reached - durable <= EVERY + 1, "more than the steps since the last save are gone"
        safe = durable
    child = begin(killed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lines(killed) == lines(whole)
    for name in ("nnet", "nnet_ema", "optimizer"):
        mine, its = (checkpoint.read(folder / "ckpts" / f"{STEPS}.ckpt")[0][name] for folder in (killed, whole))
        assert all(torch.equal(mine[key], its[key]) for key in its) and mine.keys() == its.keys()


def test_twenty_kills_and_the_end_is_the_same_bit_for_bit(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tests.test_kill", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    twenty_kills(Path(sys.argv[1]))
