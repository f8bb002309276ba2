"""Autoencoders of diffusers from where users have them: the hub, a save_pretrained folder; and such a folder written.

Nothing is executed on the way: weights are safetensors, or torch files of tensors alone.
"""

import logging
import math
from pathlib import Path

from libs.nn import pretrained

README = "assets/stable-diffusion/README.md"
PUBLISHED_SCALES = (0.18215, 0.23010)  # of Stable Diffusion's autoencoder on its own images, and on COCO
_CODECS = {"AutoencoderKL": "use codec.name=kl", "AutoencoderTiny": "use codec.name=tiny"}


def load(kind: str, path: str, subfolder: str = ""):
    """An autoencoder of class `kind` (AutoencoderKL, AutoencoderTiny), in float32 and with every weight loaded.

    Args:
        path: a save_pretrained folder, also one that holds it as `vae/` or `autoencoder/`, or a name on the hub.
        subfolder: where in the folder or repository it lies ('vae' for a whole pipeline on the hub).

    Raises:
        OSError: nothing was found; says where one can be had.
        ValueError: it is another kind of network, or some of its weights are missing.
    """
    net = pretrained.load(kind, path, subfolder, what="autoencoder", other=_CODECS,
                          likely=(subfolder,) if subfolder else ("vae", "autoencoder", ""),
                          advice=f"without a network give the path of a folder or file of weights, see "
                                 f"{README}; the autoencoder "
                                 "of a whole pipeline needs subfolder='vae'")
    return check_finite(net, path)


def check_finite(net, path):
    """`net` as it is; ValueError that names the first of its weights, and `path`, where one is nan or
    infinite."""
    wrong = [name for name, value in net.state_dict().items()
             if value.is_floating_point() and not bool(value.isfinite().all())]
    if wrong:
        raise ValueError(f"{path} holds an autoencoder whose weights are not finite (nan or infinite): "
                         f"{wrong[0]}"
                         f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}. Get it anew, or train "
                         f"it anew")
    return net


def save(net, folder, *, scale_factor: float) -> Path:
    """Write an autoencoder as a save_pretrained folder with its scaling_factor; appears whole or not at all."""
    with pretrained.written_whole(folder) as staged:
        net.register_to_config(scaling_factor=float(scale_factor))
        net.save_pretrained(staged, safe_serialization=True)
    return Path(folder)


def is_published_scale(given: float, own: float) -> bool:
    """Whether a scale factor given is one that configs were published with, for the autoencoder of Stable
    Diffusion; of COCO's the folder says `own` = 0.18215 all the same."""
    return any(math.isclose(given, each, rel_tol=1e-6) for each in PUBLISHED_SCALES) and not math.isclose(
        own, PUBLISHED_SCALES[0], rel_tol=1e-4)


def check_scale(codec):
    """ValueError where a training would begin with the scale factor that a config was published with, beside an
    autoencoder whose folder says another one, for which that number was never meant."""
    given, own = codec.scale_factor, codec.folder_scale
    if own and codec.published_scale and not same_scale(given, own):
        raise ValueError(f"config.codec.scale_factor is {given:g}, that of Stable Diffusion's autoencoder; the "
                         f"autoencoder of config.codec.path says {own:g}, by which its latents have a deviation "
                         "of 1. Set --config.codec.scale_factor=0. to take the autoencoder's own")


def same_scale(a, b):
    """Whether two scale factors are one number; folders and configs round them to five or six digits."""
    return math.isclose(a, b, rel_tol=1e-4)


def scale_factor(config, path: str, given: float) -> float:
    """The scale of latents: as given, or what the autoencoder's config says; ValueError where that is not a
    scale alone.

    Another one than the config says holds where it is given, which is logged: latents have a deviation of 1
    by one of them only.
    """
    if given:
        own = config.get("scaling_factor")
        if own and not same_scale(given, own):
            logging.warning("config.codec.scale_factor=%g is used, the autoencoder %s says %g: latents are "
                            "%.3g times as large as by its "
                            "own factor. --config.codec.scale_factor=0. takes the autoencoder's "
                            "own", given, path, own, given / own)
        return float(given)
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(name):
            raise ValueError(f"{path} normalises latents by {name}={config[name]} too; here latents are scaled alone. Give "
                             "codec.scale_factor; scripts/compute_scale_factor.py computes it for your images")
    if not config.get("scaling_factor"):
        raise ValueError(f"{path} does not say its scaling_factor: give codec.scale_factor")
    return float(config["scaling_factor"])
