"""The real side of a comparison: feature networks, statistics from files, or computed once from the data."""

import glob
import hashlib
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit

from libs import data, metrics
from libs.engine.checkpoint import sha256
from libs.engine.file_names import FILE_NAME_BYTES, safe_name
from libs.engine.places import assets_folder
from libs.evaluation.generation import save_npz
from libs.metrics import gaussian
from libs.pipeline import to_uint8

# Below the repository and not the current folder, so that a script called from elsewhere finds what another
# call left.
CACHE = assets_folder() / "fid_stats" / "cache"
NETWORKS = assets_folder() / "feature_networks"
PLAIN = "colour"  # the features that need no network
LOOKED_AT = 64  # pixels a side at which the classifier of the data at hand looks
JUDGE_IMAGES = 200  # real images; a classifier that learned from fewer is a rough judge
DARK = 64  # a grey level of 255: reference images that stay below it are examined
KEPT = 10_000  # real feature vectors kept for what needs single images (KID, precision, nearest neighbours)


class NoFeatures(FileNotFoundError):
    """No feature network can be had: nothing can be scored."""


class Reference(NamedTuple):
    """The real side of a comparison: Gaussian of all images; features, labels and indices of up to 10,000 of them."""

    gaussian: gaussian.Gaussian
    features: torch.Tensor | None
    labels: torch.Tensor | None
    indices: torch.Tensor | None
    source: str


def statistics_there(fid_stat):
    """Whether config.metrics.fid_stat names a file, or with '{features}' in it a file of some feature network."""
    path = Path(fid_stat)
    if "{features}" in path.name:
        return any(path.parent.glob(glob.escape(path.name).replace("{features}", "*")))
    return path.is_file()


def prepare(run, config, dataset, *, only_first=False):
    """What evaluations compare with: [(extractor, Reference)] of the feature networks that can be had, at least one.

    '{features}' in config.metrics.fid_stat stands for the network's name, so that each network has a file of its own.
    """
    found = extractors(run, config, dataset, only_first=only_first)
    return [(each, reference(run, each, dataset, stats=config.metrics.fid_stat, workers=config.train.workers))
            for each in found]


def extractors(run, config, dataset, *, only_first=False):
    """The feature networks of config.metrics.features that can be had here (or the first of them), on the run's device.

    'classifier' is trained on the data at hand, once, and kept below assets/feature_networks; `metrics.features` has the other
    names: a network of one's own is given by its folder, or as 'timm:<model>@<file>'. A network whose weights are missing is
    named in a warning and left out. The main process decides what can be had, the others follow.

    Raises:
        ValueError: an unknown name.
        NoFeatures: none of them can be had.
    """
    def build(name):
        if name == "classifier":
            folder = feature_network(dataset, seed=config.seed, flip=config.dataset.get("random_flip", False),
                                     device=run.device)
            return metrics.extractor(f"classifier:{folder}", device=run.device)
        return metrics.extractor(name, device=run.device)

    found, reasons = {}, []
    for name in config.metrics.features if run.is_main else ():
        if found and only_first:
            break
        try:
            found[name] = build(name)
        except OSError as error:  # missing weights are a FileNotFoundError; a mistyped name is a ValueError and ends here
            reasons.append(f"{name}: {error}")
            logging.warning("features %r are left out: %s", name, error)
    names, reasons = run.from_main([list(found), reasons])
    if not names:
        raise NoFeatures("no feature network of config.metrics.features can be had. " + " | ".join(reasons)
                         + f" | --config.metrics.features=\"('{PLAIN}',)\" needs none: it compares mean and "
                           f"deviation of the colours")
    return [found[name] if run.is_main else build(name) for name in names]


def feature_network(dataset, *, seed, flip=False, device="cpu"):
    """Folder of a small classifier of `dataset`'s classes: trained at the first call, then found by the data's fingerprint.

    `flip`: whether mirroring an image leaves its class as it is (config.dataset.random_flip). `device`: that
    it is trained on.
    """
    if dataset is None or dataset.labels is None:
        raise FileNotFoundError("they need labelled data; use timm:<network>, dinov2 or inception")
    return trained_once(dataset, dataset.labels, dataset.classes, seed=seed, flip=flip, device=device)


def trained_once(dataset, labels, classes, *, seed, flip=False, rows=None, of="", device="cpu"):
    """Folder of a small classifier of images of `dataset` by any labels.

    Args:
        labels: LongTensor, one for each of `rows`; classes: their names.
        rows: indices of the images to learn from; None takes all.
        of: what is told apart, for the folder's name; '' are the data set's own classes.
        device: that it is trained on.
    """
    rows = list(range(len(dataset))) if rows is None else list(rows)
    held_out = held_out_groups(dataset, rows, seed)
    options = "-flip" * flip + "-groups" * (held_out is not None)
    if of:
        options += f"-{of}-" + hashlib.sha256(json.dumps([list(classes), labels.tolist(), rows]).encode()).hexdigest()[:12]
    name = f"{dataset.name}{dataset.shape[-1]}"

    def train():
        what = f"classifier of {of}" if of else "feature network"
        logging.info("training a %s on %d images of %s", what, len(rows), dataset.name)
        images = torch.cat([_small(to_uint8(batch["image"], named(dataset, batch)))
                            for batch in data.in_order(dataset, rows, 256)])
        network = metrics.train_classifier(images, labels, classes=classes, seed=seed,
                                           flips=("horizontal",) if flip else (), name=name,
                                           fingerprint=dataset.fingerprint, held_out=held_out, device=device)
        logging.info("%.1f %% of %d held-out images recognised", 100 * network.report["accuracy"], network.report["held_out"])
        return network

    return kept_once(f"{name}-{dataset.fingerprint[:12]}-{seed}{options}", train)


def few_for_judge(networks, dataset, split):
    """A warning where a classifier of the data at hand that judges was trained on few images, as a list of sentences.

    networks: the feature networks of an evaluation. split: config.dataset.split of the evaluation.
    """
    small = dataset is not None and dataset.labels is not None and len(dataset) < JUDGE_IMAGES
    if not small or not any(each.name.startswith(f"classifier-{dataset.name}") for each in networks):
        return []
    of = f" of split {split!r}" if split else ""
    return [f"the classifier that judges was trained on only {len(dataset)} images{of}, those of this evaluation: it is a rough "
            "judge, and its scores do not compare with those of a classifier that was trained on another split"]


def kept_once(name, train):
    """The folder of the network `name` below assets/feature_networks; where it is not there yet, train() gives the network."""
    folder = NETWORKS / safe_name(name, FILE_NAME_BYTES)
    if not (folder / "config.json").is_file():
        staging = folder.with_name(f".staging-{folder.name}-{os.getpid()}")
        train().save(staging)
        try:
            os.replace(staging, folder)
        except OSError:  # another run was as quick with the same network
            shutil.rmtree(staging)
        logging.info("kept in %s", folder)
    return folder


def named(dataset, batch):
    """Position in a batch -> the file of that image, for messages."""
    return lambda row: dataset.file_name(int(batch["index"][row]))


def _small(images):
    """uint8 images no larger than the classifier looks at them, so that a whole data set fits into memory."""
    if max(images.shape[2:]) <= LOOKED_AT:
        return images
    small = torch.nn.functional.interpolate(images.float(), size=(LOOKED_AT, LOOKED_AT), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def held_out_groups(dataset, rows, seed, share=0.15):
    """Positions in `rows` to test a network on, so that no group (patient) is on both sides; None where no groups are
    known."""
    known = getattr(dataset, "groups", None)
    groups = [known[i] or dataset.file_name(i) for i in rows] if known else []
    if len(set(groups)) == len(groups):
        return None
    _, held_out = next(GroupShuffleSplit(1, test_size=share, random_state=seed % 2**32).split(groups, groups=groups))
    return held_out


def reference(run, extractor, dataset, *, stats="", batch_size=64, workers=0):
    """The real side: from a statistics file, or computed once from `dataset` over all processes and cached.

    Args:
        stats: path of an npz with mu and sigma, '{features}' in it standing for the extractor's name. It is used where it holds
            features of this very network; a file that does not say which (U-ViT's, pytorch-fid's) holds Inception's. Where it is
            missing they are computed.
        dataset: the real images; may be None where `stats` serves.

    The cache key holds the data's fingerprint and the extractor's, so a change of either is noticed.
    """
    known, stats = None, stats.replace("{features}", extractor.name.replace("/", "_"))
    if stats and Path(stats).is_file():
        found = gaussian.load_stats(stats)
        same_name = (found.features or "inception") == extractor.name
        if same_name and found.network in ("", extractor.fingerprint):
            known = gaussian.load_stats(stats, dims=extractor.dims)
        elif dataset is None:
            raise ValueError(f"{stats} holds {found.features or 'inception'} features, not those of {extractor.name}"
                             f"{' as it is here, with other weights' if same_name else ''}, and the images are not there to "
                             "compute them")
        elif same_name:
            logging.warning("%s holds features of another %s, with other weights: they are computed from %s", stats, extractor.name,
                            dataset.name)
    elif stats and dataset is None:
        raise ValueError(f"no statistics at {stats}, and the images are not there to compute them")
    elif stats:
        logging.warning("no statistics at %s: they are computed from %s", stats, dataset.name)
    if dataset is None:
        return Reference(known, None, None, None, f"{stats} ({sha256(Path(stats))[:16]})")
    key = hashlib.sha256(json.dumps([dataset.fingerprint, extractor.fingerprint, KEPT]).encode()).hexdigest()
    path = CACHE / f"{safe_name(f'{dataset.name}-{extractor.name}', FILE_NAME_BYTES - 40)}-{key[:16]}.npz"
    if run.from_main(not _whole(path)):
        computed = _reference_of_data(run, extractor, dataset, batch_size, workers)
        if run.is_main:
            save_npz(path, **computed)
    run.barrier()
    with np.load(path, allow_pickle=False) as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files if name != "n"}
        n = int(file["n"])
    labels = None if dataset.labels is None else dataset.labels[stored["indices"]]
    gauss = known or gaussian.Gaussian(stored["mu"], stored["sigma"], n, extractor.name, extractor.fingerprint)
    source = f"{stats} ({sha256(Path(stats))[:16]})" if known else f"{n} images of {dataset.name} ({path.name})"
    if n > KEPT:
        source += f"; single images compared with {len(stored['features'])} of them"
    return Reference(gauss, stored["features"], labels, stored["indices"], source)


def _whole(path):
    """Whether a cached file is there and can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return all(file[name].size for name in file.files)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _reference_of_data(run, extractor, dataset, batch_size, workers):
    mine, brightest = range(run.rank, len(dataset), run.world), 0
    kept = set(np.random.default_rng(0).permutation(len(dataset))[:KEPT].tolist())
    moments, vectors, indices = gaussian.Moments(extractor.dims), [], []
    for batch in data.in_order(dataset, mine, batch_size, workers=workers):
        pixels = to_uint8(batch["image"], named(dataset, batch))
        brightest = max(brightest, int(pixels.max()))
        feature = extractor(pixels).cpu()
        moments.update(feature)
        for row, index in zip(feature, batch["index"].tolist()):
            if index in kept:
                vectors.append(row)
                indices.append(index)
    if int(run.gather_rows(torch.tensor([brightest])).max()) < DARK and dataset.measurements is None:
        data.preflight(dataset)  # says which window they need, unless they are meant to be so dark
    moments.set_state(run.gather_rows(moments.state()[None]).sum(0))
    vectors = torch.stack(vectors) if vectors else torch.empty(0, extractor.dims)
    indices = run.gather_rows(torch.tensor(indices, dtype=torch.int64))
    order = indices.argsort()
    gauss = moments.gaussian()
    return {"mu": gauss.mean.numpy(), "sigma": gauss.covariance.numpy(), "n": moments.n,
            "features": run.gather_rows(vectors)[order].numpy(), "indices": indices[order].numpy()}
