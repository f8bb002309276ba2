"""Images to tokens and back, by square patches (Dosovitskiy et al. 2021)."""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """(N, C, H, W) -> (N, H/p * W/p, dim), row by row: one linear map of each p x p patch.

    Parameter names: proj.{weight,bias}.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, channels: int) -> Tensor:
    """(N, h * h, p * p * channels), channels fastest within a patch -> (N, channels, h * p, h * p)."""
    n, length, width = tokens.shape
    side, patch = round(length ** 0.5), round((width / channels) ** 0.5)
    if side * side != length or patch * patch * channels != width:
        raise ValueError(f"{length} tokens of width {width} make no square image of {channels} channels "
                         "from square patches")
    grid = tokens.view(n, side, side, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, side * patch, side * patch)
