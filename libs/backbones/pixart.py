"""PixArt-alpha (Chen et al., ICLR 2024), a transformer that reads T5's states, from a pipeline that others trained: as LoRA
(Hu et al., ICLR 2022) on the transformer and on T5, as Med-Art (Guo et al., 2025) adapts it to medical images, or all of it.

Weights are named as diffusers and transformers name them, below `transformer.` and `text_encoder.`; those of LoRA by peft.
"""

import ast
import contextlib
import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from libs.nn import pretrained

TARGETS = {"medart": ("to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "proj", "linear",
                      "linear_1", "linear_2")}
# T5 v1.1, which PixArt reads, has wi_0 and wi_1 in place of the first T5's wi, so that the published list leaves them out.
TEXT_TARGETS = {"published": ("q", "k", "v", "o", "wi", "wo"), "all": ("q", "k", "v", "o", "wi_0", "wi_1", "wo")}
DTYPES = {"": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEGACY = ("Transformer2DModel",)  # as published folders name the class, which diffusers has since split
T5_KINDS = ("T5Model", "T5ForConditionalGeneration")  # hold the encoder beside a decoder
ADVICE = "give the folder of a PixArt-alpha pipeline as config.nnet.path, or a hub name that this machine can reach"


class PixArt(nn.Module):
    """net(x, t, text) -> eps (N, C, H, W): text is token states (N, L, D), or token numbers (N, L) int64 for the own T5.

    transformer     diffusers' PixArtTransformer2DModel; `requires_grad` says what of it is trained
    text_encoder    transformers' T5EncoderModel, or None

    `lora_rank` is 0 where the weights themselves are trained. The variance that
    published transformers predict beside eps is cut off, since PixArt never trains it further.

    Args:
        downsample: pixels to a latent, for the resolution that transformers of 1024 pixels are told.
    """

    takes = ("text",)

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module | None = None, *, lora_rank: int = 0, downsample: int = 8):
        super().__init__()
        self.transformer, self.lora_rank, self.downsample = transformer, lora_rank, downsample
        self.text_encoder = text_encoder
        # The embedding of tokens has two names in T5, of which files and checkpoints know the first.
        self.tied = ("text_encoder.encoder.embed_tokens.weight",) if text_encoder is not None else ()
        self.register_state_dict_post_hook(_without_tied)
        self.register_load_state_dict_pre_hook(_with_tied)
        if text_encoder is not None:
            self.pad = text_encoder.config.pad_token_id or 0
            for name, module in text_encoder.named_modules():
                module.overflows_float16 = name.endswith(("wo", "wo.base_layer"))  # see precision.lower

    def forward(self, x: Tensor, t: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), t (N,) in diffusion steps 0 ... 999; rows of states that are all zero are padding, unless text_mask
        (N, L) bool says which are tokens."""
        if text_mask is None:
            text_mask = (text != self.pad) if self._are_numbers(text) else (text != 0).any(dim=-1)
        dtype = self.transformer.scale_shift_table.dtype
        eps = self.transformer(x.to(dtype), encoder_hidden_states=self.states(text).to(dtype), timestep=t,
                               encoder_attention_mask=text_mask, added_cond_kwargs=self._size(x), return_dict=False)[0]
        return eps[:, :x.shape[1]].to(x.dtype)

    def states(self, text: Tensor) -> Tensor:
        """States (N, L, D) of token numbers (N, L) int64 by the own T5, exactly 0 at padding; states stay as they are."""
        if not self._are_numbers(text):
            return text
        mask = text != self.pad
        attended = mask
        if self.text_encoder.config._attn_implementation == "sdpa":
            # in full, which is taken as it is; of two axes transformers asks the device whether anything is padded, and waits
            attended = mask[:, None, None, :].expand(-1, 1, text.shape[1], -1)
        with _without_float16(text.device.type):
            states = self.text_encoder(input_ids=text, attention_mask=attended).last_hidden_state
        return states.masked_fill(~mask[..., None], 0.0)

    def settings(self, state: dict) -> dict:
        """Arguments of `build` that the names and shapes of weights tell."""
        ranks = [value.shape[0] for name, value in state.items() if ".lora_A." in name]
        told = {"lora_rank": ranks[0] if ranks else 0,
                "train_text_encoder": any(name.startswith("text_encoder.") for name in state)}
        if ranks and told["train_text_encoder"]:
            told["text_targets"] = "all" if any(".wi_0.lora_A." in name for name in state) else "published"
        return told

    def _are_numbers(self, text):
        return self.text_encoder is not None and not text.is_floating_point()

    def _size(self, x):
        """Resolution and aspect ratio of the images in pixels, for transformers that were trained with them."""
        if not self.transformer.use_additional_conditions:
            return None
        sides = torch.cat([torch.full((len(x), 1), float(side * self.downsample), device=x.device) for side in x.shape[-2:]], dim=1)
        return {"resolution": sides, "aspect_ratio": sides[:, :1] / sides[:, 1:]}


def build(path: str, *, subfolder: str = "transformer", sample_size: int = 64, any_size: bool = False, in_channels: int = 4,
          lora_rank: int = 8, lora_alpha: float = 8.0, lora_targets: str | tuple[str, ...] = "medart",
          train_text_encoder: bool = True, text_targets: str | tuple[str, ...] = "published", text_dropout: bool = False,
          use_dora: bool = False, use_rslora: bool = False, base_dtype: str = "", use_checkpoint: bool = False) -> PixArt:
    """The network `pixart` with the weights of a pipeline.

    Args:
        path: folder of a pipeline, or of a bare transformer, or a name on the hub.
        subfolder: of the transformer in it.
        sample_size: side of the latents; 64 makes images of 512 pixels.
        any_size: allow another side than that which the transformer was trained at; its position embedding is computed anew.
        in_channels: channels of the latents.
        lora_rank: 0 trains all weights; else these stay as they are, and matrices of this rank are trained beside them.
        lora_alpha: what is learned counts lora_alpha / lora_rank, with use_rslora lora_alpha / sqrt(lora_rank); 0 is lora_rank.
            Med-Art leaves it at peft's 8 whatever the rank.
        lora_targets: 'medart', or ends of the names of the layers of the transformer that get such matrices, as a tuple or, as a
            command line gives them, as a string: "to_q,to_k", "('to_q',)"; a comma tells one name from a known word: "to_q,".
        train_text_encoder: T5 is part of the network and trained the same way.
        text_targets: the same for T5: 'published' is Med-Art's list, which leaves the first two maps of feed-forward layers out,
            'all' takes them in.
        text_dropout: in train mode T5 drops out as its config.json says, 0.1 of the published. False: never, as from_pretrained
            gives networks; whether Med-Art switched it on is not known to us.
        use_dora: learn the lengths of T5's weights apart from their directions (Liu et al., ICML 2024); not the transformer's.
        base_dtype: 'bfloat16' or 'float16' keeps what is frozen in that precision, '' in float32, as what is trained always is.
        use_checkpoint: compute activations again in the backward pass, which saves memory and costs time.

    Raises:
        OSError: nothing at `path`, or a part of the pipeline is missing.
        ValueError: it is no such transformer or lacks weights, its config.json contradicts the sizes, or peft is missing.
    """
    if not path:
        raise ValueError(f"config.nnet.path is missing: {ADVICE}")
    if base_dtype not in DTYPES:
        raise ValueError(f"config.nnet.base_dtype is {base_dtype!r}; known: {', '.join(map(repr, DTYPES))}")
    if use_dora and not (lora_rank and train_text_encoder):
        raise ValueError("config.nnet.use_dora is of LoRA on T5 alone, which config.nnet.lora_rank above 0 and "
                         "config.nnet.train_text_encoder=True train: set --config.nnet.use_dora=False")
    if use_rslora and not lora_rank:
        raise ValueError("config.nnet.use_rslora is of LoRA, and config.nnet.lora_rank=0 trains all weights: set "
                         "--config.nnet.use_rslora=False")
    targets = _targets("lora_targets", lora_targets, TARGETS)
    text_targets = _targets("text_targets", text_targets, TEXT_TARGETS)
    if base_dtype and not lora_rank:
        logging.warning("config.nnet.base_dtype=%s is of what stays frozen, and with lora_rank=0 nothing does: weights are float32",
                        base_dtype)
    dtype = DTYPES[base_dtype if lora_rank else ""]
    transformer = pretrained.load("PixArtTransformer2DModel", path, subfolder, what="transformer", likely=(subfolder, ""),
                                  advice=ADVICE, also=LEGACY, dtype=dtype)
    _check_sizes(transformer.config, path, sample_size, any_size, in_channels)
    if sample_size != transformer.config.sample_size:
        _resize(transformer, sample_size)
    text_encoder = None
    if train_text_encoder:
        text_encoder = pretrained.load("T5EncoderModel", path, "text_encoder", what="text encoder", advice=ADVICE,
                                       library="transformers", also=T5_KINDS, dtype=dtype)
        if not text_dropout:
            _drop_nothing(text_encoder)
    if lora_rank:
        alpha = lora_alpha or lora_rank
        add_lora(transformer, lora_rank, alpha, targets, use_rslora=use_rslora)
        if text_encoder is not None:
            add_lora(text_encoder, lora_rank, alpha, text_targets, use_rslora=use_rslora, use_dora=use_dora, option="text_targets")
    net = PixArt(transformer, text_encoder, lora_rank=lora_rank, downsample=_downsample(path))
    if not lora_rank:
        net.requires_grad_(True)
    if use_checkpoint:
        transformer.enable_gradient_checkpointing()
        if text_encoder is not None:
            text_encoder.activation_checkpointing_enable({"use_reentrant": False})
    return net


def add_lora(model: nn.Module, rank: int, alpha: float, targets, *, use_rslora: bool = False, use_dora: bool = False,
             option: str = "lora_targets"):
    """Freeze a model and add trainable matrices of this rank, float32, beside the layers whose names end in `targets`."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"config.nnet.lora_rank={rank} needs the package peft: pip install peft, or set lora_rank=0 to train all "
                         "weights") from error
    if rank < 0:
        raise ValueError(f"config.nnet.lora_rank is {rank}; give a rank such as 8, or 0 to train all weights")
    model.requires_grad_(False)
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets),
                                           use_rslora=use_rslora, use_dora=use_dora), model)
    except ValueError as error:
        raise ValueError(f"config.nnet.{option}={tuple(targets)}: {error}") from error
    for weight in model.parameters():  # those of peft take the precision of what they stand beside
        if weight.requires_grad:
            weight.data = weight.data.float()


def _without_tied(net, state, prefix, _):
    for name in net.tied:
        state.pop(prefix + name, None)


def _with_tied(net, state, prefix, *_):
    for name in net.tied:
        state.setdefault(prefix + name, state.get(prefix + "text_encoder.shared.weight"))


def _targets(option, given, known):
    """The names of layers that an option means: a name of `known`, or ends of names, in a tuple or in a string as a command line
    gives it, "('to_q', 'to_k')" or "to_q,to_k"."""
    if isinstance(given, str) and given in known:
        return known[given]
    names = given
    if isinstance(given, str) and given.strip()[:1] in ("(", "["):
        try:
            names = ast.literal_eval(given.strip())
        except (ValueError, SyntaxError):
            names = None
    elif isinstance(given, str):
        names = [name.strip() for name in given.split(",") if name.strip()] if "," in given or not given.strip() else None
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"config.nnet.{option} is {given!r}; known: {', '.join(known)}, or ends of the names of layers with "
                         "commas, such as 'q,v', or 'q,' where it is one")
    if not names:
        raise ValueError(f"config.nnet.{option} is empty; give one of {', '.join(known)}, or ends of the names of layers with "
                         "commas, such as 'q,v'")
    return tuple(names)


def _drop_nothing(text_encoder):
    """No dropout in T5 in train mode either, which it has to be in for gradient checkpointing."""
    for module in text_encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # of the weights of attention
            module.dropout = 0.0


def _check_sizes(config, path, sample_size, any_size, in_channels):
    """Raise ValueError where the options contradict the transformer's config.json."""
    if config.norm_type != "ada_norm_single":
        raise ValueError(f"the transformer of {path} has norm_type {config.norm_type!r}, not ada_norm_single: it is none of PixArt")
    if config.in_channels != in_channels or config.out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(f"config.nnet.in_channels is {in_channels}, but the transformer of {path} takes {config.in_channels} "
                         f"channels and gives {config.out_channels}; it must give what it takes, or twice that, with the variance")
    if config.sample_size != sample_size and not any_size:
        raise ValueError(f"config.nnet.sample_size is {sample_size}, but the transformer of {path} was trained at sample_size "
                         f"{config.sample_size}: set --config.nnet.sample_size={config.sample_size}, or "
                         "--config.nnet.any_size=True to train it at another size")
    if sample_size % config.patch_size:
        raise ValueError(f"config.nnet.sample_size is {sample_size}; the transformer of {path} reads patches of "
                         f"{config.patch_size}, so that it must be a multiple of {config.patch_size}")


def _resize(transformer, sample_size):
    """Give a transformer the position embedding that diffusers makes for this side of the latents, and note it in its config."""
    from diffusers.models.embeddings import PatchEmbed
    config, proj = transformer.config, transformer.pos_embed.proj
    scale = config.interpolation_scale if config.interpolation_scale is not None else max(sample_size // 64, 1)
    transformer.pos_embed = PatchEmbed(height=sample_size, width=sample_size, patch_size=config.patch_size,
                                       in_channels=config.in_channels, embed_dim=transformer.inner_dim, interpolation_scale=scale)
    transformer.pos_embed.proj = proj
    transformer.height = transformer.width = sample_size
    # whether there are micro-conditions follows from the size where it is not said
    transformer.register_to_config(sample_size=sample_size, use_additional_conditions=transformer.use_additional_conditions)


def _downsample(path):
    """Pixels to a latent, by the autoencoder of a local pipeline; 8, that of all published ones, where there is none."""
    file = Path(path).expanduser() / "vae" / "config.json"
    if not file.is_file():
        return 8
    return 1 << (len(json.loads(file.read_text()).get("block_out_channels", [0] * 4)) - 1)


def _without_float16(device):
    """No autocast to float16, in which T5 overflows; other precisions stay."""
    if not torch.amp.is_autocast_available(device):  # the meta device
        return contextlib.nullcontext()
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
