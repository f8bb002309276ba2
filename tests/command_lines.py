"""The config of a command line: what a script would be called with, or the message that a user reads."""

import contextlib
import io
import sys

from libs import cli
from tests.commands import ROOT, _as_before


def config_of(file, *options, settings=(), workdir=True, flags=(), **own_flags):
    """The config that `cli.main` hands to a script, after all options, checks and what follows from them.

    Args:
        file: 'configs/X.py', or '' for none.
        options: of the command line.
        settings: what the script reads of config.train; () for one that trains nothing.
        workdir: whether the script opens a run.
    Raises:
        ValueError: the message, where the command line is refused.
    """
    taken = []

    def script_of_a_run(config, workdir):
        taken.append(config)

    def script_without(config):
        taken.append(config)

    script = script_of_a_run if workdir else script_without
    script.__globals__["SETTINGS"] = settings
    errors = io.StringIO()
    with _as_before(ROOT, ()), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["script.py", *([f"--config={file}"] if file else []), *options]
        try:
            cli.main(script, **own_flags)
        except SystemExit as end:
            if isinstance(end.code, str):
                raise ValueError(end.code) from None
    if not taken:
        raise ValueError(errors.getvalue())
    return taken[0]
