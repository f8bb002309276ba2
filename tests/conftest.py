"""What several test files share: the folder of parity data, a way to run scripts as a user does, an attention kernel."""

import os
import subprocess
import sys
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
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run([*launcher, str(ROOT / name), *options], cwd=cwd, capture_output=True, text=True,
                              timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
                                                    "PYTHONPATH": str(ROOT), **dict(env)})
        assert (done.returncode != 0) == fails, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done

    return call


@pytest.fixture
def math_attention():
    """The attention kernel whose products torch's counter of operations sees."""
    from libs.nn import use_backend
    former = use_backend("math")
    yield
    use_backend(former)
