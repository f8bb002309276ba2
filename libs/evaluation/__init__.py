"""Evaluation: exactly N images over all processes, their scores against the real ones, and what a page shows of both.

Images go from the sampler to the feature networks as uint8 tensors; no file is written unless one is asked for. Every
score names the features it was computed from, so that nothing is called FID that is not.
"""

import json
import logging
import time

import numpy as np
import torch

from libs import data, metrics
from libs.engine.checkpoint import write_text
from libs.evaluation.generation import (Sink, draw_conditions, generate, generate_all, nhwc, save_npz,
                                        save_png)
from libs.evaluation.reference import extractors, feature_network, reference
from libs.metrics import neighbours
from libs.pipeline import grid, to_uint8

__all__ = ["draw_conditions", "evaluate", "evaluator", "extractors", "feature_network", "generate", "generate_all",
           "previewer", "reference", "save_png", "table"]

SHOWN = 8  # images of each class on a page or in a preview


def evaluate(run, pipeline, config, dataset, *, n, seed, name, step=None, nnet="", detailed=True, found=()):
    """Generate n images and score them; the whole evaluation of one network, called by every process.

    Args:
        dataset: the real images (usually the training split).
        n: exactly how many images are generated and scored.
        name: result folder run.folder/eval/<name>; '' writes nothing.
        detailed: scores per class and intervals as well.
        found: extractors in place of those of the config, where the caller has them already.

    Returns:
        the content of scores.json: {'n', 'scores': {metric: {'value', 'low', 'high', 'n'}}, 'per_class', ...}, the
        same on every process.
    """
    begun = time.perf_counter()
    found = list(found) or extractors(run, config, dataset)
    references = [reference(run, each, dataset, stats=config.metrics.fid_stat if each.name == "inception" else "",
                            workers=config.train.workers) for each in found]
    cond = draw_conditions(dataset, pipeline.null, n, seed=seed, labels=config.sample.labels)
    labels = cond.get("label")
    kept = _shown(labels, n)
    sink = Sink(run, folder=config.sample.path, npz=config.sample.npz) if name else Sink(run)
    vectors = [[] for _ in found]
    probabilities = [[] for _ in found]
    indices, shown = [], []
    for batch, images in generate(run, pipeline, cond, n, seed=seed, batch_size=config.sample.mini_batch_size):
        for number, each in enumerate(found):
            feature, probability = each.both(images)
            vectors[number].append(feature.cpu())
            probabilities[number].append(probability.cpu() if probability is not None else None)
        shown += [(i, image) for i, image in zip(batch, images) if i in kept]
        indices += batch
        sink.add(batch, images)
    sink.close()
    order = run.gather_rows(torch.tensor(indices, dtype=torch.int64)).argsort()
    if len(order) != n:
        raise RuntimeError(f"{len(order)} images were generated, not {n}")
    gathered = []
    for each, vector, probability in zip(found, vectors, probabilities):
        has = each.classes is not None
        gathered.append((_gather(run, vector, each.dims)[order],
                         _gather(run, probability, len(each.classes))[order] if has else None))
    pictures = _gather_pictures(run, shown, pipeline.image_shape)
    result = None
    if run.is_main:
        result = {"n": n, "step": step, "nnet": str(nnet), "seed": seed, "sampler": pipeline.describe(),
                  "features": ", ".join(each.name for each in found),
                  "reference": "; ".join(each.source for each in references),
                  "scores": {}, "per_class": {}, "warnings": []}
        for each, real, (feature, probability) in zip(found, references, gathered):
            _score(result, config, each, real, feature, probability, labels, dataset, detailed)
        result["seconds"] = round(time.perf_counter() - begun, 1)
        if name:
            folder = run.folder / "eval" / name
            _keep_shown(folder / "shown.npz", *pictures, labels, gathered[0][0], references[0], dataset)
            write_text(folder / "scores.json", json.dumps(result, indent=1))
    if run.world > 1:
        box = [result]
        torch.distributed.broadcast_object_list(box)
        result = box[0]
    return result


def evaluator(run, pipeline, config, dataset):
    """evaluate(ema, step) -> {metric: value} for the training loop, or None where no feature network can be had.

    Scored are config.metrics.n_samples images under the first available features; their Fréchet distance is also given
    as 'frechet', by which the best checkpoint is chosen.
    """
    if not config.train.eval_interval:
        return None
    try:
        found = extractors(run, config, dataset)[:1]
    except ValueError as error:
        logging.warning("training goes on without scores: %s", error)
        return None

    def evaluate_at(ema, step):
        result = evaluate(run, pipeline, config, dataset, n=config.metrics.n_samples, seed=config.seed, name="", step=step,
                          detailed=False, found=found)
        scores = {name: score["value"] for name, score in result["scores"].items()}
        frechet = [value for name, value in scores.items() if name == "fid" or name.startswith("fd_")]
        return scores | ({"frechet": frechet[0]} if frechet else {})

    return evaluate_at


def previewer(run, pipeline, config, dataset):
    """preview(ema, step) -> grid of images with the same noise and conditions at every call: a row for each class."""
    if set(pipeline.null) == {"label"}:
        cond = {"label": torch.arange(min(len(dataset.classes), SHOWN)).repeat_interleave(SHOWN)}
    else:
        cond = draw_conditions(dataset, pipeline.null, SHOWN * SHOWN, seed=config.seed)
    n = len(next(iter(cond.values()))) if cond else SHOWN * SHOWN

    def preview(ema, step):
        images = generate_all(run, pipeline, cond, n, seed=config.seed, batch_size=config.sample.mini_batch_size)
        return grid(images, SHOWN)

    return preview


def table(result):
    """The scores of an evaluation as text: a line for each, with interval and number of images."""
    lines = [f"{result['n']} images, {result['sampler']}, against {result['reference']}"]
    for title, scores in {"": result["scores"], **result["per_class"]}.items():
        lines += [title] if title else []
        for name, score in scores.items():
            interval = "" if score["low"] is None else f"  [{score['low']:.4g}, {score['high']:.4g}]"
            lines.append(f"  {name:40s} {score['value']:10.4g}{interval}  n={score['n']}")
    return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])


def _score(result, config, extractor, real, feature, probability, labels, dataset, detailed):
    """Add the scores of one feature network to `result`."""
    names = config.metrics.names
    kwargs = dict(names=names, feature=extractor.name, seed=config.seed)
    resamples = config.metrics.bootstrap if detailed else 0
    result["scores"] |= metrics.scores(feature, real.features if real.features is not None else None, real.gaussian,
                                       probabilities=probability, resamples=resamples, **kwargs)
    recognised = extractor.classes is not None and list(extractor.classes) == list(dataset.classes) and labels is not None
    if recognised:
        hits = (probability.argmax(1) == labels).double()
        result["scores"][f"accuracy_{extractor.name}"] = metrics.share(hits)
    result["warnings"] += metrics.warnings(len(feature), extractor.dims, names=names, feature=extractor.name)
    if not detailed or labels is None or real.labels is None:
        return
    for label, name in enumerate(dataset.classes):
        mine, its = labels == label, real.labels == label
        if mine.sum() < 2 or its.sum() < 2:
            result["warnings"].append(f"class {name}: {int(mine.sum())} generated and {int(its.sum())} real images, not scored")
            continue
        scores = metrics.scores(feature[mine], real.features[its], None, resamples=resamples,
                                **{**kwargs, "names": [each for each in names if each != "is"]})
        if recognised:
            scores[f"accuracy_{extractor.name}"] = metrics.share(hits[mine])
        result["per_class"].setdefault(name, {}).update(scores)


def _shown(labels, n):
    """Indices of the images that the page shows: the first of every class (of 16 classes at most), or of all."""
    if labels is None:
        return set(range(min(n, 4 * SHOWN)))
    return {int(i) for label in labels.unique()[:16] for i in (labels == label).nonzero().flatten()[:SHOWN]}


def _gather(run, parts, width):
    return run.gather_rows(torch.cat(parts) if parts else torch.empty(0, width))


def _gather_pictures(run, shown, shape):
    """(indices, images) of the shown pictures of all processes, in order."""
    images = torch.stack([image for _, image in shown]) if shown else torch.empty(0, *shape, dtype=torch.uint8)
    indices = run.gather_rows(torch.tensor([i for i, _ in shown], dtype=torch.int64))
    order = indices.argsort()
    return indices[order], run.gather_rows(images)[order]


def _keep_shown(path, indices, images, labels, feature, real, dataset):
    """shown.npz: generated pictures, the real image nearest to each in feature space, and as many real ones."""
    arrays = {"arr_0": nhwc(images), "arr_1": _labels(labels, indices)}
    if dataset is not None:
        distance, row = neighbours.nearest(feature[indices], real.features)
        nearest = real.indices[row[:, 0]].tolist()
        if labels is not None and real.labels is not None:
            beside = [i for label in labels.unique()[:16] for i in real.indices[real.labels == label][:SHOWN].tolist()]
        else:
            beside = real.indices[:len(indices)].tolist()
        arrays |= {"arr_2": nhwc(_real(dataset, nearest)), "arr_3": distance[:, 0].numpy(), "arr_4": np.array(nearest),
                   "arr_5": nhwc(_real(dataset, beside)), "arr_6": _labels(dataset.labels, beside)}
    save_npz(path, **arrays)


def _labels(labels, indices):
    return np.zeros(len(indices), np.int64) if labels is None else labels[indices].numpy()


def _real(dataset, indices):
    return to_uint8(torch.stack([dataset[i]["image"] for i in indices]))
