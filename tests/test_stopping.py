"""Ctrl-C, a lost terminal and what schedulers send: the step is saved, the exit code says why, a second Ctrl-C ends at once."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from libs.engine import checkpoint
from tests.conftest import ROOT

TINY = ("--config=configs/phantom32_uvit_label.py", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.train.batch_size=8", "--config.train.preview_interval=0",
        "--config.train.eval_interval=0", "--config.train.validation_interval=0", "--config.dataset.size=64",
        "--config.lr_scheduler.warmup_steps=0", "--config.train.n_steps=100000", "--config.train.save_interval=0",
        "--config.train.log_interval=2", "--config.train.mixed_precision=no")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """Signals as a program at a terminal meets them: what starts the tests, such as nohup or a job in the
    background, may have Ctrl-C and a hangup ignored, which a program that it starts would inherit."""
    before = {number: signal.signal(number, handler) for number, handler in (
        (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL))}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(folder, *options, **how):
    return subprocess.Popen([sys.executable, "train.py", *TINY, *options, f"--workdir={folder}"], cwd=ROOT, text=True,
                            **{"env": ENVIRONMENT, "stderr": subprocess.PIPE, "start_new_session": True, **how})


def wait_for_steps(folder, process, seconds=90):
    """Until the training has logged a step."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size:
            return
        assert process.poll() is None, process.stderr and process.stderr.read()[-3000:]
        time.sleep(0.05)
    process.kill()
    pytest.fail("no step within the time")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_saves_the_step(tmp_path, number, code):
    """To the whole group, as a terminal sends it: data workers get it as well."""
    process = start(tmp_path, "--config.train.workers=2")
    wait_for_steps(tmp_path, process)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said[-3000:]
    step = int(re.search(r"asked to stop: step (\d+) is saved", said)[1])
    assert checkpoint.steps(tmp_path / "ckpts") == [step] and "Traceback" not in said and "worker" not in said
    assert ("Ctrl-C again ends at once" in said) is (number == signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = start(tmp_path)
    wait_for_steps(tmp_path, process)
    process.send_signal(signal.SIGSTOP)  # so that both arrive before the end of a step
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    # The first may have been obeyed already; else the second has ended it, without a checkpoint.
    if "asked to stop" not in said:
        assert process.returncode == -signal.SIGINT and not checkpoint.steps(tmp_path / "ckpts") and "Traceback" not in said


def test_a_second_ctrl_c_in_the_same_step(monkeypatch):
    """The same in a process of its own, in which no step ends."""
    code = ("import os, signal, time; from libs.engine.run import Stop; stop = Stop(1); stop.listen()\n"
            "os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1); assert stop.agreed() and stop.exit_code == 130\n"
            "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1); print('alive', flush=True)\n"
            "os.kill(os.getpid(), signal.SIGINT); time.sleep(5); print('never')")
    clean = {key: value for key, value in ENVIRONMENT.items() if key not in ("LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=clean)
    assert done.returncode == -signal.SIGINT and done.stdout == "alive\n", done.stderr
    # A launcher hands its own Ctrl-C on to processes that have had it from the terminal.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**clean, "LOCAL_WORLD_SIZE": "1"})
    assert done.returncode == 0 and done.stdout == "alive\nnever\n", done.stderr


def test_what_is_ignored_stays_ignored():
    """nohup has SIGHUP ignored, a shell's background jobs SIGINT."""
    code = ("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from libs.engine.run import Stop; Stop(1).listen()\n"
            "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and callable(signal.getsignal(signal.SIGINT))")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=ENVIRONMENT)


def test_a_terminal_that_goes_away_saves_the_step(tmp_path):
    """The terminal is closed, as when ssh is lost: SIGHUP comes, and every write to it fails."""
    mine, its = pty.openpty()
    process = start(tmp_path, stdin=its, stdout=its, stderr=its, start_new_session=False,
                    preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0)))
    os.close(its)
    wait_for_steps(tmp_path, process)
    os.close(mine)
    assert process.wait(timeout=60) == 129
    assert len(checkpoint.steps(tmp_path / "ckpts")) == 1


def test_two_processes_stop_at_the_same_step(tmp_path):
    """Ctrl-C reaches both, or one of them alone, and a second one by the hand of a launcher does no harm."""
    import socket
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [start(tmp_path, env={**ENVIRONMENT, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    wait_for_steps(tmp_path, both[0])
    for _ in range(2):
        both[1].send_signal(signal.SIGINT)
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [143, 130], said[0][-2000:] + said[1][-2000:]
    assert len(checkpoint.steps(tmp_path / "ckpts")) == 1 and "asked to stop" in said[0]
