"""The UNet of Stable Diffusion 1 and 2 (Rombach et al., CVPR 2022) from a pipeline that others trained: all of it, or as LoRA
(Hu et al., ICLR 2022), and with its text encoder where that is trained too.

Weights are named as diffusers and transformers name them, below `unet.` and `text_encoder.`; those of LoRA by peft.
"""

from torch import Tensor, nn

from libs.nn import pretrained

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # what diffusers' own LoRA script adapts
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")  # the same in CLIP
ADVICE = "give the folder of a Stable Diffusion pipeline as config.nnet.path, or a hub name that this machine can reach"


class StableDiffusionUNet(nn.Module):
    """net(x, t, text) -> (N, C, H, W): text is token states (N, L, D), or token numbers (N, L) int64 for the own text encoder,
    whose states `states` gives, so that samplers need them once.

    unet            diffusers' UNet2DConditionModel; `requires_grad` says what of it is trained
    text_encoder    CLIPTextModel, or None

    `lora_rank` is 0 where the weights themselves are trained.
    """

    takes = ("text",)

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None = None, *, lora_rank: int = 0):
        super().__init__()
        self.unet, self.lora_rank = unet, lora_rank
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """x (N, C, H, W), t (N,) in diffusion steps 0 ... 999."""
        return self.unet(x, t, encoder_hidden_states=self.states(text), return_dict=False)[0]

    def states(self, text: Tensor) -> Tensor:
        """States (N, L, D) of token numbers (N, L) int64 by the own text encoder; states stay as they are."""
        if self.text_encoder is None or text.is_floating_point():
            return text
        return self.text_encoder(input_ids=text).last_hidden_state


def build(path: str, *, subfolder: str = "unet", sample_size: int = 64, any_size: bool = False, in_channels: int = 4,
          lora_rank: int = 0, lora_alpha: float = 0.0, lora_targets: tuple[str, ...] = ATTENTION, train_text_encoder: bool = False,
          use_checkpoint: bool = False) -> StableDiffusionUNet:
    """The network `unet_sd` with the weights of a pipeline.

    Args:
        path: folder of a pipeline, or of a bare UNet, or a name on the hub.
        subfolder: of the UNet in it.
        sample_size: side of the latents; 64 makes images of 512 pixels.
        any_size: allow another side than that which the UNet was trained at.
        in_channels: channels of the latents.
        lora_rank: 0 trains all weights; else these stay as they are, and matrices of this rank are trained beside them.
        lora_alpha: what is learned counts lora_alpha / lora_rank; 0 is lora_rank.
        lora_targets: ends of the names of the layers of the UNet that get such matrices.
        train_text_encoder: the pipeline's text encoder is part of the network and trained the same way.
        use_checkpoint: compute activations again in the backward pass, which saves memory and costs time.

    Raises:
        OSError: nothing at `path`, or a part of the pipeline is missing.
        ValueError: it is no such UNet or lacks weights, its config.json contradicts the sizes, or peft is missing.
    """
    if not path:
        raise ValueError(f"config.nnet.path is missing: {ADVICE}")
    unet = pretrained.load("UNet2DConditionModel", path, subfolder, what="UNet", likely=(subfolder, ""), advice=ADVICE)
    _check_sizes(unet.config, path, sample_size, any_size, in_channels)
    unet.register_to_config(sample_size=sample_size)
    text_encoder = None
    if train_text_encoder:
        text_encoder = pretrained.load("CLIPTextModel", path, "text_encoder", what="text encoder", advice=ADVICE,
                                       library="transformers")
    net = StableDiffusionUNet(unet, text_encoder, lora_rank=lora_rank)
    if lora_rank:
        _add_lora(unet, lora_rank, lora_alpha or lora_rank, lora_targets)
        if text_encoder is not None:
            _add_lora(text_encoder, lora_rank, lora_alpha or lora_rank, TEXT_ATTENTION)
    else:
        net.requires_grad_(True)
    if use_checkpoint:
        unet.enable_gradient_checkpointing()
        if text_encoder is not None:
            text_encoder.activation_checkpointing_enable({"use_reentrant": False})
    return net


def _check_sizes(config, path, sample_size, any_size, in_channels):
    """Raise ValueError where the options contradict the UNet's config.json."""
    if config.in_channels != in_channels or config.out_channels != in_channels:
        raise ValueError(f"config.nnet.in_channels is {in_channels}, but the UNet of {path} takes {config.in_channels} channels "
                         f"and gives {config.out_channels}; only UNets that give what they take are fine-tuned here, not those of "
                         "inpainting or depth")
    if config.sample_size and config.sample_size != sample_size and not any_size:
        raise ValueError(f"config.nnet.sample_size is {sample_size}, but the UNet of {path} was trained at sample_size "
                         f"{config.sample_size}: set --config.nnet.sample_size={config.sample_size}, or "
                         "--config.nnet.any_size=True to train it at another size")
    levels = len(config.block_out_channels) - 1
    if sample_size % (1 << levels):
        raise ValueError(f"config.nnet.sample_size is {sample_size}; the UNet of {path} halves it {levels} times, so that it must "
                         f"be a multiple of {1 << levels}")
    if config.class_embed_type or config.num_class_embeds or config.addition_embed_type or config.encoder_hid_dim_type:
        raise ValueError(f"the UNet of {path} takes more than a text, as Stable Diffusion XL does: give version 1.x or 2.x")


def _add_lora(model, rank, alpha, targets):
    """Freeze a model and add trainable matrices of this rank beside the layers whose names end in `targets`."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError(f"config.nnet.lora_rank={rank} needs the package peft: pip install peft, or set lora_rank=0 to train all "
                         "weights") from error
    if rank < 0:
        raise ValueError(f"config.nnet.lora_rank is {rank}; give a rank such as 4, or 0 to train all weights")
    model.requires_grad_(False)
    try:
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)))
    except ValueError as error:
        raise ValueError(f"config.nnet.lora_targets={tuple(targets)}: {error}") from error
