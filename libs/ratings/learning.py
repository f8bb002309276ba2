"""From answers to a filter: targets without the raters' bias, a split by prompt, training, calibration, threshold."""

import hashlib
import json
import logging
import re
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from .filter import Judge, joint

log = logging.getLogger(__name__)

PARTS = ("train", "calibration", "test")
LEAST_IMAGES, LEAST_PROMPTS = 30, 10
TRIES = 8  # of drawing another prompt
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
            raise ValueError(f"all {len(score)} scores of {axis.name} are {score[0]:g}: there is nothing to learn from them. A pool "
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
        warnings.append(f"one rater only, {raters[0]}: the filter learns this person's taste, and nothing says whether others agree")
    return Rated(items, list(pool.axes), targets, count / count.mean(), good, every > 0.5, bias,
                 hashlib.sha256(json.dumps(told).encode()).hexdigest(), warnings)


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
            raise ValueError(f"config.split.by='image' is for pools whose prompts are class names: this one has {distinct} prompts and "
                             f"{len(labels - {''})} labels, and its filter would be tested on prompts that it was trained on; set "
                             "config.split.by='prompt'")
        keys = [item.sha256 for item in found.items]
        how = f"by image: the {distinct} prompts are class names, which a filter has all seen when it is used"
    else:
        if distinct < LEAST_PROMPTS:
            raise ValueError(f"{distinct} different prompts among {n} rated images: a split by prompt needs at least {LEAST_PROMPTS}. "
                             "Rate images of more prompts" + ("; where prompts are class names, set config.split.by='image'"
                                                              if distinct <= len(labels) else ""))
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
            raise ValueError(f"{len(rows[name])} images of {len({keys[i] for i in rows[name]})} prompts are left for {name}, of {n} "
                             f"images and {distinct} prompts: at least 2 prompts are needed in each part; rate more")
    return rows, how


@dataclass
class Examples:
    """What a filter is trained on, as embeddings: images that raters scored, or real pairs.

    image: (N, Di). text: (N, Dt), of each image's own prompt. targets, weights: as in `Rated`. matching: bool (N,), the prompt is known to
    fit the image, so that another prompt is known to fit it less. labels: N names, '' for none. prompts: N texts.
    """

    image: torch.Tensor
    text: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    matching: torch.Tensor
    labels: list
    prompts: list

    def __len__(self):
        return len(self.prompts)

    def part(self, rows):
        return Examples(*(getattr(self, name)[rows] for name in ("image", "text", "targets", "weights", "matching")),
                        [self.labels[i] for i in rows], [self.prompts[i] for i in rows])


def real_examples(image, text, axes, labels, prompts):
    """`Examples` of real images under their own captions: good on every axis; how much better than good is not known."""
    most = max(len(axis.levels) for axis in axes)
    targets = torch.full((len(image), len(axes), most - 1), float("nan"))
    for number, axis in enumerate(axes):
        targets[:, number, :axis.good - 1] = 1.0
    return Examples(image, text, targets, torch.ones(len(image)), torch.ones(len(image), dtype=torch.bool), list(labels), list(prompts))


def train(examples, axes, *, matches="congruence", pairs=None, swaps=1.0, ranking=0.5, pair_weight=0.5, blocks=(), width=32, hidden=0,
          members=5, dropout=0.2, cosine=False, lr=3e-3, weight_decay=0.05, epochs=150, patience=30, batch_size=64, seed=0):
    """A `Judge` of these axes, in eval mode, trained on `Examples`.

    A pair whose prompt fits also teaches by other prompts. One of another label (of another text, where there are no labels) does
    not fit: level 1 on the axis `matches`; the other axes are left out, as they are not known. One of the same label may fit in
    part: it only has to be scored below the own one.

    Each member holds out other prompts, a fifth of them, and keeps its weights of the epoch that scored those best.

    Args:
        matches: axis that says whether image and prompt belong together; '' for none: no swapped prompts then.
        pairs: `Examples` of real images. swaps, ranking, pair_weight: weights of swapped prompts, of those of the same label, and
        of real pairs, beside 1 for what was rated; 0 is off.
    """
    names = [axis.name for axis in axes]
    if matches and matches not in names:
        raise ValueError(f"config.filter.matches={matches!r} is no axis of the pool's scale: known are {', '.join(names)}, or '' for none")
    everything = [examples, *([pairs] if pairs is not None and len(pairs) and pair_weight else [])]
    fixed = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        judge = Judge(blocks or [examples.image.shape[1]], examples.text.shape[1], [len(axis.levels) for axis in axes], width=width, hidden=hidden,
                      members=members, dropout=dropout, cosine=cosine)
        judge.standardise(torch.cat([each.image for each in everything]), torch.cat([each.text for each in everything]))
        draw = torch.Generator().manual_seed(seed)
        fold = _folds(examples.prompts, max(5, members), draw)
        for member in range(members):
            inside, outside = (fold != member).nonzero().flatten().tolist(), (fold == member).nonzero().flatten().tolist()
            own = examples.part(inside), examples.part(outside)
            _train_member(judge, member, own, everything[1:], names.index(matches) if matches else -1, draw, swaps=swaps, ranking=ranking,
                          pair_weight=pair_weight, lr=lr, weight_decay=weight_decay, epochs=epochs, patience=patience,
                          batch_size=batch_size)
    finally:
        torch.random.set_rng_state(fixed)
    return judge.eval()


def _train_member(judge, member, own, pairs, matches, draw, *, swaps, ranking, pair_weight, lr, weight_decay, epochs, patience,
                  batch_size):
    inside, outside = own
    held_back = {plain(prompt) for prompt in outside.prompts}
    pairs = [each.part([i for i, prompt in enumerate(each.prompts) if plain(prompt) not in held_back]) for each in pairs]
    sources = [(inside, 1.0), *((each, pair_weight) for each in pairs)]
    others = [_Others(each) for each, _ in sources]
    checks = [(outside, None)]
    if matches >= 0 and swaps:
        checks.append((outside, _Others(outside).draw(torch.arange(len(outside)), draw)))
    parameters = [*judge.members[member].parameters(), judge.firsts, judge.steps]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    batches = -(-len(inside) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches)
    best, kept, since = float("inf"), None, 0
    for epoch in range(epochs):
        judge.train()
        orders = [torch.randperm(len(each), generator=draw).tensor_split(batches) for each, _ in sources]
        for step in range(batches):
            loss = 0.0
            for (each, weight), other, order in zip(sources, others, orders):
                rows = order[step]
                if not len(rows):
                    continue
                loss = loss + weight * _loss(judge, member, each, rows, other, matches, swaps, ranking, draw)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        judge.eval()
        with torch.inference_mode():
            now = sum(float(_own_loss(judge, member, each, each.text) if swapped is None
                            else _swapped_loss(judge, member, each, swapped, matches)) for each, swapped in checks)
        since += 1
        if now < best:
            best, since = now, 0
            kept = [parameter.detach().clone() for parameter in parameters]
        if since > patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters[:-2], kept):
            parameter.copy_(value)
        judge.firsts[member], judge.steps[member] = kept[-2][member], kept[-1][member]
    log.debug("member %d: best loss %.4f on %d held-out images", member, best, len(outside))


def _loss(judge, member, each, rows, others, matches, swaps, ranking, draw):
    image, text = each.image[rows], each.text[rows]
    values = judge(image, text, member)
    loss = _cross_entropy(judge, member, values, each.targets[rows], each.weights[rows])
    if matches < 0:
        return loss
    fits = each.matching[rows]
    for weight, ranks in ((swaps, False), (ranking, True)):
        if not weight:
            continue
        drawn = others.draw(rows, draw, near=ranks)
        chosen = (fits & (drawn >= 0)).nonzero().flatten()
        if not len(chosen):
            continue
        swapped = judge(image[chosen], each.text[drawn[chosen]], member)[..., matches]
        if ranks:
            loss = loss + weight * F.softplus(swapped - values[:, chosen, matches]).mean()
        else:
            loss = loss + weight * _at_level_one(judge, member, swapped, matches)
    return loss


def _own_loss(judge, member, each, text):
    return _cross_entropy(judge, member, judge(each.image, text, member), each.targets, each.weights)


def _swapped_loss(judge, member, each, chosen, matches):
    rows = (each.matching & (chosen >= 0)).nonzero().flatten()
    if not len(rows):
        return torch.zeros(())
    return _at_level_one(judge, member, judge(each.image[rows], each.text[chosen[rows]], member)[..., matches], matches)


def _at_level_one(judge, member, values, axis):
    filled = values.new_zeros(*values.shape, len(judge.levels))
    filled[..., axis] = values
    logits = judge.logits(filled, axis, member)
    return F.softplus(logits).sum(-1).mean()


def _cross_entropy(judge, member, values, targets, weights):
    total = 0.0
    for axis, levels in enumerate(judge.levels):
        wanted = targets[:, axis, :levels - 1]
        known = ~wanted.isnan()
        logits = judge.logits(values, axis, member)[0]
        error = F.binary_cross_entropy_with_logits(logits, wanted.nan_to_num(), reduction="none") * known
        total = total + (error.sum(1) * weights).mean()
    return total


class _Others:
    """Draws for images of `Examples` another prompt: of another label (of another text, where there are no labels), or of the same."""

    def __init__(self, each):
        self.prompts, self.count = _numbers([plain(prompt) for prompt in each.prompts]), len(each)
        self.labels = _numbers(each.labels) if all(each.labels) else None

    def draw(self, rows, draw, *, near=False):
        """A row (M,) for each of `rows` whose prompt is such another one, -1 where a few tries found none."""
        found = torch.full_like(rows, -1)
        for _ in range(TRIES if not near or self.labels is not None else 0):
            tried = torch.randint(self.count, rows.shape, generator=draw)
            allowed = self.prompts[tried] != self.prompts[rows]
            if self.labels is not None:
                allowed &= (self.labels[tried] == self.labels[rows]) == near
            found = torch.where((found < 0) & allowed, tried, found)
        return found


def _numbers(names):
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])


def _folds(prompts, count, draw):
    """Fold (N,) of each example, so that those of one prompt share it."""
    keys = _numbers([plain(prompt) for prompt in prompts])
    distinct = int(keys.max()) + 1
    return (torch.randperm(distinct, generator=draw) % min(count, distinct))[keys]


def calibrated(logits, passed, *, strength=1.0, steps=200):
    """{'slope', 'shift'} of `filter.joint`, fitted to whether images passed: log loss, held near 1 and 0 by `strength` images' worth.

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
            threshold = 0.0
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
