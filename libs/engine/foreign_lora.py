"""LoRA of PixArt-alpha that others wrote, under the names of our network: Med-Art's folders, and peft's and diffusers' files.

    transformer_lora/, text_encoder_lora/   peft: adapter_config.json, adapter_model.safetensors
    trans_lora/, text_lora/                 diffusers: pytorch_lora_weights.safetensors, which is read where the former is not there
    checkpoint-N/                           a folder of these from the midst of a training, of which the last is taken

Any one of these folders is read, the file in it, or the folder around them. `transformer_blocks.0.attn1.to_q.lora_A.weight`
becomes `transformer.transformer_blocks.0.attn1.to_q.lora_A.default.weight`, whatever stands before it: Med-Art wrote T5's under
`unet.` too.
"""

import json
import logging
import re
from pathlib import Path

from libs import files as weight_files

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"
FOLDERS = {"transformer": ("transformer_lora", "trans_lora"), "text_encoder": ("text_encoder_lora", "text_lora")}
METADATA = "lora_adapter_metadata"  # of safetensors, as diffusers writes it
_ROOTS = {"transformer": ("transformer_blocks.", "pos_embed.", "adaln_single.", "caption_projection.", "proj_out.", "proj_in."),
          "text_encoder": ("encoder.block.",)}
_PREFIX = re.compile(r"^(?:(?:base_model\.model|unet|transformer|text_encoder)\.)+")
_MATRIX = re.compile(r"\.(?:lora_(A|B)|lora\.(down|up)|(lora_magnitude_vector))(?:\.default)?(?:\.weight)?$")
_NAMES = {"A": "lora_A", "B": "lora_B", "down": "lora_A", "up": "lora_B"}
# settings of peft that change what its matrices do, and that `pixart` has no words for
_UNKNOWN = ("rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")


def holds(path) -> bool:
    """Whether there is LoRA at a path, which is a folder or one of FILES."""
    path = Path(path)
    return path.name in FILES if path.is_file() else path.is_dir() and bool(_found(path))


def read(path) -> dict:
    """{name: Tensor} of the LoRA at a path, float32, of the transformer, of T5 or of both.

    Raises:
        ValueError: it is none of PixArt's or T5's, or of a kind that the network `pixart` has no words for.
    """
    found, weights = files(path), {}
    for file in found:
        _config(file)
        weights |= _named(_tensors(file), file)
    parts = sorted({name.split(".")[0] for name in weights}, reverse=True)
    logging.info("LoRA of %s is read from %s", " and ".join(parts), ", ".join(map(str, found)))
    around = _found(Path(path).parent) if Path(path).is_dir() and Path(path).name in sum(FOLDERS.values(), ()) else []
    if len(around) > len(found):
        logging.warning("%s is LoRA of %s alone; give %s for all of it", path, parts[0], Path(path).parent)
    return weights


def files(path) -> list[Path]:
    """The files that `read` reads."""
    path = Path(path)
    return [path] if path.is_file() else _found(path)


def settings(paths) -> dict:
    """What is said of the LoRA at some paths, as arguments of the network `pixart`: lora_rank, lora_alpha, use_rslora and, of T5,
    use_dora; {} where there is no path. What is not said, as Med-Art's files of diffusers do not, is left out but for the rank.

    Raises:
        ValueError: its parts differ in what `pixart` has one number for.
    """
    told = {}
    for file in (file for path in paths for file in files(path)):
        for key, value in _said(file).items():
            if told.setdefault(key, value) != value:
                raise ValueError(f"{file} has {key}={value}, the other part of this LoRA {told[key]}: the network pixart has one "
                                 "for both; give one part alone, and config.nnet.train_text_encoder=False for the transformer's")
    return told


def _found(folder):
    """The files of LoRA in a folder; [] where it has none."""
    own = _file(folder)
    if own:
        return [own]
    parts = [next(filter(None, (_file(folder / name) for name in names)), None) for names in FOLDERS.values()]
    if any(parts):
        return [file for file in parts if file]
    steps = {int(each.name.removeprefix("checkpoint-")): each for each in folder.glob("checkpoint-*")
             if each.name.removeprefix("checkpoint-").isdigit()}
    return next(filter(None, (_found(steps[step]) for step in sorted(steps, reverse=True))), [])


def _file(folder):
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _tensors(file):
    if file.suffix == ".safetensors":
        return weight_files.read_safetensors(file)
    return weight_files.read_torch(file)


def _named(tensors, file):
    """Tensors under the names of `pixart`."""
    named = {}
    for name, value in tensors.items():
        bare, matrix = _PREFIX.sub("", name), _MATRIX.search(name)
        part = next((part for part, roots in _ROOTS.items() if bare.startswith(roots)), None)
        if part is None or matrix is None:
            raise ValueError(f"{file} holds {name!r}, which is no LoRA of PixArt's transformer (transformer_blocks. ...) or of T5 "
                             "(encoder.block. ...)")
        kind = _NAMES.get(matrix[1] or matrix[2], matrix[3])
        named[f"{part}.{_MATRIX.sub('', bare)}.{kind}.default.weight"] = value.float()
    if not named:
        raise ValueError(f"{file} holds no LoRA: it is empty")
    return named


def _said(file):
    """The settings of one file; what is not said is left out."""
    if (file.parent / CONFIG).is_file():
        said = _config(file)
    else:
        said = _metadata(file)
    weights = _named(_tensors(file), file)
    known = {"lora_rank": next(value.shape[0] for name, value in weights.items() if ".lora_A." in name)}
    if said:
        known |= {"lora_alpha": float(said.get("lora_alpha", 8)), "use_rslora": bool(said.get("use_rslora", False))}
        if any(name.startswith("text_encoder.") for name in weights):
            known["use_dora"] = bool(said.get("use_dora", False))
    else:
        logging.info("%s says nothing of lora_alpha, without which it counts as config.nnet.lora_alpha says", file)
    return known


def _config(file):
    """The adapter_config.json beside a file, {} where there is none; ValueError for what changes the weights' meaning."""
    path = file.parent / CONFIG
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(said, dict) or said.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path} is of {said.get('peft_type') if isinstance(said, dict) else 'no adapter'}, not of LORA")
    odd = {key: said[key] for key in _UNKNOWN if said.get(key)}
    if odd:
        raise ValueError(f"{path} has {', '.join(f'{key}={value}' for key, value in odd.items())}, for which the network pixart "
                         "has no words")
    return said


def _metadata(file):
    """The same of a file of diffusers, which newer versions write into it: {'transformer.r': 8, ...} -> {'r': 8, ...}."""
    if file.suffix != ".safetensors":
        return {}
    said = weight_files.read_metadata(file).get(METADATA)
    return {key.split(".", 1)[-1]: value for key, value in json.loads(said).items()} if said else {}
