"""What the small networks trained on the data at hand share: their folder, the mirroring of what they see, held-out
images.

A folder holds weights.safetensors and config.json, which names the hash of the weights, so that a write that was
cut off is noticed.
"""

import hashlib
import json
import os
from pathlib import Path

import torch

from libs import files

AXES = {"horizontal": -1, "vertical": -2}


def save_network(network, folder):
    """Writes `network.arguments` and `network.report` as config.json, after its weights.safetensors."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({key: value.contiguous() for key, value in network.state_dict().items()})
    config = {**network.report, "network": network.arguments, "sha256": hashlib.sha256(weights).hexdigest()}
    with files.disk_errors(folder, need=len(weights)):
        _replace(folder / "weights.safetensors", weights)
        _replace(folder / "config.json", (files.json_text(config) + "\n").encode())


def load_network(build, folder, *, what, hint, fingerprint=""):
    """`build(**arguments)` with the weights and the `report` of a folder, ready to use.

    what, hint  what messages call the network, and what they say of where it comes from
    FileNotFoundError where there is none; ValueError where its files do not belong together or, if a
    `fingerprint` is given, where it was trained on other data.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "weights.safetensors").is_file():
        raise FileNotFoundError(
            f"no {what} at {folder}: config.json and weights.safetensors are expected there; {hint}"
        )
    try:
        config = json.loads((folder / "config.json").read_text())
        file = folder / "weights.safetensors"
        if hashlib.sha256(file.read_bytes()).hexdigest() != config["sha256"]:
            raise ValueError(f"weights.safetensors {files.describe_damage(file) or 'is not the file that config.json describes'}")
        network = build(**config["network"])
        network.load_state_dict(files.read_safetensors(file), strict=True)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no usable {what}; train it again: {error}") from error
    if fingerprint and config["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder} was trained on other data: its fingerprint is {config['fingerprint']!r}, the "
            f"data's is {fingerprint!r}"
        )
    network.report = {key: value for key, value in config.items() if key not in ("network", "sha256")}
    return network.eval()


def check_flips(flips):
    """ValueError for a mirroring that is not known."""
    unknown = set(flips) - set(AXES)
    if unknown:
        raise ValueError(f'flips {tuple(flips)} may hold "horizontal" and "vertical"')


def draw_flips(count, flips, generator):
    """Which of `count` images are mirrored along which axis, each with probability 1/2: [(axis, bool (count,))]."""
    return [
        (axis, torch.rand(count, generator=generator) < 0.5) for name, axis in AXES.items() if name in flips
    ]


def flipped(x, drawn):
    """Images (N, ..., H, W) mirrored as `draw_flips` says, so that an image and its mask can be alike."""
    for axis, turn in drawn:
        x = torch.where(turn.view(-1, *[1] * (x.ndim - 1)).to(x.device), x.flip(axis), x)
    return x


def divided(n, held_out, draw):
    """(indices to train on, held-out indices) of n images, or ValueError where one of them is too small.

    held_out  given indices, or None: then `draw()` gives them
    """
    test = draw() if held_out is None else torch.as_tensor(held_out, dtype=torch.long)
    train = torch.ones(n, dtype=torch.bool).index_fill(0, test, False).nonzero().flatten()
    if len(train) < 2 or not len(test):
        raise ValueError(f"{len(train)} images to train on and {len(test)} held out; give more images")
    return train, test


def check_images(images):
    """ValueError unless images are uint8 (N, C, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected uint8 (N, C, H, W)"
        )


def _replace(path, content):
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with open(staged, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
