"""Pre-flight: every image decoded once before training, every fault named at once."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

from .base import fail

BLOCK = 1024  # images under way at a time, so that a million of them are not queued at once


def preflight(dataset, *, workers=0, progress=None, remember=None):
    """Decode every image of `dataset`; ValueError that lists each bad row and file, and what would be right.

    Args:
        workers: threads; 0 takes one per processor, 8 at most.
        remember: path of a JSON file that keeps the fingerprint of data found good; these are not decoded again.
        progress: called with (images done, images in all) every 1024 images.
    Returns:
        How many images were checked.
    """
    problems, total = [], len(dataset)
    if remember and _known_good(remember) == dataset.fingerprint:
        return 0
    check = getattr(dataset, "problems", lambda i: [])
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, total, BLOCK):
            block = range(start, min(start + BLOCK, total))
            problems += [problem for found in pool.map(check, block) for problem in found]
            if progress:
                progress(block.stop, total)
    problems += dataset.common_faults() if hasattr(dataset, "common_faults") else []
    fail(f"{dataset.name}: pre-flight", problems)
    if remember:
        with open(f"{remember}.{os.getpid()}", "w") as file:
            json.dump({"good": dataset.fingerprint}, file)
        os.replace(f"{remember}.{os.getpid()}", remember)
    return total


def _known_good(path):
    """The fingerprint that an earlier pre-flight noted; '' where there is none, or the note is damaged."""
    try:
        with open(path) as file:
            return json.load(file)["good"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
