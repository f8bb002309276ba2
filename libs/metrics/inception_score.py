"""Inception score: do images look like one class each, and like all classes together?

    IS = exp(mean_i KL(p(y | x_i) || p(y)))                                           Salimans et al. 2016

1 where every image gets the same class probabilities, K where images are surely one class each and evenly of
K classes.
The classes are those of whichever network gave the probabilities, so its name goes with the number.
"""

import torch

from .gaussian import as_features


def inception_score(probabilities, *, splits=10, seed=0):
    """Mean and standard deviation of the score over `splits` random parts of class probabilities (N, K).

    Images are shuffled first: sampled class by class, a part would hold few classes and its score would be
    low.
    """
    probabilities = as_probabilities(probabilities)
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"splits is {splits}; {len(probabilities)} images allow 1 to {len(probabilities)}")
    order = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(seed))
    shuffled = probabilities[order.to(probabilities.device)]
    values = torch.stack([_score(part) for part in shuffled.tensor_split(splits)])
    return float(values.mean()), float(values.std(correction=0))


def recognised(probabilities, labels):
    """1 where the most probable of K classes is the one asked for, else 0: (N,) for (N, K) and labels
    (N,)."""
    probabilities = as_probabilities(probabilities)
    labels = torch.as_tensor(labels, device=probabilities.device)
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {len(probabilities)} images")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < probabilities.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; the network knows classes "
            f"0 to {probabilities.shape[1] - 1}"
        )
    return (probabilities.argmax(dim=1) == labels).double()


def as_probabilities(values):
    """Class probabilities (N, K) in float64; ValueError unless rows are not negative and sum to 1."""
    values = as_features(values, "probabilities")
    if len(values) and (float(values.min()) < 0 or float((values.sum(dim=1) - 1).abs().max()) > 1e-3):
        raise ValueError("probabilities must not be negative and each row must sum to 1: were these logits?")
    return values


def _score(part):
    marginal = part.mean(dim=0, keepdim=True)
    divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(dim=1)
    return divergence.mean().exp()
