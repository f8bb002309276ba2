"""Rejection sampling: images are drawn until a filter learned from people's ratings (libs.ratings) accepts them.

    rejection = open_filter(config, device)                     # None where config.filter.path is ''
    for draw in draws(run, pipeline, cond, n, seed=..., batch_size=..., rejection=rejection, prompts=...): ...

The generator is not changed by it, so this is no reinforcement learning; weights of images for fine-tuning are
(scripts/apply_filter.py). Draw k of image i of a seed depends on (seed, i, k) alone, and its first draw is the image that would
be made without a filter. Where a request goes on after a stop, later draws stand in other batches than they would have, and may be
rounded otherwise.
"""

import hashlib
import logging
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from libs import ratings
from libs.evaluation.generation import generate, make
from libs.ratings.judged import share

OWN = ("score", "attempt")  # entries of an image's file that are known only when it is there
MANY = 20  # classes or prompts that are told one by one


class Rejection(NamedTuple):
    """What config.filter asks for.

    filter: ratings.Filter. threshold: least score that is accepted. max_attempts: draws for each image that is asked for.
    best_of: take the best of so many draws, whatever its score; 0 draws until one is accepted. keep_rejects: whether sample.py
    keeps what was rejected.
    """

    filter: object
    threshold: float
    max_attempts: int
    best_of: int
    keep_rejects: bool

    @property
    def known(self):
        """What of it decides which image is taken, as facts of an image."""
        rule = f"best of {self.best_of}" if self.best_of else f"score >= {self.threshold:.4g}, {self.max_attempts} attempts"
        return {"filter": self.filter.fingerprint[:16], "rule": rule}

    def score(self, images, prompts):
        """Scores in [0, 1], float32 (b,) on the CPU, of uint8 images (b, C, H, W) and their prompts."""
        return torch.as_tensor(self.filter.score(images, prompts)).float().cpu()

    def accepts(self, scores):
        return scores >= self.threshold

    def drawn(self, attempt):
        """How many draws an image took: `attempt` is that of the accepted one, None where none was."""
        return self.best_of or (self.max_attempts if attempt is None else attempt + 1)

    @property
    def words(self):
        """What folders of such images are called by."""
        return f"filtered_best{self.best_of}" if self.best_of else f"filtered{self.threshold:.3g}"


class Draw(NamedTuple):
    """A batch that was drawn: which images, the number of the attempt, their scores (b,) and whether each is taken, bool (b,).

    Without a filter all are taken and `scores` is None.
    """

    indices: list
    images: Tensor
    attempt: int
    scores: Tensor | None
    taken: Tensor


def open_filter(config, device="cpu"):
    """The `Rejection` of config.filter, or None where its path is ''.

    Raises:
        ValueError: an option out of range; a filter that did no better than chance when it was trained.
        FileNotFoundError: no filter there.
    """
    options = config.get("filter", {})
    if not options.get("path", ""):
        return None
    if options.max_attempts < 1 or options.best_of < 0 or options.best_of == 1:
        raise ValueError(f"config.filter.max_attempts={options.max_attempts}, best_of={options.best_of}: expected at least 1 "
                         "attempt, and best_of of 2 or more, or 0 for none")
    if not 0 <= options.threshold < 1:
        raise ValueError(f"config.filter.threshold={options.threshold}: expected a probability below 1, or 0 for that of the "
                         "filter")
    found = ratings.load_filter(options.path, device=device)
    if not found.useful and not options.allow_useless:
        raise ValueError(f"{options.path}: this filter did not tell good images from bad ones better than chance when it was "
                         "tested, so what it accepts is no better than what it rejects. Collect more ratings; to use it all the "
                         "same, --config.filter.allow_useless=True")
    if not found.useful:
        logging.warning("%s: this filter is no better than chance by its own test", options.path)
    elif not found.report.get("shown_on_generated", True):
        logging.warning("%s: by its test it tells real images and controls from others, but good generated images from bad ones "
                        "not beyond chance", options.path)
    return Rejection(found, options.threshold or float(found.threshold), options.max_attempts, options.best_of,
                     options.keep_rejects)


def prompts_of(cond, n, classes):
    """What the filter reads beside each of n images: text and class name as raters saw them, see `ratings.wording`.

    Raises:
        ValueError: the texts are known as states only; an image has neither text nor class.
    """
    texts, labels = [""] * n, cond.get("label")
    if "text" in cond:
        texts = getattr(cond["text"], "texts", None)
        if texts is None:
            raise ValueError("a filter reads the descriptions, and this feature store holds their states only: extract features "
                             "anew from data with texts, or leave config.filter.path ''")
    names = [""] * n if labels is None or not classes else [classes[int(label)] for label in labels]
    found = [ratings.wording(text, name) for text, name in zip(texts, names, strict=True)]
    if not all(found):
        raise ValueError("a filter reads the prompt of an image, and this network makes images without text and class name: leave "
                         "config.filter.path '', and rate and sort its images under a text of your own (scripts/apply_filter.py)")
    return found


def draws(run, pipeline, cond, n, *, seed, batch_size, rejection=None, prompts=(), without=(), timing=None):
    """This process's share of draws for images 0 .. n-1, as `Draw`s; called by every process, to its end.

    Each round draws again for all images that no draw before was accepted for, so that batches stay full. Arguments as of
    `generate`; prompts: of all images, for the filter.
    """
    options = dict(batch_size=batch_size, timing=timing)
    if rejection is None:
        for indices, images in generate(run, pipeline, cond, n, seed=seed, without=without, **options):
            yield Draw(indices, images, 0, None, torch.ones(len(indices), dtype=torch.bool))
        return
    if rejection.best_of:
        for indices, images in generate(run, pipeline, cond, n, seed=seed, without=without, **options):
            found = _best(run, pipeline, cond, indices, images, seed, rejection, prompts, timing)
            yield from (_only(draw, without) for draw in found)
        return
    waiting = ()
    for attempt in range(rejection.max_attempts):
        rejected, which = [], {"only": waiting} if attempt else {"without": without}  # the first round in the batches of any other
        for indices, images in generate(run, pipeline, cond, n, seed=attempt_seed(seed, attempt), **which, **options):
            scores = rejection.score(images, [prompts[index] for index in indices])
            draw = _only(Draw(indices, images, attempt, scores, rejection.accepts(scores)), without)
            rejected += [index for index, good in zip(draw.indices, draw.taken.tolist()) if not good]
            yield draw
        waiting = sorted(run.gather_rows(torch.tensor(rejected, dtype=torch.int64)).tolist())
        if run.is_main:
            logging.info("draw %d of at most %d: %d of %d images have none that was accepted yet", attempt + 1,
                         rejection.max_attempts, len(waiting), n)
        if not waiting:
            return


def _best(run, pipeline, cond, indices, images, seed, rejection, prompts, timing):
    """All draws of a batch, of each image the best one taken, and of equal ones the first."""
    asked = [prompts[index] for index in indices]
    found = [images] + [make(run, pipeline, cond, indices, seed=attempt_seed(seed, attempt), timing=timing)
                        for attempt in range(1, rejection.best_of)]
    scores = torch.stack([rejection.score(each, asked) for each in found])
    best = scores.argmax(0)
    for attempt, (drawn, own) in enumerate(zip(found, scores)):
        yield Draw(indices, drawn, attempt, own, best == attempt)


def _only(draw, without):
    """A draw but for the images that are there already."""
    rows = [row for row, index in enumerate(draw.indices) if index not in without]
    if len(rows) == len(draw.indices):
        return draw
    return Draw([draw.indices[row] for row in rows], draw.images[rows], draw.attempt, draw.scores[rows],
                draw.taken[rows])


def attempt_seed(seed, attempt):
    """The seed of the draw after `attempt` rejected ones; the first is that of images without a filter."""
    if not attempt:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} draw {attempt}".encode()).digest()[:7], "little")


def acceptance(rejection, attempts, kinds):
    """How many draws were accepted, over all and by kind (class or prompt).

    Args:
        attempts: {index of an image: attempt of the accepted draw}; those without are absent.
        kinds: of each image that was asked for, its class or its prompt.
    Returns:
        {'asked', 'made', 'drawn', 'rate', 'low', 'high', 'per_kind': {kind: the same}}; the interval is Wilson's at 95 %, of the
        share of draws that were accepted. With best_of, `rate` and its interval are absent: of each set of draws one is taken.
    """
    asked, made, drawn = Counter(), Counter(), Counter()
    for index, kind in enumerate(kinds):
        asked[kind] += 1
        made[kind] += index in attempts
        drawn[kind] += rejection.drawn(attempts.get(index))
    whole = _share(rejection, sum(asked.values()), sum(made.values()), sum(drawn.values()))
    return whole | {"per_kind": {kind: _share(rejection, asked[kind], made[kind], drawn[kind]) for kind in asked}}


def _share(rejection, asked, made, drawn):
    found = {"asked": asked, "made": made, "drawn": drawn}
    if rejection.best_of or not drawn:
        return found
    rate = share(made, drawn)
    return found | {"rate": rate["value"], "low": rate["low"], "high": rate["high"]}


def acceptance_told(found):
    """`acceptance` as lines of text: the whole, and the kinds, those that lack images first."""
    def line(name, part):
        rate = f", {part['rate']:.1%} [{part['low']:.1%}, {part['high']:.1%}] of the draws accepted" if "rate" in part else ""
        return f"{name}: {part['made']} of {part['asked']} images, {part['drawn']} draws{rate}"

    kinds = sorted(found["per_kind"].items(), key=lambda item: item[1]["made"] - item[1]["asked"])
    lines = [line("filter", found)] + [f"  {line(name or 'no prompt', part)}" for name, part in kinds[:MANY] if len(kinds) > 1]
    return "\n".join(lines + ([f"  ... and {len(kinds) - MANY} more"] if len(kinds) > MANY else []))
