"""What several test files share: the folder of parity data, a way to run scripts as a user does, an attention kernel."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def wbc():
    """300 real microscope images with labels, masks and captions, where they lie beside the project."""
    path = SHARED / "data" / "wbc"
    if not path.is_dir():
        pytest.skip(f"no real images at {path}")
    return path


@pytest.fixture(scope="session")
def script():
    """script('train.py', '--a=b', ..., processes=1, fails=False) -> finished process, as from a user's shell.

    The working folder is the repository; caches that a script writes go to a folder of the test session.
    """

    def call(name, *options, processes=1, fails=False, cwd=ROOT, env=(), timeout=300):
        run = [sys.executable, str(ROOT / name), *map(str, options)]
        how = {"cwd": cwd, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
                                                 "PYTHONPATH": str(ROOT), **dict(env)}}
        done = _together(run, processes, timeout, **how) if processes > 1 else subprocess.run(
            run, capture_output=True, timeout=timeout, **how)
        assert (done.returncode != 0) == fails, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done

    return call


def _together(run, processes, timeout, *, env, **how):
    """The processes of one group as torchrun starts them, without the seconds of its own; where one fails, the others end."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = [(tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")) for _ in range(processes)]
    ranks = [subprocess.Popen(run, stdout=out, stderr=errors, **how,
                              env={**env, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
             for rank, (out, errors) in enumerate(said)]
    until = time.monotonic() + timeout
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(run, timeout)
            time.sleep(0.05)
        code = next((rank.poll() for rank in ranks if rank.poll()), 0)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    texts = []
    for files in zip(*said, strict=True):
        for file in files:
            file.seek(0)
        texts.append("".join(file.read() for file in files))
        for file in files:
            file.close()
    return subprocess.CompletedProcess(run, code, *texts)


@pytest.fixture(scope="session")
def inside():
    """inside('train.py', '--a=b', ..., fails=False): as `script`, but in this process, without the seconds of a start."""
    from tests.commands import call
    return call


@pytest.fixture
def math_attention():
    """The attention kernel whose products torch's counter of operations sees."""
    from libs.nn import use_backend
    former = use_backend("math")
    yield
    use_backend(former)
