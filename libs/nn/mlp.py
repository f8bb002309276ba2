"""The two-layer perceptron of a transformer block."""

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis: (..., dim) -> (..., dim). Parameter names: fc1.*, fc2.*.

    `gelu` is 'none' for the exact GELU (U-ViT) or 'tanh' for its approximation (DiT).
    """

    def __init__(self, dim: int, hidden: int, *, gelu: str = "none"):
        super().__init__()
        if gelu not in ("none", "tanh"):
            raise ValueError(f"gelu={gelu!r} is neither 'none' (exact) nor 'tanh' (approximate)")
        self.gelu = gelu
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))
