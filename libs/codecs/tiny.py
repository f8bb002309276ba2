"""A tiny distilled autoencoder (TAESD): latents of Stable Diffusion at a small fraction of the time."""

import torch
from torch import Tensor

from libs.codecs import pretrained
from libs.codecs.base import LOGVAR_FLOOR
from libs.codecs.latent import LatentCodec


class Tiny(LatentCodec):
    """Images <-> latents through diffusers' AutoencoderTiny; without spread.

    Its network gives latents that are scaled already: `madebyollin/taesd` imitates those of Stable Diffusion after
    their 0.18215, so its own scale factor is 1.

    Args:
        path: name on the hub (`madebyollin/taesd`) or a save_pretrained folder.
        scale_factor: 0.0 is the autoencoder's own, 1 for the published ones.
        subfolder: where in a folder or repository it lies.
        decode_batch: images decoded at a time, which bounds memory; 0: as many as have two megapixels
            together.
    """

    deterministic = True

    def __init__(self, path: str, *, scale_factor: float = 0.0, subfolder: str = "", decode_batch: int = 0):
        net = pretrained.load("AutoencoderTiny", path, subfolder)
        super().__init__(net, scale_factor=pretrained.scale_factor(net.config, path, scale_factor),
                         downsample=2 ** (len(net.config.num_encoder_blocks) - 1), decode_batch=decode_batch)
        self.folder_scale = float(net.config.get("scaling_factor") or 0.0)
        self.published_scale = pretrained.is_published_scale(scale_factor, self.folder_scale)

    def _encode(self, x: Tensor) -> Tensor:
        mean = self.net.encode(x, return_dict=False)[0]
        return torch.cat([mean, torch.full_like(mean, LOGVAR_FLOOR)], dim=1)
