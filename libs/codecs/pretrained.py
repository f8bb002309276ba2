"""Autoencoders of diffusers from where users have them: the hub, a save_pretrained folder; and such a folder written.

Nothing is executed on the way: weights are safetensors, or torch files of tensors alone.
"""

import json
import os
import shutil
import uuid
from pathlib import Path

README = "assets/stable-diffusion/README.md"
WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def load(kind: str, path: str, subfolder: str = ""):
    """An autoencoder of class `kind` (AutoencoderKL, AutoencoderTiny), in float32 and with every weight loaded.

    Args:
        path: a save_pretrained folder, also one that holds it as `vae/` or `autoencoder/`, or a name on the hub.
        subfolder: where in the folder or repository it lies ('vae' for a whole pipeline on the hub).

    Raises:
        OSError: nothing was found; says where one can be had.
        ValueError: it is another kind of network, or some of its weights are missing.
    """
    import diffusers
    where = _folder(Path(path).expanduser(), subfolder)
    if where:
        _check_kind(where, kind)
    elif looks_local(path):
        raise FileNotFoundError(f"no autoencoder at {path}: expected a folder written by save_pretrained, or a file of "
                                f"weights; {README} says where to get one")
    try:
        net, found = getattr(diffusers, kind).from_pretrained(
            where or path, subfolder=None if where else subfolder or None, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        if where:
            raise ValueError(f"{where} cannot be read as an {kind}: {error}") from error
        raise OSError(f"no {kind} {path!r}{f' with subfolder {subfolder!r}' if subfolder else ''}: it is no folder here, "
                      f"and the hub (its cache, then the network) did not give it ({_first_line(error)}). Without a network "
                      f"give the path of a folder or file, see {README}; the autoencoder of a whole pipeline needs "
                      "subfolder='vae'") from error
    lacking = sorted(found["missing_keys"]) + [str(each) for each in found["mismatched_keys"]]
    if lacking:
        raise ValueError(f"{where or path} lacks weights of its {kind}, or has them in another shape: "
                         f"{', '.join(lacking[:5])}{f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''}")
    return net.float()


def save(net, folder, *, scale_factor: float) -> Path:
    """Write an autoencoder as a save_pretrained folder with its scaling_factor; appears whole or not at all."""
    folder = Path(folder)
    staged, doomed = (folder.with_name(f".{kind}-{folder.name}-{uuid.uuid4().hex[:8]}") for kind in ("staging", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        net.register_to_config(scaling_factor=float(scale_factor))
        net.save_pretrained(staged, safe_serialization=True)
        if folder.exists():
            os.replace(folder, doomed)
        os.replace(staged, folder)
    finally:
        for leftover in (staged, doomed):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def scale_factor(config, path: str, given: float) -> float:
    """The scale of latents: as given, or what the autoencoder's config says; ValueError where that is not a scale alone."""
    if given:
        return float(given)
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(name):
            raise ValueError(f"{path} normalises latents by {name}={config[name]} too; here latents are scaled alone. Give "
                             "codec.scale_factor; scripts/compute_scale_factor.py computes it for your images")
    if not config.get("scaling_factor"):
        raise ValueError(f"{path} does not say its scaling_factor: give codec.scale_factor")
    return float(config["scaling_factor"])


def looks_local(path: str) -> bool:
    """True for what can be no name on the hub, which is `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(WEIGHT_FILES)


def _folder(path, subfolder):
    if not path.is_dir():
        return None
    tried = [path / subfolder] if subfolder else [path / "vae", path / "autoencoder", path]
    for folder in tried:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"no autoencoder in {path}: expected config.json and its weights, as save_pretrained writes "
                            f"them, in {' or '.join(map(str, tried))}")


def _check_kind(folder, kind):
    try:
        named = json.loads((folder / "config.json").read_text()).get("_class_name", "no network of diffusers")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/config.json cannot be read: {error}") from error
    if named != kind:
        codec = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny"}.get(named)
        raise ValueError(f"{folder} holds {named}, not {kind}" + (f": use codec.name={codec}" if codec else ""))


def _first_line(error):
    return str(error).strip().split("\n")[0][:200]
