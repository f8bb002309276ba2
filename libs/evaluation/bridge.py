"""Carrying images over a dual bridge: encoded to noise under one class, decoded again to a class under guidance.

MGDM's second stage (one network, every class onto itself, under an uncertainty) and DDIB (two networks). What is made
lies in one folder that is itself a data set: <target class>/<prefix>_<source>.png and metadata.csv. Every PNG holds its
own row of the table, so that a command that was stopped goes on where it stopped and computes nothing twice.
"""

import csv
import hashlib
import io
import json
import logging
import math
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from libs import data, engine, metrics
from libs.data.base import did_you_mean
from libs.engine.checkpoint import write_text
from libs.evaluation.generation import nhwc, save_npz, save_png
from libs.pipeline import to_uint8

EVERY = ("all", "*")  # in a map: every class; on unlabelled images: no class
COLUMNS = ("file_name", "label", "source_file", "source_label", "latent_mean", "latent_std", "latent_correlation", "change")
BELIEFS = tuple(f"{when}_{what}" for when in ("before", "after") for what in ("class", "p_target", "entropy", "margin"))
# Settings in which a run may differ from the unguided one that it is compared with.
OF_GUIDANCE = ("measure", "scale", "on", "profile", "first", "last", "clip_norm", "reclip", "legacy_steps", "classifier", "maps")
LOG_EVERY = 30  # seconds between two lines about the progress
BARS = 8  # classes whose probabilities are kept for the page
_LATENTS = ".latents"


class Job(NamedTuple):
    """One image to make: image `index` of the data set, called `file` there, from class `source` to class `target`, as
    the file `name` below the output folder."""

    index: int
    file: str
    source: str
    target: str
    name: str


class Bridge:
    """What carries images: a network that encodes, one that decodes (often the same), and a classifier that judges.

    Attributes:
        sources, targets: class names of the network that encodes and of the one that decodes; [] where it takes no label.
        classes: names of what `beliefs` gives probabilities of; [] without a classifier.
    """

    def __init__(self, encoder, decoder, *, to_noise=True, classifier=None, legacy_steps=0):
        """
        Args:
            encoder, decoder: `Trained`; only their networks and class names are used.
            to_noise: T steps of encoding as published; False: T - 1, see `Pipeline.encode`.
            classifier: NoisyClassifier, asked before and after; it need not be the one that guides.
            legacy_steps: see `NoisyClassifier.logits`.
        Raises:
            ValueError: networks that take more than a class, or that do not fit together.
        """
        for side in (encoder, decoder):
            more = sorted(set(side.sampler.null) - {"label"})
            if more:
                raise ValueError(f"{side.source}: this network takes {', '.join(more)}; the bridge knows classes only")
        ours, theirs = encoder.sampler, decoder.sampler
        if ours.shape != theirs.shape or ours.image_shape != theirs.image_shape:
            raise ValueError(f"{encoder.source} works on {ours.shape} for images {ours.image_shape}, {decoder.source} on "
                             f"{theirs.shape} for images {theirs.image_shape}: a bridge needs the same of both")
        if ours.schedule.steps != theirs.schedule.steps:
            raise ValueError(f"the noise schedule of {encoder.source} has {_steps(ours)}, that of {decoder.source} "
                             f"{_steps(theirs)}: a bridge needs the same of both")
        self.encoder, self.decoder, self.to_noise = encoder, decoder, to_noise
        self.sources, self.targets = (list(side.classes) if "label" in side.sampler.null else [] for side in (encoder, decoder))
        self.classifier, self.legacy_steps = classifier, legacy_steps
        self.classes = [] if classifier is None else list(classifier.classes)
        if len(self.targets) == len(self.classes):  # published classifiers know numbers only
            self.classes = self.targets

    def encode(self, images, sources):
        """Latents (N, ...) of images in [-1, 1] (N, C, H, W), encoded as the classes `sources`; '' is no class."""
        return self.encoder.sampler.encode(images, _conditions(self.encoder.sampler, self.sources, sources), to_noise=self.to_noise)

    def decode(self, latents, targets):
        """uint8 images (N, C, H, W) of the classes `targets`, under the guidance of the decoder's config."""
        return to_uint8(self.decoder.sampler.decode(latents, _conditions(self.decoder.sampler, self.targets, targets)))

    @torch.no_grad()
    def beliefs(self, images):
        """float64 probabilities (N, K) of the classifier for uint8 images, taken for x at the lowest time; None without one."""
        if self.classifier is None:
            return None
        schedule = self.decoder.sampler.schedule
        x = images.to(self.decoder.sampler.device).float() / 127.5 - 1
        logits = self.classifier.logits(x, 1 / (schedule.steps or 1000), schedule, legacy_steps=self.legacy_steps)
        return logits.cpu().double().softmax(1)

    def settings(self):
        """What decides the pixels of a result, as {name: value}; the guidance is in here, the images are not."""
        sampler = self.decoder.sampler
        found = {"network": engine.weights_hash(self.encoder.source)}
        if self.decoder is not self.encoder:
            found["decoding_network"] = engine.weights_hash(self.decoder.source)
        found |= {"sample_steps": str(sampler.steps), "spacing": sampler.own.get("spacing") or "", "guidance": sampler.guidance,
                  "encode_to_noise": int(self.to_noise),
                  "classifier": "" if self.classifier is None else engine.weights_hash(self.classifier.source)}
        gradient = dict(sampler.gradient or {})
        if not gradient.get("scale"):
            return found | {"measure": "", "scale": 0.0}
        return found | {name: gradient[name] for name in OF_GUIDANCE if name in gradient and name != "classifier"}


def routes(maps, *, images, encoder, decoder, without_class=True):
    """Where each class goes: {class name of the images: [(class to encode as, class to decode to)]}.

    Args:
        maps: 'nevus:melanoma,angioma:angioma'; a class may have several targets, 'all' or '*' stands for every class, and
            classes that are not named are left out. '' sends each class onto itself.
        images: class names of the images; [] where they are unlabelled: then maps name one class that all of them are
            encoded as, or '*' for no class, and the only key of the result is ''.
        encoder, decoder: class names of the two networks; [] for one that takes no label.
        without_class: whether the network that encodes was trained on images of no class too.
    Returns:
        names; '' where a network takes no label or none is known.
    Raises:
        ValueError: a name that nobody knows, or a map that is missing or cannot be.
    """
    pairs = [tuple(part.strip() for part in entry.split(":")) for entry in maps.split(",") if entry.strip()]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"--maps: {':'.join(pair)!r} is no pair source:target, such as nevus:melanoma")
    if pairs and not decoder:
        raise ValueError(f"--maps={maps}: the network that decodes takes no label, so there is no class to go to")
    for source, target in pairs:
        known = images or encoder
        if source not in (*known, *EVERY):
            raise ValueError(f"--maps: {source}:{target}: no class {source!r} among {list(known)}"
                             f"{did_you_mean(source, known)}")
        if target not in decoder:
            raise ValueError(f"--maps: {source}:{target}: the network makes no class {target!r}, only {list(decoder)}"
                             f"{did_you_mean(target, decoder)}")
    if not images:
        return {"": _routes_of_unlabelled(pairs, encoder, decoder, without_class)}
    found = {}
    for name in images:
        named = [target for source, target in pairs if source == name or source in EVERY and source not in images]
        if not pairs:
            named = [name if decoder else ""]
        elif not named:
            continue
        if encoder and name not in encoder:
            raise ValueError(f"the images have a class {name!r} that the network does not know: {list(encoder)}"
                             f"{did_you_mean(name, encoder)}; name the classes to take by --maps")
        if not pairs and decoder and name not in decoder:
            raise ValueError(f"the network that decodes makes no class {name!r}, only {list(decoder)}"
                             f"{did_you_mean(name, decoder)}; say by --maps where it goes")
        found[name] = [(name if encoder else "", target) for target in dict.fromkeys(named)]
    return found


def _routes_of_unlabelled(pairs, encoder, decoder, without_class):
    if not pairs and not encoder and not decoder:
        return [("", "")]
    if not decoder:
        raise ValueError("the images have no labels, and the network that encodes takes one: put them into a folder of the name of "
                         f"their class, one of {list(encoder)}")
    if not pairs:
        raise ValueError("the images have no labels, and the network takes one: name the class that they are of and the one to go "
                         f"to, --maps=source:target ('*' for a source of no class); known: {', '.join(encoder or decoder)}")
    if len({source for source, _ in pairs}) > 1:
        raise ValueError("--maps names several sources, and the images have no labels to tell them apart by: name one")
    source = "" if pairs[0][0] in EVERY and pairs[0][0] not in encoder else pairs[0][0]
    if not source and encoder and not without_class:
        raise ValueError(f"--maps={pairs[0][0]}:{pairs[0][1]}: the network was not trained on images of no class "
                         f"(config.train.p_uncond=0), so it cannot encode them; name their class, one of {list(encoder)}")
    return [(source, target) for target in dict.fromkeys(target for _, target in pairs)]


def plan(dataset, found, prefix):
    """All `Job`s of a data set under the `routes` found, in its order.

    A result is called <target>/<prefix>_<stem of the source>.png; where several images of the data set have the same
    stem, its whole path takes the stem's place, with '_' between folders. Whatever else is asked for, a source has the
    same name.
    """
    stems, jobs = _stems([dataset.file_name(i) for i in range(len(dataset))]), []
    for i, stem in enumerate(stems):
        label = dataset.classes[int(dataset.labels[i])] if dataset.classes else ""
        for source, target in found.get(label, ()):
            target = target or label
            folder = f"{_as_name(target)}/" if target else ""
            jobs.append(Job(i, dataset.file_name(i), source or label, target, f"{folder}{prefix}_{stem}.png"))
    for name, count in Counter(job.name.lower() for job in jobs).items():
        if count > 1:
            raise ValueError(f"{count} results would be called {name}: {[job.file for job in jobs if job.name.lower() == name]}")
    return jobs


def some(jobs, n):
    """The jobs of n sources, always the same ones and a part of those of any larger n; all where n is 0."""
    if n < 0:
        raise ValueError(f"--n_samples={n}: give how many images to take, 0 for all")
    sources = list(dict.fromkeys(job.index for job in jobs))
    chosen = {sources[k] for k in data.some(sources, n or len(sources))}
    return [job for job in jobs if job.index in chosen]


def claim(folder, settings):
    """Note in `folder` what its images are made with, or find that it is the same; ValueError that names what differs."""
    folder, settings = Path(folder), json.loads(json.dumps(settings))
    before = engine.read_json(folder / "settings.json", None)
    if before is None:
        if folder.exists() and any(not each.name.startswith(".") for each in folder.iterdir()):
            raise ValueError(f"{folder} holds files already that are not of this script; choose another --output_path")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "settings.json", json.dumps(settings, indent=1))
    elif before != settings:
        raise ValueError(f"{folder} was made with {_differing(before, settings)}; choose another --output_path")


def _differing(before, now, leave_out=()):
    """What differs between two settings, in words; ''."""
    names = [name for name in dict.fromkeys([*before, *now]) if name not in leave_out and before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)!r} (now {now.get(name)!r})" for name in names)


def carry(run, bridge, dataset, jobs, folder, *, batch_size, facts=None, shown=()):
    """Make those of `jobs` whose file is not there yet, this process's share of them; returns how many were made.

    Processes take whole batches in turn, so that their number changes no product and no byte. A source is encoded once for
    all its targets. A file of an earlier command counts where it is whole and its source still has the same pixels.

    Args:
        batch_size: images per network call.
        facts: {name: text} for every PNG.
        shown: jobs whose latent is kept as a picture for the page.
    """
    of_image, folder, shown, made = {}, Path(folder), set(shown), 0
    for job in jobs:
        of_image.setdefault(job.index, []).append(job)
    batches = [list(of_image)[k:k + batch_size] for k in range(0, len(of_image), batch_size)][run.rank::run.world]
    mine, said = [i for batch in batches for i in batch], time.monotonic()
    share, done = sum(len(of_image[i]) for i in mine), 0
    for batch in data.in_order(dataset, mine, batch_size):
        sources = to_uint8(batch["image"])
        known = [hashlib.sha256(source.numpy().tobytes()).hexdigest()[:16] for source in sources]
        asked = [(k, job) for k, i in enumerate(batch["index"].tolist()) for job in of_image[i]]
        missing = [(k, job) for k, job in asked if (read_row(folder / job.name) or {}).get("source_sha256") != known[k]]
        done += len(asked)
        if not missing:
            continue
        starts = list(dict.fromkeys((k, job.source) for k, job in missing))
        rows = [k for k, _ in starts]
        with run.accelerator.autocast():
            latents = bridge.encode(batch["image"][rows], [source for _, source in starts])
        before = bridge.beliefs(sources[rows])
        for begin in range(0, len(missing), batch_size):
            part = missing[begin:begin + batch_size]
            at = [starts.index((k, job.source)) for k, job in part]
            with run.accelerator.autocast():
                results = bridge.decode(latents[at], [job.target for _, job in part])
            after = bridge.beliefs(results)
            for row, (k, job) in enumerate(part):
                latent = latents[at[row]]
                if job in shown:
                    _save(folder / _LATENTS / job.name, picture_of(latent))
                own = _row(bridge, job, sources[k], latent, results[row], None if before is None else before[at[row]],
                           None if after is None else after[row])
                _save(folder / job.name, results[row], **own, source_sha256=known[k], **(facts or {}))
        made += len(missing)
        if time.monotonic() - said > LOG_EVERY:
            said = time.monotonic()
            logging.info("%d of %d images", done, share)
    return made


def _row(bridge, job, source, latent, result, before, after):
    """What the table says of one result, and `beliefs` for the page."""
    latent = latent.cpu().double()
    row = {"file_name": job.name, "label": job.target, "source_file": job.file, "source_label": job.source,
           "latent_mean": f"{latent.mean():.5f}", "latent_std": f"{latent.std(correction=0):.5f}",
           "latent_correlation": f"{neighbours_correlate(latent):.5f}",
           "change": f"{(result.double() - source).abs().mean():.4f}"}
    if before is None:
        return row
    for when, p in (("before", before), ("after", after)):
        first, second = p.sort(descending=True).values[:2].tolist() if len(p) > 1 else (1.0, 0.0)
        row |= {f"{when}_class": bridge.classes[int(p.argmax())],
                f"{when}_p_target": f"{p[bridge.classes.index(job.target)]:.5f}" if job.target in bridge.classes else "",
                f"{when}_entropy": f"{entropy(p):.5f}", f"{when}_margin": f"{first - second:.5f}"}
    top = torch.maximum(before, after).topk(min(BARS, len(before))).indices.sort().values.tolist()
    kept = {bridge.classes[k]: [round(float(before[k]), 4), round(float(after[k]), 4)] for k in top}
    return row | {"beliefs": json.dumps(kept, ensure_ascii=False)}


def entropy(p):
    """-sum p log p over the last axis, in nats."""
    return -torch.special.xlogy(p, p).sum(-1)


def neighbours_correlate(latent):
    """Correlation of neighbouring values of a latent (C, H, W) along both axes: 0 for white noise, 1 for a smooth picture."""
    z = latent - latent.mean()
    pairs = (z[:, :, 1:] * z[:, :, :-1]).sum() + (z[:, 1:] * z[:, :-1]).sum()
    norm = 0.5 * sum(part.square().sum() for part in (z[:, :, 1:], z[:, :, :-1], z[:, 1:], z[:, :-1]))
    return float(pairs / norm) if norm > 0 else 0.0


def picture_of(latent):
    """A latent (C, H, W) as a uint8 picture: -3 black, 0 middle grey, 3 white; of other than 1 or 3 channels the first ones."""
    shown = latent[:3] if len(latent) >= 3 else latent[:1]
    return to_uint8(shown.float().cpu() / 3)


def read_row(path):
    """{name: text} in a finished PNG; None where there is none or it is damaged (which is logged)."""
    try:
        with Image.open(path) as image:
            image.load()
            return dict(image.info)
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError) as error:
        logging.warning("%s is damaged and made again: %s", path, error)
        return None


def read_rows(folder, jobs):
    """The rows of those jobs whose image is there."""
    found = (read_row(Path(folder) / job.name) for job in jobs)
    return [row for row in found if row is not None and "source_sha256" in row]


def write_table(folder, rows):
    """metadata.csv of the rows: with it the folder is a data set."""
    columns = [name for name in (*COLUMNS, *BELIEFS) if any(row.get(name) for row in rows)]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    write_text(Path(folder) / "metadata.csv", text.getvalue())


def unguided(folder, settings):
    """{(source file, source class, target class): path} of the results of an unguided run, to compare with.

    Raises:
        ValueError: it is no output of the bridge, is guided, or differs in more than the guidance.
    """
    folder = Path(folder)
    before = engine.read_json(folder / "settings.json", None)
    if before is None or not (folder / "metadata.csv").is_file():
        raise ValueError(f"--compare_path={folder}: no finished output of sample_dual_bridge.py (settings.json, metadata.csv)")
    if before.get("scale"):
        raise ValueError(f"--compare_path={folder} was guided by {before.get('measure')} {before['scale']:g}: compare with a run "
                         "of --config.sample.gradient.scale=0")
    differing = _differing(before, json.loads(json.dumps(settings)), OF_GUIDANCE)
    if differing:
        raise ValueError(f"--compare_path={folder} differs in more than the guidance: {differing}")
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as stream:
        return {(row["source_file"], row.get("source_label", ""), row.get("label", "")): folder / row["file_name"]
                for row in csv.DictReader(stream)}


def check_judges(jobs, beside, recogniser):
    """Raise ValueError where `judge` could say nothing of these jobs, before they are made."""
    if beside is not None and not any((job.file, job.source, job.target) in beside for job in jobs):
        raise ValueError("--compare_path has none of these images between these classes; the first is "
                         f"{jobs[0].file} from {jobs[0].source!r} to {jobs[0].target!r}")
    if recogniser is not None:
        unknown = sorted({job.target for job in jobs} - set(recogniser.classes or ()))
        if unknown:
            raise ValueError(f"--recogniser tells {recogniser.classes} apart, not {unknown}")


def judge(run, bridge, dataset, rows, folder, *, beside=None, recogniser=None, batch_size=64):
    """What an unguided run and an independent classifier say of each result: {name: float64 Tensor (n,)}, NaN where unknown.

    Args:
        rows: of `read_rows`. beside: from `unguided`, or None. recogniser: metrics.Extractor with the target classes, or None.
    Returns:
        unguided_entropy, unguided_change and from_unguided (mean absolute differences to the source and to the result),
        recognised_source, _unguided, _result (1 where the recogniser says the target class), of what was asked for.
    """
    names = (["unguided_entropy"] * (bridge.classifier is not None) + ["unguided_change", "from_unguided"]) * (beside is not None)
    if recogniser is not None:
        names += ["recognised_source", "recognised_result"] + ["recognised_unguided"] * (beside is not None)
    if not names:
        return {}
    index = {dataset.file_name(i): i for i in range(len(dataset))}
    mine, folder = list(range(len(rows)))[run.rank::run.world], Path(folder)
    table = torch.full((len(mine), len(names)), math.nan, dtype=torch.float64)
    for begin in range(0, len(mine), batch_size):
        part = [rows[k] for k in mine[begin:begin + batch_size]]
        source = to_uint8(torch.stack([dataset[index[row["source_file"]]]["image"] for row in part]))
        result = torch.stack([_load(folder / row["file_name"]) for row in part])
        found = {}
        if beside is not None:
            paths = [beside.get((row["source_file"], row["source_label"], row["label"])) for row in part]
            there = torch.tensor([path is not None for path in paths])
            plain = torch.stack([_load(path) if path else image for path, image in zip(paths, result)])
            found = {"unguided_change": _difference(plain, source), "from_unguided": _difference(plain, result)}
            if bridge.classifier is not None:
                found["unguided_entropy"] = entropy(bridge.beliefs(plain))
            found = {name: torch.where(there, values, math.nan) for name, values in found.items()}
        if recogniser is not None:
            target = torch.tensor([recogniser.classes.index(row["label"]) for row in part])
            for name, images in (("source", source), ("result", result), *((("unguided", plain),) if beside is not None else ())):
                right = (recogniser.probabilities(images).cpu().argmax(1) == target).double()
                found[f"recognised_{name}"] = torch.where(there, right, math.nan) if name == "unguided" else right
        for column, name in enumerate(names):
            table[begin:begin + len(part), column] = found[name]
    order = run.gather_rows(torch.tensor(mine, dtype=torch.int64)).argsort()
    table = run.gather_rows(table)[order]
    return dict(zip(names, table.T))


def summary(rows, judged, *, seed=0, resamples=1000):
    """The results in numbers: {name: {'value', 'low', 'high', 'n'}}, means over images with 95 % bootstrap intervals.

    entropy_rise is the difference to the unguided result of the same source, image by image; so is entropy_change to the
    source itself.
    """
    def column(name):
        return torch.tensor([float(row[name]) if row.get(name) else math.nan for row in rows], dtype=torch.float64)

    found = {"change": column("change")}
    if any("after_entropy" in row for row in rows):
        for what in ("entropy", "margin", "p_target"):
            found |= {f"{what}_{when}": column(f"{when}_{what}") for when in ("before", "after")}
        found["entropy_change"] = found["entropy_after"] - found["entropy_before"]
        found["stayed"] = torch.tensor([float(row["before_class"] == row["after_class"]) for row in rows])
        found |= {f"on_target_{when}": torch.tensor([float(row[f"{when}_class"] == row["label"]) for row in rows])
                  for when in ("before", "after") if any(row.get("after_p_target") for row in rows)}
    found |= judged
    if "unguided_entropy" in judged:
        found["entropy_rise"] = found["entropy_after"] - judged["unguided_entropy"]
    known = {name: values[~values.isnan()] for name, values in found.items()}
    return {name: metrics.share(values, seed=seed, resamples=resamples) for name, values in known.items() if len(values)}


def latent_summary(rows, size):
    """Mean and standard deviation of all latent values together, and the mean correlation of neighbours."""
    mean, std, correlation = (np.array([float(row[f"latent_{name}"]) for row in rows]) for name in ("mean", "std", "correlation"))
    return {"mean": float(mean.mean()), "std": float(np.sqrt((std ** 2 + mean ** 2).mean() - mean.mean() ** 2)),
            "correlation": float(correlation.mean()), "size": size}


def finish(bridge, dataset, rows, judged, folder, *, shown, beside=None, seed=0, **more):
    """Write what the page is made of: bridge.json and shown.npz. Main process only.

    Args:
        shown: how many results, spread evenly over all.
        more: further entries of bridge.json.
    Returns:
        the content of bridge.json.
    """
    folder, groups = Path(folder), {}
    for k, row in enumerate(rows):
        groups.setdefault((row["source_label"], row["label"]), []).append(k)
    maps = [{"source": source, "target": target, "n": len(at), "scores": summary(
        [rows[k] for k in at], {name: values[at] for name, values in judged.items()}, resamples=0)}
            for (source, target), at in groups.items()]
    chosen = spread(rows, shown)
    _keep_pictures(dataset, [rows[k] for k in chosen], folder, beside)
    kept = (*COLUMNS, *BELIEFS, "beliefs")
    result = {"n": len(rows), "scores": summary(rows, judged, seed=seed), "maps": maps,
              "latent": latent_summary(rows, math.prod(bridge.encoder.sampler.shape)),
              "classes": bridge.classes, "shown": [
                  {name: rows[k][name] for name in kept if name in rows[k]}
                  | {name: float(values[k]) for name, values in judged.items() if not values[k].isnan()} for k in chosen], **more}
    write_text(folder / "bridge.json", json.dumps(result, indent=1))
    return result


def sentence(result):
    """The main numbers of `finish` for a terminal."""
    def said(name, digits=3):
        score = result["scores"].get(name)
        return score and f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"

    parts = [f"mean change {said('change', 1)} of 255 grey levels"]
    if said("entropy_after"):
        parts.append(f"entropy {said('entropy_before')} before, {said('entropy_after')} after")
    if said("entropy_rise"):
        n = result["scores"]["entropy_rise"]["n"]
        parts.append(f"{said('entropy_rise')} above the unguided results of the same {n} sources")
    parts += [f"{name} recognised as the target class {said(f'recognised_{name}')}" for name in ("source", "unguided", "result")
              if said(f"recognised_{name}")]
    return "\n".join(parts)


def spread(items, n):
    """Positions of at most n items, evenly over all."""
    return sorted(set(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int).tolist()))


def _keep_pictures(dataset, rows, folder, beside):
    """shown.npz: source, result, and where there is one, latent and unguided result; `has_` says where."""
    index = {dataset.file_name(i): i for i in range(len(dataset))}
    arrays = {}
    if rows:
        arrays["source"] = to_uint8(torch.stack([dataset[index[row["source_file"]]]["image"] for row in rows]))
        arrays["result"] = torch.stack([_load(folder / row["file_name"]) for row in rows])
        others = {"latent": [folder / _LATENTS / row["file_name"] for row in rows]}
        if beside is not None:
            others["unguided"] = [beside.get((row["source_file"], row["source_label"], row["label"])) for row in rows]
        for name, paths in others.items():
            images = [_load(path) if path is not None and path.is_file() else None for path in paths]
            blank = next((torch.zeros_like(image) for image in images if image is not None), None)
            if blank is not None:
                arrays[name] = torch.stack([blank if image is None else image for image in images])
                arrays[f"has_{name}"] = torch.tensor([image is not None for image in images])
    save_npz(folder / "shown.npz", **{name: nhwc(value) if value.ndim == 4 else value.numpy() for name, value in arrays.items()})


def _conditions(sampler, classes, names):
    """The conditions of a network for class names, '' being no class."""
    if not classes:
        return {}
    null = int(sampler.null["label"])
    return {"label": torch.tensor([classes.index(name) if name else null for name in names])}


def _steps(sampler):
    return f"{sampler.schedule.steps} steps" if sampler.schedule.steps else "continuous time"


def _stems(files):
    """A name for each of the files: its stem, or its whole path where others have the same stem."""
    stems = [_as_name(Path(file).stem) for file in files]
    twice = {stem for stem, count in Counter(stem.lower() for stem in stems).items() if count > 1}
    names = [_as_name(os.path.splitext(file)[0]) if stem.lower() in twice else stem for file, stem in zip(files, stems)]
    twice = {name for name, count in Counter(name.lower() for name in names).items() if count > 1}
    return [_as_name(file) + f"_{k}" if name.lower() in twice else name for k, (file, name) in enumerate(zip(files, names))]


def _as_name(text):
    """Text as the name of a file or folder."""
    return re.sub(r"[^\w .,()+=@-]+", "_", text).strip(" ._") or "_"


def _save(path, image, **text):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, image, **text)


def _load(path):
    """uint8 (C, H, W) of a PNG."""
    with Image.open(path) as image:
        array = np.asarray(image)
    return torch.from_numpy(array.copy()[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _difference(a, b):
    """Mean absolute difference of uint8 images (N, C, H, W), in grey levels."""
    return (a.double() - b.double()).abs().flatten(1).mean(1)
