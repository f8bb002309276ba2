"""A fine-tuned Stable Diffusion written as diffusers reads it: a whole pipeline, or the file of its LoRA."""

import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path

from libs import encoders
from libs.files import read_safetensors, write_safetensors
from libs.nn import pretrained
from libs.pipeline import stable_diffusion
from libs.pipeline.exporting import scheduler

LORA_FILE = "pytorch_lora_weights.safetensors"
TOKENIZER_FILES = ("merges.txt", "special_tokens_map.json", "vocab.json")


def export(folder, sampler, classes=()) -> Path:
    """Write the weights of a sampler's network, which appear whole or not at all.

    A network that was trained as a whole becomes a folder for `StableDiffusionPipeline.from_pretrained`: unet, vae, text_encoder,
    tokenizer, and the scheduler that makes the same images of the same noise. One that was trained by LoRA becomes a file for
    `load_lora_weights(folder)` upon the pipeline that it was trained on.

    Args:
        sampler: `Pipeline` of a network `unet_sd`, with the config that it was made from.
        classes: of no use here; such networks know none.
    Returns:
        Path of the folder.
    Raises:
        ValueError: diffusers has no words for the schedule.
    """
    folder = Path(folder)
    with pretrained.written_whole(folder) as staged:
        if sampler.net.lora_rank:
            _write_lora(staged, sampler.net)
        else:
            _write_pipeline(staged, sampler)
    return folder


def _write_pipeline(folder, sampler):
    net, codec, config = sampler.net, sampler.codec, sampler.config
    codec.net.register_to_config(scaling_factor=float(codec.scale_factor), sample_size=sampler.image_shape[1])
    net.unet.save_pretrained(folder / "unet")
    codec.net.save_pretrained(folder / "vae")
    text_encoder, tokenizer = _text_parts(net, config)
    text_encoder.save_pretrained(folder / "text_encoder")
    _name_as_published(folder / "text_encoder" / "model.safetensors")
    made = scheduler(sampler)
    made.save_pretrained(folder / "scheduler")
    tokenizer.save_pretrained(folder / "tokenizer")
    own = tokenizer_files(stable_diffusion.part(config, "encoder"))
    for file in own:  # older transformers read vocab.json and merges.txt, which newer ones no longer write
        if not (folder / "tokenizer" / file.name).exists():
            shutil.copyfile(file, folder / "tokenizer" / file.name)
    parts = {"unet": net.unet, "vae": codec.net, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": made}
    library = {"text_encoder": "transformers", "tokenizer": "transformers"}
    named = {name: [library.get(name, "diffusers"), type(part).__name__] for name, part in parts.items()}
    named["tokenizer"][1] = "CLIPTokenizer"
    (folder / "model_index.json").write_text(json.dumps(
        {"_class_name": "StableDiffusionPipeline", "_diffusers_version": version("diffusers"), **named,
         "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}, indent=2))


def _text_parts(net, config):
    """(text encoder, tokenizer): the trained one, or the frozen one that the config names."""
    encoder = encoders.get(**stable_diffusion.part(config, "encoder"))
    return (encoder.net if net.text_encoder is None else net.text_encoder), encoder.tokenizer


def tokenizer_files(options, names=TOKENIZER_FILES):
    """The files of a tokenizer in the folder that it came from, or in the hub's cache, which it was just read from.

    Args:
        options: of the text encoder, see stable_diffusion.part.
        names: of the files; those that are not there are left out.
    """
    path, inner = options["path"], options.get("subfolder", "").replace("text_encoder", "tokenizer")
    folder = Path(path).expanduser() / inner
    if folder.is_dir():
        return [folder / name for name in names if (folder / name).is_file()]
    if pretrained.looks_local(path):
        return []
    from huggingface_hub import errors, hf_hub_download
    found = []
    for name in names:
        try:
            found.append(Path(hf_hub_download(path, name, subfolder=inner or None)))
        except (OSError, errors.EntryNotFoundError) as error:  # newer transformers read what is there without
            logging.info("%s has no %s within reach (%s)", path, name, str(error).split("\n")[0][:100])
    return found


def _name_as_published(file):
    """Give the weights of a text encoder the names of all published ones, which every version of transformers reads.

    Version 5 leaves out the `text_model.` that version 4 needs.
    """
    if not file.is_file():  # written in several files
        return
    weights = read_safetensors(file)
    if not any(name.startswith("text_model.") for name in weights):
        write_safetensors({f"text_model.{name}": value for name, value in weights.items()}, file, metadata={"format": "pt"})


def _write_lora(folder, net):
    """The layers of LoRA under diffusers' names, with rank and alpha."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict
    found = {}
    for name in ("unet", "text_encoder"):
        part = getattr(net, name)
        if part is not None:
            found[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(part))
            found[f"{name}_lora_adapter_metadata"] = part.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(folder, safe_serialization=True, weight_name=LORA_FILE, **found)
