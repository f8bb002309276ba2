"""The trainings of a study: shared among processes, each kept as soon as it is finished, none done twice.

A training is <folder>/trainings/<key>.npz, what it says of the test images, and <key>.json, which is written last. Kept are the
logits of a classifier, and of a segmentation network the Dice of every class.
"""

import hashlib
import json
import logging
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from libs.downstream import networks, segmentation, summary, training
from libs.engine.checkpoint import write_text

log = logging.getLogger(__name__)


def carry_out(run, found, real, synthetic, test, config):
    """Do the trainings that are not there yet, shared among the processes; what all of them say of the test images.

    Training k of those to do goes to process k mod W. What it gives is the same on any of them.

    Returns:
        {key: float32 (N, K)}, logits or Dice, on the main process; {} on the others.
    Raises:
        ValueError, FileNotFoundError: a network that cannot be built.
    """
    folder = Path(run.folder) / "trainings"
    unique = list({each.key: each for each in found}.values())
    shape, build = (len(test), len(real.targets)), networks.build if test.masks is None else networks.build_segmenter
    missing = [each.key for each in unique if _read(folder, each.key, shape) is None] if run.is_main else None
    missing = set(run.from_main(missing))
    todo = [each for each in unique if each.key in missing]
    if todo:
        run.main_first(lambda: build(**config.nnet, classes=len(real.targets), channels=real.pixels.shape[1],
                                     resolution=real.pixels.shape[2]))
        folder.mkdir(parents=True, exist_ok=True)
    if todo or not (run.folder / "config.json").is_file():  # of trainings that are all there nothing is changed
        run.describe()
    if run.is_main:
        log.info("%d trainings of %d steps, %d of them are there already", len(unique), config.train.n_steps,
                 len(unique) - len(todo))
        spare = (os.cpu_count() or 1) // config.train.threads
        if run.world == 1 and run.device.type == "cpu" and spare > 1 and len(todo) > 8:
            log.info("torchrun --nproc_per_node=%d would share them among the processors, with the same result", spare)
    for number, each in list(enumerate(todo))[run.rank::run.world]:
        facts = _train(run, each, real, synthetic, test, config, folder)
        log.info("training %d of %d: %s at %s, seed %d, %d real and %d synthetic images: loss %.3f, %.1f s", number + 1,
                 len(todo), each.arm.name, summary.share(each.fraction), each.seed, len(each.real), len(each.synthetic),
                 facts["last_loss"], facts["seconds"])
    run.barrier()
    if not run.is_main:
        return {}
    kept = {each.key: _read(folder, each.key, shape) for each in unique}
    lost = [key for key, values in kept.items() if values is None]
    if lost:
        raise ValueError(f"{len(lost)} trainings are not in {folder}, such as {lost[0]}.npz: all processes must see one "
                         "folder")
    return kept


def _train(run, each, real, synthetic, test, config, folder):
    """Do one training and keep it."""
    pixels = torch.cat([real.pixels[each.real], synthetic.pixels[each.synthetic]])
    labels = torch.cat([real.labels[each.real], synthetic.labels[each.synthetic]])
    masks = None if test.masks is None else torch.cat([real.masks[each.real], synthetic.masks[each.synthetic]])
    begun = time.perf_counter()
    net = training.train(pixels, labels, len(real.targets), masks=masks, seed=each.seed, train=config.train,
                         optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, nnet=config.nnet, device=run.device,
                         autocast=run.accelerator.autocast)
    where = {"device": run.device, "threads": config.train.threads}
    if masks is None:
        kept = {"logits": training.logits(net, test.pixels, **where).numpy(), "labels": test.labels.numpy()}
    else:
        kept = {"dice": segmentation.dice(net, test.pixels, test.masks, **where).numpy()}
    staged = folder / f".staging-{each.key}-{os.getpid()}.npz"
    np.savez(staged, **kept)
    os.replace(staged, folder / f"{each.key}.npz")
    facts = {"arm": each.arm.name, "fraction": each.fraction, "seed": each.seed, "real": real.counts(each.real),
             "synthetic": synthetic.counts(each.synthetic), "real_images": [real.names[i] for i in each.real],
             "synthetic_images": [synthetic.names[i] for i in each.synthetic], "sha256": _sha256(next(iter(kept.values()))),
             "last_loss": net.last_loss, "parameters": sum(p.numel() for p in net.parameters()),
             "seconds": round(time.perf_counter() - begun, 2), "device": str(run.device)}
    write_text(folder / f"{each.key}.json", json.dumps(facts, indent=1))
    return facts


def _read(folder, key, shape):
    """What is kept of a finished training; None where there is none, or its files do not belong together."""
    try:
        facts = json.loads((folder / f"{key}.json").read_text())
        with np.load(folder / f"{key}.npz", allow_pickle=False) as file:
            kept = file["logits" if "logits" in file else "dice"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("the training %s cannot be read (%s) and is done again", folder / key, error)
        return None
    if kept.shape != shape or _sha256(kept) != facts.get("sha256"):
        log.warning("the training %s is damaged and is done again", folder / key)
        return None
    return kept


def _sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
