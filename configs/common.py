"""Small builders of values that many configs share. Each config file still shows its whole structure."""

from importlib.util import find_spec

import ml_collections
import torch


def d(**entries):
    """A section of a config."""
    return ml_collections.ConfigDict(entries)


def adamw(lr, betas, weight_decay=0.03):
    """AdamW as U-ViT uses it: the weight decay reaches every parameter."""
    return d(name="adamw", lr=lr, betas=betas, weight_decay=weight_decay)


def adamw_8bit(lr, betas, weight_decay):
    """AdamW with moments of 8 bits where bitsandbytes and a GPU are there, else of 32.

    A run's config.json says which; on a machine that would choose the other, it goes on by --config.optimizer.name=.
    """
    found = find_spec("bitsandbytes") is not None and torch.cuda.is_available()
    return d(name="adamw_8bit" if found else "adamw", lr=lr, betas=betas, weight_decay=weight_decay)


def warm_up(steps):
    """Linear warm-up, then constant: U-ViT's 'customized' schedule."""
    return d(name="customized", warmup_steps=steps)


def as_data(config):
    """`config`, in which a 0 of config.nnet and config.codec means the size or channels of its data, here those of config.dataset.

    Whoever opens the file as a module reads numbers that follow config.dataset. The command line settles them anew, when it knows
    data and codec (libs/config_options.py).
    """
    side, channels = config.dataset.get_ref("resolution"), ml_collections.FieldReference(config.dataset.get("channels", 3))
    if "channels" in config.dataset:
        channels = config.dataset.get_ref("channels")
    latents = config.get("codec", {}).get("name", "pixels") != "pixels"
    for key in ("img_size", "image_size", "input_size", "sample_size"):
        if config.nnet.get(key, 1) == 0:
            config.nnet[key] = side // 8 if latents else side // 1
    for key in ("in_chans", "in_channels"):
        if config.nnet.get(key, 1) == 0:
            config.nnet[key] = ml_collections.FieldReference(4) if latents else channels + 0
    if config.get("codec", {}).get("channels", 1) == 0:
        config.codec.channels = channels + 0
    return config


def metrics(*, features=("inception",), fid_stat="", n_samples=10_000, algorithm="dpm_solver", sample_steps=50, attributes=None,
            measure="classifier"):
    """How a network is scored: feature networks, scores, and the smaller evaluation during training.

    n_samples, algorithm and sample_steps belong to evaluations and previews during training; the final one uses
    `config.sample`. Guidance is the same in both.

    attributes (only for networks that take text): {attribute: words}, such as {'size': ('small', 'large')}, for which
    evaluations measure how often pictures show what their texts ask for; measure: what reads them off pictures.
    """
    section = d(features=features, names=("fd", "kid", "pr", "dc", "is"), fid_stat=fid_stat, bootstrap=30,
                n_samples=n_samples, algorithm=algorithm, sample_steps=sample_steps)
    if attributes is not None:
        section.attributes, section.measure = d(**attributes), measure
    return section


def gradient(*, measure="", scale=0.0, classifier=""):
    """Guidance up the gradient of a classifier of noisy images, off by default; libs/pipeline/steering.py says what each means."""
    return d(measure=measure, scale=scale, classifier=classifier, on="x_t", profile="constant", first=1.0, last=0.0, clip_norm=0.0,
             reclip=False, legacy_steps=0)


def filtering():
    """Images are drawn until a filter of train_filter.py accepts them (libs/evaluation/filtering.py), off by default.

    path: its folder, or that of its run. threshold: least score, 0 is the filter's own. max_attempts: draws for each image.
    best_of: take the best of so many draws in place of the first that is accepted. keep_rejects: sample.py keeps what was rejected.
    allow_useless: use it even if it was no better than chance when it was tested.
    """
    return d(path="", threshold=0.0, max_attempts=10, best_of=0, keep_rejects=False, allow_useless=False)
