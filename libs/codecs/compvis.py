"""The KL autoencoder under the names of CompVis' latent-diffusion, read as diffusers' AutoencoderKL.

U-ViT's `autoencoder_kl.pth`, Stable Diffusion checkpoints and the LDM model zoo carry these names. Differences: where
a block lives, the decoder's levels (CompVis counts them from the image, diffusers from the latent), and attention,
whose 1x1 convolutions are linear layers in diffusers.
"""

import re
from pathlib import Path

from torch import Tensor

from libs import files

PREFIX = "first_stage_model."  # of the autoencoder within a whole Stable Diffusion checkpoint
_NOT_OURS = ("loss.", "model_ema.")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_LEVEL = re.compile(r"^(encoder\.down|decoder\.up)\.(\d+)\.")
_RENAMED = [(re.compile(pattern), new) for pattern, new in (
    (r"\.block\.(\d+)\.", r".resnets.\1."), (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."), (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."), (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.downsample\.", ".downsamplers.0."), (r"\.upsample\.", ".upsamplers.0."), (r"\.norm_out\.", ".conv_norm_out."),
    (r"(attentions\.\d+\.)norm\.", r"\1group_norm."), (r"(attentions\.\d+\.)([qkv])\.", r"\1to_\2."),
    (r"(attentions\.\d+\.)proj_out\.", r"\1to_out.0."))]


def is_compvis(weights: dict[str, Tensor]) -> bool:
    """True where the names are those of CompVis rather than of diffusers."""
    return any(".mid.block_1." in name for name in weights)


def read(path: Path) -> dict[str, Tensor]:
    """The autoencoder's tensors of a `.safetensors` or torch file, without prefix; nothing in it is executed.

    Raises:
        ValueError: the file cannot be read safely, or holds no autoencoder under CompVis names.
    """
    try:
        # of a whole checkpoint of safetensors only the autoencoder is read
        weights = files.read_safetensors(path, _names) if path.suffix == ".safetensors" else files.read_torch(path)
    except ValueError as error:
        raise ValueError(f"{error}. An autoencoder is a .safetensors file, or a .pth/.ckpt with nothing but tensors") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else {}
    inner = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    found = inner or {name: value for name, value in weights.items() if not name.startswith(_NOT_OURS)}
    found = {name: value for name, value in found.items() if not inner or name.startswith(_PARTS)}
    if not is_compvis(found):
        hint = ": give the folder that holds it and its config.json" if any("mid_block" in name for name in found) else ""
        raise ValueError(f"{path} holds no autoencoder under CompVis names (encoder.mid.block_1...), but "
                         f"{len(weights)} entries such as {list(map(str, weights))[:3]}{hint}")
    return found


def _names(names):
    """Those of the autoencoder, of all names in a file."""
    return [name for name in names if name.startswith(PREFIX)] or names


def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under CompVis names -> the same under the names of diffusers' AutoencoderKL."""
    levels = 1 + max((int(at[2]) for at in map(_LEVEL.match, weights) if at), default=0)
    converted = {}
    for name, value in weights.items():
        if at := _LEVEL.match(name):
            kind, level = ("down", int(at[2])) if at[1].startswith("encoder") else ("up", levels - 1 - int(at[2]))
            name = f"{at[1].split('.')[0]}.{kind}_blocks.{level}.{name[at.end():]}"
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        if "attentions" in name and value.ndim == 4:
            value = value[:, :, 0, 0]
        converted[name] = value
    return converted


def architecture(weights: dict[str, Tensor]) -> dict:
    """Arguments of diffusers' AutoencoderKL, from tensors under CompVis names.

    Raises:
        ValueError: a tensor is missing, or the latents' width changes in quant_conv, which diffusers cannot express.
    """
    def size(name, axis=0):
        if name not in weights:
            raise ValueError(f"the autoencoder's weights lack {name}")
        return weights[name].shape[axis]

    levels = 1 + max(int(at[2]) for at in map(_LEVEL.match, weights) if at)
    widths = [size(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
    blocks = sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in weights)
    attended = [f"encoder.down.{level}.attn.0.q.weight" in weights for level in range(levels)]
    return _arguments(size("encoder.conv_in.weight", 1), size("decoder.conv_out.weight"), widths, blocks, attended,
                      z=size("encoder.conv_out.weight") // 2, embed=size("quant_conv.weight") // 2)


def from_ddconfig(ddconfig: dict, embed_dim: int) -> dict:
    """Arguments of diffusers' AutoencoderKL, from CompVis' `ddconfig` and `embed_dim`."""
    needed = ("z_channels", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks")
    if missing := [key for key in needed if key not in ddconfig]:
        raise ValueError(f"ddconfig lacks {', '.join(missing)}")
    if not ddconfig.get("double_z", True):
        raise ValueError("ddconfig.double_z=False: a KL autoencoder needs mean and log-variance, double_z=True")
    sides = [ddconfig.get("resolution", 0) // 2 ** level for level in range(len(ddconfig["ch_mult"]))]
    return _arguments(ddconfig["in_channels"], ddconfig["out_ch"], [ddconfig["ch"] * m for m in ddconfig["ch_mult"]],
                      ddconfig["num_res_blocks"], [side in tuple(ddconfig.get("attn_resolutions", ())) for side in sides],
                      z=ddconfig["z_channels"], embed=embed_dim)


def _arguments(in_channels, out_channels, widths, blocks, attended, *, z, embed):
    if z != embed:
        raise ValueError(f"z_channels={z} and embed_dim={embed}: an AutoencoderKL of diffusers needs both to be the same")
    kinds = ["Attn" if each else "" for each in attended]
    return dict(in_channels=in_channels, out_channels=out_channels, latent_channels=z, layers_per_block=blocks,
                block_out_channels=tuple(widths),
                down_block_types=tuple(f"{kind}DownEncoderBlock2D" for kind in kinds),
                up_block_types=tuple(f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)))
