"""Constructor arguments of guided-diffusion's networks, read off a published state_dict as far as its shapes tell them."""

import math

from torch import Tensor


def unet_arguments(state: dict[str, Tensor]) -> dict[str, object]:
    """Arguments of adm_unet for a published state_dict, as far as its shapes tell them.

    Not told: num_heads or num_head_channels, use_new_attention_order, dropout, and image_size, for which any multiple of
    2^(levels - 1) will do. num_classes is -1 without classes. Raises ValueError for another network's state.
    """
    found = told(state)
    if found.pop("name", "") != "adm_unet":
        raise ValueError(f"these are no weights of adm_unet: {_first_keys(state)}")
    return found


def classifier_arguments(state: dict[str, Tensor]) -> dict[str, object]:
    """Arguments of adm_classifier for a published state_dict, as far as its shapes tell them.

    Not told: use_new_attention_order, dropout, num_head_channels (64 in all published ones), and image_size where the pool
    is not 'attention'. Raises ValueError for another network's state, and where the number of blocks per level is
    ambiguous.
    """
    found = told(state)
    if found.pop("name", "") != "adm_classifier":
        raise ValueError(f"these are no weights of adm_classifier: {_first_keys(state)}")
    if "num_res_blocks" not in found:
        raise ValueError("the weights do not tell how many blocks this classifier has per level: without attention and with "
                         "resblock_updown several numbers fit")
    return found


def told(state: dict[str, Tensor]) -> dict[str, object]:
    """Name and constructor arguments of the network to which a state_dict belongs, as far as shapes tell; {} for others."""
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.2.weight"} <= state.keys():
        return {}
    unet = any(key.startswith("output_blocks.") for key in state)
    width = state["time_embed.0.weight"].shape[1]
    middle = state["middle_block.0.emb_layers.1.weight"].shape[0], state["middle_block.0.out_layers.3.weight"].shape[0]
    found = {"name": "adm_unet" if unet else "adm_classifier", "in_channels": state["input_blocks.0.0.weight"].shape[1],
             "model_channels": width, "use_scale_shift_norm": middle[0] == 2 * middle[1]}
    if unet:
        found["out_channels"] = state["out.2.weight"].shape[0]
        found["num_classes"] = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else -1
    else:
        pool = _told_pool(state)
        found |= {"pool": pool, "out_channels": state[_LAST[pool]].shape[0]}
    blocks = _told_blocks(state, unet)
    if blocks is None:
        return found
    levels, depth, resampling = blocks
    starts = [1 + level * (depth + 1) for level in range(levels)]
    mults = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in starts]
    found |= {"num_res_blocks": depth, "channel_mult": tuple(int(m) if m == int(m) else m for m in mults),
              "attention_resolutions": tuple(2 ** level for level, i in enumerate(starts)
                                             if f"input_blocks.{i}.1.qkv.weight" in state)}
    if levels > 1:
        found["resblock_updown"] = resampling == "block"
        if resampling != "block":
            found["conv_resample"] = resampling == "conv"
    if not unet and pool == "attention":
        found["image_size"] = math.isqrt(state["out.2.positional_embedding"].shape[1] - 1) * 2 ** (levels - 1)
    return found


_LAST = {"attention": "out.2.c_proj.weight", "adaptive": "out.3.weight", "spatial": "out.2.weight", "spatial_v2": "out.3.weight"}


def _told_pool(state: dict[str, Tensor]) -> str:
    if "out.2.positional_embedding" in state:
        return "attention"
    if "out.2.weight" in state:
        return "spatial"
    return "spatial_v2" if state["out.3.weight"].ndim == 2 else "adaptive"


def _told_blocks(state: dict[str, Tensor], unet: bool) -> tuple[int, int, str] | None:
    """(levels, residual blocks per level, what resamples: 'block', 'conv' or 'mean'), None if that is ambiguous."""
    def entries(part):
        return {int(key.split(".")[1]) for key in state if key.startswith(f"{part}.")}

    count = max(entries("output_blocks" if unet else "input_blocks")) + 1
    convs = {i for i in range(count) if f"input_blocks.{i}.0.op.weight" in state}
    means = set(range(count)) - entries("input_blocks")
    ups = {i for i in entries("output_blocks") if any(f"output_blocks.{i}.{j}.in_layers.2.weight" in state for j in (1, 2))}
    if convs or means:
        depth = min(convs or means) - 1
        return count // (depth + 1), depth, "conv" if convs else "mean"
    if ups:
        depth = min(ups)
        return count // (depth + 1), depth, "block"
    if unet:
        return 1, count - 1, "block"
    fitting = [depth for depth in range(1, count) if count % (depth + 1) == 0 and _fits(state, count, depth)]
    return (count // (fitting[0] + 1), fitting[0], "block") if len(fitting) == 1 else None


def _fits(state: dict[str, Tensor], count: int, depth: int) -> bool:
    """Whether a classifier of `count` input blocks that resamples within blocks can have `depth` of them per level.

    The width changes only in a level's first block, and attention stands behind all blocks of a level or none, never
    behind the one that halves the size.
    """
    for start in range(1, count, depth + 1):
        level = range(start, min(start + depth, count))
        attention = {f"input_blocks.{i}.1.qkv.weight" in state for i in level}
        later = range(start + 1, min(start + depth + 1, count))
        changed = any(f"input_blocks.{i}.0.skip_connection.weight" in state for i in later)
        if len(attention) > 1 or changed or f"input_blocks.{start + depth}.1.qkv.weight" in state:
            return False
    return True


def _first_keys(state: dict[str, Tensor]) -> str:
    return ", ".join(list(state)[:4]) or "no tensors"
