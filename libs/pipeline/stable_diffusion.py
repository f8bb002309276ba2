"""A Stable Diffusion pipeline of others as the start of a training: which of its parts are used, and whether a config agrees with
what its scheduler says.
"""

import logging
from pathlib import Path

import torch

from libs import backbones, diffusion
from libs.nn import pretrained

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_PARTS = {"codec": ("vae",), "encoder": ("text_encoder", "tokenizer")}
_SCHEDULES = {"scaled_linear": "sd", "linear": "linear", "squaredcos_cap_v2": "cosine"}
_TOLERANCE = 1e-4  # of alpha_bar: schedulers compute it in float32


def part(config, section):
    """The keyword arguments of `config.codec` or `config.encoder`.

    Beside the network `unet_sd` a path '' there means the pipeline of config.nnet.path, and where its text encoder is trained as a
    part of the network, texts come as token numbers.
    """
    options = dict(config[section])
    if config.get("nnet", {}).get("name") != "unet_sd":
        return options
    if section == "encoder" and config.nnet.get("train_text_encoder", False):
        options = {"name": "tokens", "path": options.get("path", ""), "max_length": options.get("max_length", 77),
                   "subfolder": options.get("subfolder", "").replace("text_encoder", "tokenizer")}
    if not options.get("path", ""):
        options["path"] = config.nnet.path
    return options


def check(config):
    """Compare a config with the pipeline of `config.nnet.path`, before anything of it is loaded.

    Raises:
        OSError: the pipeline, or a part of it that is used, is not there.
        ValueError: its scheduler says another prediction or other noise levels than config.denoiser and config.schedule.
    """
    path = config.nnet.path
    if not path:
        raise ValueError("config.nnet.path is missing: give the folder of a Stable Diffusion pipeline, or a hub name such as "
                         "CompVis/stable-diffusion-v1-4")
    _check_parts(config, path)
    found = scheduler_config(path)
    if found is None:
        logging.warning("%s is a bare UNet, which says nothing of its noise schedule (scheduler/scheduler_config.json): "
                        "config.schedule and config.denoiser are taken as they are", path)
        return
    predicts = PREDICTIONS.get(found.get("prediction_type", "epsilon"), "")
    if predicts != config.denoiser.predicts:
        raise ValueError(f"{path} was trained to predict {found.get('prediction_type')}, config.denoiser.predicts is "
                         f"{config.denoiser.predicts!r}" + (f": set --config.denoiser.predicts={predicts}" if predicts else ""))
    _check_schedule(config, path, found)


def scheduler_config(path):
    """What the scheduler of a pipeline says, as a dict; None where the pipeline has none, as a bare UNet."""
    return pretrained.read_json(path, "scheduler_config.json", "scheduler",
                                advice="give the folder of a Stable Diffusion pipeline as config.nnet.path")


def start_from_folder(config, path):
    """Where --nnet_path is the whole folder of a pipeline, take its text encoder and autoencoder as well: a UNet that was trained
    beside others makes other images with those of the run's config.nnet.path, which is set to the folder.

    Raises:
        OSError, ValueError: as `check`.
    """
    folder = Path(path).expanduser()
    whole = any((folder / name / "config.json").is_file() for name in ("text_encoder", "vae"))
    if whole and config.nnet.get("name") == "unet_sd":
        config.nnet.path = str(folder)
        check(config)
        logging.info("%s is a whole pipeline: config.nnet.path is set to it, so that its text encoder and autoencoder are used",
                     folder)


def base_of(net):
    """What tells the frozen weights of a network from others: {'sha256': hex}; {} where all are trained."""
    found = backbones.frozen_hash(net)
    return {"sha256": found} if found else {}


def check_base(base, net, config):
    """Raise ValueError unless the frozen weights of a network are those that its trained ones were trained beside (`base_of`)."""
    now = base_of(net)
    if now != base:
        raise ValueError(f"config.nnet.path={config.nnet.path} holds other weights (sha256 {now.get('sha256', 'none')[:16]}) than "
                         f"those that this LoRA was trained on ({base['sha256'][:16]}): give the pipeline that the run began with, "
                         "wherever it lies now")


def check_weights(config, net, weights):
    """Raise ValueError where LoRA is asked for and whole weights are given."""
    if getattr(net, "lora_rank", 0) and not any(".lora_" in name for name in weights):
        raise ValueError(f"config.nnet.lora_rank is {net.lora_rank}, but these weights are those of a whole network: set "
                         "--config.nnet.lora_rank=0")


def check_fit(net, codec, encoder):
    """Raise ValueError unless codec and text encoder are those that the UNet was trained with, as far as shapes tell."""
    width = net.unet.config.cross_attention_dim
    given = net.text_encoder.config.hidden_size if net.text_encoder is not None else encoder.shape[-1]
    if given != width:
        raise ValueError(f"the UNet of config.nnet.path attends to states of width {width}, the text encoder gives {given}: they "
                         "do not belong together; config.encoder.path='' takes that of the same pipeline")
    if codec.channels != net.unet.config.in_channels:
        raise ValueError(f"the UNet of config.nnet.path takes latents of {net.unet.config.in_channels} channels, the codec gives "
                         f"{codec.channels}: config.codec.path='' takes the autoencoder of the same pipeline")


def _check_parts(config, path):
    """Name all parts that a local pipeline folder lacks, at once."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return
    needed = {"unet": "config.nnet.path", "scheduler": "config.nnet.path"} if not (folder / "config.json").is_file() else {}
    needed |= {name: f"config.{section}.path" for section, names in _PARTS.items() for name in names
               if section in config and not config[section].get("path", "")}
    if config.nnet.get("train_text_encoder", False):
        needed["text_encoder"] = "config.nnet.path"
    missing = {name: option for name, option in needed.items() if not (folder / name).is_dir()}
    if missing:
        elsewhere = sorted(set(missing.values()) - {"config.nnet.path"})
        raise FileNotFoundError(f"{path} lacks {', '.join(f'{name}/' for name in missing)}: a Stable Diffusion pipeline has unet/, "
                                "vae/, text_encoder/, tokenizer/ and scheduler/, as save_pretrained writes them"
                                + (f"; or give {' and '.join(elsewhere)}" if elsewhere else ""))


def _check_schedule(config, path, found):
    """Raise ValueError unless config.schedule has the noise levels and network times of a diffusers scheduler."""
    from diffusers import DDPMScheduler
    options = {key: value for key, value in found.items() if not key.startswith("_")}
    theirs = DDPMScheduler.from_config({**options, "variance_type": "fixed_small"}).alphas_cumprod.double()
    ours, steps, rescaled = diffusion.schedule(**config.schedule), len(theirs), found.get("rescale_betas_zero_snr", False)
    kind, start, end = found.get("beta_schedule", "linear"), found.get("beta_start"), found.get("beta_end")
    said = (f"{path} was trained with beta_schedule={kind}, beta_start={start}, beta_end={end}, {steps} steps"
            f"{', rescaled to zero SNR' if rescaled else ''}")
    name, given = _SCHEDULES.get(kind), f"config.schedule={dict(config.schedule)}"
    more = f", beta_start={start}, beta_end={end}, shift=-1" if name == "sd" else ""
    hint = f": set config.schedule = d(name={name!r}{more})" if name and not rescaled else ""
    if ours.steps != steps or abs(ours.network_time(1 / steps)) > 1e-6:
        raise ValueError(f"{said}, and receives the numbers 0 to {steps - 1}, which {given} does not give{hint}")
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if (ours.alpha(times).square() - theirs).abs().max() > _TOLERANCE:
        raise ValueError(f"{said}; {given} has other noise levels{hint}")
