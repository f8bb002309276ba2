"""What a filter learns from answers: targets without the raters' bias, a split by prompt, calibration, a threshold."""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from libs import tables

from .filter import joint
from .pool import Answer

PARTS = ("train", "calibration", "test")
LEAST_IMAGES, LEAST_PROMPTS = 30, 10
SHRINK_RATER, SHRINK_IMAGE, SWEEPS = 2.0, 1.0, 50


@dataclass
class Rated:
    """Images with what raters made of them; row i of every tensor is items[i].

    items: those with an answer; a repeat's answers are counted with the image that it repeats.
    targets: float32 (N, axes, levels - 1), share of the answers, without the raters' bias, at level 2, 3, ... or above; columns
        that an axis does not have are nan. weights: float32 (N,), number of answers over their mean.
    good: bool (N, axes), more than half of an axis' answers are good. passed: bool (N,), more than half are good on every axis.
    bias: {axis: {rater: levels above the others}}. fingerprint: sha256 (hex) over the answers.
    """

    items: list
    axes: list
    targets: torch.Tensor
    weights: torch.Tensor
    good: torch.Tensor
    passed: torch.Tensor
    bias: dict
    fingerprint: str
    warnings: list = field(default_factory=list)

    @property
    def prompts(self):
        return [item.prompt for item in self.items]

    def part(self, rows):
        """Some of the images."""
        own = {name: getattr(self, name)[rows] for name in ("targets", "weights", "good", "passed")}
        return replace(self, items=[self.items[i] for i in rows], **own)


def rated(pool, answers):
    """The `Rated` images of a pool.

    Raises:
        ValueError: answers to other items or axes than the pool's, all scores of an axis equal, no answers, an axis on which
            every level is good.
    """
    for axis in pool.axes:
        if not 2 <= axis.good <= len(axis.levels):
            raise ValueError(f"axis {axis.name!r}: good={axis.good} of {len(axis.levels)} levels leaves nothing to tell apart: "
                             f"expected 2 .. {len(axis.levels)}")
    answers = checked_answers(pool, answers)
    names = [pool.by_name[answer.item].repeat_of or answer.item for answer in answers]
    items = [item for item in pool.items if item.item in set(names)]
    row = {item.item: number for number, item in enumerate(items)}
    rows, raters = torch.tensor([row[name] for name in names]), sorted({answer.rater for answer in answers})
    rater = torch.tensor([raters.index(answer.rater) for answer in answers])
    count = torch.bincount(rows, minlength=len(items)).float()
    most = max(len(axis.levels) for axis in pool.axes)
    targets, above, bias = torch.full((len(items), len(pool.axes), most - 1), float("nan")), [], {}
    for number, axis in enumerate(pool.axes):
        score = torch.tensor([float(answer.scores[axis.name]) for answer in answers])
        if score.min() == score.max():
            raise ValueError(f"all {len(score)} scores of {axis.name} are {score[0]:g}: nothing can be learned from them. A pool "
                             "needs images that raters tell apart, or a scale that does")
        shift = rater_bias(score, rows, rater)
        bias[axis.name] = {name: round(float(value), 4) for name, value in zip(raters, shift)}
        reached = (score[:, None] - shift[rater][:, None] - torch.arange(1, len(axis.levels))).clamp(0, 1)
        targets[:, number, :len(axis.levels) - 1] = _mean(reached, rows, count)
        above.append(reached[:, axis.good - 2])
    every = _mean(torch.stack(above, dim=1).amin(dim=1, keepdim=True), rows, count)[:, 0]
    good = torch.stack([targets[:, number, axis.good - 2] > 0.5 for number, axis in enumerate(pool.axes)], dim=1)
    told = sorted([answer.rater, answer.item, sorted(answer.scores.items())] for answer in answers)
    warnings = []
    if len(raters) == 1:
        warnings.append(f"one rater only, {raters[0]}: the filter learns this person's taste, and nothing says whether "
                        "others agree")
    return Rated(items, list(pool.axes), targets, count / count.mean(), good, every > 0.5, bias,
                 hashlib.sha256(json.dumps(told).encode()).hexdigest(), warnings)


def answers_of_table(path, pool):
    """The answers in a CSV with columns rater, item and one for each axis, such as rate.py exports; later rows count.

    Raises:
        ValueError: naming file and line.
    """
    answers, names = [], [axis.name for axis in pool.axes]
    header, rows = tables.read(path, first="rater")
    lacking = [name for name in ("rater", "item", *names) if name not in header]
    if lacking:
        raise ValueError(f"{path}: column {lacking[0]!r} is missing; a table of ratings has rater, item and "
                         f"the axes {', '.join(names)} of the pool")
    for line, row in rows:
        try:
            scores = {name: int(row[name]) for name in names}
        except (TypeError, ValueError):
            raise ValueError(f"{path}:{line}: scores {[row[name] for name in names]} of {', '.join(names)}: "
                             "whole numbers are expected") from None
        answers.append(Answer(len(answers) + 1, row["rater"], row["item"], scores, (), "", 0.0, ""))
    return answers


def checked_answers(pool, answers):
    """The newest answer of each rater to each item; ValueError for answers that are none to this pool's items on its scale."""
    newest = {}
    for answer in sorted(answers, key=lambda each: each.number):
        newest[answer.rater, answer.item] = answer
    answers = list(newest.values())
    foreign = sorted({answer.item for answer in answers} - set(pool.by_name))
    if foreign:
        raise ValueError(f"{len(foreign)} of the rated items are none of the pool {pool.folder}, such as {foreign[0]!r}: these are "
                         "ratings of another pool; give the pool that they were made on")
    for answer in answers:
        for axis in pool.axes:
            if answer.scores.get(axis.name) not in axis.levels:
                raise ValueError(f"{answer.rater}'s answer to {answer.item} says {axis.name}={answer.scores.get(axis.name)!r}; the "
                                 f"pool's scale has {', '.join(map(str, axis.levels))}")
    if not answers:
        raise ValueError(f"no ratings of the pool {pool.folder} yet: rate.py collects them")
    return answers


def rater_bias(scores, rows, raters):
    """How many levels each rater scores above the others: float32 (R,), of mean 0 weighted by answers.

    score = mean + bias of the rater + merit of the image + noise, by alternating least squares. Both effects are shrunk towards 0
    as random effects are, by SHRINK_RATER and SHRINK_IMAGE further answers of 0: so raters who saw different images are still
    compared, by their means, and one who gave three answers is not believed to be strict on their account.

    Args:
        scores: (A,). rows: (A,) which image. raters: (A,) which rater.
    """
    images, people = int(rows.max()) + 1, int(raters.max()) + 1
    of_image, of_rater = torch.bincount(rows, minlength=images), torch.bincount(raters, minlength=people)
    bias, centred = torch.zeros(people), scores - scores.mean()
    for _ in range(SWEEPS):
        merit = _sums(centred - bias[raters], rows, images) / (of_image + SHRINK_IMAGE)
        bias = _sums(centred - merit[rows], raters, people) / (of_rater + SHRINK_RATER)
        bias = bias - (bias * of_rater).sum() / of_rater.sum()
    return bias


def plain(prompt):
    """A prompt as the split compares it: words in lower case."""
    return " ".join(re.findall(r"\w+", prompt.casefold()))


def divide(found, *, calibration, test, by="prompt", seed=0):
    """({part: rows}, sentence on how) of `Rated` images: no prompt and no image stands in two of PARTS.

    by='image' divides by image instead, which is right only where prompts are nothing but class names, all of which a filter will
    have seen: refused elsewhere, as a filter would be tested on prompts that it knows.

    Args:
        calibration, test: shares of the images.

    Raises:
        ValueError: shares out of range; too few images or prompts; by='image' where prompts say more than the class.
    """
    if by not in ("prompt", "image"):
        raise ValueError(f"config.split.by={by!r}: known are 'prompt' and 'image'")
    if min(calibration, test) <= 0 or calibration + test >= 1:
        raise ValueError(f"config.split.calibration={calibration} and test={test}: expected shares above 0, less than 1 together")
    prompts, labels = [plain(item.prompt) for item in found.items], {item.label for item in found.items}
    n, distinct = len(prompts), len(set(prompts))
    if n < LEAST_IMAGES:
        raise ValueError(f"{n} rated images: at least {LEAST_IMAGES} are needed to learn, calibrate and test; rate more")
    if by == "image":
        if distinct > len(labels) or not all(labels):
            raise ValueError(f"config.split.by='image' is for pools whose prompts are class names: this one has {distinct} prompts "
                             f"and {len(labels - {''})} labels, and its filter would be tested on prompts that it was trained on; "
                             "set config.split.by='prompt'")
        keys = [item.sha256 for item in found.items]
        how = f"by image: the {distinct} prompts are class names, which a filter has all seen when it is used"
    else:
        if distinct < LEAST_PROMPTS:
            raise ValueError(f"{distinct} different prompts among {n} rated images: a split by prompt needs at least "
                             f"{LEAST_PROMPTS}. Rate images of more prompts"
                             + ("; where prompts are class names, set config.split.by='image'" if distinct <= len(labels) else ""))
        keys, how = prompts, "by prompt: no prompt of the test was seen in training"
    order = sorted(set(keys))
    order = [order[i] for i in torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    size = {key: 0 for key in order}
    for key in keys:
        size[key] += 1
    part, filled = {}, {"test": 0, "calibration": 0}
    for key in order:
        name = "test" if filled["test"] < test * n else "calibration" if filled["calibration"] < calibration * n else "train"
        part[key] = name
        if name != "train":
            filled[name] += size[key]
    rows = {name: [i for i, key in enumerate(keys) if part[key] == name] for name in PARTS}
    # An image may stand under several prompts (a control under a swapped one): it stays in the part that judges.
    seen = set()
    for name in reversed(PARTS):
        rows[name] = [i for i in rows[name] if found.items[i].sha256 not in seen]
        seen |= {found.items[i].sha256 for i in rows[name]}
    for name in PARTS:
        if len({keys[i] for i in rows[name]}) < 2:
            raise ValueError(f"{len(rows[name])} images of {len({keys[i] for i in rows[name]})} prompts are left for {name}, of "
                             f"{n} images and {distinct} prompts: at least 2 prompts are needed in each part; rate more")
    return rows, how


def calibrate(judge_of, image, text, passed, *, precision):
    """Set calibration and threshold of a `Filter` by images (their embeddings) that it was not trained on; returns how the
    threshold was chosen."""
    logits = judge_of.logits_of(image, text)
    judge_of.calibration = calibrated(judge_of.good(logits), passed)
    judge_of.threshold, how = chosen_threshold(judge_of.scores(logits), passed, precision=precision)
    return how


def calibrated(logits, passed, *, strength=1.0, steps=200):
    """{'slope', 'shift'} of `filter.joint`, fitted to whether images passed.

    Log loss; slopes are held near 1, shifts near 0, by about `strength` images' worth.

    Args:
        logits: (N, axes) of good on each. passed: bool (N,).
    """
    axes = logits.shape[1]
    raw = torch.zeros(2, axes, dtype=torch.float64, requires_grad=True)
    logits, passed = logits.double(), passed.double()
    optimizer = torch.optim.LBFGS([raw], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        p = joint(logits, raw[0].exp(), raw[1]).clamp(1e-7, 1 - 1e-7)
        value = F.binary_cross_entropy(p, passed, reduction="sum") + strength * (raw[0].square() + 0.1 * raw[1].square()).sum()
        value.backward()
        return value

    optimizer.step(loss)
    slope, shift = raw.detach()[0].exp(), raw.detach()[1]
    return {"slope": [round(float(v), 6) for v in slope], "shift": [round(float(v), 6) for v in shift]}


def chosen_threshold(scores, passed, *, precision):
    """(threshold, how it was chosen): the least one above which images pass with a probability of `precision` on average.

    The average is that of the calibrated scores, which rises with the threshold; what it comes to is measured on the test part.
    Where no threshold gets there that keeps 5 % of the images, the one of the best F1.
    """
    scores, order = scores.double(), scores.double().sort(descending=True)
    kept = torch.arange(1, len(scores) + 1)
    mean = order.values.cumsum(0) / kept
    enough = max(2, -(-len(scores) // 20))
    reached = (mean >= precision) & (kept >= enough)
    if reached.any():
        last = int(reached.nonzero().max())
        threshold = float(order.values[last])
        if last == len(scores) - 1:
            return 0.0, f"none is needed: all images together have an expected precision of {precision:g}"
        return threshold, f"the least with an expected precision of {precision:g}"
    right = passed[order.indices].double().cumsum(0)
    f1 = 2 * right / (kept + passed.sum().clamp(min=1))
    best = int(f1.argmax())
    return float(order.values[best]), (f"that of the best F1: none that keeps 5 % of the images reaches an expected precision of "
                                       f"{precision:g}")


def _sums(values, index, count):
    return torch.zeros(count).index_add_(0, index, values)


def _mean(values, rows, count):
    return torch.zeros(len(count), values.shape[1]).index_add_(0, rows, values) / count[:, None]
