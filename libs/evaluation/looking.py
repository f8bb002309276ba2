"""Generated images as the feature networks see them: each batch is looked at as it is made, and then let go."""

from typing import NamedTuple

import torch

from libs.evaluation.filtering import draws
from libs.evaluation.generation import raise_together
from libs.pipeline import NotFinite

REJECTED_SHOWN = 8  # rejected images of each class that are kept to look at


class Seen(NamedTuple):
    """All generated images as the feature networks saw them, in order; and the few that are shown.

    Where a filter chose, `indices` are those of the images that were asked for and had a draw that was accepted.
    """

    indices: torch.Tensor  # LongTensor (n,), rising
    features: list
    probabilities: list
    attributes: torch.Tensor  # LongTensor (n, A) as `Agreement.read` gives it; (n, 0) without
    dice: torch.Tensor  # float64 (n, K) as `Following.read` gives it; (n, 0) without
    shown: torch.Tensor   # indices
    images: torch.Tensor  # uint8 (len(shown), C, H, W)
    first: object = None  # with a filter, `First`


class First(NamedTuple):
    """What a filter saw: the first draw of every image, which is the image without a filter, and how it was judged.

    features, probabilities, attributes: as of `Seen`, of all n first draws. scores (n,), attempts (n,): of the draw that was
    taken; -1 for none. shown, images, judged: indices, pictures and scores of some first draws that were rejected.
    """

    features: list
    probabilities: list
    scores: torch.Tensor
    attempts: torch.Tensor
    shown: torch.Tensor
    images: torch.Tensor
    judged: torch.Tensor
    attributes: torch.Tensor


def look(run, pipeline, config, found, cond, n, *, seed, show, sink, agrees=None, follows=None, timing=None, rejection=None,
         prompts=()):
    """Generate images 0 .. n-1 over all processes and pass each through every feature network, as a `Seen`.

    Args:
        found: feature networks. show: indices of the images to be shown.
        rejection, prompts: see `filtering.draws`.
    Raises:
        NotFinite: an image is nan or infinite somewhere.
    """
    taken, first, kept, rejected = _Rows(run, found), _Rows(run, found), _Pictures(run, pipeline), _Pictures(run, pipeline)
    attributes = [torch.empty(0, len(agrees.words) if agrees else 0, dtype=torch.int64)]
    dice = [torch.empty(0, follows.masks_as.classes if follows else 0, dtype=torch.float64)]
    of_first, attempts, labels, told = [attributes[0]], [], cond.get("label"), {}

    def take(draw):
        rows = draw.taken.nonzero().flatten().tolist()
        new = list(range(len(draw.indices))) if rejection and draw.attempt == 0 else []
        looked = sorted({*rows, *new})
        values = [each.both(draw.images[looked]) if looked else None for each in found]
        place = {row: position for position, row in enumerate(looked)}
        for into, which in ((taken, rows), (first, new)):
            into.add([draw.indices[row] for row in which], values, [place[row] for row in which])
        of_first.extend([agrees.read(draw.images[new])] if agrees and new else [])
        batch, images = [draw.indices[row] for row in rows], draw.images[rows]
        attempts.extend([(draw.indices[row], draw.attempt, float(draw.scores[row])) for row in rows]
                        if rejection else [])
        kept.add([(index, row) for index, row in zip(batch, rows) if index in show], draw)
        for row in new:
            kind = 0 if labels is None else int(labels[draw.indices[row]])
            if not draw.taken[row] and told.setdefault(kind, 0) < REJECTED_SHOWN:
                told[kind] += 1
                rejected.add([(draw.indices[row], row)], draw)
        if rows:
            attributes.extend([agrees.read(images)] if agrees else [])
            dice.extend([follows.read(images, cond["mask"][batch])] if follows else [])
            sink.add(batch, images)

    fault = ""
    try:
        for draw in draws(run, pipeline, cond, n, seed=seed, batch_size=config.sample.mini_batch_size,
                          timing=timing, rejection=rejection, prompts=prompts):
            take(draw)
    except NotFinite as error:
        if rejection and run.world > 1:  # the others wait for the next round of draws
            raise
        fault = str(error)
    raise_together(run, fault)
    indices, order = taken.order()
    if rejection is None and len(order) != n:
        raise RuntimeError(f"{len(order)} images were generated, not {n}")
    sink.kept = indices.tolist()
    attributes = run.gather_rows(torch.cat(attributes))[order] if agrees else attributes[0]
    dice = run.gather_rows(torch.cat(dice))[order] if follows else dice[0]
    shown, images, _ = kept.together()
    judged = None
    if rejection:
        own = run.gather_rows(torch.tensor(attempts, dtype=torch.float64).reshape(-1, 3))
        scores, attempt = torch.full((n,), -1.0), torch.full((n,), -1)
        scores[own[:, 0].long()], attempt[own[:, 0].long()] = own[:, 2].float(), own[:, 1].long()
        words = run.gather_rows(torch.cat(of_first))[first.order()[1]] if agrees else of_first[0]
        judged = First(*first.together(), scores, attempt, *rejected.together(), words)
    return Seen(indices, *taken.together(), attributes, dice, shown, images, judged)


class _Rows:
    """Features and probabilities of images, collected from all processes in the order of their indices."""

    def __init__(self, run, found):
        self.run, self.found, self.indices, self.parts = run, found, [], [[] for _ in found]

    def add(self, indices, values, rows):
        """values: (features, probabilities or None) of each network, of which `rows` are those of `indices`."""
        if not indices:
            return
        self.indices += indices
        for part, both in zip(self.parts, values):
            part.append([None if tensor is None else tensor.cpu()[rows] for tensor in both])

    def order(self):
        found = self.run.gather_rows(torch.tensor(self.indices, dtype=torch.int64))
        order = found.argsort()
        return found[order], order

    def together(self):
        """(features, probabilities), lists with an entry for each network."""
        order = self.order()[1]

        def whole(tensors, width):
            return self.run.gather_rows(torch.cat([torch.empty(0, width), *tensors]))[order]

        features = [whole([feature for feature, _ in part], each.dims) for part, each in zip(self.parts, self.found)]
        probabilities = [None if each.classes is None else whole([share for _, share in part], len(each.classes))
                         for part, each in zip(self.parts, self.found)]
        return features, probabilities


class _Pictures:
    """A few images with their indices and scores, collected from all processes."""

    def __init__(self, run, pipeline):
        self.run, self.indices, self.scores = run, [], []
        self.images = [torch.empty(0, *pipeline.image_shape, dtype=torch.uint8)]

    def add(self, pairs, draw):
        """pairs: (index, row of the draw)."""
        rows = [row for _, row in pairs]
        self.indices += [index for index, _ in pairs]
        self.images.append(draw.images[rows])
        self.scores += [1.0] * len(rows) if draw.scores is None else draw.scores[rows].tolist()

    def together(self):
        indices = self.run.gather_rows(torch.tensor(self.indices, dtype=torch.int64))
        order = indices.argsort()
        return (indices[order], self.run.gather_rows(torch.cat(self.images))[order],
                self.run.gather_rows(torch.tensor(self.scores))[order])
