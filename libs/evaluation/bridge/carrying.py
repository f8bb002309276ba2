"""Encoding images to noise and decoding them again: the two networks of a bridge, and the loop over images."""

import contextlib
import hashlib
import json
import logging
import time
from pathlib import Path

import torch

from libs import data, engine
from libs.evaluation.identity import facts_of
from libs.evaluation.bridge.files import LATENTS, OF_GUIDANCE, read_row, save
from libs.pipeline import NotFinite, to_uint8

LOG_EVERY = 30  # seconds between two lines about the progress
BARS = 8  # classes whose probabilities are kept for the page


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
        found = {"network": self.encoder.weights_hash, **facts_of(self.encoder.identity)}
        if self.decoder is not self.encoder:
            found["decoding_network"] = self.decoder.weights_hash
            found |= {f"decoding_{name}": value for name, value in facts_of(self.decoder.identity).items()}
        found |= {"sample_steps": str(sampler.steps), "spacing": sampler.own.get("spacing") or "", "guidance": sampler.guidance,
                  "encode_to_noise": int(self.to_noise),
                  "classifier": "" if self.classifier is None else engine.weights_hash(self.classifier.source)}
        gradient = dict(sampler.gradient or {})
        if not gradient.get("scale"):
            return found | {"measure": "", "scale": 0.0}
        return found | {name: gradient[name] for name in OF_GUIDANCE if name in gradient and name != "classifier"}


def carry(run, bridge, dataset, jobs, folder, *, batch_size, facts=None, shown=()):
    """Make those of `jobs` whose file is not there yet, this process's share of them; returns how many were made.

    A source is encoded once for all its targets. A file of an earlier command counts, and is not touched, where it is whole
    and its source still has the same pixels. What a product is rounded to may depend on the batch it is made in, so processes
    take whole batches in turn, and a batch of which a file is missing is computed whole: neither the number of processes nor
    a stop changes a byte. Another batch_size, or other jobs, may change the last digits.

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
        sources = to_uint8(batch["image"], lambda row: dataset.file_name(int(batch["index"][row])))
        known = [hashlib.sha256(source.numpy().tobytes()).hexdigest()[:16] for source in sources]
        asked = [(k, job) for k, i in enumerate(batch["index"].tolist()) for job in of_image[i]]
        missing = {job for k, job in asked if (read_row(folder / job.name) or {}).get("source_sha256") != known[k]}
        done += len(asked)
        if not missing:
            continue
        starts = list(dict.fromkeys((k, job.source) for k, job in asked))
        rows = [k for k, _ in starts]
        with run.accelerator.autocast(), _naming([dataset.file_name(int(batch["index"][k])) for k in rows]):
            latents = bridge.encode(batch["image"][rows], [source for _, source in starts])
        before = bridge.beliefs(sources[rows])
        for part in [asked[begin:begin + batch_size] for begin in range(0, len(asked), batch_size)]:
            if missing.isdisjoint(job for _, job in part):
                continue
            at = [starts.index((k, job.source)) for k, job in part]
            names = [f"{job.file} to {job.target!r}" if job.target else job.file for _, job in part]
            with run.accelerator.autocast(), _naming(names):
                results = bridge.decode(latents[at], [job.target for _, job in part])
            after = bridge.beliefs(results)
            for row, (k, job) in enumerate(part):
                if job not in missing:
                    continue
                latent = latents[at[row]]
                if job in shown:
                    save(folder / LATENTS / job.name, picture_of(latent))
                own = _row(bridge, job, sources[k], latent, results[row], None if before is None else before[at[row]],
                           None if after is None else after[row])
                save(folder / job.name, results[row], **own, source_sha256=known[k], **(facts or {}))
        made += len(missing)
        if time.monotonic() - said > LOG_EVERY:
            said = time.monotonic()
            logging.info("%d of %d images", done, share)
    return made


@contextlib.contextmanager
def _naming(images):
    """Names the image of a batch whose values are not finite."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{images[error.rows[0]]}: {error}", error.rows) from None


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


def _conditions(sampler, classes, names):
    """The conditions of a network for class names, '' being no class."""
    if not classes:
        return {}
    null = int(sampler.null["label"])
    return {"label": torch.tensor([classes.index(name) if name else null for name in names])}


def _steps(sampler):
    return f"{sampler.schedule.steps} steps" if sampler.schedule.steps else "continuous time"
