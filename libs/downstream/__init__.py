"""Downstream utility: whether synthetic images help to train a classifier, or a segmentation network, measured on real images
held out.

    real, test, synthetic, warnings = downstream.open_all(run, config)
    found = downstream.plan.trainings(real, synthetic, test, ...)
    kept = downstream.carry_out(run, found, real, synthetic, test, config)
    rows, result = downstream.report(run.folder, found, kept, ...)

config.study.task is "classification" (also where it is absent) or "segmentation": of masks, by a U-Net. Each finished training is
kept as <workdir>/trainings/<key>.npz (logits of the test images, or their Dice) and <key>.json, written last;
the key is a hash of all that decides it, so that a study which was stopped goes on, and one with other settings trains anew.
"""

import json
import logging
import math
import os
from pathlib import Path

from libs import data
from libs.downstream import images, networks, plan, scores, segmentation, summary, training
from libs.downstream.images import Images
from libs.downstream.plan import Training
from libs.downstream.running import carry_out
from libs.engine.checkpoint import write_text

__all__ = ["Images", "Training", "carry_out", "check", "images", "networks", "open_all", "plan", "report", "scores",
           "segmentation", "settings", "summary", "task", "training"]


def check(config):
    """ValueError for settings of a study that cannot be meant, before anything is read."""
    training.check(config.train, config.optimizer, config.lr_scheduler, masks=task(config) == "segmentation")
    plan.check(config.study.fractions, config.study.ratios, config.study.seeds)
    scores.check_count(config.study.bootstrap)
    data.base.one_of("config.study.shared", config.study.shared, ("error", "drop"))


def task(config):
    """What the networks of a study learn, "classification" or "segmentation"; ValueError for anything else."""
    return data.base.one_of("config.study.task", config.study.get("task", "classification"), tuple(summary.TRAINED))


def settings(run, config):
    """What decides the outcome of a training beside its images and its seed, as JSON can hold it."""
    if run.accelerator.mixed_precision == "fp16":
        raise ValueError("mixed_precision is fp16, which needs its loss scaled: use bf16, or no for float32")
    train = {key: value for key, value in config.train.items() if key != "threads"}
    return json.loads(json.dumps({"train": train | {"mixed_precision": run.accelerator.mixed_precision},
                                  "optimizer": config.optimizer.to_dict(), "lr_scheduler": config.lr_scheduler.to_dict(),
                                  "nnet": networks.identity(**config.nnet)}))


def open_all(run, config):
    """(real, test, synthetic) as `Images`, and warnings about them; every fault of the data is a ValueError."""
    masks = task(config) == "segmentation"
    real, test = images.open_real(config.dataset.to_dict(), config.test.to_dict(), config.study.test_split, masks=masks)
    synthetic = images.open_synthetic(config.synthetic.to_dict(), real, config.dataset.to_dict(), masks=masks)
    for each in (real, test, synthetic):
        own = {"window_option": "config.synthetic.window", "generated": True} if each is synthetic else {}
        run.main_first(lambda each=each, own=own: data.preflight(each, **own) if run.is_main else 0)
    if run.is_main:
        for what, each in (("real", real), ("test", test), ("synthetic", synthetic)):
            for line in data.summary.describe(data.summary.summarise(each, config.dataset)):
                logging.info("%s images: %s", what, line)
    real, test, synthetic = (images.load(each, masks=masks) for each in (real, test, synthetic))
    images.check(real, test, synthetic)
    elsewhere = bool(config.test.get("path", ""))
    real, synthetic, warnings = images.without_leaks(real, test, synthetic, shared=config.study.shared,
                                                     one_source=not elsewhere)
    images.check(real, test, synthetic)
    warnings += segmentation.shared(synthetic, test) if masks else []
    warnings += images.duplicates(synthetic, "synthetic") + images.few(test) + images.missing(synthetic)
    return real, test, synthetic, warnings


def report(folder, found, kept, real, test, synthetic, config, settings, warnings):
    """Write downstream.json, .csv, .md and .png of a study; (rows, what the json holds)."""
    folder, study = Path(folder), config.study
    rows = summary.summarise(found, kept, test, list(study.fractions), resamples=study.bootstrap, seed=config.seed)
    warnings = warnings + plan.shortfalls(found) + summary.warnings(found, rows)
    result = {"task": task(config), "classes": list(real.targets), "n_test": len(test), "seeds": list(study.seeds),
              "notes": _notes(config, real, test, synthetic), "sentences": summary.sentences(rows), "warnings": warnings,
              "counts": {"real": real.counts(), "synthetic": synthetic.counts(), "test": test.counts()},
              "trainings": [{"arm": each.arm.name, "fraction": each.fraction, "seed": each.seed, "key": each.key,
                             "real": real.counts(each.real), "synthetic": synthetic.counts(each.synthetic),
                             "synthetic_asked": each.asked} for each in found],
              "settings": settings, "config": json.loads(config.to_json_best_effort()), "rows": rows}
    write_text(folder / "downstream.csv", summary.as_csv(rows))
    write_text(folder / "downstream.md", summary.as_markdown(rows, result))
    staged = folder / f".staging-downstream-{os.getpid()}.png"
    summary.figure(rows, staged)
    os.replace(staged, folder / "downstream.png")
    write_text(folder / "downstream.json", json.dumps(_plain(result), indent=1))
    return rows, result


def _notes(config, real, test, synthetic):
    """How a study was done, in sentences."""
    train, network = config.train, config.nnet.name
    looks = [name for name, wanted in (("mirrored left-right", train.random_flip), ("mirrored up-down", train.random_vflip),
                                       (f"moved by up to {train.random_shift} pixels", train.random_shift)) if wanted]
    units = "whole groups" if test.groups is not None else "images"
    start = f" from weights {config.nnet.weights!r}" if config.nnet.weights else " from random weights"
    shown = test.counts() if test.masks is None else test.pairs()
    dice = [] if test.masks is None else [
        f"Dice is 2 |A and B| / (|A| + |B|) of a class's pixels in the mask and in what the network says, the mean over the test "
        f"images that have the class in either; the Dice of a network is the mean over all classes but {test.mask_names[0]}."]
    drawn = "classes drawn equally often" if train.balanced else "every image drawn equally often"
    return [
        f"{len(real)} real images to train on, {len(synthetic)} synthetic ones, {len(test)} real ones to test on "
        f"({', '.join(f'{name} {count}' for name, count in shown.items())}); "
        f"{real.pixels.shape[1]} x {real.pixels.shape[2]} x {real.pixels.shape[3]}.",
        f"Network {network}{start}. Every training takes the same {train.n_steps} steps of {train.batch_size} images, {drawn}, "
        f"{' and '.join(looks) or 'shown as they are'}; the last weights are tested, and nothing is chosen by the test images.",
        *dice,
        "The synthetic images of an arm are the stated number for each real image that it uses, in the proportions of their "
        "folder.",
        f"Means over {len(config.study.seeds)} seeds, with 95 % intervals by {config.study.bootstrap} draws of the seeds and of "
        f"the test {units} within their classes; differences are to the same share of the real images alone, seed by seed.",
        summary.GENERATOR]


def _plain(value):
    """The same with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
