"""Weights that a run needs and does not train, such as the UNet under a ControlNet: kept once, beside its checkpoints.

Checkpoints hold only what is trained. Where the rest cannot be had again by name from a hub, the run keeps a copy, so that it
can be resumed and sampled from whatever becomes of the folder that the weights came from. Where it can, as under LoRA, the run
keeps its hash (base.json), which becomes a part of that of the run's checkpoints.
"""

import hashlib
import logging
import os
from pathlib import Path

import torch

from libs import files
from libs.engine import checkpoint

NAME, BASE = "frozen.safetensors", "base.json"


def keep_frozen(run, net):
    """Keep the parameters of `net` that require no gradient in the run folder; a run that resumes takes them from there.

    Called by every process, before the first step. Nothing is written where everything is trained.

    Raises:
        ValueError: the run was begun on a network of other names or shapes, or its copy is gone.
    """
    mine = {name: weight for name, weight in net.named_parameters() if not weight.requires_grad}
    path = run.folder / NAME
    if run.resumes and mine and not path.is_file():
        raise ValueError(f"{path} is missing: it holds the {len(mine)} frozen weights that the checkpoints in {run.folder}/ckpts "
                         "were trained beside, and others in their place would make another network of them. Restore the file, or "
                         "give another --workdir to start anew")
    if run.resumes and path.is_file():
        kept = files.read_safetensors(path)
        wrong = sorted(name for name in mine.keys() | kept.keys()
                       if name not in mine or name not in kept or mine[name].shape != kept[name].shape)
        if wrong:
            raise ValueError(f"{path} holds the frozen weights of another network: {', '.join(wrong[:5])}"
                             f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''} differ. Use the nnet section of the run's "
                             "config.json, or another --workdir")
        with torch.no_grad():
            for name, weight in mine.items():
                weight.copy_(kept[name])
    elif mine and run.is_main:
        staged = path.with_name(f".staging-{NAME}")
        try:
            files.write_safetensors(mine, staged)
            with open(staged, "rb") as file:
                os.fsync(file.fileno())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
        logging.info("%d frozen weights are kept in %s", len(mine), path)
    run.barrier()


def frozen_of(checkpoint_folder):
    """The frozen weights that belong to a checkpoint <run>/ckpts/<step>.ckpt; {} where the run keeps none."""
    path = Path(checkpoint_folder).parent.parent / NAME
    return files.read_safetensors(path) if path.is_file() else {}


def base_of(checkpoint_folder):
    """What base.json says of the weights that were frozen under a checkpoint <run>/ckpts/<step>.ckpt, or under LoRA that was
    written for others, in whose folder it lies itself; {} where it is not."""
    for folder in (Path(checkpoint_folder), *list(Path(checkpoint_folder).parents)[:2]):
        if (folder / BASE).is_file():
            return files.read_json(folder / BASE)
    return {}


def hash_with_frozen(digest, checkpoint_folder):
    """`digest` of a checkpoint's weights, with that of the run's frozen ones where there are some, kept or only known by hash."""
    path = Path(checkpoint_folder).parent.parent / NAME
    frozen = checkpoint.sha256(path) if path.is_file() else base_of(checkpoint_folder).get("sha256", "")
    return hashlib.sha256((digest + frozen).encode()).hexdigest() if frozen else digest
