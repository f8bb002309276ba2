"""Weights that others wrote, under the names of our networks: checkpoints of DiT, of Diffusion-Model-SOTA, diffusers' folders.

    0050000.pt              {model, ema, opt, args} of DiT's and fast-DiT's training; the average `ema` is taken
    checkpoint_*.pt         {unet, class_embedder} or {controlnet, dummy_encoder[, unet]}, each a state_dict; with
                            optimizer, config and the like, which are left where they lie
    a pipeline's folder     unet/, transformer/, controlnet/, class_embedder/, text_encoder/, as save_pretrained writes them
    a part's folder         config.json and the weights of a UNet2DConditionModel, ControlNetModel or PixArtTransformer2DModel
    LoRA of PixArt          see foreign_lora

A weight `x` of the part `unet` becomes `unet.x`, and so on. Nothing is executed on the way.
"""

import argparse
import hashlib
import json
import logging
from pathlib import Path

import torch

from libs import files
from libs.engine import foreign_lora

AVERAGED = ("ema", "model")  # of a checkpoint of DiT's training, the better one first
PARTS = ("unet", "transformer", "class_embedder", "controlnet", "dummy_encoder", "text_encoder")
# parts of a single tensor, which has had more than one name
SINGLE = {"class_embedder": "class_embedder.embedding.weight", "dummy_encoder": "dummy_encoder.embedding"}
CLASSES = {"UNet2DConditionModel": "unet", "ControlNetModel": "controlnet", "PixArtTransformer2DModel": "transformer",
           "Transformer2DModel": "transformer"}
STEM = "diffusion_pytorch_model"
STEMS = {"text_encoder": {".safetensors": "model", ".bin": "pytorch_model"}}  # as transformers calls its files


def is_folder(path):
    """Whether a folder is a pipeline of diffusers or a part of one, or a path one of LoRA."""
    path = Path(path)
    if foreign_lora.holds(path):
        return True
    if any((path / name).is_file() for name in ("model_index.json", "unet/config.json", "transformer/config.json")):
        return True
    return (path / "config.json").is_file() and "_class_name" in _json(path / "config.json")  # not a run's own


def read(path):
    """The weights in a file or folder as {name: Tensor}: a plain state_dict, or one put together from parts.

    Args:
        path: a file of torch (.pt, .pth, .ckpt, .bin) or of safetensors, a folder as above, or two and more of them between
            commas: parts of a later one replace those of an earlier one, as in "ldm.pt,controlnet.pt".

    Raises:
        ValueError: what is there is neither, or not safe to load; says what was expected.
        FileNotFoundError: there is nothing at one of several paths.
    """
    several = split(path)
    if len(several) > 1:
        weights = {}
        for file in several:
            each = _read(file, with_unet=any(name.startswith("unet.") for name in weights))
            own = {name.split(".")[0] for name in each}
            weights = {name: value for name, value in weights.items() if name.split(".")[0] not in own} | each
        return _without_class_where_dummy(weights)
    return _read(several[0])


def _read(path, *, with_unet=False):
    """`read` of one path; with_unet: another one has brought the weights of a UNet already."""
    if foreign_lora.holds(path):
        return foreign_lora.read(path)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors":
        return files.read_safetensors(path)
    weights = _torch_file(path)
    if _is_state(weights):
        return weights
    for part in AVERAGED if isinstance(weights, dict) else ():
        if _is_state(weights.get(part)):
            logging.info("%s: %s is used", path, "the moving average, ema," if part == "ema" else "model, without an average,")
            return weights[part]
    if isinstance(weights, dict) and isinstance(weights.get("unet", weights.get("controlnet")), dict):
        return _checkpoint(path, weights, with_unet=with_unet)
    raise ValueError(f"{path} does not hold a state_dict (name -> tensor), nor state_dicts under the keys unet and class_embedder "
                     f"or controlnet and dummy_encoder, nor one under ema or model, but {_kind(weights)}")


def split(path):
    """The paths of one or more weights, given between commas."""
    path = str(path)
    return [Path(each) for each in path.split(",")] if "," in path and not Path(path).exists() else [Path(path)]


def class_names(path):
    """The class names that weights of others come with, in the order of their numbers; None where they do not say.

    Args:
        path: as for `read`; of several the first that knows them.
    """
    for each in split(path):
        names = None
        if (each / "model_index.json").is_file():
            numbered = _json(each / "model_index.json").get("id2label")
            names = [numbered[key] for key in sorted(numbered, key=int)] if numbered else None
        elif each.is_file() and each.suffix in (".pt", ".pth", ".ckpt"):
            weights = _torch_file(each)
            names = weights.get("class_names") if isinstance(weights, dict) else None
        if names and not torch.is_tensor(names):
            return [str(name) for name in names]
    return None


def digest(path):
    """SHA-256 (hex) of the weights that `read` takes from a folder, or from several paths."""
    whole = hashlib.sha256()
    for each in split(path):
        if foreign_lora.holds(each):
            files = foreign_lora.files(each)
        else:
            files = (file for part in _parts(each).values() for file in _files(part)) if each.is_dir() else (each,)
        for file in sorted(files):
            with open(file, "rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def adapter_settings(path):
    """What is said of the LoRA that `read` takes from a path, see foreign_lora.settings; {} where there is none."""
    return foreign_lora.settings([each for each in split(path) if foreign_lora.holds(each)])


def _checkpoint(path, weights, *, with_unet=False):
    """The parts of one of the original's checkpoints. The UNet of a ControlNet lies in its file where it was trained with it,
    and in the LDM's that it began from where it was frozen."""
    parts = {part: weights[part] for part in PARTS if isinstance(weights.get(part), dict)}
    flat = {}
    for part, own in parts.items():
        flat |= _named(part, own, path)
    if "controlnet" in parts and "unet" not in parts:
        config = weights.get("config")
        named = str(config.get("ldm_checkpoint") or "") if isinstance(config, dict) else ""
        ldm = next((file for file in (Path(named), path.parent / named) if named and file.is_file()), None)
        if ldm:
            logging.info("%s was trained with a frozen UNet, which is taken from %s", path, ldm)
            flat |= {name: value for name, value in read(ldm).items() if name.startswith("unet.")}
        elif not with_unet:
            logging.warning("%s holds a ControlNet without its frozen UNet%s: give both files, as LDM.pt,%s", path,
                            f", and {named} is not here" if named else "", path.name)
    elif "controlnet" in parts:
        logging.info("%s: its own UNet is used, which was trained with the ControlNet", path)
    return _without_class_where_dummy(flat)


def _without_class_where_dummy(flat):
    """A ControlNet that attends to one learned token has no use for the classes' tokens of its LDM."""
    return {name: value for name, value in flat.items()
            if SINGLE["dummy_encoder"] not in flat or not name.startswith("class_embedder.")}


def _named(part, own, path):
    """The weights of one part under our names."""
    if not all(map(torch.is_tensor, own.values())):
        raise ValueError(f"{path}: {part} is no state_dict (name -> tensor), but {_kind(own)}")
    if part not in SINGLE:
        return {f"{part}.{name}": value for name, value in own.items()}
    if len(own) != 1:
        raise ValueError(f"{path}: {part} was expected to hold one tensor, and holds {len(own)}: {', '.join(own) or 'none'}")
    value, = own.values()
    dim = value.shape[-1] if value.ndim else 0
    fits = value.ndim == 2 if part == "class_embedder" else value.numel() == dim
    if not fits:
        raise ValueError(f"{path}: the tensor of {part} has shape {tuple(value.shape)}; expected "
                         f"{'(classes + 1, width)' if part == 'class_embedder' else '(1, 1, width)'}")
    return {SINGLE[part]: value if part == "class_embedder" else value.reshape(1, 1, dim)}


def _folder(folder):
    flat, dummy = {}, False
    if (folder / "model_index.json").is_file():
        dummy = bool(_json(folder / "model_index.json").get("mask_signed"))
    for part, where in _parts(folder).items():
        own = {}
        for file in _files(where):
            own |= files.read_safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)
        flat |= _named("dummy_encoder" if dummy and part == "class_embedder" else part, own, where)
    return flat


def _parts(folder):
    """{part: folder} of what is in a folder; the moving average of a UNet in place of the UNet."""
    if (folder / "config.json").is_file():
        kind = _json(folder / "config.json").get("_class_name")
        if kind not in CLASSES:
            raise ValueError(f"{folder} holds {kind or 'no network of diffusers'}; expected {' or '.join(CLASSES)}, or a "
                             "pipeline's folder with unet/")
        found = {CLASSES[kind]: folder}
    else:
        found = {part: folder / part for part in PARTS if (folder / part / "config.json").is_file()}
        if "text_encoder" in found and not _weight_files(found["text_encoder"]):
            del found["text_encoder"]  # of a form that is not read here; few networks ask for it
    if not found.keys() - {"text_encoder"}:
        raise ValueError(f"{folder} has no unet/, transformer/ or controlnet/ with a config.json: expected a folder that "
                         "save_pretrained wrote")
    averaged = found["unet"].with_name("unet_ema") if "unet" in found else folder
    if averaged != folder and (averaged / "config.json").is_file():
        if found["unet"] != averaged:
            logging.info("%s: the moving average %s is used in place of %s", folder, averaged.name, found["unet"].name)
        found["unet"] = averaged
    return found


def _files(folder):
    """The weight files of a part; ValueError where it has none."""
    files = _weight_files(folder)
    if not files:
        raise ValueError(f"{folder} has a config.json but no weights: expected {STEM}.safetensors or {STEM}.bin")
    return files


def _weight_files(folder):
    """The weight files of a part, safetensors where there are some, whole or in shards; [] where it has none."""
    for suffix in (".safetensors", ".bin"):
        stem = STEMS.get(folder.name, {}).get(suffix, STEM)
        for name in (f"{stem}{suffix}", f"{stem}.fp16{suffix}"):
            if (folder / name).is_file():
                return [folder / name]
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            files = [folder / name for name in sorted(set(_json(index)["weight_map"].values()))]
            lacking = [file.name for file in files if not file.is_file()]
            if lacking:
                raise ValueError(f"{index} names files that are not there: {', '.join(lacking)}")
            return files
    return []


def _torch_file(path):
    """What a file of torch holds; big tensors stay on the disk until they are used. Beside tensors and plain values only
    argparse.Namespace is allowed, a bag of values in which DiT's training keeps its options."""
    return files.read_torch(path, allow=[argparse.Namespace], mmap=True)


def _is_state(held):
    """Whether something is a state_dict, name -> tensor, that is not empty."""
    return isinstance(held, dict) and bool(held) and all(map(torch.is_tensor, held.values()))


def _json(file):
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(held, dict):
        raise ValueError(f"{file} holds {_kind(held)}, not the settings that diffusers writes")
    return held


def _kind(value):
    return f"a dict with keys {json.dumps(list(map(str, value))[:5])}" if isinstance(value, dict) else type(value).__name__
