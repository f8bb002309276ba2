"""A trained network as a folder that diffusers opens without this repository.

A folder holds unet/, scheduler/, class_embedder/, vae/ where images are encoded, controlnet/ where they follow masks, and the code
of the pipeline itself (assets/class_ldm_pipeline), since diffusers has none that is conditioned on a class in this way.
"""

import json
import logging
import shutil
from pathlib import Path

import torch

from libs.backbones.controlnet import MaskControlNet
from libs.backbones.pixart import PixArt
from libs.backbones.unet_label import LabelUNet
from libs.files import write_safetensors
from libs.nn.pretrained import written_whole

CODE = Path(__file__).parents[2] / "assets" / "class_ldm_pipeline"
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def export(folder, sampler, classes) -> Path:
    """Write the network of a pipeline.Pipeline with its codec, schedule and way to sample; appears whole or not at all.

    Args:
        folder: where to, which is replaced.
        sampler: with a network unet_label, controlnet, unet_sd or pixart.
        classes: names of the classes, [] where there are none.

    Raises:
        ValueError: diffusers has no words for such a network, schedule or codec.
    """
    net = sampler.net
    if isinstance(net, PixArt):
        from libs.pipeline import exporting_pixart
        return exporting_pixart.export(folder, sampler, classes)
    if not isinstance(net, LabelUNet):
        from libs.backbones.unet_sd import StableDiffusionUNet
        from libs.pipeline import exporting_sd
        if not isinstance(net, StableDiffusionUNet):
            raise ValueError(f"diffusers has no network like {type(net).__name__}: only runs of unet_label, "
                             "controlnet, unet_sd and pixart (config.nnet.name) become a pipeline. Sample this one with sample.py")
        return exporting_sd.export(folder, sampler, classes)
    if any(weight.dtype != torch.float32 for weight in net.parameters()):
        logging.warning("%s: the weights were rounded to sample with, and are written so; open the network in float32 to avoid it",
                        folder)
    autoencoder = _autoencoder(sampler.codec)
    parts = {"unet": net.unet, "scheduler": scheduler(sampler)}
    if autoencoder is not None:
        autoencoder.register_to_config(scaling_factor=float(sampler.codec.scale_factor))
        parts["vae"] = autoencoder
    if isinstance(net, MaskControlNet):
        parts["controlnet"] = net.controlnet
    with written_whole(folder) as staged:
        for name, part in parts.items():
            part.save_pretrained(staged / name)
        tokens = net.dummy_encoder.embedding[0] if _is_legacy(net) else net.class_embedder.embedding.weight
        _write_tokens(staged / "class_embedder", tokens)
        shutil.copy(CODE / "pipeline.py", staged)
        index = _index(sampler, classes, parts)
        (staged / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        (staged / "README.md").write_text(_readme(index, sampler.image_shape))
    return Path(folder)


def fault(sampler):
    """Why `export` would refuse such a network with its schedule and codec, as a sentence; '' where it would not."""
    try:
        if not getattr(sampler.net, "lora_rank", 0):  # LoRA goes upon a pipeline that is there, with its schedule
            betas(sampler.schedule)
        if isinstance(sampler.net, LabelUNet):
            _autoencoder(sampler.codec)
        if isinstance(sampler.net, PixArt) and not sampler.net.lora_rank and _autoencoder(sampler.codec) is None:
            raise ValueError("a pipeline of PixArt has an autoencoder, and these images are pixels")
    except ValueError as error:
        return str(error)
    return ""


def scheduler(sampler):
    """diffusers' scheduler with the betas, prediction and times of a pipeline.Pipeline: DDIM at stride times where it samples so,
    else DPM-Solver++ of order 2."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    denoiser, spacing = sampler.denoiser, sampler.own.get("spacing", "")
    own = betas(sampler.schedule) | {"prediction_type": PREDICTIONS[denoiser.predicts]}
    if (sampler.algorithm, spacing) == ("ddim", "leading"):
        return DDIMScheduler(**own, clip_sample=denoiser.clip, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
    if sampler.algorithm != "dpmpp_2m" or spacing not in ("", "linspace"):
        logging.warning("the exported pipeline samples by DPM-Solver++ (dpmpp_2m), not by %s%s as this run: images differ",
                        sampler.algorithm, spacing and f" with spacing {spacing}")
    # thresholding at 1 is clipping
    return DPMSolverMultistepScheduler(**own, timestep_spacing="linspace", solver_order=2, thresholding=denoiser.clip)


def betas(schedule):
    """The arguments by which schedulers of diffusers are told the noise schedule.

    Raises:
        ValueError: it is continuous, or networks are told other times than the numbers 0, 1, ... of its steps.
    """
    if schedule.steps is None or schedule.shift != -1:
        raise ValueError("diffusers tells networks the number of a step from 0: export networks trained on config.schedule.name "
                         "linear or cosine, or sd with config.schedule.shift=-1")
    n = schedule.steps
    logs = torch.tensor([schedule.log_alpha(k / n) for k in range(n + 1)], dtype=torch.float64)
    values = -torch.expm1(2 * (logs[1:] - logs[:-1]))
    ends = {"num_train_timesteps": n, "beta_start": round(values[0].item(), 9), "beta_end": round(values[-1].item(), 9)}
    for name, power in (("linear", 1.0), ("scaled_linear", 2.0)):
        line = torch.linspace(ends["beta_start"] ** (1 / power), ends["beta_end"] ** (1 / power), n, dtype=torch.float64) ** power
        if torch.allclose(line, values, rtol=1e-5):
            return {**ends, "beta_schedule": name}
    return {"num_train_timesteps": n, "trained_betas": values.tolist()}


def _autoencoder(codec):
    """The network of a codec, None for pixels."""
    net = getattr(codec, "net", None)
    if net is None and codec.downsample != 1:
        raise ValueError(f"the codec {type(codec).__name__} is no autoencoder of diffusers: export networks of the codecs "
                         "kl, tiny, pixels")
    return net


def _is_legacy(net):
    return getattr(net, "legacy", False)


def _write_tokens(folder, tokens):
    folder.mkdir()
    tokens = tokens.detach().float().cpu().contiguous()
    write_safetensors({"embedding.weight": tokens}, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {"_class_name": "ClassEmbedder", "num_classes": len(tokens) - 1, "dim": tokens.shape[1]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(CODE / "class_embedder.py", folder)


def _index(sampler, classes, parts):
    import diffusers
    index = {"_class_name": ["pipeline", "ClassConditionalLDMPipeline"], "_diffusers_version": diffusers.__version__,
             "class_embedder": ["class_embedder", "ClassEmbedder"], "vae": [None, None], "controlnet": [None, None]}
    index |= {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    index |= {"id2label": {str(number): name for number, name in enumerate(classes if sampler.net.num_classes else [])},
              "steps": sampler.steps if isinstance(sampler.steps, int) else 20, "guidance_scale": sampler.guidance}
    if "controlnet" in parts:
        crop = "pad" if sampler.config.get("dataset", {}).get("crop") == "pad" else "center"
        index |= {"controlnet_scale": sampler.controlnet_scale, "mask_signed": _is_legacy(sampler.net), "mask_crop": crop}
        if sampler.masks_as is not None:
            known = sampler.masks_as
            index |= {"mask_values": list(known.values), "mask_names": list(known.names), "mask_max": known.max}
    return index


def _readme(index, image_shape):
    """What the folder is and the lines that use it."""
    names = list(index["id2label"].values())
    given = [f"class_label={names[0]!r}"] if names else []
    given += ['mask="mask.png"'] if "mask_signed" in index else []
    masks = "Masks are pictures with "
    if index.get("mask_values"):
        masks += "these values: " + ", ".join(f"{value} {name}" for value, name in zip(index["mask_values"], index["mask_names"]))
    else:
        masks += f"grey levels of 0 to {index.get('mask_max', 255)}"
    masks += "; of one that is not square, " + ("the whole is taken, and padded" if index.get("mask_crop") == "pad"
                                                else "the middle square is taken")
    channels, height, width = image_shape
    sections = [
        "# A class-conditional diffusion model",
        f"Images of {width} x {height} pixels, {channels} channel{'s'[:channels - 1]}."
        + (f" Classes: {', '.join(names)}." if names else "") + (f" {masks}." if "mask_signed" in index else ""),
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        'pipe = DiffusionPipeline.from_pretrained("path/to/this/folder", trust_remote_code=True)\n'
        f"images = pipe({', '.join([*given, 'num_images=4'])}).images\n```",
        "`trust_remote_code=True` runs the two files of code in this folder, pipeline.py and class_embedder/class_embedder.py: "
        "diffusers asks for it wherever a pipeline's class is not one of its own. Without it the parts open one by one, as in "
        '`UNet2DConditionModel.from_pretrained("path/to/this/folder", subfolder="unet")`.',
        f"A call takes {index['steps']} steps with guidance {index['guidance_scale']:g} unless it says otherwise "
        "(`num_inference_steps`, `guidance_scale`); `generator` fixes the noise."]
    return "\n\n".join(sections) + "\n"
