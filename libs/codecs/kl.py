"""The KL autoencoder of latent diffusion (Rombach et al., CVPR 2022), as Stable Diffusion and U-ViT use it."""

import logging
from pathlib import Path

from torch import Tensor

from libs.codecs import compvis, pretrained
from libs.codecs.latent import LatentCodec

STABLE_DIFFUSION = 0.18215  # scale factor of Stable Diffusion 1 and 2, and of U-ViT's ImageNet configs


class KL(LatentCodec):
    """Images <-> latents through diffusers' AutoencoderKL; `load_state_dict` takes CompVis names too.

    net: the AutoencoderKL. scale_factor, decode_batch: as for `build`.
    """

    def __init__(self, net, *, scale_factor: float, decode_batch: int = 0):
        super().__init__(net, scale_factor=scale_factor, downsample=2 ** (len(net.config.block_out_channels) - 1),
                         decode_batch=decode_batch)
        self.register_load_state_dict_pre_hook(_accept_compvis)

    def _encode(self, x: Tensor) -> Tensor:
        return self.net.encode(x, return_dict=False)[0].parameters


def build(path: str = "", *, scale_factor: float = 0.0, subfolder: str = "", ddconfig: dict | None = None,
          embed_dim: int = 4, decode_batch: int = 0) -> KL:
    """The codec `kl`.

    Args:
        path: name on the hub, a save_pretrained folder (also one that holds `vae/` or `autoencoder/`), or a file of weights
            under CompVis names (`autoencoder_kl.pth`, a whole Stable Diffusion checkpoint), whose architecture is read
            off the weights.
        scale_factor: 0.0 is that of the folder's config.json; 0.18215 for a file, which does not say. A
            number that differs from the folder's holds, and is logged; a training does not begin with 0.18215
            or 0.23010 beside a folder that says another.
        subfolder: 'vae' for a whole pipeline on the hub.
        ddconfig, embed_dim: in place of a path, an untrained network by CompVis' arguments.
        decode_batch: images decoded at a time, which bounds memory; 0: as many as have two megapixels
            together.

    Raises:
        OSError: nothing at `path`. ValueError: what is there is no KL autoencoder, or lacks weights.
    """
    if bool(path) == bool(ddconfig):
        raise ValueError(f"codec kl: give either path or ddconfig; got path={path!r} and ddconfig={ddconfig}")
    net = _untrained(compvis.from_ddconfig(dict(ddconfig), embed_dim)) if ddconfig else load(path, subfolder)
    if not scale_factor and (ddconfig or Path(path).expanduser().is_file()):
        scale_factor = STABLE_DIFFUSION
        logging.info("codec kl: %s does not say its scale factor; %s of Stable Diffusion is assumed", path or "ddconfig",
                     scale_factor)
    if ddconfig or Path(path).expanduser().is_file():  # neither says a scale factor
        return KL(net, scale_factor=float(scale_factor), decode_batch=decode_batch)
    scale = pretrained.scale_factor(net.config, path, scale_factor)
    codec = KL(net, scale_factor=scale, decode_batch=decode_batch)
    codec.folder_scale = float(net.config.get("scaling_factor") or 0.0)
    codec.published_scale = pretrained.is_published_scale(scale_factor, codec.folder_scale)
    return codec


def load(path: str, subfolder: str = ""):
    """diffusers' AutoencoderKL from a hub name, a folder or a file; arguments and errors as for `build`."""
    file = Path(path).expanduser()
    if not file.is_file():
        return pretrained.load("AutoencoderKL", path, subfolder)
    weights = compvis.read(file)
    try:
        net = _untrained(compvis.architecture(weights))
        net.load_state_dict(compvis.convert(weights), strict=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a whole KL autoencoder: {str(error)[:500]}") from error
    return pretrained.check_finite(net, path)


def _untrained(arguments: dict):
    from diffusers import AutoencoderKL
    return AutoencoderKL(**arguments, norm_num_groups=32, scaling_factor=STABLE_DIFFUSION)


def _accept_compvis(module, weights, prefix, *_):
    """Rename CompVis tensors in place, before torch compares names."""
    mine = {name.removeprefix(prefix): weights[name] for name in list(weights) if name.startswith(prefix)}
    if compvis.is_compvis(mine):
        for name in mine:
            del weights[prefix + name]
        weights |= {f"{prefix}net.{name}": value for name, value in compvis.convert(mine).items()}
