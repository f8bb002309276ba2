"""guided-diffusion's UNet and its encoder classifier (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs"; ADM).

    adm_unet        residual blocks with attention at some resolutions, down and up again, joined by long skips
    adm_classifier  the downward half of it with a pooled head, for images that may be noisy

Both see the time in every residual block, the UNet also the class, as a shift (and scale) of the block's channels.
Parameter names are those of the published checkpoints, which therefore load with strict=True. `unet_arguments` and
`classifier_arguments` read the constructor's arguments off a checkpoint as far as its shapes tell them.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from libs.backbones.adm_arguments import classifier_arguments, told, unet_arguments
from libs.nn.attention import attention, merge_heads
from libs.nn.embedding import timestep_embedding

__all__ = ["AttentionBlock", "Classifier", "Norm", "ResBlock", "UNet", "classifier_arguments", "unet_arguments"]

GROUPS = 32
POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


class Pointwise(nn.Conv1d):
    """A linear map of the last axis, (..., C) -> (..., D), whose weight has the shape (D, C, 1) of a convolution."""

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class Norm(nn.GroupNorm):
    """Normalization in groups of channels; `change` (N, 2 C, 1, 1), scale and shift, then gives h (1 + scale) + shift.

    Scale and shift become part of weight and bias, with every channel of every image as a channel of its own, so that they
    cost no further pass over the images. Not cast to float32 under autocast: the kernels sum in float32 as it is.
    """

    def __init__(self, channels: int):
        if channels % GROUPS:
            raise ValueError(f"a width of {channels} channels is no multiple of {GROUPS}, the groups of its normalization: "
                             "change model_channels or channel_mult")
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor, change: Tensor | None = None) -> Tensor:
        n, channels, pixels = *x.shape[:2], math.prod(x.shape[2:])
        groups, weight, bias = self.num_groups, self.weight, self.bias
        if change is not None:
            scale, shift = change.flatten(1).chunk(2, dim=1)
            weight, bias = (weight + weight * scale).flatten(), (bias + bias * scale + shift).flatten()
            n, channels, groups = 1, n * channels, n * groups
        if not x.is_cpu:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        flat = x.contiguous().view(n, channels, pixels)
        return torch.native_group_norm(flat, weight, bias, n, channels, pixels, groups, self.eps)[0].view(x.shape)


class Downsample(nn.Module):
    """Half the height and width: a convolution of stride 2 (`op`), or the mean of 2 x 2 pixels."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        return _halved(x) if self.op is None else self.op(x)


class Upsample(nn.Module):
    """Twice the height and width by repetition, then a convolution where `conv`."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_doubled(x))


class ResBlock(nn.Module):
    """Two convolutions around which x is added; the embedding (N, E) of time and class enters before the second.

    film      the embedding scales and shifts the normalized channels: h (1 + scale) + shift; else it is added
    resample  'down' or 'up': half or twice the height and width, in both branches, or ''
    """

    def __init__(self, channels: int, out: int, embedding: int, dropout: float, *, film: bool, resample: str = ""):
        super().__init__()
        self.film, self.resample = film, resample
        self.in_layers = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, (1 + film) * out))
        self.out_layers = nn.Sequential(Norm(out), nn.SiLU(), nn.Dropout(dropout),
                                        _zero(nn.Conv2d(out, out, 3, padding=1)))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        h = conv(self._resampled(_silu(norm(x))))
        x = self.skip_connection(self._resampled(x))
        # emb_layers' SiLU is taken once for all blocks, by the network
        change = self.emb_layers[1](embedding)[:, :, None, None]
        norm, _, dropout, conv = self.out_layers
        h = norm(h, change) if self.film else norm(h.add_(change))
        return conv(dropout(_silu(h))).add_(x)

    def _resampled(self, x: Tensor) -> Tensor:
        if not self.resample:
            return x
        return _doubled(x) if self.resample == "up" else _halved(x)


class AttentionBlock(nn.Module):
    """Self-attention of all pixels, added to the input (N, C, H, W).

    The rows of qkv are packed (heads, 3, d) in the published default order, (3, heads, d) where `new_order`.
    """

    def __init__(self, channels: int, num_heads: int, *, new_order: bool):
        super().__init__()
        self.num_heads, self.new_order = num_heads, new_order
        self.norm = Norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.proj_out = _zero(Pointwise(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = _split(self.qkv(tokens), self.num_heads, self.new_order)
        out = self.proj_out(merge_heads(attention(q, k, v)))
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


class AttentionPool(nn.Module):
    """(N, C, H, W) -> (N, out): what the mean pixel attends to among all pixels and itself (Radford et al. 2021)."""

    def __init__(self, side: int, channels: int, num_heads: int, out: int):
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side ** 2 + 1) / channels ** 0.5)
        self.qkv_proj = Pointwise(channels, 3 * channels)
        self.c_proj = Pointwise(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding.t()
        q, k, v = _split(self.qkv_proj(tokens), self.num_heads, True)
        # only the mean's answer is read
        return self.c_proj(merge_heads(attention(q[:, :, :1], k, v))[:, 0])


class Level(nn.Sequential):
    """The layers of one entry of input_blocks, middle_block or output_blocks, of which some read the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class Encoder(nn.Module):
    """What UNet and classifier have in common: time embedding, the way down, the middle."""

    def __init__(self, *, image_size: int, in_channels: int, model_channels: int, out_channels: int, num_res_blocks: int,
                 attention_resolutions: tuple[int, ...], dropout: float, channel_mult: tuple[float, ...], conv_resample: bool,
                 use_checkpoint: bool, num_heads: int, num_head_channels: int, use_scale_shift_norm: bool,
                 resblock_updown: bool, use_new_attention_order: bool):
        super().__init__()
        for name, value in dict(image_size=image_size, in_channels=in_channels, model_channels=model_channels,
                                out_channels=out_channels, num_res_blocks=num_res_blocks,
                                channel_mult=len(channel_mult)).items():
            if value < 1:
                raise ValueError(f"{name}={value if name != 'channel_mult' else tuple(channel_mult)!r} must be at least 1")
        self.factor = 2 ** (len(channel_mult) - 1)
        if image_size % self.factor:
            raise ValueError(f"image_size={image_size} cannot be halved {len(channel_mult) - 1} times, once per level after "
                             f"the first of channel_mult={tuple(channel_mult)}: take a multiple of {self.factor}")
        if unused := [ds for ds in attention_resolutions if ds not in {2 ** i for i in range(len(channel_mult))}]:
            logging.warning("attention_resolutions are factors of downsampling (image size / resolution); this network has the "
                            "factors 1 to %d in powers of 2, and none of %s", self.factor, unused)
        self.image_size, self.in_channels, self.use_checkpoint = image_size, in_channels, use_checkpoint
        self.model_channels, self.embedding_dim = model_channels, 4 * model_channels
        self.options = dict(dropout=dropout, film=use_scale_shift_norm)
        self.attention_resolutions = tuple(attention_resolutions)
        self.num_heads, self.num_head_channels, self.new_order = num_heads, num_head_channels, use_new_attention_order
        self.conv_resample, self.resblock_updown = conv_resample, resblock_updown
        self.widths = [_width(model_channels, mult) for mult in channel_mult]

        self.time_embed = nn.Sequential(nn.Linear(model_channels, self.embedding_dim), nn.SiLU(),
                                        nn.Linear(self.embedding_dim, self.embedding_dim))
        width = self.widths[0]
        self.input_blocks = nn.ModuleList([Level(nn.Conv2d(in_channels, width, 3, padding=1))])
        self.passed = [width]
        for i, out in enumerate(self.widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Level(*self._block(width, out, 2 ** i, num_heads)))
                width = out
                self.passed.append(width)
            if i < len(self.widths) - 1:
                self.input_blocks.append(Level(self._resampler(width, "down")))
                self.passed.append(width)
        self.middle_block = Level(self._res(width, width), self._attention(width, num_heads), self._res(width, width))

    def _res(self, width: int, out: int, resample: str = "") -> ResBlock:
        return ResBlock(width, out, self.embedding_dim, resample=resample, **self.options)

    def _attention(self, width: int, num_heads: int) -> AttentionBlock:
        return AttentionBlock(width, _heads(width, num_heads, self.num_head_channels), new_order=self.new_order)

    def _block(self, width: int, out: int, factor: int, num_heads: int) -> list[nn.Module]:
        return [self._res(width, out)] + ([self._attention(out, num_heads)] if factor in self.attention_resolutions else [])

    def _resampler(self, width: int, way: str) -> nn.Module:
        if self.resblock_updown:
            return self._res(width, width, way)
        return (Downsample if way == "down" else Upsample)(width, self.conv_resample)

    def _run(self, level: Level, x: Tensor, embedding: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(level, x, embedding, use_reentrant=False)
        return level(x, embedding)

    def _embedded(self, t: Tensor) -> Tensor:
        return self.time_embed(timestep_embedding(t, self.model_channels).to(self.time_embed[0].weight.dtype))

    def _check(self, x: Tensor, t: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected images of shape (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"expected images whose height and width are multiples of {self.factor}, got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"expected one time per image, shape ({len(x)},), got {tuple(t.shape)}")

    def _down(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """The output of every input block, then that of the middle."""
        outputs = []
        for level in (*self.input_blocks, self.middle_block):
            x = self._run(level, x, embedding)
            outputs.append(x)
        return outputs


class UNet(Encoder):
    """ADM's UNet: net(x, t, label) -> (N, out_channels, H, W), for noise, or noise and variance (out_channels = 2 in_channels).

    image_size             pixels of the images it is for; forward takes any size that can be halved as often
    channel_mult           width of each level over model_channels; every level after the first has half the size
    attention_resolutions  the levels with attention, as factors of downsampling: image size / resolution
    conv_resample          resample with convolutions where not resblock_updown, which resamples within residual blocks
    num_classes            K: label (N,) holds 0 ... K - 1, or K for no class; None or -1: no label
    use_checkpoint         store the input of each block only and compute the rest again in the backward pass
    num_heads              of each attention, or num_head_channels channels to a head; num_heads_upsample on the way up
    use_scale_shift_norm   time and class scale and shift the channels, else they are added
    use_new_attention_order  q, k, v are packed before the heads (of the published ones, only 64 px)
    dims, use_fp16         the original's too; only images (2) and weights in float32 (False) are had here

    Raises ValueError for sizes that do not divide.
    """

    def __init__(self, *, image_size: int, in_channels: int = 3, model_channels: int, out_channels: int, num_res_blocks: int,
                 attention_resolutions: tuple[int, ...], dropout: float = 0.0, channel_mult: tuple[float, ...] = (1, 2, 4, 8),
                 conv_resample: bool = True, num_classes: int | None = None, use_checkpoint: bool = False, num_heads: int = 1,
                 num_head_channels: int = -1, num_heads_upsample: int = -1, use_scale_shift_norm: bool = False,
                 resblock_updown: bool = False, use_new_attention_order: bool = False, dims: int = 2, use_fp16: bool = False):
        _check_published(dims, use_fp16)
        super().__init__(image_size=image_size, in_channels=in_channels, model_channels=model_channels,
                         out_channels=out_channels, num_res_blocks=num_res_blocks, attention_resolutions=attention_resolutions,
                         dropout=dropout, channel_mult=channel_mult, conv_resample=conv_resample, use_checkpoint=use_checkpoint,
                         num_heads=num_heads, num_head_channels=num_head_channels, use_scale_shift_norm=use_scale_shift_norm,
                         resblock_updown=resblock_updown, use_new_attention_order=use_new_attention_order)
        self.num_classes = num_classes if num_classes is not None and num_classes > 0 else None
        self.label_emb = nn.Embedding(self.num_classes, self.embedding_dim) if self.num_classes else None
        heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        passed, width = list(self.passed), self.widths[-1]
        self.output_blocks = nn.ModuleList()
        for i, out in reversed(list(enumerate(self.widths))):
            for j in range(num_res_blocks + 1):
                layers = self._block(width + passed.pop(), out, 2 ** i, heads)
                width = out
                if i and j == num_res_blocks:
                    layers.append(self._resampler(width, "up"))
                self.output_blocks.append(Level(*layers))
        self.out = nn.Sequential(Norm(width), nn.SiLU(), _zero(nn.Conv2d(width, out_channels, 3, padding=1)))

    @property
    def takes(self) -> tuple[str, ...]:
        """The conditions that `forward` takes: ('label',) or none."""
        return ("label",) if self.num_classes else ()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x (N, in_channels, H, W), t (N,) from 0 to about 1000 -> (N, out_channels, H, W).

        label (N,) integers; num_classes, or None for the whole batch, means no class: time alone.
        """
        self._check(x, t)
        embedding = self._embedded(t)
        if label is not None:
            embedding = embedding + self._class(label, len(x))
        embedding = F.silu(embedding)
        earlier = self._down(x, embedding)
        x = earlier.pop()
        for level in self.output_blocks:
            x = self._run(level, torch.cat([x, earlier.pop()], dim=1), embedding)
        return self.out(x)

    def _class(self, label: Tensor, n: int) -> Tensor:
        if self.label_emb is None:
            raise TypeError("this network was built without classes and takes no label=: build it with num_classes > 0")
        if label.shape != (n,) or label.is_floating_point():
            raise ValueError(f"expected integer labels of shape ({n},), got {label.dtype} {tuple(label.shape)}")
        null = label == self.num_classes
        return self.label_emb(label - null.to(label.dtype)) * ~null[:, None]

    @staticmethod
    def settings(state: dict[str, Tensor]) -> dict[str, object]:
        """The constructor arguments that the shapes of a state_dict tell, {} if it is of another kind of network."""
        return told(state)


class Classifier(Encoder):
    """ADM's classifier of images at any noise level: net(x, t) -> logits (N, out_channels).

    pool  'attention'   attention from the mean pixel (published); it fixes the size of the images
          'adaptive'    mean over the pixels, then a linear map
          'spatial'     means of all blocks' outputs, then an MLP; 'spatial_v2' normalizes within it

    The other arguments are those of `UNet`; channel widths go to heads of num_head_channels, -1 for num_heads. num_heads_upsample
    changes nothing, as in the original, since there is no way up.
    """

    takes = ()

    def __init__(self, *, image_size: int, in_channels: int = 3, model_channels: int, out_channels: int, num_res_blocks: int,
                 attention_resolutions: tuple[int, ...], dropout: float = 0.0, channel_mult: tuple[float, ...] = (1, 2, 4, 8),
                 conv_resample: bool = True, use_checkpoint: bool = False, num_heads: int = 1, num_head_channels: int = 64,
                 use_scale_shift_norm: bool = False, resblock_updown: bool = False, use_new_attention_order: bool = False,
                 pool: str = "attention", num_heads_upsample: int = -1, dims: int = 2, use_fp16: bool = False):
        _check_published(dims, use_fp16)
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}; known: {', '.join(POOLS)}")
        super().__init__(image_size=image_size, in_channels=in_channels, model_channels=model_channels,
                         out_channels=out_channels, num_res_blocks=num_res_blocks, attention_resolutions=attention_resolutions,
                         dropout=dropout, channel_mult=channel_mult, conv_resample=conv_resample, use_checkpoint=use_checkpoint,
                         num_heads=num_heads, num_head_channels=num_head_channels, use_scale_shift_norm=use_scale_shift_norm,
                         resblock_updown=resblock_updown, use_new_attention_order=use_new_attention_order)
        self.pool = pool
        width, pooled = self.widths[-1], sum(self.passed) + self.widths[-1]
        if pool == "attention":
            head = AttentionPool(image_size // self.factor, width, _heads(width, num_heads, num_head_channels), out_channels)
            self.out = nn.Sequential(Norm(width), nn.SiLU(), head)
        elif pool == "adaptive":
            self.out = nn.Sequential(Norm(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
                                     _zero(nn.Conv2d(width, out_channels, 1)), nn.Flatten())
        elif pool == "spatial":
            self.out = nn.Sequential(nn.Linear(pooled, 2048), nn.ReLU(), nn.Linear(2048, out_channels))
        else:
            self.out = nn.Sequential(nn.Linear(pooled, 2048), Norm(2048), nn.SiLU(), nn.Linear(2048, out_channels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (N, in_channels, H, W), t (N,) from 0 to about 1000 -> logits (N, out_channels)."""
        self._check(x, t)
        if self.pool == "attention" and x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"this classifier's attention pool is for images of {self.image_size} px, got {tuple(x.shape)}")
        outputs = self._down(x, F.silu(self._embedded(t)))
        if self.pool.startswith("spatial"):
            return self.out(torch.cat([h.mean((2, 3)) for h in outputs], dim=1))
        return self.out(outputs[-1])

    @staticmethod
    def settings(state: dict[str, Tensor]) -> dict[str, object]:
        """The constructor arguments that the shapes of a state_dict tell, {} if it is of another kind of network."""
        return told(state)


def _check_published(dims: int, use_fp16: bool) -> None:
    """Raise ValueError for values of the original's arguments that are not had here."""
    if dims != 2:
        raise ValueError(f"dims={dims!r}: networks of signals and volumes are not had here; leave dims out, or give 2")
    if use_fp16:
        raise ValueError(f"use_fp16={use_fp16!r}: weights are kept in float32 and computed with in half precision by autocast; leave "
                         "it out, and set --config.train.mixed_precision=fp16")


def _split(qkv: Tensor, num_heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L, 3 D) -> q, k, v (N, heads, L, D / heads), views."""
    packed = qkv.unflatten(-1, (3, num_heads, -1) if new_order else (num_heads, 3, -1))
    return tuple(a.transpose(1, 2) for a in packed.unbind(2 if new_order else 3))


def _silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else reads: in place unless its gradient may be asked for."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _halved(x: Tensor) -> Tensor:
    """The mean of 2 x 2 pixels; on CPU by sums, forward and backward in a third of the time of avg_pool2d."""
    if not x.is_cpu:
        return F.avg_pool2d(x, 2)
    rows = x.unflatten(2, (-1, 2))
    columns = (rows[:, :, :, 0] + rows[:, :, :, 1]).unflatten(3, (-1, 2))
    return (columns[..., 0] + columns[..., 1]) * 0.25


def _doubled(x: Tensor) -> Tensor:
    """Every pixel as 2 x 2 pixels; on CPU by stacking, in half of the time of interpolate or less."""
    if not x.is_cpu:
        return F.interpolate(x, scale_factor=2)
    wide = torch.stack([x, x], dim=-1).flatten(3)
    return torch.stack([wide, wide], dim=3).flatten(2, 3)


def _zero(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _width(model_channels: int, mult: float) -> int:
    width = int(model_channels * mult)
    if width < 1:
        raise ValueError(f"channel_mult {mult!r} of model_channels={model_channels} leaves no channel")
    return width


def _heads(width: int, num_heads: int, num_head_channels: int) -> int:
    if num_head_channels == -1:
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the width {width}")
        return num_heads
    if num_head_channels < 1 or width % num_head_channels:
        raise ValueError(f"num_head_channels={num_head_channels} does not divide the width {width}")
    return width // num_head_channels
