"""Weights files of feature networks: found in a cache, fetched with a time limit, read without unpickling.

Every failure is one FileNotFoundError that says which file to put where.
"""

import hashlib
import os
import re
import urllib.request
from pathlib import Path

import torch

from libs import files

PATIENCE = 10  # seconds without an answer, after which a download counts as impossible


def fetch(url):
    """Path of a published weights file in torch hub's cache, downloaded first where it is not there.

    Raises FileNotFoundError that says which file to put where, if it can be neither found nor fetched.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if target.is_file():
        return target
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer, open(staged, "wb") as file:
            while piece := answer.read(1 << 20):
                digest.update(piece)
                file.write(piece)
        stated = stated_hash(target.name)
        if stated and not digest.hexdigest().startswith(stated):
            raise OSError(f"what came has hash {digest.hexdigest()[:8]}, not {stated}")
        os.replace(staged, target)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"the weights {target.name} are missing and could not be fetched ({error}). Download {url} on a "
            f"machine with a network and put the file at {target}, or give weights=/path/to/{target.name}."
        ) from error
    finally:
        staged.unlink(missing_ok=True)
    return target


def from_hub(model, config):
    """A timm model's published file: from the Hugging Face cache, else from the hub if it answers."""
    if not config.hf_hub_id:
        return fetch(config.url)
    import huggingface_hub as hub

    names = ["model.safetensors", "pytorch_model.bin"]
    held = [hub.try_to_load_from_cache(config.hf_hub_id, name) for name in names]
    held = [path for path in held if isinstance(path, str)]
    if held:
        return held[0]
    error = "HF_HUB_OFFLINE is set"
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            # Asked once with a time limit: the hub's client would retry an unreachable host for long.
            urllib.request.urlopen(
                urllib.request.Request(hub.constants.ENDPOINT, method="HEAD"), timeout=PATIENCE
            )
            for name in names:
                if hub.file_exists(config.hf_hub_id, name):
                    return hub.hf_hub_download(config.hf_hub_id, name)
            error = "the repository holds neither"
        except OSError as caught:
            error = caught
    raise FileNotFoundError(
        f"the weights of timm:{model} are missing and could not be fetched ({error}). Download {names[0]} "
        f"(or {names[1]}) of https://huggingface.co/{config.hf_hub_id} on a machine with a network and give "
        f"weights=/path/to/{names[0]}."
    ) from (error if isinstance(error, Exception) else None)


def local(path):
    """A file the user named."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f'weights={str(path)!r} is no file; give a .pth or .safetensors file, or "random"'
        )
    return path


def read(path):
    """The tensors of a .safetensors or .pth file, by name; ValueError where that fails."""
    if str(path).endswith(".safetensors"):
        return files.read_safetensors(path)
    found = files.read_torch(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} cannot be read as weights: it holds {type(found).__name__}, not tensors by name")
    return next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)), found)


def load_into(network, state, path):
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the weights of this network: {str(error)[:500]}") from error


def reported_name(base, weights, path, published):
    """`base` for published weights, else with '_random' or the file's hash: no number passes for another."""
    if weights == "random":
        return f"{base}_random"
    if not weights and base != "inception":
        return base
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stated = stated_hash(published)
    return base if stated and digest.startswith(stated) else f"{base}_{digest[:8]}"


def stated_hash(file_name):
    """The start of the sha256 that torch hub's file names carry before their ending, or ''."""
    found = re.search(r"-([0-9a-f]{8,})\.\w+$", file_name)
    return found.group(1) if found else ""
