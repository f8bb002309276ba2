"""The UNet of latent diffusion conditioned on a class through cross-attention (Rombach et al., CVPR 2022), as Diffusion-Model-SOTA
trains it: diffusers' UNet2DConditionModel, and a learned token for each class and for no class.

Weights are named as the parts of the original's checkpoints: `unet.*` as diffusers writes them, `class_embedder.embedding.weight`.
"""

import torch
from torch import Tensor, nn

DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")


class ClassEmbedder(nn.Module):
    """Labels (N,) -> one token each, (N, 1, D); the last row of the table means no class."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding(label)[:, None]


class LabelUNet(nn.Module):
    """net(x, t, label) -> (N, out_channels, H, W): cross-attention to one token, that of the class.

    sample_size           side of the latents it is for; forward takes any that can be halved as often as there are levels
    block_out_channels    width of each level; every level after the first has half the size
    layers_per_block      residual blocks of a level on the way down (one more on the way up)
    down_block_types, up_block_types  of each level, by diffusers' names; those with CrossAttn attend
    cross_attention_dim   D of a class's token
    attention_head_dim    heads of each attention: diffusers' name says otherwise, its code does not, and checkpoints depend on it
    norm_num_groups       groups of each normalization, which must divide every width
    num_classes           K: label (N,) holds 0 ... K - 1, or K for no class; -1: no label, one token for all images
    adaptive_norm         time and class also scale and shift the normalized activations of every residual block (AdaGN, Dhariwal
                          and Nichol 2021), so that the class is known at every size; small networks learn much better so. The
                          published ones are without
    dropout               in the residual blocks
    use_checkpoint        store the input of each block only and compute the rest again in the backward pass

    Attributes: unet, diffusers' UNet2DConditionModel; class_embedder; takes, the conditions that forward needs; shape (C, H, W)
    of its latents.
    Raises ValueError for sizes that do not fit.
    """

    def __init__(self, *, sample_size: int = 32, in_channels: int = 4, out_channels: int = 4,
                 block_out_channels: tuple[int, ...] = (128, 256, 512, 512), layers_per_block: int = 2,
                 down_block_types: tuple[str, ...] = DOWN, up_block_types: tuple[str, ...] = UP, cross_attention_dim: int = 768,
                 attention_head_dim: int = 8, norm_num_groups: int = 32, num_classes: int = -1, adaptive_norm: bool = False,
                 dropout: float = 0.0, use_checkpoint: bool = False):
        from diffusers import UNet2DConditionModel
        super().__init__()
        self.adaptive_norm = adaptive_norm
        self.factor, self.num_classes = 2 ** (len(block_out_channels) - 1), max(num_classes, 0)
        self.shape = (in_channels, sample_size, sample_size)
        _check(sample_size, tuple(block_out_channels), tuple(down_block_types), tuple(up_block_types), attention_head_dim,
               norm_num_groups)
        self.unet = UNet2DConditionModel(
            sample_size=sample_size, in_channels=in_channels, out_channels=out_channels,
            block_out_channels=tuple(block_out_channels), layers_per_block=layers_per_block,
            down_block_types=tuple(down_block_types), up_block_types=tuple(up_block_types),
            cross_attention_dim=cross_attention_dim, attention_head_dim=attention_head_dim, norm_num_groups=norm_num_groups,
            dropout=dropout, **(dict(resnet_time_scale_shift="scale_shift", class_embed_type="projection",
                                     projection_class_embeddings_input_dim=cross_attention_dim) if adaptive_norm else {}))
        self.class_embedder = ClassEmbedder(self.num_classes, cross_attention_dim)
        if use_checkpoint:
            self.unet.enable_gradient_checkpointing()

    @property
    def takes(self) -> tuple[str, ...]:
        """The conditions that `forward` takes: ('label',) or none."""
        return ("label",) if self.num_classes else ()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x (N, in_channels, H, W), t (N,) the numbers of the steps, from 0 -> (N, out_channels, H, W).

        label (N,) integers; num_classes, or None for the whole batch, means no class.
        """
        self.check(x, t)
        context = self.context(x, label)
        return self.unet(x, t, context, class_labels=self.adapting(context), return_dict=False)[0]

    def context(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The tokens (N, 1, D) that the images x attend to."""
        if label is None:
            label = torch.full((len(x),), self.num_classes, device=x.device)
        elif not self.num_classes:
            raise TypeError("this network was built without classes and takes no label=: build it with num_classes > 0")
        elif label.shape != x.shape[:1] or label.is_floating_point():
            raise ValueError(f"expected integer labels of shape ({len(x)},), got {label.dtype} {tuple(label.shape)}")
        return self.class_embedder(label)

    def adapting(self, context: Tensor) -> Tensor | None:
        """What diffusers calls the class labels: the tokens (N, D), where they also scale and shift; None elsewhere."""
        return context[:, 0] if self.adaptive_norm else None

    def check(self, x: Tensor, t: Tensor) -> None:
        """Raise ValueError unless x and t are of shapes that the UNet takes."""
        if x.ndim != 4 or x.shape[1] != self.shape[0]:
            raise ValueError(f"expected latents of shape (N, {self.shape[0]}, H, W), got {tuple(x.shape)}")
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"expected latents whose height and width are multiples of {self.factor}, got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"expected one time per image, shape ({len(x)},), got {tuple(t.shape)}")

    def blank(self) -> dict[str, Tensor]:
        """The conditions without which forward does not run, for one image of `shape`: none."""
        return {}

    @staticmethod
    def settings(state: dict[str, Tensor]) -> dict[str, object]:
        """The constructor arguments that the shapes of a state_dict tell, {} if it is of another kind of network."""
        if "unet.conv_in.weight" not in state:
            return {}
        widths, layers = [], 0
        while (name := f"unet.down_blocks.{len(widths)}.resnets.0.conv1.weight") in state:
            widths.append(len(state[name]))
        while f"unet.down_blocks.0.resnets.{layers}.conv1.weight" in state:
            layers += 1
        told = {"in_channels": state["unet.conv_in.weight"].shape[1], "out_channels": len(state["unet.conv_out.weight"]),
                "block_out_channels": tuple(widths), "layers_per_block": layers}
        if "class_embedder.embedding.weight" in state:
            rows, dim = state["class_embedder.embedding.weight"].shape
            told |= {"num_classes": rows - 1 or -1, "cross_attention_dim": dim}
        return told | {"adaptive_norm": "unet.class_embedding.linear_1.weight" in state}


def _check(side, widths, down, up, heads, groups):
    """Raise ValueError for arguments that do not fit together, before diffusers builds half a network of them."""
    for name, types in (("down_block_types", down), ("up_block_types", up)):
        if len(types) != len(widths):
            raise ValueError(f"{name} has {len(types)} entries, block_out_channels={widths} has {len(widths)}: one for each level")
    for number, level, other in zip(range(len(down)), down, reversed(up)):
        if ("CrossAttn" in level) != ("CrossAttn" in other):
            raise ValueError(f"level {number} is {level} on the way down and {other} on the way up: up_block_types must attend on "
                             "the same levels, in the reverse order")
    factor = 2 ** (len(widths) - 1)
    if side % factor or side < factor:
        raise ValueError(f"sample_size={side} cannot be halved {len(widths) - 1} times, once per level after the first of "
                         f"block_out_channels={widths}: take a multiple of {factor}")
    for what, divisor in (("norm_num_groups", groups), ("attention_head_dim (the number of heads)", heads)):
        if divisor < 1 or any(width % divisor for width in widths):
            raise ValueError(f"{what} is {divisor}, which does not divide every width of block_out_channels={widths}")
