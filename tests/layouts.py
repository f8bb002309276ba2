"""Folders of images and masks as people have them, drawn small: for tests of what is read from them."""

import re
import shlex

import numpy as np
from PIL import Image

from libs import data


def image(path, size=(24, 24), seed=0):
    """Noise, of which no grey level is rare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, len(str(path))]).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path, size=(24, 24), rows=slice(4, 12), columns=slice(4, 12), level=255):
    """Black with a bright rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[rows, columns] = level
    Image.fromarray(pixels).save(path)
    return path


def folder(path, **options):
    return data.get(**{"name": "folder", "path": str(path), "resolution": 16, "cache": ""} | options)


def typed(text):
    """{option: value} of the --config.dataset options in a piece of a shell command line."""
    given = {}
    for word in shlex.split(text):
        if word.startswith("--config.dataset."):
            name, value = word.removeprefix("--config.dataset.").rstrip(",;.").split("=", 1)
            given[name] = eval(value) if re.match(r"[(\d]", value) else value
    return given
