"""Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1) and the kernel that computes it."""

import difflib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKENDS = ("auto", "sdpa", "math", "xformers")

# In bf16 on CPU `math` is faster than `sdpa` at 257 and 513 tokens. At 1024 the weights of all heads leave the cache, and it is
# faster head by head (4 images and 4 heads, forward and backward: 2.5 times); at 4096 there is no gain.
MATH_MAX_TOKENS = 576
BY_HEAD_MAX_TOKENS = 2048

_backend = "auto"


def use_backend(name: str) -> str:
    """Choose the attention kernel of this process and return the name of the former one.

    'auto'      what was measured fastest: `math` for bfloat16 on CPU up to 576 tokens (qkv projection and
                attention, forward and backward: 1.6 times the speed at 257 tokens, 1.4 at 513) and head by head
                up to 2048, else `sdpa`
    'sdpa'      torch's fused kernels (flash, memory-efficient, cuDNN)
    'math'      the two matrix products and the softmax written out, which FLOP counters can see
    'xformers'  xformers.ops.memory_efficient_attention, an optional dependency

    Raises ValueError for another name and ModuleNotFoundError where xformers is wanted but not installed.
    """
    global _backend
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown attention backend {name!r}; known: {', '.join(BACKENDS)}{hint}")
    if name == "xformers":
        _xformers_ops()
    former, _backend = _backend, name
    return former


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v for q (N, heads, L, d) and k, v (N, heads, S, d) -> (N, heads, L, d).

    `scale` is d^-0.5 unless given. Nothing is cast: under autocast q, k, v already have the lower precision.
    """
    backend, by_head = _backend, False
    if backend == "auto":
        small = q.dtype == torch.bfloat16 and q.device.type == "cpu" and k.shape[-2] <= BY_HEAD_MAX_TOKENS
        backend, by_head = "math" if small else "sdpa", k.shape[-2] > MATH_MAX_TOKENS
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "math" and by_head:
        heads = zip(*(each.flatten(0, 1).unbind() for each in (q, k, v)))
        return torch.stack([_weighted(*head, scale) for head in heads]).unflatten(0, q.shape[:2])
    if backend == "math":
        return _weighted(q, k, v, scale)
    # xformers keeps the tokens before the heads
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    return _xformers_ops().memory_efficient_attention(q, k, v, scale=scale).transpose(1, 2)


def _weighted(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1) @ v


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, L, D) -> (N, heads, L, D / heads), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, heads, L, d) -> (N, L, heads * d), free where tokens precede heads in memory."""
    return x.transpose(1, 2).flatten(2)


def check_heads(dim: int, num_heads: int) -> None:
    """ValueError unless `num_heads` divides `dim`."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the width {dim}; every head takes the same "
                         "number of channels")


class Attention(nn.Module):
    """Self-attention over (N, L, dim); one linear yields q, k and v, its rows packed (3, heads, dim / heads).

    `scale` 0 or None stands for (dim / heads)^-0.5. Parameter names: qkv.weight, [qkv.bias], proj.*.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = False, scale: float | None = None):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.scale = scale or None
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # unbind's backward writes one packed gradient, in the order in which the linear reads it
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=self.scale)
        return self.proj(merge_heads(out))


def _xformers_ops():
    try:
        import xformers.ops
    except ImportError as error:
        raise ModuleNotFoundError("the attention backend 'xformers' needs the package of that name: pip "
                                  "install xformers (for CUDA), or use the backend 'sdpa'") from error
    return xformers.ops
