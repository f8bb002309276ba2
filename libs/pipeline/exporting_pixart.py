"""A fine-tuned PixArt-alpha written for others: a whole pipeline as diffusers reads it, or LoRA as peft reads it, in the folders of
Med-Art."""

import copy
import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path

from libs import encoders
from libs.files import write_safetensors
from libs.nn import pretrained
from libs.pipeline import stable_diffusion
from libs.pipeline.exporting import scheduler
from libs.pipeline.exporting_sd import LORA_FILE, tokenizer_files

# part of the network: its class, its library, its folders in peft's and in diffusers' layout, which are Med-Art's
PARTS = {"transformer": ("PixArtTransformer2DModel", "diffusers", "transformer_lora", "trans_lora"),
         "text_encoder": ("T5EncoderModel", "transformers", "text_encoder_lora", "text_lora")}
PEFT_FILE, PEFT_PREFIX = "adapter_model.safetensors", "base_model.model."


def export(folder, sampler, classes=()) -> Path:
    """Write the weights of a sampler's network, which appear whole or not at all.

    A network that was trained as a whole becomes a folder for `PixArtAlphaPipeline.from_pretrained`, with the scheduler that makes
    the same images of the same noise. Of one that was trained by LoRA the adapters alone are written, transformer_lora/ and
    text_encoder_lora/ for `PeftModel.from_pretrained` upon the parts of the pipeline that it was trained on, trans_lora/ and
    text_lora/ with the same weights in diffusers' layout, and base.json, the hash of what they stand upon. README.md has the lines
    that load them.

    Args:
        sampler: `Pipeline` of a network `pixart`, with the config that it was made from.
        classes: of no use here; such networks know none.
    Returns:
        Path of the folder.
    Raises:
        ValueError: diffusers has no words for the schedule or the codec.
    """
    folder, net = Path(folder), sampler.net
    transformer = net.transformer
    if transformer.use_additional_conditions and transformer.config.sample_size != 128:
        logging.warning("%s: this transformer is told the resolution of images, which the pipeline of diffusers does at 1024 "
                        "pixels alone", folder)
    with pretrained.written_whole(folder) as staged:
        if net.lora_rank:
            for name in PARTS:
                if getattr(net, name) is not None:
                    _write_lora(staged, name, getattr(net, name), sampler.config.nnet.path)
            (staged / "base.json").write_text(json.dumps(stable_diffusion.base_of(net), indent=2) + "\n")
        else:
            _write_pipeline(staged, sampler)
        (staged / "README.md").write_text(_readme(sampler))
    return folder


def _write_lora(folder, name, part, base):
    """The adapter of one part in both layouts."""
    from peft.utils import get_peft_model_state_dict
    _, _, own, theirs = PARTS[name]
    weights = {key: value.detach().float().cpu().contiguous()
               for key, value in get_peft_model_state_dict(part, save_embedding_layers=False).items()}
    said = copy.copy(part.peft_config["default"])
    said.base_model_name_or_path, said.inference_mode = base, True
    said.target_modules = sorted(said.target_modules)
    said.save_pretrained(folder / own)
    write_safetensors({PEFT_PREFIX + key: value for key, value in weights.items()}, folder / own / PEFT_FILE,
                      metadata={"format": "pt"})
    settings = {f"{name}.{key}": value for key, value in json.loads((folder / own / "adapter_config.json").read_text()).items()}
    (folder / theirs).mkdir()
    write_safetensors({f"{name}.{key}": value for key, value in weights.items()}, folder / theirs / LORA_FILE,
                      metadata={"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)})


def _write_pipeline(folder, sampler):
    net, codec, options = sampler.net, sampler.codec, stable_diffusion.part(sampler.config, "encoder")
    codec.net.register_to_config(scaling_factor=float(codec.scale_factor), sample_size=sampler.image_shape[1])
    encoder = encoders.get(**options)
    parts = {"transformer": net.transformer, "vae": codec.net, "tokenizer": encoder.tokenizer, "scheduler": scheduler(sampler),
             "text_encoder": encoder.net if net.text_encoder is None else net.text_encoder}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    for file in tokenizer_files(options, ("spiece.model",)):  # older transformers read this one alone
        shutil.copyfile(file, folder / "tokenizer" / file.name)
    library = {"text_encoder": "transformers", "tokenizer": "transformers"}
    named = {name: [library.get(name, "diffusers"), type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(
        {"_class_name": "PixArtAlphaPipeline", "_diffusers_version": version("diffusers"), **named}, indent=2))


def _readme(sampler):
    """What the folder is and the lines that use it."""
    net, nnet = sampler.net, sampler.config.nnet
    channels, height, width = sampler.image_shape
    steps = sampler.steps if isinstance(sampler.steps, int) else 20
    call = (f'image = pipe("a description", num_inference_steps={steps}, guidance_scale={sampler.guidance:g}, height={height}, '
            f"width={width},\n             use_resolution_binning=False, clean_caption=False, "
            f"max_sequence_length={stable_diffusion.part(sampler.config, 'encoder')['max_length']}).images[0]")
    if not net.lora_rank:
        title, lines = "# A PixArt-alpha pipeline", ["from diffusers import PixArtAlphaPipeline", "",
                                                     'pipe = PixArtAlphaPipeline.from_pretrained("path/to/this/folder")']
    else:
        title, parts = "# LoRA for PixArt-alpha", [name for name in PARTS if getattr(net, name) is not None]
        lines = ["from peft import PeftModel", "from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel"]
        lines += ["from transformers import T5EncoderModel"] if "text_encoder" in parts else []
        lines += ["", f'base, adapters = "{nnet.path}", "path/to/this/folder"']
        size = net.transformer.config.sample_size
        for name in parts:
            resized = f", sample_size={size}" if name == "transformer" and nnet.get("any_size", False) else ""
            lines += [f'{name} = {PARTS[name][0]}.from_pretrained(base, subfolder="{name}"{resized})',
                      f'{name} = PeftModel.from_pretrained({name}, f"{{adapters}}/{PARTS[name][2]}")']
        lines.append(f"pipe = PixArtAlphaPipeline.from_pretrained(base, {', '.join(f'{name}={name}' for name in parts)})")
    sections = [title, f"Images of {width} x {height} pixels, {channels} channel{'s'[:channels - 1]}.",
                "```python\n" + "\n".join([*lines, call]) + "\n```"]
    if net.lora_rank:
        said = "; its frozen weights are kept in " + nnet.base_dtype if nnet.get("base_dtype", "") else ""
        sections.append(f"Rank {net.lora_rank}{said}. base.json holds the hash of the weights that the adapters were trained upon. "
                        "trans_lora/ and text_lora/ hold the same matrices as one file of diffusers' layout each.")
    return "\n\n".join(sections) + "\n"
