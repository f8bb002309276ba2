"""ControlNet on a class-conditional UNet (Zhang, Rao and Agrawala, ICCV 2023): images that follow a map, such as a segmentation.

A copy of the UNet's way down reads the mask too, and what it says is added to the UNet's skip connections through convolutions
that begin at zero: before any training the UNet's output is unchanged to the bit.
"""

import torch
from torch import Tensor, nn

from libs.backbones.unet_label import LabelUNet

COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")


class DummyEncoder(nn.Module):
    """The original's context: one learned token (1, 1, D) for every image, in place of the class's."""

    def __init__(self, dim: int):
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(1, 1, dim))


class MaskControlNet(LabelUNet):
    """net(x, t, label, mask) -> (N, out_channels, H, W); the arguments of LabelUNet, and

    conditioning_channels  K of a mask (N, K, H, W) with values in [0, 1]
    conditioning_embedding_out_channels  widths of the convolutions that shrink a mask to the latents' size: to half for each
                           entry after the first, so that of L entries the mask's side is 2 ** (L - 1) of the latent's
    freeze_unet            only the ControlNet learns
    legacy                 the network of the original's checkpoints: it shows masks of one channel as three in [-1, 1], and
                           attends to one learned token, `dummy_encoder.embedding`, whatever the class

    Attributes: unet, class_embedder (not where legacy), controlnet, diffusers' ControlNetModel; conditioning_scale, by which
    what the ControlNet adds is multiplied: 0 ignores the mask.
    """

    def __init__(self, *, conditioning_channels: int, conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
                 freeze_unet: bool = True, legacy: bool = False, use_checkpoint: bool = False, **unet):
        from diffusers import ControlNetModel
        super().__init__(use_checkpoint=use_checkpoint, **unet)
        if conditioning_channels < 1:
            raise ValueError(f"conditioning_channels={conditioning_channels}: a mask has at least one channel")
        if not conditioning_embedding_out_channels:
            raise ValueError("conditioning_embedding_out_channels is empty: give one width at least, and one more for every "
                             "factor of 2 between the side of the mask and that of the latents")
        if legacy and conditioning_channels != 3:
            raise ValueError(f"legacy networks show the mask as 3 channels, not conditioning_channels={conditioning_channels}")
        self.mask_channels = 1 if legacy else conditioning_channels
        self.shrink = 2 ** (len(conditioning_embedding_out_channels) - 1)
        self.legacy, self.conditioning_scale = legacy, 1.0
        self.controlnet = ControlNetModel.from_unet(
            self.unet, conditioning_channels=conditioning_channels,
            conditioning_embedding_out_channels=tuple(conditioning_embedding_out_channels))
        if legacy:
            self.dummy_encoder = DummyEncoder(self.unet.config.cross_attention_dim)
            del self.class_embedder
        if freeze_unet:
            for part in (self.unet, *([] if legacy else [self.class_embedder])):
                part.requires_grad_(False)
        if use_checkpoint:
            self.controlnet.enable_gradient_checkpointing()

    @property
    def takes(self) -> tuple[str, ...]:
        """The conditions that `forward` takes: ('label', 'mask'), or ('mask',) without classes and where legacy."""
        return ("mask",) if self.legacy else (*super().takes, "mask")

    def copy_unet(self) -> None:
        """Start the ControlNet from the UNet's present weights; what has no counterpart there stays as it is, the zeros too."""
        for part in (*COPIED, *(["class_embedding"] if self.adaptive_norm else [])):
            getattr(self.controlnet, part).load_state_dict(getattr(self.unet, part).state_dict())

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (N, in_channels, h, w), t (N,) the numbers of the steps, from 0 -> (N, out_channels, h, w).

        label (N,) integers, as for LabelUNet. mask (N, K, H, W) in [0, 1], H = h 2 ** (L - 1), one channel where legacy.
        """
        self.check(x, t)
        context = self.context(x, label)
        adapting = self.adapting(context)
        down, mid = self.controlnet(x, t, context, controlnet_cond=self._shown(x, mask), class_labels=adapting,
                                    conditioning_scale=self.conditioning_scale, return_dict=False)
        return self.unet(x, t, context, class_labels=adapting, down_block_additional_residuals=down,
                         mid_block_additional_residual=mid, return_dict=False)[0]

    def context(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The tokens (N, 1, D) that the images x attend to."""
        if not self.legacy:
            return super().context(x, label)
        if label is not None:
            raise TypeError("a legacy ControlNet takes no label=: it was trained without classes")
        return self.dummy_encoder.embedding.expand(len(x), -1, -1)

    def _shown(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            raise ValueError("this network takes a mask, and none was given")
        wanted = (len(x), self.mask_channels, x.shape[2] * self.shrink, x.shape[3] * self.shrink)
        if tuple(mask.shape) != wanted or not mask.is_floating_point():
            raise ValueError(f"expected float masks of shape {wanted} for latents {tuple(x.shape)}, got {mask.dtype} "
                             f"{tuple(mask.shape)}: the channels are those of conditioning_channels, and "
                             "conditioning_embedding_out_channels must have one entry more than the codec halves images")
        return (2.0 * mask - 1.0).expand(-1, 3, -1, -1) if self.legacy else mask

    def blank(self) -> dict[str, Tensor]:
        """The conditions without which forward does not run, for one image of `shape`: an empty mask."""
        return {"mask": torch.zeros(1, self.mask_channels, *(side * self.shrink for side in self.shape[1:]))}

    @staticmethod
    def settings(state: dict[str, Tensor]) -> dict[str, object]:
        """The constructor arguments that the shapes of a state_dict tell, {} if it is of another kind of network."""
        told = LabelUNet.settings(state)
        first = "controlnet.controlnet_cond_embedding.conv_in.weight"
        if told and first in state:
            told |= {"conditioning_channels": state[first].shape[1], "legacy": "dummy_encoder.embedding" in state}
        return told
