"""Evaluation: exactly N images over all processes, their scores against the real ones, and what a page shows of both.

Images go from the sampler to the feature networks as uint8 tensors; no file is written unless one is asked for. Every
score names the features it was computed from, so that nothing is called FID that is not.
"""

import json
import logging
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from libs import engine, metrics
from libs.evaluation import noisy
from libs.engine.checkpoint import write_text
from libs.evaluation.agreement import Agreement, agreement
from libs.evaluation.describing import (asked, bank_of, describer, masks_asked, preview_masks, preview_prompts, tell_cut,
                                        tell_parameters)
from libs.evaluation.following import Following, following, pictures
from libs.evaluation.generation import Sink, Timing, generate, generate_all, is_there, nhwc, save_npz, save_png
from libs.evaluation.provenance import provenance
from libs.evaluation.requests import RequestOptions, compose, weights_used
from libs.evaluation.samples import finish_samples, first_of_each, listed_samples
from libs.evaluation.trained import CODEC, Trained, base_weights, begin_with_lora, open_classifier, open_trained, tie_to_base
from libs.evaluation.references import NoFeatures, extractors, feature_network, prepare, reference, statistics_there
from libs.pipeline import described, exporting, grid, measure_name, to_uint8

__all__ = ["Agreement", "CODEC", "FLAGS", "Following", "RequestOptions", "Timing", "Trained", "agreement", "asked", "bank_of",
           "base_weights", "begin_with_lora", "compose", "describer", "evaluate", "evaluate_run", "evaluator", "export_best",
           "extractors", "feature_network", "finish_samples", "first_of_each", "following", "generate", "generate_all",
           "is_there", "listed_samples", "masks_asked", "noisy", "open_classifier", "open_trained", "prepare", "previewer",
           "reference", "save_png", "table", "tell_cut", "tell_parameters", "tie_to_base", "warn_unexportable", "weights_used"]

# The options of every evaluation script, beside --config, --workdir and --nnet_path; see `evaluate_run`.
FLAGS = {"seed": (1, "seed of the images; another than that of the evaluations during training"),
         "name": ("", "name of the result folder; by default <checkpoint>_<number of images>"),
         "npz": ("", "file for all images as the ADM suite reads them, also where nothing is there to score them by; in place of "
                     "config.sample.npz")}
SHOWN = 8  # images of each class on a page or in a preview


def evaluate(run, pipeline, config, dataset, *, n, seed, name, step=None, nnet="", detailed=True, sides=(),
             prompts=None, unscored=""):
    """Generate n images and score them; the whole evaluation of one network, called by every process.

    Args:
        dataset: the real images (usually the training split); None where only statistics of them are known.
        n: exactly how many images are generated and scored.
        name: result folder run.folder/eval/<name>; '' writes nothing.
        detailed: scores per class and intervals as well.
        sides: from `prepare`, where the caller has it already.
        prompts: from `describer`, for a network that takes text.
        unscored: why features of images cannot be compared with anything; they are made all the same. '' where they can.

    Returns:
        the content of scores.json: {'n', 'scores': {metric: {'value', 'low', 'high', 'n'}}, 'per_class', ...}, the
        same on every process; where a folder is written, with what `provenance` says.
    """
    begun = time.perf_counter()
    found, references = ((), ()) if unscored else zip(*(sides or prepare(run, config, dataset)))
    cond = asked(config, dataset, pipeline, n, seed=seed, prompts=prompts)
    labels, texts = cond.get("label"), getattr(cond.get("text"), "texts", None)
    agrees = run.main_first(lambda: agreement(config, dataset)) if texts and detailed else None
    follows = run.main_first(lambda: following(config, dataset, run.device)) if "mask" in cond and detailed else None
    timing = Timing() if name else None
    keep = dict(folder=config.sample.path, npz=config.sample.npz, shape=(n, *pipeline.image_shape)) if name else {}
    with Sink(run, **keep) as sink:
        seen = _look(run, pipeline, config, found, cond, n, seed=seed, show=_shown(labels, n), sink=sink, agrees=agrees,
                     follows=follows, timing=timing)
    known = provenance(run, pipeline, dataset, found, references, agrees=agrees, follows=follows, timing=timing) if name else {}
    result = None
    if run.is_main:
        result = {"n": n, "step": step, "nnet": str(nnet), "seed": seed, "sampler": pipeline.describe(),
                  "features": ", ".join(each.name for each in found),
                  "reference": "; ".join(each.source for each in references), **known,
                  "scores": {}, "per_class": {}, "warnings": [f"not scored by features: {unscored}"] if unscored else []}
        resamples = config.metrics.bootstrap if detailed else 0
        if resamples:
            result["interval"] = f"95 % bootstrap over images, {resamples} draws (at least 200 for shares)"
        for number, each in enumerate(found):
            _score(result, config.metrics.names, each, references[number], seen.features[number],
                   seen.probabilities[number], labels, dataset, seed=config.seed, resamples=resamples,
                   per_class=detailed)
        if agrees:
            result["scores"] |= agrees.scores(texts, seen.attributes, seed=config.seed, resamples=resamples)
            result["agreement_of_real"] = agrees.of_real
        if follows:
            _follow(result, follows, seen.dice, labels, dataset, groups=torch.tensor(cond["mask"].rows), seed=config.seed,
                    resamples=resamples)
        if texts:
            result["prompts"] = config.sample.get("prompts", "bank")
            result["shown_texts"] = [texts[i] for i in seen.shown]
        result["seconds"] = round(time.perf_counter() - begun, 1)
        if name:
            folder = run.folder / "eval" / name
            masks = {} if follows is None else {
                "arr_8": nhwc(pictures(follows.masks_as, follows.masks_as.index(cond["mask"][seen.shown.tolist()]))),
                "arr_9": nhwc(pictures(follows.masks_as, follows.obtained(seen.images))),
                "arr_10": follows.foreground(seen.dice[seen.shown]).numpy()}
            _keep_shown(folder / "shown.npz", seen, labels, references[0] if references else None, dataset, **masks)
            write_text(folder / "scores.json", json.dumps(result, indent=1))
    return run.from_main(result)


def evaluate_run(config, workdir, nnet_path, seed, name, npz=""):
    """What an evaluation script does: open a trained network and evaluate it.

    Writes <workdir>/eval/<name>/scores.json and what the report shows. `config.sample.path` keeps the images,
    `npz`, or `config.sample.npz`, an archive for the ADM suite; where one is asked for, images are made also if there is nothing
    to score them by, neither real images nor statistics, or no feature network.

    Returns:
        the scores as text, for the main process to print; '' on the others.
    """
    run = engine.start(config, workdir, claim=False)
    config.sample.npz = npz or config.sample.npz
    trained = open_trained(run, config, workdir, nnet_path, unscored=bool(config.sample.npz))
    how = config.sample.get("prompts", "bank")
    ending = "" if trained.prompts is None or how == "bank" else f"_{how}"
    if trained.sampler.guides:
        ending += f"_{measure_name(config.sample.gradient.measure)}{config.sample.gradient.scale:g}"
    ending += _guided_otherwise(trained.sampler, config.sample, engine.read_json(Path(workdir) / "config.json", {}))
    sides, unscored = _sides(run, config, trained.dataset)
    result = evaluate(run, trained.sampler, config, trained.dataset, n=config.sample.n_samples, seed=seed, step=trained.step,
                      nnet=trained.source, prompts=trained.prompts, sides=sides, unscored=unscored,
                      name=name or f"{trained.source.stem}_{config.sample.n_samples}{ending}")
    text = table(result) if run.is_main else ""
    if config.sample.npz and run.is_main:
        text += f"\n{result['n']} images in {config.sample.npz}"
    run.finish()
    return text


def _guided_otherwise(sampler, sample, of_run):
    """What of the classifier-free guidance differs from that of the run, as words for the name of a folder."""
    def changed(*keys):
        return any(key in before and key in sample and before[key] != json.loads(json.dumps(sample[key])) for key in keys)

    before, (first, last) = of_run.get("sample", {}), sampler.guided["interval"]
    words = [f"_guidance{sampler.guidance:g}"] if changed("guidance", "scale") else []
    words += [f"_{sample.guided_channels}"] if changed("guided_channels") else []
    return "".join(words + ([f"_from{first:g}to{last:g}"] if changed("guidance_interval") else []))


def _sides(run, config, dataset):
    """(sides of `prepare`, ''), or ((), why there are none) where the images are asked for all the same."""
    try:
        if dataset is None and not statistics_there(config.metrics.fid_stat):
            raise NoFeatures(f"no images at config.dataset.path={config.dataset.get('path', '')!r}, and no statistics of them at "
                             f"config.metrics.fid_stat={config.metrics.fid_stat!r}")
        return prepare(run, config, dataset), ""
    except NoFeatures as error:
        if not config.sample.npz:
            raise
        logging.warning("images are made for %s and not scored: %s", config.sample.npz, error)
        return (), str(error)


def evaluator(run, pipeline, config, dataset, prompts=None):
    """evaluate(ema, step) -> {metric: value} for the training loop, or None where no feature network can be had.

    Scored are config.metrics.n_samples images under the first available features; their Fréchet distance is also given
    as 'frechet', by which the best checkpoint is chosen.
    """
    if not config.train.eval_interval:
        return None
    if dataset is None and not statistics_there(config.metrics.fid_stat):
        logging.warning("training goes on without scores: neither real images nor config.metrics.fid_stat are there")
        return None
    metrics.check_names(config.metrics.names)
    try:
        sides = prepare(run, config, dataset, only_first=True)
    except OSError as error:
        logging.warning("training goes on without scores: %s", error)
        return None

    def evaluate_at(ema, step):
        result = evaluate(run, pipeline, config, dataset, n=config.metrics.n_samples, seed=config.seed, name="", step=step,
                          detailed=False, sides=sides, prompts=prompts)
        scores = {name: score["value"] for name, score in result["scores"].items()}
        scores["n"] = result["n"]
        frechet = [value for name, value in scores.items() if name == "fid" or name.startswith("fd_")]
        return scores | ({"frechet": frechet[0]} if frechet else {})

    return evaluate_at


def previewer(run, pipeline, config, prompts=None, masks=None):
    """preview(ema, step) -> grid of images with the same noise and conditions at every call: a row for each class, or for each of
    config.sample.validation_prompts.

    masks: of a network that takes masks, the data set whose masks are asked for; each row of images then stands below its masks.
    """
    n, cond = SHOWN * SHOWN, {}
    if "label" in pipeline.null:
        cond["label"] = torch.arange(min(int(pipeline.null["label"]), SHOWN)).repeat_interleave(SHOWN)
        n = len(cond["label"])
    if "text" in pipeline.null:
        own = None if "label" in cond else preview_prompts(config, described(prompts), SHOWN)
        n = n if own is None else len(own)
        cond["text"] = own or described(prompts).draw(cond.get("label"), n, seed=config.seed)
    if "mask" in pipeline.takes:
        cond["mask"] = preview_masks(masks, cond.get("label"), SHOWN, seed=config.seed)
        n = len(cond["mask"])

    def preview(ema, step):
        images = generate_all(run, pipeline, cond, n, seed=config.seed, batch_size=config.sample.mini_batch_size)
        if "mask" in cond:
            codes = pipeline.masks_as.index(cond["mask"][list(range(n))])
            shown = torch.stack([torch.as_tensor(pipeline.masks_as.picture(code)) for code in codes])
            images = images.expand(-1, 3, -1, -1)
            images = torch.cat([torch.cat(rows) for rows in zip(shown.split(SHOWN), images.split(SHOWN))])
        return grid(images, SHOWN)

    return preview


def warn_unexportable(run, sampler):
    """Say before a training where its weights will not be written as diffusers reads them, and why."""
    fault = exporting.fault(sampler)
    if fault and run.is_main:
        logging.warning("%s will not be written at the end: %s", run.folder / "pipeline", fault)


def export_best(run, config):
    """Write <run>/pipeline, the best weights of a finished training in the folder layout of diffusers, where that has words for
    them. Called by every process; the main one does it."""
    if run.is_main:
        trained = open_trained(run, config, run.folder, "", with_data=False, with_prompts=False, exact=True, alone=True)
        fault = exporting.fault(trained.sampler)
        if fault:
            logging.warning("%s is not written: %s", run.folder / "pipeline", fault)
        else:
            exporting.export(run.folder / "pipeline", trained.sampler, trained.classes)
            logging.info("%s: weights of step %s, for diffusers", run.folder / "pipeline", trained.step)
    run.barrier()


def table(result):
    """The scores of an evaluation as text: a line for each, with interval and number of images."""
    masks = f" of {result['masks']} different masks" if "masks" in result else ""
    lines = [f"{result['n']} images{masks}, {result['sampler']}"
             + (f", against {result['reference']}" if result["reference"] else "")]
    for title, scores in {"": result["scores"], **result["per_class"]}.items():
        lines += [title] if title else []
        for name, score in scores.items():
            interval = "" if score["low"] is None else f"  [{score['low']:.4g}, {score['high']:.4g}]"
            spread = f"  std {score['std']:.4g} of subsets" if "std" in score else ""
            lines.append(f"  {name:40s} {score['value']:10.4g}{interval}{spread}  n={score['n']}")
    if "agreement_of_real" in result:
        own = ", ".join(f"{name} {value:.1%}" for name, value in result["agreement_of_real"].items())
        lines.append(f"real images agree with their own texts: {own}")
    if "following_of_real" in result:
        own = ", ".join(f"{name} {score['value']:.4g}" + ("" if score["low"] is None else
                        f" [{score['low']:.4g}, {score['high']:.4g}]") for name, score in result["following_of_real"].items())
        lines.append(f"real images that were held out follow their own masks ({result['following_source']}): {own}")
    return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])


class Seen(NamedTuple):
    """All generated images as the feature networks saw them, in order; and the few that are shown."""

    features: list
    probabilities: list
    attributes: torch.Tensor  # LongTensor (n, A) as `Agreement.read` gives it; (n, 0) without
    dice: torch.Tensor  # float64 (n, K) as `Following.read` gives it; (n, 0) without
    shown: torch.Tensor   # indices
    images: torch.Tensor  # uint8 (len(shown), C, H, W)


def _look(run, pipeline, config, found, cond, n, *, seed, show, sink, agrees=None, follows=None, timing=None):
    """Generate images 0 .. n-1 over all processes and pass each through every feature network, as a `Seen`."""
    parts, indices, kept, images_kept = [[] for _ in found], [], [], []
    attributes = [torch.empty(0, len(agrees.words) if agrees else 0, dtype=torch.int64)]
    dice = [torch.empty(0, follows.masks_as.classes if follows else 0, dtype=torch.float64)]
    batches = generate(run, pipeline, cond, n, seed=seed, batch_size=config.sample.mini_batch_size, timing=timing)
    for batch, images in batches:
        for part, each in zip(parts, found):
            part.append([None if tensor is None else tensor.cpu() for tensor in each.both(images)])
        rows = [row for row, index in enumerate(batch) if index in show]
        kept += [batch[row] for row in rows]
        images_kept.append(images[rows])
        indices += batch
        attributes += [agrees.read(images)] if agrees else []
        dice += [follows.read(images, cond["mask"][batch])] if follows else []
        sink.add(batch, images)
    order = run.gather_rows(torch.tensor(indices, dtype=torch.int64)).argsort()
    if len(order) != n:
        raise RuntimeError(f"{len(order)} images were generated, not {n}")

    def together(tensors, width):
        return run.gather_rows(torch.cat([torch.empty(0, width), *tensors]))[order]

    features = [together([feature for feature, _ in part], each.dims) for part, each in zip(parts, found)]
    probabilities = [None if each.classes is None else together([probability for _, probability in part], len(each.classes))
                     for part, each in zip(parts, found)]
    shown = run.gather_rows(torch.tensor(kept, dtype=torch.int64))
    images = run.gather_rows(torch.cat([torch.empty(0, *pipeline.image_shape, dtype=torch.uint8), *images_kept]))
    attributes = run.gather_rows(torch.cat(attributes))[order] if agrees else attributes[0]
    dice = run.gather_rows(torch.cat(dice))[order] if follows else dice[0]
    return Seen(features, probabilities, attributes, dice, shown.sort().values, images[shown.argsort()])


def _score(result, names, extractor, real, features, probabilities, labels, dataset, *, seed, resamples, per_class):
    """Add the scores of one feature network to `result`."""
    classes = [] if dataset is None else list(dataset.classes)
    recognise = labels is not None and bool(classes) and extractor.classes == classes
    common = dict(feature=extractor.name, seed=seed, resamples=resamples)
    known = 0 if real.features is None else len(real.features)
    # The Fréchet distance compares with all real images; what needs single ones, with those kept.
    result["scores"] |= metrics.scores(features, real.features, real.gaussian, names=names, probabilities=probabilities,
                                       labels=labels if recognise else None, **common)
    result["warnings"] += metrics.warnings(len(features), extractor.dims, feature=extractor.name, names=names, real=known,
                                           classes=extractor.classes is not None)
    if not per_class or labels is None or real.labels is None:
        return
    names = [name for name in names if name != "is"]
    found = metrics.scores_per_class(features, labels, real.features, real.labels, classes=classes, names=names,
                                     probabilities=probabilities if recognise else None, **common)
    said = {}  # what holds for several classes is said once
    for label, (name, scores) in enumerate(found.items()):
        result["per_class"].setdefault(name, {}).update(scores)
        counts = int((labels == label).sum()), int((real.labels == label).sum())
        for text in metrics.warnings(counts[0], extractor.dims, feature=extractor.name, names=names, real=counts[1]):
            said.setdefault(text, []).append(name)
    result["warnings"] += [f"{', '.join(names)}: {text}" for text, names in said.items()]


def _follow(result, follows, dice, labels, dataset, *, groups, **options):
    """Add to `result` how well images follow their masks, beside real ones; groups (n,): the mask of each image."""
    options["groups"] = groups
    result["scores"] |= follows.scores(dice, **options)
    result["masks"] = len(groups.unique())
    if "interval" in result:
        result["interval"] += f"; of dice over {result['masks']} different masks, each with all its images"
    result["following_of_real"], result["following_source"] = follows.of_real, follows.source
    result["warnings"] += follows.warnings()
    if labels is not None:
        for name, scores in follows.of_classes(dice, labels, dataset.classes, **options).items():
            result["per_class"].setdefault(name, {}).update(scores)


def _shown(labels, n):
    """Indices of the images that the page shows: the first of every class (of 16 classes at most), or of all."""
    if labels is None:
        return set(range(min(n, 4 * SHOWN)))
    return {int(i) for label in labels.unique()[:16] for i in (labels == label).nonzero().flatten()[:SHOWN]}


def _keep_shown(path, seen, labels, real, dataset, **more):
    """shown.npz: generated pictures; where they are scored the real image nearest to each in feature space, and as many real ones.

    more: where masks were asked for, these and those obtained, as colours, and the Dice of each picture.
    """
    arrays = {**more, "arr_0": nhwc(seen.images), "arr_1": _labels(labels, seen.shown)}
    if dataset is not None and real is not None:
        distance, row = metrics.nearest(seen.features[0][seen.shown], real.features)
        nearest = real.indices[row[:, 0]].tolist()
        if labels is not None and real.labels is not None:
            beside = [i for label in labels.unique()[:16] for i in real.indices[real.labels == label][:SHOWN].tolist()]
        else:
            beside = real.indices[:len(seen.shown)].tolist()
        # How near real images are to each other, as a measure for the distances above.
        own, _ = metrics.nearest(real.features[:500], real.features, k=2)
        arrays |= {"arr_2": nhwc(_real(dataset, nearest)), "arr_3": distance[:, 0].numpy(), "arr_4": np.array(nearest),
                   "arr_5": nhwc(_real(dataset, beside)),
                   "arr_6": _labels(None if labels is None else dataset.labels, beside),
                   "arr_7": own[:, 1].numpy()}
    save_npz(path, **arrays)


def _labels(labels, indices):
    return np.zeros(len(indices), np.int64) if labels is None else labels[indices].numpy()


def _real(dataset, indices):
    return to_uint8(torch.stack([dataset[i]["image"] for i in indices]))
