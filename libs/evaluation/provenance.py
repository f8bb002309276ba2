"""What decides whether scores of two runs may stand beside each other, and what they cost: kept in scores.json.

Equal hashes of the real images, of the network that judges and of its reference mean the same yardstick. Names do not: a
classifier trained on the images at hand is called by their name, and another seed or another data set under that name gives
other weights.
"""

import hashlib

from libs.engine.run import device_name
from libs.pipeline.parameters import operations, parameters


def provenance(run, pipeline, dataset, found, references, *, agrees=None, follows=None, timing=None):
    """The entries of scores.json that a comparison reads; called by every process.

    Args:
        found, references: the feature networks and the real side of each, from `prepare`.
        agrees, follows: what reads attributes and masks off images, where there is any.
        timing: `Timing` of the generation.

    Returns:
        real: {'name', 'images', 'shape', 'classes', 'fingerprint'} of the real images, None where only statistics are known.
        judges: {network: {'weights': hash, 'reference': text}}; 'agreement' and 'following' are those of such scores.
        sampling: {'algorithm', 'steps', 'guidance', 'evaluations_per_image', 'seconds_per_image', 'batch', 'device', 'processes',
            'precision'}; an evaluation is the network seeing one image once, so that guidance counts twice.
        parameters: {component: {'total', 'trainable', 'frozen'}}.
        operations: of one evaluation of the network, 2 for a multiply-add; None where there is no formula.
    """
    judges = {each.name: {"weights": each.fingerprint, "reference": side.source} for each, side in zip(found, references)}
    if agrees is not None:
        judges["agreement"] = {"weights": agrees.judge, "reference": ""}
    if follows is not None:
        judges["following"] = {"weights": weights_hash(follows.network), "reference": follows.source}
    sampling = {"algorithm": pipeline.algorithm, "steps": pipeline.steps, "guidance": pipeline.guidance}
    sampling |= timing.measured(run) if timing is not None else {}
    sampling |= {"device": device_name(run.device), "processes": run.world, "precision": run.accelerator.mixed_precision}
    return {"real": real_images(dataset), "judges": judges, "sampling": sampling,
            "parameters": parameters(pipeline.net, pipeline.codec), "operations": operations(pipeline.net)}


def real_images(dataset):
    """Which real images these are, in JSON; None for none."""
    return None if dataset is None else {"name": dataset.name, "images": len(dataset), "shape": list(dataset.shape),
                                         "classes": list(dataset.classes), "fingerprint": dataset.fingerprint}


def weights_hash(module):
    """sha256 (hex) over the names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
