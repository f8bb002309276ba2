"""DiT, a transformer whose blocks are scaled and shifted by time and class (Peebles and Xie, "Scalable Diffusion Models with
Transformers", ICCV 2023).

Parameter names are those of the published checkpoints (facebookresearch/DiT, fast-DiT), which therefore load with strict=True.
"""

import difflib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from libs.nn.attention import Attention, check_heads
from libs.nn.embedding import timestep_embedding
from libs.nn.mlp import Mlp
from libs.nn.patches import PatchEmbed, unpatchify

_WIDTHS = {"S": dict(hidden_size=384, depth=12, num_heads=6), "B": dict(hidden_size=768, depth=12, num_heads=12),
           "L": dict(hidden_size=1024, depth=24, num_heads=16), "XL": dict(hidden_size=1152, depth=28, num_heads=16)}
MODELS = {f"DiT-{size}/{patch}": dict(patch_size=patch, **widths) for size, widths in _WIDTHS.items() for patch in (2, 4, 8)}


class DiT(nn.Module):
    """net(x, t, label) -> (N, in_channels, H, W), or twice the channels with learn_sigma: the noise, then the variance head.

    input_size    side of the square latent (or image); patch_size, that of a patch
    num_classes   K: label (N,) holds 0 ... K - 1, or K for no class; 0 or less: no label, one embedding for all images
    class_dropout_prob  only whether it is above 0 counts, as the published table has a row for no class just then; which labels
                  are left out in training is the script's business (config.train.p_uncond), never the network's
    use_checkpoint  store the inputs of blocks only and compute the rest again in the backward pass of training

    `takes` names the conditions that forward needs. Raises ValueError for sizes that do not divide.
    """

    constants = ("pos_embed",)  # never trained, and in every published checkpoint
    class_table = "y_embedder.embedding_table.weight"  # its last row, beyond the classes, is that of no class
    adaptable = {"num_classes": "y_embedder", "input_size": "pos_embed"}  # what to leave out of weights of other classes or sizes
    options = {"learn_sigma": "config.denoiser.learned_var"}  # which build_net derives it from

    def __init__(self, *, input_size: int = 32, patch_size: int = 2, in_channels: int = 4, hidden_size: int = 1152,
                 depth: int = 28, num_heads: int = 16, mlp_ratio: float = 4.0, class_dropout_prob: float = 0.1,
                 num_classes: int = 1000, learn_sigma: bool = True, use_checkpoint: bool = False):
        super().__init__()
        if patch_size < 1 or input_size < 1 or input_size % patch_size:
            raise ValueError(f"input_size={input_size} is no multiple of patch_size={patch_size}")
        if hidden_size % 4:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of 4: sines and cosines of rows and columns share it")
        check_heads(hidden_size, num_heads)
        self.shape = (in_channels, input_size, input_size)
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.num_classes, self.use_checkpoint = max(num_classes, 0), use_checkpoint

        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimeEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(self.num_classes + (class_dropout_prob > 0 or not self.num_classes), hidden_size)
        self.pos_embed = nn.Parameter(position_embedding(hidden_size, input_size // patch_size)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size ** 2 * self.out_channels)
        self._initialize()

    @property
    def takes(self) -> tuple[str, ...]:
        """The conditions that `forward` takes: ('label',) or none."""
        return ("label",) if self.num_classes else ()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x (N, in_channels, input_size, input_size), t (N,) the numbers of the steps, from 0 to 999, fractions allowed.

        label (N,) integers; num_classes, or None for the whole batch, means no class.
        """
        label = self._checked(x, t, label)
        # pos_embed first: a sum lies in memory as its first operand does, and the tokens of a convolution have the width outermost
        tokens = self.pos_embed + self.x_embedder(x)
        # one vector per image: the sinusoid in the type of the weights, float32 under autocast
        given = self.t_embedder(t) + self.y_embedder.embedding_table(label)
        for block in self.blocks:
            if self.use_checkpoint and self.training and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, given, use_reentrant=False)
            else:
                tokens = block(tokens, given)
        return unpatchify(self.final_layer(tokens, given), self.out_channels)

    def _checked(self, x, t, label):
        """The labels of all images; ValueError or TypeError for inputs of other shapes than the network's."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected images or latents of shape (N, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"expected one time per image, shape ({len(x)},), got {tuple(t.shape)}")
        if label is None:
            if len(self.y_embedder.embedding_table.weight) == self.num_classes:
                raise ValueError("this network was built without a row for no class (class_dropout_prob=0): pass label=")
            return torch.full((len(x),), self.num_classes, device=x.device)
        if not self.num_classes:
            raise TypeError("this network was built without classes and takes no label=: build it with num_classes > 0")
        if label.shape != t.shape or label.is_floating_point():
            raise ValueError(f"expected integer labels of shape ({len(x)},), got {label.dtype} {tuple(label.shape)}")
        return label

    def _initialize(self):
        """As published: Xavier for all linear maps, small normals where conditions enter, zero where blocks and image begin."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for weight in (self.y_embedder.embedding_table.weight, self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight):
            nn.init.normal_(weight, std=0.02)
        for layer in (self.final_layer.linear, *(each.adaLN_modulation[1] for each in (*self.blocks, self.final_layer))):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @staticmethod
    def settings(state: dict[str, Tensor]) -> dict[str, object]:
        """The constructor arguments that the shapes of a state_dict tell (not, for one, num_heads)."""
        telling = "pos_embed", "x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight"
        if not set(telling) <= set(state):
            return {}
        hidden_size, in_channels, patch_size = state["x_embedder.proj.weight"].shape[:3]
        sizes = {"hidden_size": hidden_size, "patch_size": patch_size,
                 "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")})}
        model = next((name for name, known in MODELS.items() if sizes.items() <= known.items()), "")
        return {"model": model, **({} if model else sizes), "in_channels": in_channels,
                "input_size": patch_size * math.isqrt(state["pos_embed"].shape[1]),
                "num_classes": len(state["y_embedder.embedding_table.weight"]) - 1,
                "learn_sigma": len(state["final_layer.linear.weight"]) == 2 * in_channels * patch_size ** 2}


class Block(nn.Module):
    """Attention and MLP, each normalized, scaled, shifted and gated by what the image is given (adaLN-Zero)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """x (N, L, D), given (N, D) -> (N, L, D)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(given)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attn(modulated(x, shift, scale))
        return x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    """Tokens (N, L, D), given (N, D) -> the pixels of their patches (N, L, out_width)."""

    def __init__(self, dim: int, out_width: int):
        super().__init__()
        self.linear = nn.Linear(dim, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.linear(modulated(x, *self.adaLN_modulation(given)[:, None].chunk(2, dim=-1)))


class TimeEmbedder(nn.Module):
    """t (N,) -> (N, dim): an MLP on 256 sines and cosines."""

    def __init__(self, dim: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.frequencies).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """The learned vectors of the classes; the last one, where there is one more than classes, is that of no class."""

    def __init__(self, rows: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, dim)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (N, L, D) normalized over D, times 1 + scale, plus shift, each (N, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def position_embedding(dim: int, side: int) -> Tensor:
    """(side * side, dim) float32, row by row: sines, then cosines, of the column in the first half, of the row in the second.

    Frequencies are 10000^(-i / (dim / 4)), in float64 before rounding as in the published code.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()


def dit(*, model: str = "", **kwargs) -> DiT:
    """A DiT by its published name, 'DiT-XL/2', or by its sizes.

    Raises ValueError for an unknown name, and where a size beside it says otherwise.
    """
    if not model:
        return DiT(**kwargs)
    if model not in MODELS:
        close = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.3)
        raise ValueError(f"model={model!r}; known: {', '.join(MODELS)}{f'; did you mean {close[0]!r}?' if close else ''}")
    for key, value in MODELS[model].items():
        if kwargs.get(key, value) != value:
            raise ValueError(f"{model} has {key}={value}, not {kwargs[key]}: leave {key} out, or name no model")
    return DiT(**{**kwargs, **MODELS[model]})
