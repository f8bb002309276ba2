"""Features of a data set: the latents of its images and the states of its texts, packed once for all training runs.

    python scripts/extract_feature.py --config=configs/COT_ISIC256_uvit_text_label.py --config.dataset.path=/path/to/isic2018
    accelerate launch --multi_gpu --num_processes 4 scripts/extract_feature.py --config=configs/imagenet256_uvit_huge.py

Writes the store <config.features.path>/<split> of config.dataset, and of config.train.validation_split where there is one.
An extraction that was stopped goes on, and a store of other images, another codec or another encoder is not touched: the
message says what differs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, engine, extraction, pipeline  # noqa: E402


def extract(config, split, batch_size):
    if not ("features" in config and config.features.path):
        raise ValueError("config.features.path is missing: the folder of the features, for example assets/datasets/features")
    if config.features.path == extraction.AUTO:
        raise ValueError("config.features.path is 'auto': the training makes these features itself, in its run folder; to make "
                         "them beforehand, for several trainings, give a folder, for example assets/datasets/features")
    if batch_size < 1:
        raise ValueError(f"--batch_size={batch_size}: expected at least 1")
    extraction.check(config)
    run = engine.start(config, "", claim=False)
    codec = run.main_first(lambda: pipeline.image_codec(config, run.device))
    changes = config.get("nnet", {}).get("train_text_encoder", False)  # what it says of a text cannot be stored
    encoder = None if changes else run.main_first(lambda: pipeline.text_encoder(config, run.device))
    for name in ["" if split == "all" else split] if split else extraction.splits(config):
        extraction.make(run, config, name, codec, encoder, batch_size=batch_size, say=lambda text: print(text, flush=True))
    run.finish()


if __name__ == "__main__":
    cli.main(extract, split=("", "the one split to extract ('all' for all images); by default that of config.dataset and "
                                 "config.train.validation_split"),
             batch_size=(64, "images, or texts, per call of codec or encoder"))
