"""The filter: how likely raters are to call an image good, given the prompt that it was made for.

    judge = load_filter('workdir/filter_words/default/filter')
    judge.score(images, prompts)      # float32 (N,): probability that raters call it good on every axis
    judge.threshold, judge.useful     # above which images are kept; whether held-out ratings say that this helps

Frozen `embedding`, then a small network that was trained on ratings (`learning`), then a calibration. A folder holds config.json
(encoder, the scale and its meaning, calibration, threshold, fingerprints, report), weights.safetensors, and small image networks
of one's own.
"""

import hashlib
import json
import logging
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from libs.metrics.own_networks import load_network, save_network

from . import embedding as embeddings
from .pool import Axis

log = logging.getLogger(__name__)

FORMAT, NAMED = 1, 10


class Judge(nn.Module):
    """Several small networks on [image, text, product, |difference|]; each axis an ordinal scale with proportional odds.

    Image and text are projected to a common width; that their product enters lets words and features that were rated in other
    company be combined. `forward(image (N, Di), text (N, Dt)) -> (members, N, axes)` latent values; `logits` makes of an axis'
    value those of "at least level 2", "at least 3", ...: log odds, (..., N, levels - 1), falling.

    Args:
        blocks: widths that make up Di; each block weighs alike, however wide. levels: number of levels of each axis.
        width: of the projections. hidden: units of a bent layer beside the linear one, 0 for none. members: networks, whose mean is
        the answer: of few ratings one alone learns much that is chance. cosine: of an aligned embedding, that of image and text
        enters too.
    """

    def __init__(self, blocks, text_dims, levels, *, width=32, hidden=0, members=8, dropout=0.4, cosine=False):
        super().__init__()
        if min(text_dims, width, members, *blocks) < 1 or hidden < 0 or not 0 <= dropout < 1 or min(levels) < 2:
            raise ValueError(f"widths {list(blocks)}, {text_dims}, {width}, {hidden}, members={members}, levels {list(levels)}, "
                             f"dropout={dropout}: expected positive numbers, at least 2 levels and a dropout below 1")
        self.arguments = {"blocks": list(blocks), "text_dims": text_dims, "levels": list(levels), "width": width,
                          "hidden": hidden, "members": members, "dropout": dropout, "cosine": cosine}
        self.report, self.levels, self.cosine = {}, list(levels), cosine
        image_dims = sum(blocks)
        for name, dims in (("image", image_dims), ("text", text_dims)):
            self.register_buffer(f"{name}_mean", torch.zeros(dims))
            self.register_buffer(f"{name}_scale", torch.ones(dims))
        self.members = nn.ModuleList(_Member(image_dims, text_dims, len(levels), width, hidden, dropout, cosine)
                                     for _ in range(members))
        self.firsts = nn.Parameter(torch.zeros(members, len(levels)))
        self.steps = nn.Parameter(torch.zeros(members, len(levels), max(levels)))

    def standardise(self, image, text):
        """Take mean and spread of these embeddings (N, Di), (M, Dt) as those of all."""
        self.image_mean.copy_(image.mean(0))
        blocks = self.arguments["blocks"]
        share = torch.cat([torch.full((dims,), sum(blocks) / (len(blocks) * dims)) for dims in blocks]).sqrt()
        self.image_scale.copy_(share / image.std(0, correction=0).clamp(min=1e-6))
        self.text_mean.copy_(text.mean(0))
        # One factor for all of a text: a word that is rare among the rated prompts must not weigh more for it.
        self.text_scale.fill_(1 / text.std(0, correction=0).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, image, text, member=None):
        cosine = F.cosine_similarity(image, text)[:, None] if self.cosine else None
        image = (image - self.image_mean) * self.image_scale
        text = (text - self.text_mean) * self.text_scale
        chosen = range(len(self.members)) if member is None else [member]
        return torch.stack([self.members[i](image, text, cosine) for i in chosen])

    def logits(self, values, axis, member=None):
        """Log odds (members, N, levels - 1) of at least level 2, 3, ... of an axis, from values (members, N, axes)."""
        own = slice(None) if member is None else slice(member, member + 1)
        steps = F.softplus(self.steps[own, axis, :self.levels[axis] - 2])
        cuts = self.firsts[own, axis, None] - F.pad(steps.cumsum(1), (1, 0))
        return values[..., axis, None] + cuts[:, None]


class _Member(nn.Module):
    def __init__(self, image_dims, text_dims, axes, width, hidden, dropout, cosine):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(image_dims, width), nn.LayerNorm(width))
        self.text = nn.Sequential(nn.Linear(text_dims, width), nn.LayerNorm(width))
        inside = 4 * width + cosine
        self.drop = nn.Dropout(dropout)
        self.direct = nn.Linear(inside, axes)
        self.bent = nn.Sequential(nn.Linear(inside, hidden), nn.GELU(), nn.Dropout(dropout),
                                  nn.Linear(hidden, axes)) if hidden else None

    def forward(self, image, text, cosine):
        image, text = self.image(image), self.text(text)
        parts = [image, text, image * text, (image - text).abs()]
        seen = self.drop(torch.cat(parts + ([cosine] if cosine is not None else []), dim=1))
        return self.direct(seen) + (self.bent(seen) if self.bent is not None else 0)


class Filter:
    """A trained filter and all that its folder says.

    Attributes:
        axes: list of `Axis`. threshold: scores from it on are kept. useful: whether its report found it better than chance.
        report: dict, what `judged` measured on ratings that it was not trained on. fingerprint: sha256 (hex) of all that
        decides a score. folder: Path, None before it is saved. known: dict of what else the folder says.
        seen: what it was trained on, see `seen_in`; {} where that is not known. Images of another kind and words that it never saw
        are scored all the same, with one warning of each kind.
    """

    def __init__(self, judge, embedding, axes, *, calibration=None, threshold=0.5, useful=False, report=None, known=None,
                 folder=None):
        self.judge, self.embedding, self.axes = judge.eval().requires_grad_(False), embedding, list(axes)
        self.calibration = calibration or {"slope": [1.0] * len(axes), "shift": [0.0] * len(axes)}
        self.threshold, self.useful, self.report = float(threshold), bool(useful), report or {}
        self.known, self.folder, self.seen, self._told = known or {}, folder, {}, set()

    def score(self, images, prompts):
        """Probability (N,), float32 in [0, 1], that raters call each image good on every axis.

        Args:
            images: uint8 (N, C, H, W), or a list of (C, H, W).
            prompts: N texts as raters read them, see `wording`.
        """
        return self.scores(self.logits(images, prompts))

    def judged(self, images, prompts):
        """(score (N,), {axis: expected level (N,)}) in one pass."""
        logits = self.logits(images, prompts)
        return self.scores(logits), self.levels(logits)

    def logits(self, images, prompts):
        """{axis: log odds (N, levels - 1)} of at least level 2, 3, ..., uncalibrated."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts: each image needs its own")
        if not len(prompts):
            return {axis.name: torch.empty(0, len(axis.levels) - 1) for axis in self.axes}
        self._warn(images, prompts)
        return self.logits_of(self.embedding.images(images), self.embedding.texts(list(prompts)))

    def _warn(self, images, prompts):
        """Tell, once of each kind, how these images and prompts differ from what was trained on."""
        if not self.seen:
            return
        found, old = seen_in(images, prompts, self.embedding), self.seen
        sizes = [size for size in found["sizes"] if size not in old["sizes"]]
        words = sorted(set(found["words"]) - set(old["words"])) if old["words"] is not None else []
        faults = {"size": sizes and f"images of {_sizes(sizes)} pixels, and it was trained on {_sizes(old['sizes'])}",
                  "colour": {("colour", "grey"): "grey images, and it was trained on images in colour",
                             ("grey", "colour"): "images in colour, and it was trained on grey ones"}.get((old["colour"],
                                                                                                         found["colour"])),
                  "words": words and "words that stood in no prompt of its training, and say nothing to it: "
                                     f"{', '.join(words[:NAMED])}{' ...' * (len(words) > NAMED)}"}
        for kind, fault in faults.items():
            if fault and kind not in self._told:
                self._told.add(kind)
                log.warning("the filter scores %s", fault)

    @torch.inference_mode()
    def logits_of(self, image, text):
        """The same of embeddings (N, Di) and (N, Dt)."""
        values = self.judge(image, text)
        return {axis.name: self.judge.logits(values, number).mean(0) for number, axis in enumerate(self.axes)}

    def scores(self, logits):
        """Calibrated probability (N,) of good on every axis, from `logits`."""
        return joint(self.good(logits), torch.tensor(self.calibration["slope"]), torch.tensor(self.calibration["shift"]))

    def good(self, logits):
        """Log odds (N, axes) of good on each axis, from `logits`."""
        return torch.stack([logits[axis.name][:, axis.good - 2] for axis in self.axes], dim=1)

    def levels(self, logits):
        """{axis: expected level (N,)} from `logits`."""
        return {name: 1 + values.sigmoid().sum(1) for name, values in logits.items()}

    @property
    def fingerprint(self):
        digest = hashlib.sha256(json.dumps([FORMAT, self.embedding.fingerprint, self.calibration,
                                            [asdict(axis) for axis in self.axes]], sort_keys=True).encode())
        for name, value in sorted(self.judge.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder):
        """Write the folder: config.json last, so that a write which was cut off is noticed."""
        folder, options = Path(folder), json.loads(json.dumps(self.embedding.options))
        for number, source in self.embedding.own_networks().items():
            target = folder / f"images{number}"
            if source.resolve() != target.resolve():
                target.mkdir(parents=True, exist_ok=True)
                for name in ("weights.safetensors", "config.json"):
                    shutil.copyfile(source / name, target / name)
            options["images"][number] = f"classifier:{HERE}/images{number}"
        self.judge.report = {
            **self.known, "format": FORMAT, "encoder": options, "encoder_fingerprint": self.embedding.fingerprint,
            "axes": [asdict(axis) for axis in self.axes], "higher_is_better": True,
            "score": "probability that raters call an image good on every axis: at least the level that `good` names",
            "seen": self.seen, "calibration": self.calibration, "threshold": self.threshold, "useful": self.useful,
            "report": self.report, "fingerprint": self.fingerprint}
        save_network(self.judge, folder)
        self.folder = folder
        return folder


HERE = embeddings.HERE


def seen_in(images, prompts, embedding):
    """What images (uint8, a tensor (N, C, H, W) or a list) and prompts are, as far as a filter may know no others.

    {'sizes': [[height, width], ...], 'colour': 'colour', 'grey' or 'both', 'words': [...]}; words None where the encoder knows more
    of them than it was trained on here.
    """
    grey = {image.shape[0] == 1 or bool((image[1:] == image[:1]).all()) for image in images}
    words = embedding.words(prompts)
    return {"sizes": sorted({tuple(image.shape[1:]) for image in images}), "words": None if words is None else sorted(words),
            "colour": "both" if len(grey) > 1 else "grey" if True in grey else "colour"}


def _sizes(sizes):
    return ", ".join(f"{width} x {height}" for height, width in sizes)


def joint(good, slope, shift):
    """Probability (N,) of good on every axis, from log odds (N, axes) of good on each, slope (axes,) > 0 and shift (axes,).

    1 / (1 + sum_a exp(-(slope_a logit_a + shift_a))): the logistic curve where there is one axis; of several it stays low where
    any of them is low, which a sum of log odds would not.
    """
    return torch.sigmoid(-torch.logsumexp(-(slope * good + shift), dim=1))


def load_filter(folder, *, device="cpu"):
    """The `Filter` of a folder that train_filter.py wrote.

    Raises:
        FileNotFoundError: there is none, or its encoder is not to be had.
        ValueError: its files do not belong together, or the encoder found is another than the one it was trained with.
    """
    folder = Path(folder)
    if not (folder / "weights.safetensors").is_file() and (folder / "filter" / "weights.safetensors").is_file():
        folder = folder / "filter"  # of a run folder
    judge = load_network(Judge, folder, what="filter", hint="train_filter.py writes them to <workdir>/filter")
    told = judge.report
    if told.get("format") != FORMAT:
        raise ValueError(f"{folder / 'config.json'}: format {told.get('format')!r}, expected {FORMAT}: train the filter again")
    try:
        found = _built(judge, folder, told, device)
    except (KeyError, TypeError, AttributeError, _Damaged) as error:
        raise ValueError(f"{folder} holds no usable filter; train it again: "
                         f"{error if isinstance(error, _Damaged) else f'config.json lacks or garbles {error}'}") from error
    if found.embedding.fingerprint != told.get("encoder_fingerprint"):
        raise ValueError(f"{folder}: the encoder found, {told['encoder']}, is another than the one that the filter was trained "
                         "with, and its scores would mean nothing. Restore those weights, or train the filter again")
    if found.fingerprint != told.get("fingerprint"):
        raise ValueError(f"{folder} holds no usable filter; train it again: scale or calibration in config.json are not those of "
                         "its fingerprint")
    return found


class _Damaged(ValueError):
    """What config.json says cannot be."""


def _built(judge, folder, told, device):
    """The `Filter` of what config.json tells."""
    axes = [Axis(each["name"], each["question"], {int(level): text for level, text in each["levels"].items()}, each["good"])
            for each in told["axes"]]
    calibration, threshold, seen = told["calibration"], told["threshold"], told.get("seen", {})
    lines = {name: calibration[name] for name in ("slope", "shift")}
    if [len(axis.levels) for axis in axes] != judge.levels or not all(2 <= axis.good <= len(axis.levels) for axis in axes):
        raise _Damaged(f"the scale {told['axes']} is not that of its weights")
    if not all(len(line) == len(axes) and all(_number(value) for value in line) for line in lines.values()) \
            or min(lines["slope"]) <= 0:
        raise _Damaged(f"calibration {calibration}: expected finite numbers for each of {len(axes)} axes, slopes above 0")
    if not _number(threshold) or not 0 <= threshold <= 1:
        raise _Damaged(f"threshold {threshold!r}: expected a number in 0 .. 1")
    if not isinstance(told["useful"], bool) or not isinstance(told["report"], dict):
        raise _Damaged(f"useful {told['useful']!r} and report {type(told['report']).__name__}: expected true or false, and a table")
    options = dict(told["encoder"])
    if "images" in options:
        options["images"] = [name.replace(HERE, str(folder)) for name in options["images"]]
    own = ("format", "encoder", "encoder_fingerprint", "axes", "higher_is_better", "score", "seen", "calibration", "threshold",
           "useful", "report", "fingerprint")
    found = Filter(judge, embeddings.get(**options, device=device), axes, calibration=calibration, threshold=threshold,
                   useful=told["useful"], report=told["report"],
                   known={key: value for key, value in told.items() if key not in own}, folder=folder)
    found.seen = seen and {"sizes": [tuple(size) for size in seen["sizes"]], "colour": seen["colour"], "words": seen["words"]}
    return found


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
