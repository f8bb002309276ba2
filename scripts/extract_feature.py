"""Features of a data set: the latents of its images and the states of its texts, packed once for all training runs.

    python scripts/extract_feature.py --config=configs/COT_ISIC256_uvit_text_label.py --config.dataset.path=/path/to/isic2018
    accelerate launch --multi_gpu --num_processes 4 scripts/extract_feature.py --config=configs/imagenet256_uvit_huge.py

Writes the store <config.features.path>/<split> of config.dataset, and of config.train.validation_split where there is one.
An extraction that was stopped goes on, and a store of other images, another codec or another encoder is not touched: the
message says what differs.
"""

import shlex
import sys
import time
from itertools import chain
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, codecs, data, engine, pipeline  # noqa: E402


def extract(config, split, batch_size):
    _check(config, batch_size)
    run = engine.start(config, "", claim=False)
    codec = run.main_first(lambda: codecs.get(**config.codec).to(run.device))
    encoder = run.main_first(lambda: pipeline.text_encoder(config, run.device))
    trained = config.dataset.get("split", "")
    held_out = config.train.get("validation_split", "") if "train" in config else ""
    asked = ["" if split == "all" else split] if split else [trained, *([held_out] if held_out else [])]
    for name in dict.fromkeys(asked):
        dataset = data.get(**config.dataset) if name == trained else data.held_out(config.dataset, name)
        flips = name == trained and config.dataset.get("random_flip", False)
        _extract(run, config, dataset, codec, encoder, data.feature_folder(config.features, name), flips, batch_size)
    run.finish()


def _extract(run, config, dataset, codec, encoder, path, flips, batch_size):
    path.parent.mkdir(parents=True, exist_ok=True)
    run.main_first(lambda: data.preflight(dataset, remember=path.with_name(f"{path.name}_preflight.json")))
    if encoder is not None:
        _report_cut(run, dataset, encoder, path)
    latents, start = 0, time.perf_counter()

    def encode_images(images):
        nonlocal latents
        latents += len(images)
        mean, logvar = codec.moments(images.to(run.device)).chunk(2, dim=1)
        return mean, None if codec.deterministic else (logvar / 2).exp()

    data.store.write(path, dataset, encode_images=encode_images, encode_texts=encoder and encoder.encode,
                     empty=None if encoder is None else encoder.empty, identity=pipeline.identity(codec, encoder),
                     dtype=config.features.get("dtype", "float16"), flips=flips, batch_size=batch_size, rank=run.rank,
                     world=run.world, workers=config.train.get("workers", 0) if "train" in config else 0,
                     barrier=run.barrier, about={"command": shlex.join(sys.argv), "dataset": config.dataset.to_dict(),
                                                 "codec": config.codec.to_dict(),
                                                 "encoder": config.encoder.to_dict() if encoder is not None else {}})
    rate = run.gather_rows(torch.tensor([latents])).sum().item() / (time.perf_counter() - start)
    if run.is_main:
        print(f"{path}: {len(dataset):,} images; " + (f"{rate:.1f} latents/s" if rate else "it was finished before"))


def _report_cut(run, dataset, encoder, path):
    """Say, before the work begins, which texts do not fit into the encoder's window."""
    if dataset.captions is None:
        raise ValueError(f"{path}: config.encoder is {type(encoder).__name__}, but the data have no texts: give a column "
                         "'text' or config.dataset.captions, or leave out config.encoder")
    if run.is_main:
        captions = ([text] if isinstance(text, str) else text for text in dataset.captions)
        cut = encoder.cut(list(dict.fromkeys(chain.from_iterable(captions))))
        print(f"{path}: {cut or 'every text fits the encoder'}", flush=True)


def _check(config, batch_size):
    if not ("features" in config and config.features.path):
        raise ValueError("config.features.path is missing: the folder of the features, for example assets/datasets/features")
    if batch_size < 1:
        raise ValueError(f"--batch_size={batch_size}: expected at least 1")
    if config.dataset.get("crop", "center") == "random" or config.dataset.get("random_vflip", False):
        raise ValueError("features are made once: config.dataset.crop='random' and random_vflip=True are only for training "
                         "on images; of augmentations, a store keeps random_flip")


if __name__ == "__main__":
    cli.main(extract, split=("", "the one split to extract ('all' for all images); by default that of config.dataset and "
                                 "config.train.validation_split"),
             batch_size=(64, "images, or texts, per call of codec or encoder"))
