"""A pipeline of others, Stable Diffusion or PixArt-alpha, as the start of a training: which of its parts are used, and whether a
config agrees with what its scheduler says.
"""

import inspect
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from libs import backbones, diffusion
from libs.backbones import pixart
from libs.nn import pretrained

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_PARTS = {"codec": ("vae",), "encoder": ("text_encoder", "tokenizer")}
_LAYER_SIZE = {".lora_A.": slice(1, None), ".lora_B.": slice(0, 1)}  # what of a matrix of LoRA tells the layer that it is beside
_OPTIONS = {"t5": ("lower_case", "zero_padding"), "tokens": ("lower_case",)}  # what encoders take of Family.encoder
_SCHEDULES = {"scaled_linear": "sd", "linear": "linear", "squaredcos_cap_v2": "cosine"}
_TOLERANCE = 1e-4  # of alpha_bar: schedulers compute it in float32


class Family(NamedTuple):
    """What one family of pipelines calls its parts. network: folder of the network, and how its weights begin; what: it, in words.

    window: tokens of its texts. trains_text: whether config.nnet.train_text_encoder is True where it is not said. encoder:
    options of config.encoder that its network needs.
    """

    title: str
    network: str
    what: str
    example: str
    window: int
    trains_text: bool
    encoder: dict


FAMILIES = {"unet_sd": Family("Stable Diffusion", "unet", "UNet", "CompVis/stable-diffusion-v1-4", 77, False, {}),
            "pixart": Family("PixArt-alpha", "transformer", "transformer", "PixArt-alpha/PixArt-XL-2-512x512", 120, True,
                             {"lower_case": True, "zero_padding": True})}


def part(config, section):
    """The keyword arguments of `config.codec` or `config.encoder`.

    Beside the networks `unet_sd` and `pixart` a path '' there means the pipeline of config.nnet.path, and where its text encoder is
    trained as a part of the network, texts come as token numbers. PixArt's texts are read in lower case, and their padding has no
    states, unless config.encoder says otherwise.
    """
    options, family = dict(config[section]), family_of(config)
    if family is None:
        return options
    if section == "encoder" and not options.get("path", ""):
        options["subfolder"] = options.get("subfolder", "") or "text_encoder"
    if section == "encoder" and config.nnet.get("train_text_encoder", family.trains_text):
        case = {key: value for key, value in options.items() if key == "lower_case"}
        options = {"name": "tokens", "path": options.get("path", ""), "max_length": options.get("max_length", family.window),
                   "subfolder": options.get("subfolder", "").replace("text_encoder", "tokenizer"), **case}
    if section == "encoder":
        options = {key: value for key, value in family.encoder.items() if key in _OPTIONS.get(options["name"], ())} | options
    if not options.get("path", ""):
        options["path"] = config.nnet.path
    return options


def family_of(config):
    """The `Family` of the network of a config, None for other networks than those of FAMILIES."""
    return FAMILIES.get(config.get("nnet", {}).get("name"))


def check(config):
    """Compare a config with the pipeline of `config.nnet.path`, before anything of it is loaded.

    Raises:
        OSError: the pipeline, or a part of it that is used, is not there.
        ValueError: its scheduler says another prediction or other noise levels than config.denoiser and config.schedule, or
            config.denoiser asks for a variance, which is not trained here.
    """
    path, family = config.nnet.path, family_of(config)
    if not path:
        raise ValueError(f"config.nnet.path is missing: give the folder of a {family.title} pipeline, or a hub name such as "
                         f"{family.example}")
    if config.denoiser.get("learned_var", False):
        raise ValueError(f"config.denoiser.learned_var is True; of {config.nnet.name} the noise alone is used and trained: set it "
                         "to False")
    _check_parts(config, path, family)
    found = scheduler_config(path, family)
    if found is None:
        logging.warning("%s is a bare %s, which says nothing of its noise schedule (scheduler/scheduler_config.json): "
                        "config.schedule and config.denoiser are taken as they are", path, family.what)
        return
    predicts = PREDICTIONS.get(found.get("prediction_type", "epsilon"), "")
    if predicts != config.denoiser.predicts:
        raise ValueError(f"{path} was trained to predict {found.get('prediction_type')}, config.denoiser.predicts is "
                         f"{config.denoiser.predicts!r}" + (f": set --config.denoiser.predicts={predicts}" if predicts else ""))
    _check_schedule(config, path, found)


def scheduler_config(path, family):
    """What the scheduler of a pipeline says, as a dict; None where the pipeline has none, as a bare network."""
    return pretrained.read_json(path, "scheduler_config.json", "scheduler",
                                advice=f"give the folder of a {family.title} pipeline as config.nnet.path")


def start_from_folder(config, path):
    """Where --nnet_path is the whole folder of a pipeline, take its text encoder and autoencoder as well: a network that was
    trained beside others makes other images with those of the run's config.nnet.path, which is set to the folder.

    Raises:
        OSError, ValueError: as `check`.
    """
    folder = Path(path).expanduser()
    whole = any((folder / name / "config.json").is_file() for name in ("text_encoder", "vae"))
    if whole and family_of(config):
        config.nnet.path = str(folder)
        check(config)
        logging.info("%s is a whole pipeline: config.nnet.path is set to it, so that its text encoder and autoencoder are used",
                     folder)


def base_of(net):
    """What tells the frozen weights of a network from others: {'sha256': hex}; {} where all are trained."""
    found = backbones.frozen_hash(net)
    return {"sha256": found} if found else {}


def check_base(base, net, config, now=None):
    """Raise ValueError unless the frozen weights of a network are those that its trained ones were trained beside (`base_of`).

    now: `base_of(net)`, where the caller has it already: it reads all those weights.
    """
    now = base_of(net) if now is None else now
    if now != base:
        raise ValueError(f"config.nnet.path={config.nnet.path} holds other weights (sha256 {now.get('sha256', 'none')[:16]}) than "
                         f"those that this LoRA was trained on ({base['sha256'][:16]}): give the pipeline that the run began with, "
                         "wherever it lies now"
                         + (", in the same config.nnet.base_dtype" if "base_dtype" in config.nnet else ""))


def check_adapter(config, said):
    """Raise ValueError where LoRA of PixArt that others wrote would count otherwise here than where it was trained.

    Args:
        said: what their adapter_config.json says, {} where there is none: lora_rank, lora_alpha, use_rslora, use_dora; see
            engine.adapter_settings.
    """
    if not said or config.get("nnet", {}).get("name") != "pixart":
        return
    nnet = {name: each.default for name, each in inspect.signature(pixart.build).parameters.items()} | dict(config.nnet)
    nnet["lora_alpha"] = nnet["lora_alpha"] or nnet["lora_rank"]
    wrong = {key: value for key, value in said.items() if nnet[key] != value}
    if wrong:
        told = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
        raise ValueError(f"this LoRA was trained with {told}; here config.nnet has "
                         f"{', '.join(f'{key}={nnet[key]!r}' for key in wrong)}: set "
                         f"{' '.join(f'--config.nnet.{key}={value}' for key, value in wrong.items())}")


def fit_weights(net, weights):
    """Weights as a network with LoRA takes them: a part without any in them (T5, of an adapter of the transformer alone) stays as
    it was published, which is logged. Those of other networks are returned as they are.

    Raises:
        ValueError: LoRA is asked for and whole weights are given, or the other way round, or LoRA of a text encoder that is not
            a part of the network, or of layers of other sizes.
    """
    weights = {name: value for name, value in weights.items() if name not in getattr(net, "tied", ())}
    lora = {name.split(".")[0] for name in weights if ".lora_" in name}
    rank = getattr(net, "lora_rank", None)
    if rank is None:
        return weights
    if rank and not lora:
        raise ValueError(f"config.nnet.lora_rank is {rank}, but these weights are those of a whole network: set "
                         "--config.nnet.lora_rank=0")
    if lora and not rank:
        raise ValueError("config.nnet.lora_rank is 0, but these weights are those of LoRA: set --config.nnet.lora_rank="
                         f"{net.settings(weights)['lora_rank'] if hasattr(net, 'settings') else 'its rank'}")
    if "text_encoder" in lora and net.text_encoder is None:
        raise ValueError("these weights hold LoRA of the text encoder, which is no part of this network: set "
                         "--config.nnet.train_text_encoder=True")
    own = {name: weight for name, weight in net.named_parameters() if ".lora_" in name}
    for name, end in ((name, end) for name in own.keys() & weights.keys() for end in _LAYER_SIZE if end in name):
        ours, theirs = (list(each.shape)[_LAYER_SIZE[end]] for each in (own[name], weights[name]))
        if ours != theirs:
            raise ValueError(f"this LoRA was trained upon another network than that of config.nnet.path: {name} was beside a layer "
                             f"of size {theirs}, which is {ours} here. Give the pipeline that it was trained upon as "
                             "config.nnet.path")
    lacking = sorted({name.split(".")[0] for name in own} - lora) if lora else []
    if lacking:
        logging.warning("these weights have no LoRA of %s, which stays as it was published", " and ".join(lacking))
    return {name: weight for name, weight in own.items() if name.split(".")[0] in lacking} | weights


def check_fit(net, codec, encoder):
    """Raise ValueError unless codec and text encoder are those that the network was trained with, as far as shapes tell."""
    family = next(each for each in FAMILIES.values() if hasattr(net, each.network))
    config, what = getattr(net, family.network).config, f"the {family.what} of config.nnet.path"
    width = config.get("caption_channels") or config.cross_attention_dim
    given = net.text_encoder.config.hidden_size if net.text_encoder is not None else encoder.shape[-1]
    if given != width:
        raise ValueError(f"{what} attends to states of width {width}, the text encoder gives {given}: they "
                         "do not belong together; config.encoder.path='' takes that of the same pipeline")
    if codec.channels != config.in_channels:
        raise ValueError(f"{what} takes latents of {config.in_channels} channels, the codec gives "
                         f"{codec.channels}: config.codec.path='' takes the autoencoder of the same pipeline")
    if net.text_encoder is not None:
        known, tokenizer = net.text_encoder.config, encoder.tokenizer
        if len(tokenizer) > known.vocab_size or getattr(net, "pad", tokenizer.pad_token_id) != tokenizer.pad_token_id:
            raise ValueError(f"the tokenizer knows {len(tokenizer)} tokens, of which {tokenizer.pad_token_id} is padding, the text "
                             f"encoder of config.nnet.path {known.vocab_size}, with padding {known.pad_token_id}: they do not "
                             "belong together; config.encoder.path='' takes that of the same pipeline")
    elif family.encoder.get("zero_padding") and not getattr(encoder, "zero_padding", False):
        raise ValueError(f"{what} tells padding by states that are 0, which the {type(encoder).__name__} of config.encoder does "
                         "not give: set config.encoder.name='t5' with zero_padding=True")


def _check_parts(config, path, family):
    """Name all parts that a local pipeline folder lacks, at once."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return
    bare = (folder / "config.json").is_file()
    needed = {} if bare else {family.network: "config.nnet.path", "scheduler": "config.nnet.path"}
    needed |= {name: f"config.{section}.path" for section, names in _PARTS.items() for name in names
               if section in config and not config[section].get("path", "")}
    if config.nnet.get("train_text_encoder", family.trains_text):
        needed["text_encoder"] = "config.nnet.path"
    missing = {name: option for name, option in needed.items() if not (folder / name).is_dir()}
    if missing:
        elsewhere = sorted(set(missing.values()) - {"config.nnet.path"})
        raise FileNotFoundError(f"{path} lacks {', '.join(f'{name}/' for name in missing)}: a {family.title} pipeline has "
                                f"{family.network}/, vae/, text_encoder/, tokenizer/ and scheduler/, as save_pretrained writes them"
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
    options = {"name": name} | ({"beta_start": start, "beta_end": end, "shift": -1} if name == "sd" else {})
    typed = " ".join(f"--config.schedule.{key}={value}" for key, value in options.items())
    hint = f": set {typed}" if name and not rescaled else ""
    if ours.steps != steps or abs(ours.network_time(1 / steps)) > 1e-6:
        raise ValueError(f"{said}, and receives the numbers 0 to {steps - 1}, which {given} does not give{hint}")
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if (ours.alpha(times).square() - theirs).abs().max() > _TOLERANCE:
        raise ValueError(f"{said}; {given} has other noise levels{hint}")
