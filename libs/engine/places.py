"""Where files lie: what belongs to the repository, from wherever a script is called; and errors of a disk
that name the file."""

import contextlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def assets_folder():
    """The folder of what is made once and used by all runs: <repository>/assets, or where that cannot be
    written ~/.cache/medical_image_synthesis ($XDG_CACHE_HOME)."""
    if os.access(REPOSITORY / "assets", os.W_OK):
        return REPOSITORY / "assets"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medical_image_synthesis"


@contextlib.contextmanager
def naming(path):
    """Give an OSError of what is done within, such as that of a full disk, the name of the file that was
    written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:  # numpy counts what was written, and gives no number
            raise OSError(f"cannot write {path}: {error}") from error
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
