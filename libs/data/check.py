"""Pre-flight: every image decoded once before training, every fault named at once."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .base import fail
from .measurements import Measurements, check_levels

log = logging.getLogger(__name__)
SAMPLE_IMAGES = 256  # of which grey levels are measured where nothing else is checked
BLOCK = 1024  # images under way at a time, so that a million of them are not queued at once


def preflight(dataset, *, workers=0, progress=None, remember=None, window_option="config.dataset.window", generated=False):
    """Decode every image of `dataset`; ValueError that lists each bad row and file, and what would be right.

    What the files hold, their sizes and grey levels, becomes `dataset.measurements`.

    Args:
        workers: threads; 0 takes one per processor, 8 at most.
        remember: path of a JSON file that keeps the fingerprint of data that were found good, and their
            measurements; these are not decoded again.
        progress: called with (images done, images in all) every 1024 images.
        window_option: what the window of the data set is called on the command line, for what messages
            advise.
        generated: of images that a network made, levels that use a sliver of their range are a result, and
            only warned of.
    Returns:
        How many images were checked.
    """
    problems, total, measurements = [], len(dataset), Measurements()
    note = read_note(remember) if remember else {}
    good = bool(note) and note["good"] == dataset.fingerprint
    if good and note["measurements"] is not None:
        dataset.measurements = note["measurements"]
        return 0
    inspect = getattr(dataset, "inspect", None) or (lambda i: (getattr(dataset, "problems", lambda _: [])(i), {}))
    window = getattr(dataset, "window", ())
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, total, BLOCK):
            block = range(start, min(start + BLOCK, total))
            for faults, measured in pool.map(inspect, block):
                problems += faults
                measurements.add(measured, window)
            if progress:
                progress(block.stop, total)
    problems += dataset.common_faults() if hasattr(dataset, "common_faults") else []
    faults, warnings = _advise(measurements, window, window_option)
    if good or generated:  # a run that an earlier version began goes on as it is
        faults, warnings = [], warnings + faults
    fail(f"{dataset.name}: pre-flight", problems + faults)
    for sentence in warnings:
        log.warning("%s: %s", dataset.name, sentence)
    dataset.measurements = measurements
    if remember:
        with open(f"{remember}.{os.getpid()}", "w") as file:
            json.dump({"good": dataset.fingerprint, "measurements": measurements.to_json()}, file)
        os.replace(f"{remember}.{os.getpid()}", remember)
    return total


def check_sample(dataset, *, window_option="config.dataset.window"):
    """ValueError where the grey levels of 256 images use a sliver of their range; for scripts that read
    files one by one.

    Files that cannot be read are left to the script. window_option: see `preflight`.
    """
    measurements = Measurements()
    order = np.random.default_rng(0).permutation(len(dataset))[:SAMPLE_IMAGES]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _, measured in pool.map(dataset.inspect, sorted(order.tolist())):
            measurements.add(measured, dataset.window)
    faults, warnings = _advise(measurements, dataset.window, window_option)
    fail(dataset.name, faults)
    for sentence in warnings:
        log.warning("%s: %s", dataset.name, sentence)


def _advise(measurements, window, window_option):
    """(faults, warnings) of `check_levels`, with the option as it is typed."""
    return ([text.replace("--config.dataset.window", f"--{window_option}") for text in texts]
            for texts in check_levels(measurements, window))


def read_note(path):
    """What an earlier pre-flight noted at `path`: {'good': fingerprint, 'measurements': `Measurements`}.

    Measurements are None in notes of earlier versions. {} where there is no note, or a damaged one.
    """
    try:
        with open(path) as file:
            note = json.load(file)
        good = str(note["good"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    try:
        return {"good": good, "measurements": Measurements.from_json(note["measurements"])}
    except (KeyError, TypeError, AttributeError):
        return {"good": good, "measurements": None}
