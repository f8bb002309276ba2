"""Training of a filter's network on embeddings: of images that were rated, of real pairs, and of prompts swapped between them."""

import logging
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .filter import Judge
from .learning import plain

log = logging.getLogger(__name__)

TRIES = 8  # of drawing another prompt


@dataclass
class Examples:
    """What a filter is trained on, as embeddings: images that raters scored, or real pairs.

    image: (N, Di). text: (N, Dt), of each image's own prompt. targets, weights: as in `Rated`. matching: bool (N,), the prompt
    is known to fit the image, so that another prompt is known to fit it less. labels: N names, '' for none. prompts: N texts.
    units: N names of what is held out together, a prompt or an image.
    """

    image: torch.Tensor
    text: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    matching: torch.Tensor
    labels: list
    prompts: list
    units: list

    def __len__(self):
        return len(self.prompts)

    def part(self, rows):
        return Examples(*(getattr(self, name)[rows] for name in ("image", "text", "targets", "weights", "matching")),
                        *([getattr(self, name)[i] for i in rows] for name in ("labels", "prompts", "units")))


def rated_examples(image, text, found, *, matches="congruence", by="prompt"):
    """`Examples` of `Rated` images, from their embeddings (N, Di) and those of their prompts (N, Dt).

    by: as of `learning.divide`: whether members of the filter hold out prompts, or images.
    """
    number = [axis.name for axis in found.axes].index(_axis(matches, found.axes)) if matches else None
    matching = found.good[:, number] if matches else torch.zeros(len(image), dtype=torch.bool)
    units = [plain(item.prompt) if by == "prompt" else item.sha256 for item in found.items]
    return Examples(image, text, found.targets, found.weights, matching, [item.label for item in found.items], found.prompts, units)


def real_examples(image, text, axes, labels, prompts):
    """`Examples` of real images under their own captions: good on every axis; how much better than good is not known."""
    most = max(len(axis.levels) for axis in axes)
    targets = torch.full((len(image), len(axes), most - 1), float("nan"))
    for number, axis in enumerate(axes):
        targets[:, number, :axis.good - 1] = 1.0
    ones = torch.ones(len(image))
    return Examples(image, text, targets, ones, ones.bool(), list(labels), list(prompts), [plain(prompt) for prompt in prompts])


def train(examples, axes, *, matches="congruence", pairs=None, swaps=1.0, ranking=0.5, pair_weight=0.5, blocks=(), width=32,
          hidden=0, members=8, dropout=0.4, cosine=False, lr=3e-3, weight_decay=0.05, epochs=150, patience=30, batch_size=64,
          seed=0):
    """A `Judge` of these axes, in eval mode, trained on `Examples`.

    A pair whose prompt fits also teaches by other prompts. One of another label (of another text, where there are no labels) does
    not fit: level 1 on the axis `matches`; the other axes are left out, as they are not known. One of the same label may fit in
    part: it only has to be scored below the own one.

    Each member holds out a share of the prompts (of the images, where `Examples.units` are these), one in as many as there are
    members, at least one in five, and keeps its weights of the epoch that scored those best. Of fewer prompts than members some
    hold out the same.

    Args:
        matches: axis that says whether image and prompt belong together; '' for none: no swapped prompts then.
        pairs: `Examples` of real images. swaps, ranking, pair_weight: weights of swapped prompts, of those of the same label, and
        of real pairs, beside 1 for what was rated; 0 is off.
    Raises:
        ValueError: fewer than two prompts (or images) to hold one out of; `matches` is no axis.
    """
    matched = [axis.name for axis in axes].index(_axis(matches, axes)) if matches else -1
    everything = [examples, *([pairs] if pairs is not None and len(pairs) and pair_weight else [])]
    fixed = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        judge = Judge(blocks or [examples.image.shape[1]], examples.text.shape[1], [len(axis.levels) for axis in axes],
                      width=width, hidden=hidden, members=members, dropout=dropout, cosine=cosine)
        judge.standardise(torch.cat([each.image for each in everything]), torch.cat([each.text for each in everything]))
        draw = torch.Generator().manual_seed(seed)
        fold, folds = _folds(examples.units, max(5, members), draw)
        for member in range(members):
            held_out = fold == member % folds
            inside, outside = (~held_out).nonzero().flatten().tolist(), held_out.nonzero().flatten().tolist()
            own = examples.part(inside), examples.part(outside)
            _train_member(judge, member, own, everything[1:], matched, draw, swaps=swaps, ranking=ranking,
                          pair_weight=pair_weight, lr=lr, weight_decay=weight_decay, epochs=epochs, patience=patience,
                          batch_size=batch_size)
    finally:
        torch.random.set_rng_state(fixed)
    return judge.eval()


def _train_member(judge, member, own, pairs, matches, draw, *, swaps, ranking, pair_weight, lr, weight_decay, epochs, patience,
                  batch_size):
    inside, outside = own
    held_back = set(outside.units)
    pairs = [each.part([i for i, unit in enumerate(each.units) if unit not in held_back]) for each in pairs]
    sources = [(inside, 1.0), *((each, pair_weight) for each in pairs)]
    others = [_Others(each) for each, _ in sources]
    checks = [(outside, None)]
    if matches >= 0 and swaps:
        checks.append((outside, _Others(outside).draw(torch.arange(len(outside)), draw)))
    layers, cuts = list(judge.members[member].parameters()), [judge.firsts, judge.steps]
    parameters = layers + cuts
    # Cuts of all members are one tensor: decay would go on for those whose training is over.
    optimizer = torch.optim.AdamW([{"params": layers}, {"params": cuts, "weight_decay": 0.0}], lr=lr, weight_decay=weight_decay)
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
    """Draws another prompt for images of `Examples`: of another label (any other, where there are none), or of the same one."""

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


def _axis(name, axes):
    """The name of an axis; ValueError where there is none of it."""
    if name not in {axis.name for axis in axes}:
        raise ValueError(f"config.filter.matches={name!r} is no axis of the pool's scale: known are "
                         f"{', '.join(axis.name for axis in axes)}, or '' for none")
    return name


def _numbers(names):
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])


def _folds(units, count, draw):
    """(fold (N,) of each example, so that those of one unit share it; how many folds, none of them empty)."""
    keys = _numbers(units)
    distinct = int(keys.max()) + 1
    if distinct < 2:
        raise ValueError(f"all {len(units)} images to train on have one prompt: of two or more, one is held out; rate more prompts")
    folds = min(count, distinct)
    return (torch.randperm(distinct, generator=draw) % folds)[keys], folds
