"""What the codecs around an autoencoder of diffusers share: float32, frozen, decoding in slices, a fingerprint."""

import hashlib
import json
import logging

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from libs.codecs.base import LOGVAR_CEILING, LOGVAR_FLOOR, Codec


# Of images that are encoded or decoded together: 8 of 512 x 512, about 6 GB in Stable Diffusion's decoder.
PIXELS_AT_ONCE = 2 * 1024 ** 2


def in_parts(function, x: Tensor, size: int) -> Tensor:
    """`function` of the rows of x, `size` of them at a time, and put together again; each row's result is its
    own.

    Where the device's memory does not suffice, half as many rows are taken, down to one; how many suffice is
    logged.
    """
    found, begin, tried = [], 0, size
    while begin < len(x):
        try:
            found.append(function(x[begin:begin + tried]))
            begin += tried
            continue
        except torch.OutOfMemoryError:
            failed = min(tried, len(x) - begin)
            if failed == 1:
                raise
        # Outside of the handler, whose traceback holds on to what the attempt had made.
        tried = failed // 2
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        logging.warning("out of memory with %d images at once: the autoencoder takes %d at a time from here "
                        "on", failed, tried)
    return torch.cat(found) if found else function(x)


def _images_at_once(height: int, width: int) -> int:
    return max(1, PIXELS_AT_ONCE // (height * width))


class LatentCodec(Codec):
    """A frozen autoencoder of diffusers as a codec.

    It computes in the dtype of its weights whatever autocast says, because the activations of some autoencoders exceed
    float16, and so that stored features do not depend on the precision of a run.

    Args:
        net: AutoencoderKL or AutoencoderTiny.
        scale_factor: latents are scale_factor * what the network gives.
        downsample: image side / latent side.
        decode_batch: images decoded at a time, which bounds memory; 0: as many as have PIXELS_AT_ONCE
            together, at least one. Where the device's memory does not suffice all the same, half as many are
            tried, down to one.
    """

    def __init__(self, net, *, scale_factor: float, downsample: int, decode_batch: int = 0):
        super().__init__()
        if not scale_factor > 0:
            raise ValueError(f"codec.scale_factor={scale_factor}: expected a number above 0, or 0 for the autoencoder's own")
        if decode_batch < 0:
            raise ValueError(f"codec.decode_batch={decode_batch}: expected a number of images, or 0 for two "
                             f"megapixels at once")
        self.net = net.requires_grad_(False)
        self.channels, self.downsample = net.config.latent_channels, downsample
        self.scale_factor, self.decode_batch = scale_factor, decode_batch
        self.eval()

    def train(self, mode: bool = True):
        """Frozen: stays in eval mode."""
        return super().train(False)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the encoder's weights and of what else decides the moments; the decoder does not count."""
        return self._hash(("encoder.", "quant_conv."))

    @property
    def decoder_fingerprint(self) -> str:
        """sha256 (hex) of the decoder's weights and of what else decides the images that latents become."""
        return self._hash(("decoder.", "post_quant_conv."))

    def _hash(self, prefixes):
        config = {key: self.net.config.get(key) for key in ("act_fn", "norm_num_groups")}  # no tensor shows these
        digest = hashlib.sha256(json.dumps([type(self.net).__name__, config]).encode())
        for name, value in sorted(self.net.state_dict().items()):
            if name.startswith(prefixes):
                digest.update(json.dumps([name, list(value.shape)]).encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def moments(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> mean and log-variance in [-30, 20], before scaling: (N, 2c, h, w) float32."""
        if x.ndim != 4:
            raise ValueError(f"expected images of shape (N, C, H, W), got {tuple(x.shape)}")
        self.latent_shape(x.shape[1:])
        with torch.autocast(x.device.type, enabled=False):
            found = in_parts(self._encode, x.to(self.net.dtype), _images_at_once(*x.shape[2:]))
            mean, logvar = found.float().chunk(2, dim=1)
        return torch.cat([mean, logvar.clamp(LOGVAR_FLOOR, LOGVAR_CEILING)], dim=1)

    def decode(self, z: Tensor, *, checkpointed: bool = False) -> Tensor:
        """Latents (N, c, h, w) -> images (N, C, H, W) about [-1, 1], float32, not clamped; gradients flow through.

        checkpointed: keep for the backward pass only the latents, and of one image at a time only what enters the blocks of the
            decoder; activations are computed again. With gradients off it changes nothing.
        """
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"expected latents of shape (N, {self.channels}, h, w), got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            z = (z.float() / self.scale_factor).to(self.net.dtype)
            if checkpointed and torch.is_grad_enabled():
                # The whole decoder at once again in the backward pass would need as much memory then as it saved before: what
                # saves is to go block by block and, of several images, to begin anew with each. It stays so for later calls,
                # since this one's backward pass has to find what its forward pass found.
                self.net.enable_gradient_checkpointing()
                parts = z.split(1)
                return torch.cat([checkpoint(self._decode, part, use_reentrant=False) for part in parts]
                                 if len(parts) > 1 else [self._decode(z)])
            side = z.shape[2] * self.downsample, z.shape[3] * self.downsample
            return in_parts(self._decode, z, self.decode_batch or _images_at_once(*side))

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the images that latents of shape (c, h, w) decode to."""
        return self.net.config.out_channels, shape[1] * self.downsample, shape[2] * self.downsample

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images of shape (C, H, W); ValueError where the codec cannot take those."""
        channels, height, width = shape
        if channels != self.net.config.in_channels:
            raise ValueError(f"images of {channels} channels, but the autoencoder takes {self.net.config.in_channels}: set "
                             "dataset.channels, or use an autoencoder trained on such images (train_autoencoder.py)")
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"images of {height}x{width}: each side must be a multiple of {self.downsample}, by which the "
                             "autoencoder shrinks images. Choose dataset.resolution so")
        return self.channels, height // self.downsample, width // self.downsample

    def _decode(self, z: Tensor) -> Tensor:
        return self.net.decode(z, return_dict=False)[0].float()

    def _encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError
