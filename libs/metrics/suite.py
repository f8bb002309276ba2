"""All metrics of one set of generated images at once, under the names they are reported by."""

import torch

from . import gaussian, intervals, kernel, manifold
from .inception_score import inception_score, recognised

NAMES = ("fd", "kid", "pr", "dc", "is")
KNOWN = (*NAMES, "kid_subsets")
FEWEST = {
    "fd": (2, 2),
    "kid": (2, 2),
    "kid_subsets": (2, 2),
    "pr": (4, 4),
    "dc": (2, 6),
}  # generated, real: k + 1 for neighbourhoods
IN_WORDS = {
    "kid": "KID",
    "kid_subsets": "KID over subsets",
    "pr": "precision and recall",
    "dc": "density and coverage",
}


def frechet_name(feature):
    """'fid' for Inception features of pytorch-fid, else 'fd_<feature>': nothing else is called FID."""
    return "fid" if feature == "inception" else f"fd_{feature}"


def scores(
    generated,
    real=None,
    gaussian_of_real=None,
    *,
    feature,
    names=NAMES,
    probabilities=None,
    labels=None,
    resamples=30,
    seed=0,
    level=0.95,
    splits=10,
    limit=10_000,
):
    """Metrics of generated features (N, D) against the real side: {metric: {'value', 'low', 'high', 'n'}}.

    real              real features (M, D), or None where only statistics are known: then only 'fd' can be had
    gaussian_of_real  a `Gaussian` for the Fréchet distance, perhaps of more images; None: that of `real`
    feature           the extractor's name, part of each metric's name
    names             which: 'fd', 'kid', 'pr' (precision, recall), 'dc' (density, coverage), 'is'; 'kid_subsets' is KID
                      as a mean over 100 subsets of 1000 images, with their deviation as 'std': the number that 'kid'
                      gives over all pairs, with the noise of the subsets added, for those who compare with tables
    probabilities     class probabilities (N, K) of the generated images, for 'is'
    labels            (N,) classes asked for, numbered as in `probabilities`: adds `accuracy_<feature>`
    resamples         behind each interval (low, high) of `level`; 0: none, and low and high are None
    limit             images of either side among which neighbours are sought, drawn where there are more
    `n` is the number of generated images used. What cannot be computed is absent; `warnings` says why.
    """
    _check(generated, real, gaussian_of_real, feature, names)
    n, found = len(generated), {}
    options = {"resamples": resamples, "seed": seed, "level": level}

    def put(name, value, ends, images=n):
        low, high = ends() if resamples else (None, None)
        found[name] = {"value": value, "low": low, "high": high, "n": images}

    generated = gaussian.as_features(generated, "generated features")
    if real is not None:
        real = gaussian.as_features(real, "real features").to(generated.device)
    counts = (n, 0 if real is None else len(real))
    if "fd" in names and n >= 2 and (gaussian_of_real is not None or counts[1] >= 2):
        known = gaussian_of_real
        if known is None:
            value = gaussian.frechet_from_features(generated, real)
            known = (
                gaussian.Moments(real.shape[1], device=real.device).update(real).gaussian()
                if resamples
                else None
            )
        else:
            value = gaussian.frechet_from_features(generated, known.mean, known.covariance)
        put(
            frechet_name(feature),
            value,
            lambda: intervals.frechet_interval(generated, known, value, **options),
        )
    if "kid" in names and _enough("kid", *counts):
        distance = kernel.kid(generated, real)
        put(f"kid_{feature}", distance, lambda: intervals.kid_interval(generated, real, distance, **options))
    if "kid_subsets" in names and _enough("kid_subsets", *counts):
        mean, std = kernel.kid_subsets(generated, real, seed=seed)
        name = f"kid_subsets_{feature}"
        put(name, mean, lambda: intervals.kid_interval(generated, real, mean, **options))
        found[name]["std"] = std
    fake, sought = _at_most(generated, limit, seed), _at_most(real, limit, seed)
    parts = {}
    if "pr" in names and _enough("pr", *counts):
        parts |= manifold.precision_recall_parts(fake, sought)
    if "dc" in names and _enough("dc", *counts):
        parts |= manifold.density_coverage_parts(fake, sought)
    for name, contributions in parts.items():
        found[f"{name}_{feature}"] = share(contributions, n=len(fake), **options)
    if "is" in names and probabilities is not None and n:
        # Ten parts are usual; a part of few images cannot show many classes, so small sets are parted less.
        parted = {"splits": min(splits, max(1, n // 100)), "seed": seed}
        score = inception_score(probabilities, **parted)[0]
        put(
            f"is_{feature}",
            score,
            lambda: intervals.inception_score_interval(
                gaussian.float64(probabilities), score, **options, splits=parted["splits"]
            ),
        )
    if labels is not None and probabilities is not None and n:
        found[f"accuracy_{feature}"] = share(recognised(probabilities, labels), **options)
    return found


def scores_per_class(
    generated,
    generated_labels,
    real,
    real_labels,
    *,
    classes,
    feature,
    names=NAMES[:4],
    probabilities=None,
    **kwargs,
):
    """`scores` of each class against the real images of that class: {class name: {metric: ...}}.

    `classes` are the names in the order of the labels. `probabilities` (N, len(classes)), of a network that
    knows these classes, add `accuracy_<feature>`: the share of a class's images that the network takes for
    it.
    """
    generated_labels, real_labels = torch.as_tensor(generated_labels), torch.as_tensor(real_labels)
    if len(generated_labels) != len(generated) or len(real_labels) != len(real):
        raise ValueError(
            f"{len(generated_labels)} labels for {len(generated)} generated and {len(real_labels)} for "
            f"{len(real)} real images; expected one each"
        )
    found = {}
    for k, name in enumerate(classes):
        mine, its = generated_labels == k, real_labels == k
        asked = (
            {}
            if probabilities is None
            else {
                "probabilities": probabilities[mine.to(probabilities.device)],
                "labels": generated_labels[mine],
            }
        )
        found[name] = scores(
            generated[mine.to(generated.device)],
            real[its.to(real.device)],
            feature=feature,
            names=names,
            **asked,
            **kwargs,
        )
    return found


def share(contributions, *, n=0, resamples=1000, seed=0, level=0.95):
    """The mean of contributions (N,) as a score: {'value', 'low', 'high', 'n'}. Resampling is cheap: 200 at
    least."""
    if not len(contributions):
        raise ValueError("no image, so no share of images")
    low = high = None
    if resamples:
        low, high = intervals.mean_interval(
            contributions, resamples=max(resamples, 200), seed=seed, level=level
        )
    return {
        "value": float(contributions.double().mean()),
        "low": low,
        "high": high,
        "n": n or len(contributions),
    }


def warnings(n, dims, *, feature, names=NAMES, real=None, limit=10_000, classes=True):
    """What a reader must be told beside `scores` of n generated images at `dims` dimensions: a list of
    sentences.

    real     number of real images; 0: only their mean and covariance are known; None: not to be judged
    classes  whether the network gives class probabilities
    """
    said = []
    if "fd" in names:
        said.append(intervals.sample_size_warning(n, dims))
        said.append(intervals.sample_size_warning(real, dims, what="real images") if real else "")
    pairwise = [name for name in names if name in ("kid", "kid_subsets", "pr", "dc")]
    if real == 0 and pairwise:
        said.append(
            f"{feature}: only mean and covariance of the real images are known, so no {_in_words(pairwise)}"
        )
    elif real is not None:
        few = [name for name in pairwise if not _enough(name, n, real)]
        said.append(
            f"{feature}: {n} generated and {real} real images are too few for {_in_words(few)}" if few else ""
        )
    if ("pr" in names or "dc" in names) and max(n, real or 0) > limit:
        said.append(f"{feature}: neighbours were sought among {limit} images at most")
    if "is" in names and not classes:
        said.append(f"{feature} gives no class probabilities, so no Inception score")
    return [sentence for sentence in said if sentence]


def _in_words(names):
    return ", ".join(IN_WORDS[name] for name in names)


def _enough(name, n, real):
    return n >= FEWEST[name][0] and real >= FEWEST[name][1]


def _at_most(features, limit, seed):
    if features is None or len(features) <= limit:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:limit]]


def check_names(names):
    """ValueError for names of metrics that are not known."""
    unknown = set(names) - set(KNOWN)
    if unknown:
        raise ValueError(f"unknown metrics {sorted(unknown)}; known are {', '.join(KNOWN)}")


def _check(generated, real, gaussian_of_real, feature, names):
    check_names(names)
    if real is None and gaussian_of_real is None:
        raise ValueError("neither real features nor their statistics are given: nothing to compare with")
    if gaussian_of_real is not None and gaussian_of_real.features not in ("", feature):
        raise ValueError(
            f"reference statistics are of {gaussian_of_real.features!r} features, the generated ones of "
            f"{feature!r}: they cannot be compared"
        )
