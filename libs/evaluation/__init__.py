"""Evaluation: exactly N images over all processes, their scores against the real ones, and what a page shows of both.

Images go from the sampler to the feature networks as uint8 tensors; no file is written unless one is asked for. Every
score names the features it was computed from, so that nothing is called FID that is not.
"""

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch

from libs import engine, files, metrics
from libs.evaluation import noisy
from libs.engine.checkpoint import write_text
from libs.engine.file_names import FILE_NAME_BYTES, safe_name
from libs.evaluation.agreement import Agreement, agreement
from libs.evaluation.describing import (asked, bank_of, describer, masks_asked, preview_masks, preview_prompts, tell_cut,
                                        tell_parameters)
from libs.evaluation.filtering import acceptance, acceptance_told, draws, open_filter, prompts_of
from libs.evaluation.following import Following, following, pictures
from libs.evaluation.generation import Sink, Timing, generate, generate_all, nhwc, save_npz, save_png
from libs.evaluation.identity import CODEC, facts_of, record_identity
from libs.evaluation.looking import REJECTED_SHOWN, look
from libs.evaluation.provenance import provenance
from libs.evaluation.requests import RequestOptions, compose
from libs.evaluation.listing import check_free, listed_samples
from libs.evaluation.samples import finish_samples, first_of_each, keep_draw, samples_there
from libs.evaluation.trained import Trained, base_weights, begin_with_lora, open_classifier, open_trained, tie_to_base
from libs.evaluation.weights import weights_options, weights_used
from libs.evaluation.references import (PLAIN, NoFeatures, extractors, feature_network, few_for_judge, prepare, reference,
                                        statistics_there)
from libs.pipeline import NotFinite, described, exporting, grid, measure_name, to_uint8

__all__ = ["Agreement", "CODEC", "FLAGS", "Following", "RequestOptions", "Timing", "Trained", "agreement", "asked", "bank_of",
           "base_weights", "begin_with_lora", "check_free", "compose", "describer", "draws", "evaluate", "evaluate_run", "evaluator",
           "export_best", "extractors", "feature_network", "finish_samples", "first_of_each", "following", "generate",
           "generate_all", "keep_draw", "listed_samples", "masks_asked", "noisy", "open_classifier", "open_filter",
           "open_trained", "prepare", "previewer", "record_identity", "reference", "samples_there", "save_png", "table", "tell_cut",
           "tell_parameters", "tie_to_base", "warn_unexportable", "weights_options",
           "weights_used"]

# The options of every evaluation script, beside --config, --workdir and --nnet_path; see `evaluate_run`.
FLAGS = {"seed": (1, "seed of the images; another than that of the evaluations during training"),
         "name": ("", "name of the result folder; by default <checkpoint>_<number of images>"),
         "npz": ("", "file for all images as the ADM suite reads them, also where nothing is there to score them by; in place of "
                     "config.sample.npz")}
SHOWN = 8  # images of each class on a page or in a preview


def evaluate(run, pipeline, config, dataset, *, n, seed, name, step=None, nnet="", detailed=True, sides=(),
             prompts=None, unscored="", rejection=None, classes=(), facts=None, warning=""):
    """Generate n images and score them; the whole evaluation of one network, called by every process.

    Args:
        dataset: the real images (usually the training split); None where only statistics of them are known.
        n: exactly how many images are generated and scored.
        name: result folder run.folder/eval/<name>; '' writes nothing.
        detailed: scores per class and intervals as well.
        sides: from `prepare`, where the caller has it already.
        prompts: from `describer`, for a network that takes text.
        unscored: why features of images cannot be compared with anything; they are made all the same. '' where they can.
        rejection: `filtering.Rejection`, by which images are drawn until they are accepted; fewer than n may come of it.
        classes: names of the network's classes, which the filter reads.
        warning: what must be said beside the scores, '' for nothing.
        facts: {name: value} of weights, autoencoder and text encoder, which scores.json and images that are
            kept say.

    Returns:
        the content of scores.json: {'n', 'scores': {metric: {'value', 'low', 'high', 'n'}}, 'per_class', ...}, the
        same on every process; where a folder is written, with what `provenance` says. With a filter also 'filter', what it
        accepted, and 'unfiltered', the scores of as many images without it.

    Raises:
        ValueError: the filter accepted fewer than two images.
        NotFinite: an image is nan or infinite somewhere.
    """
    begun = time.perf_counter()
    found, references = ((), ()) if unscored else zip(*(sides or prepare(run, config, dataset)))
    cond = asked(config, dataset, pipeline, n, seed=seed, prompts=prompts)
    labels, texts = cond.get("label"), getattr(cond.get("text"), "texts", None)
    classes = [] if labels is None else list(classes)
    wordings = prompts_of(cond, n, classes) if rejection else ()
    agrees = run.main_first(lambda: agreement(config, dataset, run.device)) if texts and detailed else None
    follows = run.main_first(lambda: following(config, dataset, run.device)) if "mask" in cond and detailed else None
    timing = Timing() if name else None
    made_by = {"seed": seed, "nnet": str(nnet), "step": step, **dict(facts or {}),
               "sampler": pipeline.describe()}

    def facts_of_image(index):
        return {"label": classes[int(labels[index])] if classes else "",
                "prompt": texts[index] if texts else "", "index": index, **made_by}

    keep = dict(folder=config.sample.path, npz=config.sample.npz, shape=(n, *pipeline.image_shape),
                facts=facts_of_image) if name else {}
    with Sink(run, **keep) as sink:
        seen = look(run, pipeline, config, found, cond, n, seed=seed, show=_shown(labels, n), sink=sink, agrees=agrees,
                    follows=follows, timing=timing, rejection=rejection, prompts=wordings)
        if rejection and len(seen.indices) < 2:
            raise ValueError(f"the filter accepted {len(seen.indices)} of {n} images, with {rejection.max_attempts} attempts for "
                             f"each: lower config.filter.threshold (here {rejection.threshold:.3g}) or raise "
                             "config.filter.max_attempts")
    of_all, asked_for, all_texts = labels, n, texts  # of the images that were asked for; from here on those that came
    n, labels = len(seen.indices), None if labels is None else labels[seen.indices]
    texts = texts and [texts[i] for i in seen.indices.tolist()]
    known = provenance(run, pipeline, dataset, found, references, agrees=agrees, follows=follows, timing=timing) if name else {}
    result = None
    if run.is_main:
        result = {"n": n, "step": step, "nnet": str(nnet), "seed": seed, **dict(facts or {}),
                  "sampler": pipeline.describe(), "features": ", ".join(each.name for each in found),
                  "reference": "; ".join(each.source for each in references),
                  "reference_split": config.get("dataset", {}).get("split", ""), **known,
                  "scores": {}, "per_class": {},
                  "warnings": [f"not scored by features: {unscored}"] * bool(unscored) + [warning] * bool(warning)}
        if "classifier" in config.metrics.get("features", ()):  # the one that `prepare` trains, and not one given by its folder
            result["warnings"] += few_for_judge(found, dataset, result["reference_split"])
        if rejection:
            _tell_filter(result, rejection, seen, asked_for, of_all, classes, wordings)
        resamples = config.metrics.bootstrap if detailed else 0
        if resamples:
            result["interval"] = f"95 % bootstrap over images, {resamples} draws (at least 200 for shares)"
        for number, each in enumerate(found):
            _score(result, config.metrics.names, each, references[number], seen.features[number],
                   seen.probabilities[number], labels, dataset, seed=config.seed, resamples=resamples,
                   per_class=detailed, device=run.device)
            if rejection:
                _score_first(result, config.metrics.names, each, references[number], seen, number, of_all, dataset,
                             seed=config.seed, resamples=resamples, device=run.device)
        if agrees:
            result["scores"] |= agrees.scores(texts, seen.attributes, seed=config.seed, resamples=resamples)
            result["agreement_of_real"] = agrees.of_real
            if rejection:
                rows = _as_many(seen, config.seed)
                result["unfiltered"] |= agrees.scores([all_texts[i] for i in rows.tolist()], seen.first.attributes[rows],
                                                      seed=config.seed, resamples=resamples)
        if follows:
            groups = torch.tensor(cond["mask"].rows)[seen.indices]
            _follow(result, follows, seen.dice, labels, dataset, groups=groups, seed=config.seed, resamples=resamples)
        if texts:
            result["prompts"] = config.sample.get("prompts", "bank")
            result["shown_texts"] = [texts[i] for i in _places(seen)]
        result["seconds"] = round(time.perf_counter() - begun, 1)
        if name:
            folder = run.folder / "eval" / name
            more = _rejected(seen, of_all, wordings, result) if rejection else {}
            more |= {} if follows is None else {
                "arr_8": nhwc(pictures(follows.masks_as, follows.masks_as.index(cond["mask"][seen.shown.tolist()]))),
                "arr_9": nhwc(pictures(follows.masks_as, follows.obtained(seen.images))),
                "arr_10": follows.foreground(seen.dice[_places(seen)]).numpy()}
            _keep_shown(folder / "shown.npz", seen, labels, references[0] if references else None, dataset, **more)
            write_text(folder / "scores.json", files.json_text(result))
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
    ending += "" if trained.weights.get("averaged", True) else "_raw"
    rejection = run.main_first(lambda: open_filter(config, run.device))
    ending += f"_{rejection.words}" if rejection else ""
    ending += _guided_otherwise(trained.sampler, config.sample, engine.saved_config(Path(workdir)))
    sides, unscored, warning = _sides(run, config, trained.dataset)
    result = evaluate(run, trained.sampler, config, trained.dataset, n=config.sample.n_samples, seed=seed, step=trained.step,
                      nnet=trained.source, prompts=trained.prompts, sides=sides, unscored=unscored, rejection=rejection,
                      classes=trained.classes, facts=_facts(trained), warning=warning,
                      name=name or safe_name(f"{trained.source.stem}_{config.sample.n_samples}{ending}",
                                             FILE_NAME_BYTES))
    text = table(result) if run.is_main else ""
    if config.sample.npz and run.is_main:
        text += f"\n{result['n']} images in {config.sample.npz}"
    run.finish()
    return text


def _facts(trained):
    """What of the weights and of what they were trained with scores.json and the images say; raw weights are
    called so."""
    raw = {} if trained.weights.get("averaged", True) else {"weights": "raw"}
    return {"sha256": trained.weights_hash, **raw, **facts_of(trained.identity)}


def _guided_otherwise(sampler, sample, of_run):
    """What of the classifier-free guidance differs from that of the run, as words for the name of a folder."""
    def changed(*keys):
        return any(key in before and key in sample and before[key] != json.loads(json.dumps(sample[key])) for key in keys)

    before, (first, last) = of_run.get("sample", {}), sampler.guided["interval"]
    words = [f"_guidance{sampler.guidance:g}"] if changed("guidance", "scale") else []
    words += [f"_{sample.guided_channels}"] if changed("guided_channels") else []
    return "".join(words + ([f"_from{first:g}to{last:g}"] if changed("guidance_interval") else []))


def _sides(run, config, dataset):
    """(sides of `prepare`, '', ''), or ((), why there are none, '') where the images are asked for all the
    same.

    The last is a warning for the scores: without any feature network, as offline and without labels, real and
    generated images are compared by their colours alone, so that the rest of the evaluation (pictures,
    nearest images, whether images follow their masks) is made all the same.
    """
    try:
        if dataset is None and not statistics_there(config.metrics.fid_stat):
            raise NoFeatures(f"no images at config.dataset.path={config.dataset.get('path', '')!r}, and no statistics of them at "
                             f"config.metrics.fid_stat={config.metrics.fid_stat!r}")
        return prepare(run, config, dataset), "", ""
    except NoFeatures as error:
        if config.sample.npz:
            logging.warning("images are made for %s and not scored: %s", config.sample.npz, error)
            return (), str(error), ""
        if dataset is None:
            raise
        warning = (f"no Fréchet distance of a network: {error}. Compared are colours alone, {PLAIN}, as by "
                   f"--config.metrics.features=\"('{PLAIN}',)\": mean and deviation, which say nothing of "
                   f"shapes")
        logging.warning("%s", warning)
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain.metrics.features, plain.metrics.fid_stat = (PLAIN,), ""
    return prepare(run, plain, dataset), "", warning


def evaluator(run, pipeline, config, dataset, prompts=None):
    """evaluate(ema, step) -> {metric: value} for the training loop, or None where no feature network can be had.

    Scored are config.metrics.n_samples images under the first available features; their Fréchet distance is also given
    as 'frechet', by which the best checkpoint is chosen. {}, and a warning, where pixels are not finite.
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
        try:
            result = evaluate(run, pipeline, config, dataset, n=config.metrics.n_samples, seed=config.seed,
                              name="", step=step, detailed=False, sides=sides, prompts=prompts)
        except NotFinite as error:
            if run.is_main:
                logging.warning("no scores of step %d: %s", step, error)
            return {}
        scores = {name: score["value"] for name, score in result["scores"].items()}
        scores["n"] = result["n"]
        frechet = [value for name, value in scores.items() if name == "fid" or name.startswith("fd_")]
        return scores | ({"frechet": frechet[0]} if frechet else {})

    return evaluate_at


def previewer(run, pipeline, config, prompts=None, masks=None):
    """preview(ema, step) -> grid of images with the same noise and conditions at every call: a row for each class, or for each of
    config.sample.validation_prompts. None, and a warning, where pixels are not finite.

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
        try:
            images = generate_all(run, pipeline, cond, n, seed=config.seed,
                                  batch_size=config.sample.mini_batch_size)
        except NotFinite as error:  # no reason to end a training, whose loss is checked by itself
            if run.is_main:
                logging.warning("no preview of step %d: %s", step, error)
            return None
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
    them. Called by every process; the main one does it. What was made of these weights before stays."""
    if run.is_main and run.is_stale(run.folder / "pipeline"):
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
             + (f", against {_reference_split(result)}{result['reference']}" if result["reference"] else "")]
    if "filter" in result:
        lines += [acceptance_told(result["filter"]["acceptance"])]
    for title, scores in {"": result["scores"], **result["per_class"]}.items():
        lines += [title] if title else []
        for name, score in scores.items():
            interval = "" if score["low"] is None else f"  [{score['low']:.4g}, {score['high']:.4g}]"
            spread = f"  std {score['std']:.4g} of subsets" if "std" in score else ""
            before = result.get("unfiltered", {}).get(name) if not title else None
            spread += f"  unfiltered {before['value']:.4g}" if before else ""
            lines.append(f"  {name:40s} {score['value']:10.4g}{interval}{spread}  n={score['n']}")
    if "agreement_of_real" in result:
        own = ", ".join(f"{name} {value:.1%}" for name, value in result["agreement_of_real"].items())
        lines.append(f"real images agree with their own texts: {own}")
    if "following_of_real" in result:
        own = ", ".join(f"{name} {score['value']:.4g}" + ("" if score["low"] is None else
                        f" [{score['low']:.4g}, {score['high']:.4g}]") for name, score in result["following_of_real"].items())
        lines.append(f"real images that were held out follow their own masks ({result['following_source']}): {own}")
    return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])


def _reference_split(result):
    """Which split the real images of an evaluation are, to stand before them; '' where the data have none."""
    return f"split {result['reference_split']!r}, " if result.get("reference_split") else ""


def _tell_filter(result, rejection, seen, n, labels, classes, prompts):
    """Add to `result` what the filter is and how many draws it accepted, by class, or by prompt where there are no classes."""
    taken = {index: int(seen.first.attempts[index]) for index in seen.indices.tolist()}
    kinds = [classes[int(label)] for label in labels] if classes else list(prompts)
    found = acceptance(rejection, taken, kinds)
    result["filter"] = {"path": str(rejection.filter.folder), "asked": n, **rejection.known, "acceptance": found,
                        "useful": bool(rejection.filter.useful)}
    result["unfiltered"] = {}
    if "sampling" in result:  # what an image costs now
        each = found["drawn"] / len(taken)
        result["sampling"] |= {key: each * result["sampling"][key] for key in ("seconds_per_image", "evaluations_per_image")
                               if key in result["sampling"]}
        result["sampling"] |= {"draws_per_image": each, "filter": f"{rejection.known['filter']}, {rejection.known['rule']}"}
    if len(taken) < n:
        result["warnings"].append(f"the filter accepted an image for {len(taken)} of {n} that were asked for: what it rejects "
                                  "altogether is missing in the scores, classes and prompts among it")


def _score_first(result, names, extractor, real, seen, number, labels, dataset, *, seed, resamples, device):
    """Add to `result` the scores of a feature network without the filter, see `_as_many`."""
    rows = _as_many(seen, seed)
    share = seen.first.probabilities[number]
    own = {"scores": {}, "per_class": {}, "warnings": []}
    _score(own, names, extractor, real, seen.first.features[number][rows], None if share is None else share[rows],
           None if labels is None else labels[rows], dataset, seed=seed, resamples=resamples, per_class=False, device=device)
    result["unfiltered"] |= own["scores"]


def _as_many(seen, seed):
    """As many first draws, at random, as images were accepted: recall and coverage grow with the number of images."""
    order = torch.randperm(len(seen.first.scores), generator=torch.Generator().manual_seed(seed))
    return order[:len(seen.indices)].sort().values


def _rejected(seen, labels, prompts, result):
    """Arrays of first draws that the filter rejected, the first ones of each class, and the scores of the images shown."""
    first = seen.first
    kinds = torch.zeros(len(first.shown), dtype=torch.int64) if labels is None else labels[first.shown]
    rows = [row for kind in kinds.unique() for row in (kinds == kind).nonzero().flatten()[:REJECTED_SHOWN].tolist()]
    result["rejected_texts"] = [prompts[int(first.shown[row])] for row in rows]
    return {"arr_11": nhwc(first.images[rows]), "arr_12": kinds[rows].numpy(), "arr_13": first.judged[rows].numpy(),
            "arr_14": first.scores[seen.shown].numpy()}


def _places(seen):
    """Where the shown images stand among all that came."""
    return torch.searchsorted(seen.indices, seen.shown)


def _score(result, names, extractor, real, features, probabilities, labels, dataset, *, seed, resamples,
           per_class, device):
    """Add the scores of one feature network to `result`, computed on `device`: minutes on the one thread of a
    launched process."""
    features = metrics.gaussian.float64(features, device)
    real_features = None if real.features is None else real.features.to(features.device)
    probabilities = None if probabilities is None else probabilities.to(features.device)
    classes = [] if dataset is None else list(dataset.classes)
    recognise = labels is not None and bool(classes) and extractor.classes == classes
    common = dict(feature=extractor.name, seed=seed, resamples=resamples)
    known = 0 if real.features is None else len(real.features)
    # The Fréchet distance compares with all real images; what needs single ones, with those kept.
    result["scores"] |= metrics.scores(features, real_features, real.gaussian, names=names, probabilities=probabilities,
                                       labels=labels if recognise else None, **common)
    result["warnings"] += metrics.warnings(len(features), extractor.dims, feature=extractor.name, names=names, real=known,
                                           classes=extractor.classes is not None)
    if not per_class or labels is None or real.labels is None:
        return
    names = [name for name in names if name != "is"]
    found = metrics.scores_per_class(features, labels, real_features, real.labels, classes=classes, names=names,
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

    more: where masks were asked for, these and those obtained, as colours, and the Dice of each picture; where a filter chose,
    what it rejected, see `_rejected`.
    """
    places = _places(seen)
    arrays = {**more, "arr_0": nhwc(seen.images), "arr_1": _labels(labels, places)}
    if dataset is not None and real is not None:
        distance, row = metrics.nearest(seen.features[0][places], real.features)
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
    return to_uint8(torch.stack([dataset[i]["image"] for i in indices]),
                    lambda row: dataset.file_name(indices[row]))
