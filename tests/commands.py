"""A script called by its command line in this process: options parsed as a user's are, without the seconds that a start takes.

What needs a process of its own (several of them, a signal, a fresh interpreter) takes the fixture `script` instead.
"""

import contextlib
import gc
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
from unittest import mock

import torch
from absl import app
from absl.testing import flagsaver

from libs import cli, nn  # noqa: F401 (cli brings absl's own flags, which are to stay)
from tests.conftest import ROOT

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def call(name, *options, fails=False, cwd=ROOT, env=()):
    """call('train.py', '--a=b', ...) -> a finished process, as of the fixture `script`; what it changed here is put back."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with _as_before(cwd, env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        sys.argv = [str(ROOT / name), *map(str, options)]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else end.code is not None
            errors.write("" if isinstance(end.code, int | None) else f"{end.code}\n")
    if fails:
        gc.collect()  # what a failed run held, its lock among it
    done = subprocess.CompletedProcess(options, int(code), out.getvalue(), errors.getvalue())
    assert bool(code) == fails, f"exit {code}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def _run(main, flags_parser=app.parse_flags_with_usage):
    """absl's `run` without its hold on signals, logs and the end of this process."""
    sys.exit(main(flags_parser(sys.argv)))


@contextlib.contextmanager
def _as_before(cwd, env):
    """A scope as of a fresh process of one thread: its flags, arguments, log, signals, accelerator and folder are its own."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    root, former, threads, backend = logging.getLogger(), os.getcwd(), torch.get_num_threads(), nn.use_backend("auto")
    kept, level, handlers = list(root.handlers), root.level, {each: signal.getsignal(each) for each in SIGNALS}
    root.handlers = []
    states = [each._shared_state for each in (AcceleratorState, GradientState, PartialState)]  # dicts of this whole process
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    torch.set_num_threads(1)
    try:
        with (flagsaver.flagsaver(), mock.patch.object(sys, "argv", sys.argv), mock.patch.object(sys, "path", [*sys.path]),
              mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **dict(env)}),
              mock.patch("absl.app.run", _run),
              torch.random.fork_rng(devices=[])):
            os.chdir(cwd)
            yield
    finally:
        os.chdir(former)
        for state, held in zip(states, before):
            state.clear()
            state.update(held)
        torch.set_num_threads(threads)
        nn.use_backend(backend)
        root.handlers = kept
        root.setLevel(level)
        for each, handler in handlers.items():
            signal.signal(each, handler)
