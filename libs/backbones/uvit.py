"""U-ViT (Bao et al., "All are Worth Words", CVPR 2023) and VAP-Diffusion's two variants of it (MICCAI 2025).

Time, condition and image patches are all tokens of one sequence, and long skip connections join the first
half of the blocks to the second. The variants differ in their tokens:

    uvit                 [time, patches], or [label, time, patches] if num_classes > 0
    uvit_t2i             [time, text, patches]
    uvit_t2i_label       [time, label, text, patches]                    VAP-Diffusion
    uvit_t2i_prototype   [time, text, patches], label by prototypes      VAP-Diffusion, see `PrototypeUViT`

`takes` names the conditions that a network needs.

Parameter names are those of the published checkpoints, which therefore load with strict=True.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from libs.nn.attention import Attention, attention, check_heads, merge_heads, split_heads
from libs.nn.embedding import timestep_embedding
from libs.nn.init import init_transformer_
from libs.nn.mlp import Mlp
from libs.nn.patches import PatchEmbed, unpatchify


class Block(nn.Module):
    """Pre-norm transformer block; with `skip` a linear first merges the tokens of an earlier block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, qk_scale: float | None, *,
                 skip: bool, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, scale=qk_scale)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, earlier], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """U-ViT with a label token (num_classes > 0), text tokens (num_clip_token > 0), both or neither.

    img_size, patch_size  pixels of the square input (or of its latent) and of a patch
    depth                 even: depth / 2 blocks in, one in the middle, depth / 2 out
    qkv_bias              biases of the maps to queries, keys and values, those of the published prototypes among them
    qk_scale              of q k^T; None or 0 for (embed_dim / num_heads)^-0.5
    norm_layer            what makes a normalization of a width, such as functools.partial(nn.LayerNorm, eps=1e-6)
    mlp_time_embed        an MLP on the time embedding
    conv                  a last 3 x 3 convolution across patch borders
    skip                  the long skip connections
    num_classes           labels 0 ... num_classes - 1, the empty label of classifier-free guidance included
    clip_dim, num_clip_token  width and number of the text tokens
    use_checkpoint        store block inputs only and compute the rest again in the backward pass, at 0.82 of
                          the speed

    Raises ValueError for sizes that do not divide.
    """

    def __init__(self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.0, qkv_bias: bool = False,
                 qk_scale: float | None = None, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
                 mlp_time_embed: bool = False, use_checkpoint: bool = False,
                 conv: bool = True, skip: bool = True, num_classes: int = -1, clip_dim: int = 768,
                 num_clip_token: int = 0):
        super().__init__()
        if patch_size < 1 or img_size < 1 or img_size % patch_size:
            raise ValueError(f"img_size={img_size} is no multiple of patch_size={patch_size}")
        if depth < 2 or depth % 2:
            raise ValueError(f"depth={depth} must be even and at least 2: half of the blocks come before the "
                             "middle one, half after it")
        check_heads(embed_dim, num_heads)
        self.img_size, self.in_chans, self.use_checkpoint = img_size, in_chans, use_checkpoint
        self.num_patches = (img_size // patch_size) ** 2
        self.text_shape = (num_clip_token, clip_dim) if num_clip_token > 0 else None
        self.uses_label = num_classes > 0

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        if mlp_time_embed:
            self.time_embed = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(),
                                            nn.Linear(4 * embed_dim, embed_dim))
        else:
            self.time_embed = nn.Identity()
        self.label_emb = nn.Embedding(num_classes, embed_dim) if num_classes > 0 else None
        self.context_embed = nn.Linear(clip_dim, embed_dim) if self.text_shape else None
        self.extras = 1 + (num_classes > 0) + max(num_clip_token, 0)
        self.pos_embed = nn.Parameter(torch.empty(1, self.extras + self.num_patches, embed_dim))

        shape = (embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale)
        self.in_blocks = nn.ModuleList(Block(*shape, skip=False, norm_layer=norm_layer) for _ in range(depth // 2))
        self.mid_block = Block(*shape, skip=False, norm_layer=norm_layer)
        self.out_blocks = nn.ModuleList(Block(*shape, skip=skip, norm_layer=norm_layer) for _ in range(depth // 2))
        self.norm = norm_layer(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size ** 2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1) if conv else nn.Identity()

        nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-2.0, b=2.0)
        init_transformer_(self)

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor | None = None, text: Tensor | None = None,
                with_losses: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """x (N, in_chans, img_size, img_size), t (N,) from 0 to about 1000 -> prediction like x.

        label (N,) integers and text (N, num_clip_token, clip_dim) where, and only where, the network was
        built for them: TypeError for one too many, ValueError for a missing one or a wrong shape.
        `with_losses` returns (prediction, auxiliary losses by name).
        """
        self._check(x, t, label, text)
        tokens = self._tokens(x, t, label, text)
        earlier = []
        for block in self.in_blocks:
            tokens = self._run(block, tokens)
            earlier.append(tokens)
        encoded, tokens = tokens, self._run(self.mid_block, tokens)
        tokens, losses = self._after_middle(tokens, encoded, label, with_losses)
        for block in self.out_blocks:
            tokens = self._run(block, tokens, earlier.pop())
        # only the patches are read, so only they are normalized and decoded
        patches = self.decoder_pred(self.norm(tokens[:, self.extras:]))
        out = self.final_layer(unpatchify(patches, self.in_chans))
        return (out, losses) if with_losses else out

    def _tokens(self, x: Tensor, t: Tensor, label: Tensor | None, text: Tensor | None) -> Tensor:
        # sinusoid and text in the type of the weights: float32 under autocast, so that nothing is lost here
        dtype = self.pos_embed.dtype
        sequence = [self.time_embed(timestep_embedding(t, self.pos_embed.shape[-1]).to(dtype)).unsqueeze(1)]
        if self.label_emb is not None:
            # the published networks put the label before the time, but after it where text follows
            sequence.insert(0 if self.context_embed is None else 1, self.label_emb(label).unsqueeze(1))
        if self.context_embed is not None:
            sequence.append(self.context_embed(text.to(dtype)))
        sequence.append(self.patch_embed(x))
        return torch.cat(sequence, dim=1) + self.pos_embed

    @property
    def takes(self) -> tuple[str, ...]:
        """The conditions that `forward` needs: of 'label' and 'text'."""
        return ("label",) * self.uses_label + ("text",) * bool(self.text_shape)

    def _after_middle(self, tokens: Tensor, encoded: Tensor, label: Tensor | None,
                      with_losses: bool) -> tuple[Tensor, dict]:
        """tokens behind the middle block, encoded in front of it -> (tokens, auxiliary losses)."""
        return tokens, {}

    def _run(self, block: Block, *tokens: Tensor) -> Tensor:
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, *tokens, use_reentrant=False)
        return block(*tokens)

    def _check(self, x: Tensor, t: Tensor, label: Tensor | None, text: Tensor | None) -> None:
        expected = (self.in_chans, self.img_size, self.img_size)
        if x.shape[1:] != expected:
            raise ValueError(f"expected images of shape (N, {', '.join(map(str, expected))}), "
                             f"got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"expected one time per image, shape ({len(x)},), got {tuple(t.shape)}")
        for name, value, used in (("label", label, self.uses_label), ("text", text, bool(self.text_shape))):
            if value is not None and not used:
                raise TypeError(f"this network was built without {name} tokens and takes no {name}=: build "
                                f"it with {'num_classes' if name == 'label' else 'num_clip_token'} > 0")
            if value is None and used:
                raise ValueError(f"this network is conditioned: pass {name}= (the data set's empty {name} "
                                 "for no condition)")
        if self.uses_label and (label.shape != t.shape or label.is_floating_point()):
            raise ValueError(f"expected integer labels of shape ({len(x)},), "
                             f"got {label.dtype} {tuple(label.shape)}")
        if self.text_shape and tuple(text.shape) != (len(x), *self.text_shape):
            raise ValueError(f"expected text tokens of shape {(len(x), *self.text_shape)}, "
                             f"got {tuple(text.shape)}")

    @staticmethod
    def settings(state: dict[str, Tensor]) -> dict[str, object]:
        """The constructor arguments that the shapes of a state_dict tell (not, for one, num_heads)."""
        if "pos_embed" not in state or "patch_embed.proj.weight" not in state:
            return {}
        proto, label, text = (f"{key}.weight" in state for key in ("prototype", "label_emb", "context_embed"))
        name = "uvit" + "_t2i" * (proto or text) + ("_prototype" if proto else "_label" * (label and text))
        dim, in_chans, patch_size = state["patch_embed.proj.weight"].shape[:3]
        found = {"name": name, "embed_dim": dim, "patch_size": patch_size, "in_chans": in_chans,
                 "depth": 2 * len({key.split(".")[1] for key in state if key.startswith("in_blocks.")}),
                 "conv": "final_layer.weight" in state, "mlp_time_embed": "time_embed.0.weight" in state,
                 "qkv_bias": "mid_block.attn.qkv.bias" in state}
        if proto or label:
            found["num_classes"] = state["prototype.weight" if proto else "label_emb.weight"].shape[0]
        if text:
            found["clip_dim"] = state["context_embed.weight"].shape[1]
        tokens = state["pos_embed"].shape[1]
        if not text:
            found["img_size"] = patch_size * math.isqrt(tokens - 1 - label)
        elif proto:
            num_patches = state["prototype.weight"].shape[1] // (2 * dim)
            found["img_size"] = patch_size * math.isqrt(num_patches)
            found["num_clip_token"] = tokens - 1 - label - num_patches
            found |= {"label_token": label, "mechanism": "paper" if "Q_former.zero.weight" in state else "code"}
        return found


class PrototypeUViT(UViT):
    """uvit_t2i whose label enters after the middle block, by learned prototypes (VAP-Diffusion).

    Each class owns 2 * patches vectors of width embed_dim, to which all tokens attend. The training loss
    'prototype' = 1/2 mean (A(q(x), k(p), v(p)) - q(x))^2, A being attention, asks the prototypes p of the
    image's class to reconstruct the tokens x. So the published code; the paper's weight alpha of this loss is
    not given.

    mechanism   'code': as above. 'paper': the tokens F in front of the middle block ask the prototypes by cross-
                attention; the answer passes self-attention and a linear that starts at zero, and is added behind
                the middle block. The loss is 1/2 mean (answer - F)^2, with F as a target without gradient (as in
                an earlier version of the authors' code; the paper does not say). Not a published checkpoint's. qkv_bias
                is of the blocks alone here.
    label_token the label is a token as well: [time, label, text, patches] (the authors' chest X-ray networks)
    zero_init   start the two linears that add the prototypes' answer at zero, as the paper says. The
                published code means to, but overwrites them with the common initialization, the default here.
                (mechanism='paper' always starts at zero.)

    `Q_former.norm1` and `Q_former.normp` exist in the published checkpoints and are never applied. They are
    kept for strict loading, without requires_grad, so that DistributedDataParallel does not wait for their
    gradients; `q`, `k` and `v` get theirs with `with_losses=True`, as in training.
    """

    def __init__(self, *, num_classes: int, num_clip_token: int = 77, mechanism: str = "code", label_token: bool = False,
                 zero_init: bool = False, qkv_bias: bool = False, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
                 **trunk):
        _positive("uvit_t2i_prototype", num_classes=num_classes, num_clip_token=num_clip_token)
        if mechanism not in ("code", "paper"):
            raise ValueError(f"mechanism={mechanism!r}; known: code, paper, none")
        super().__init__(num_clip_token=num_clip_token, num_classes=num_classes if label_token else -1, qkv_bias=qkv_bias,
                         norm_layer=norm_layer, **trunk)
        dim, attn = self.pos_embed.shape[-1], self.mid_block.attn
        self.uses_label = True
        self.prototype = nn.Embedding(num_classes, 2 * self.num_patches * dim)
        if mechanism == "paper":
            self.Q_former = PaperPrototypeBlock(dim, attn.num_heads, attn.scale)
            return
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.Q_former = PrototypeBlock(dim, attn.num_heads, self.mid_block.mlp.fc1.out_features, attn.scale, qkv_bias=qkv_bias,
                                       norm_layer=norm_layer)
        if qkv_bias:  # our own earlier runs lack them, see checkpoint.load
            self.later_biases = tuple(f"Q_former.{name}.bias" for name in ("attn.ql", "attn.kl", "attn.vl", "z1", "z2"))
        for linears in (self.q, self.k, self.v, self.Q_former):
            init_transformer_(linears)
        if zero_init:
            for linear in (self.Q_former.z1, self.Q_former.z2):
                nn.init.zeros_(linear.weight)  # their biases are zero as all linear maps' are

    def _after_middle(self, tokens: Tensor, encoded: Tensor, label: Tensor | None,
                      with_losses: bool) -> tuple[Tensor, dict]:
        prototypes = self.prototype(label).unflatten(-1, (2 * self.num_patches, -1))
        if isinstance(self.Q_former, PaperPrototypeBlock):
            added, loss = self.Q_former(encoded, prototypes)
            return tokens + added, {"prototype": loss} if with_losses else {}
        losses = {"prototype": self._reconstruction_loss(tokens, prototypes)} if with_losses else {}
        return self.Q_former(tokens, prototypes), losses

    def _reconstruction_loss(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        heads, scale = self.mid_block.attn.num_heads, self.mid_block.attn.scale
        query = self.q(tokens)
        q, k, v = (split_heads(a, heads) for a in (query, self.k(prototypes), self.v(prototypes)))
        answer = merge_heads(attention(q, k, v, scale=scale))
        return 0.5 * (answer.float() - query.float()).square().mean()


class PrototypeBlock(nn.Module):
    """Tokens (N, L, D) attend to prototypes (N, S, D) and pass an MLP, each result added through a linear.

    qkv_bias: as published it gives biases to both of these linears too, not to the maps of attention alone.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, scale: float | None, *, qkv_bias: bool = False,
                 norm_layer: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.norm1, self.norm2, self.normp = norm_layer(dim), norm_layer(dim), norm_layer(dim)
        self.norm1.requires_grad_(False)
        self.normp.requires_grad_(False)
        self.attn = CrossAttention(dim, num_heads, scale, qkv_bias=qkv_bias)
        self.mlp = Mlp(dim, hidden)
        self.z1 = nn.Linear(dim, dim, bias=qkv_bias)
        self.z2 = nn.Linear(dim, dim, bias=qkv_bias)

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        x = x + self.z1(self.attn(x, prototypes))
        return x + self.z2(self.mlp(self.norm2(x)))


class PaperPrototypeBlock(nn.Module):
    """The paper's prototypes: tokens (N, L, D) are rebuilt from prototypes (N, S, D) -> (what to add, loss)."""

    def __init__(self, dim: int, num_heads: int, scale: float | None):
        super().__init__()
        self.cross = CrossAttention(dim, num_heads, scale)
        self.norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, scale=scale)
        self.zero = nn.Linear(dim, dim)
        init_transformer_(self)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        rebuilt = self.cross(x, prototypes)
        loss = 0.5 * (rebuilt.float() - x.detach().float()).square().mean()
        return self.zero(self.attn(self.norm(rebuilt))), loss


class CrossAttention(nn.Module):
    """Tokens (N, L, D) attend to prototypes (N, S, D), each with its own linear map, -> (N, L, D)."""

    def __init__(self, dim: int, num_heads: int, scale: float | None, *, qkv_bias: bool = False):
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        self.ql, self.kl, self.vl = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        maps = ((self.ql, x), (self.kl, prototypes), (self.vl, prototypes))
        q, k, v = (split_heads(linear(a), self.num_heads) for linear, a in maps)
        return self.proj(merge_heads(attention(q, k, v, scale=self.scale)))


def uvit(*, num_classes: int = -1, **trunk) -> UViT:
    """U-ViT without condition (num_classes < 1) or conditioned on a label token."""
    _refuse("uvit", trunk, "clip_dim", "num_clip_token")
    return UViT(num_classes=num_classes, **trunk)


def uvit_t2i(*, clip_dim: int = 768, num_clip_token: int = 77, **trunk) -> UViT:
    """U-ViT conditioned on text tokens."""
    _refuse("uvit_t2i", trunk, "num_classes")
    _positive("uvit_t2i", num_clip_token=num_clip_token)
    return UViT(clip_dim=clip_dim, num_clip_token=num_clip_token, **trunk)


def uvit_t2i_label(*, num_classes: int, clip_dim: int = 768, num_clip_token: int = 77, **trunk) -> UViT:
    """U-ViT conditioned on a label token and text tokens (VAP-Diffusion without prototypes)."""
    _positive("uvit_t2i_label", num_classes=num_classes, num_clip_token=num_clip_token)
    return UViT(num_classes=num_classes, clip_dim=clip_dim, num_clip_token=num_clip_token, **trunk)


def uvit_t2i_prototype(*, mechanism: str = "code", **kwargs) -> UViT:
    """VAP-Diffusion's network; `mechanism='none'` is its ablation without prototypes, which is uvit_t2i_label.

    So an experiment with and without prototypes differs in one option. See `PrototypeUViT` for the others.
    """
    if mechanism == "none":
        return uvit_t2i_label(**{key: value for key, value in kwargs.items() if key not in ("label_token", "zero_init")})
    return PrototypeUViT(mechanism=mechanism, **kwargs)


def _positive(name: str, **sizes: int) -> None:
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} needs {key} >= 1, got {value}")


def _refuse(name: str, given: dict, *keys: str) -> None:
    for key in keys:
        if key in given:
            raise TypeError(f"{name} takes no {key}={given[key]!r}: it has no such tokens (see the table in "
                            "libs/backbones/uvit.py)")
