"""Where files lie that belong to the repository, from wherever a script is called."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def assets_folder():
    """The folder of what is made once and used by all runs: <repository>/assets, or where that cannot be
    written ~/.cache/medical_image_synthesis ($XDG_CACHE_HOME)."""
    if os.access(REPOSITORY / "assets", os.W_OK):
        return REPOSITORY / "assets"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medical_image_synthesis"
