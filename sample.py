"""Make images with a trained network, one PNG each, a grid and a table of what was asked for.

    python sample.py --workdir=workdir/phantom32 --label=all
    python sample.py --workdir=workdir/phantom32_adm --counts=nevus=45,melanoma=372 --layout=classes
    python sample.py --workdir=workdir/demo --prompt="a large red irregular lesion" --label=angioma --n_samples=8
    python sample.py --workdir=workdir/demo --input_path=prompts.txt --config.sample.path=lesions
    python sample.py --config=configs/cifar10_uvit_small.py --nnet_path=cifar10_uvit_small.pth --n_samples=64

A network that takes text is asked with --prompt, with the lines of --input_path (a .csv may have columns prompt,label), or,
without either, with descriptions of the class from the run's prompt bank. Image i of a seed is the same for any number of
processes, and for any batch size but for rounding. The same command goes on where it was stopped; another one in the same folder
takes its place. The folder is a data set: metadata.csv says what each image is.
"""

import logging
import re
from pathlib import Path

import torch

from libs import cli, encoders, engine, evaluation, pipeline


def sample(config, workdir, nnet_path, label, prompt, input_path, counts, n_samples, layout, seed):
    run = engine.start(config, workdir, claim=False)
    asked = [(prompt, label)] if prompt else pipeline.read_prompts(input_path) if input_path else []
    if layout not in ("flat", "classes"):
        raise ValueError(f"--layout={layout}: known are flat, classes")
    if n_samples < 1:
        raise ValueError(f"--n_samples={n_samples}: at least 1 image is needed")
    if counts and (asked or label):
        raise ValueError("--counts stands for --label and --n_samples, without prompts: give one or the other")
    trained = evaluation.open_trained(run, config, workdir, nnet_path, with_data=False, with_prompts=not asked)
    sampler, classes = trained.sampler, trained.classes
    labelled = "label" in sampler.null
    if asked and "text" not in sampler.null:
        raise ValueError(f"{'--prompt' if prompt else '--input_path'}: this network takes no text, only --label")
    if not labelled and (counts or layout == "classes"):
        raise ValueError(f"{'--counts' if counts else '--layout=classes'}: this network makes no classes")
    labels, texts = (pipeline.count_labels(counts, classes), []) if counts else pipeline.requested(
        asked, label, classes, n_samples, labelled=labelled, bank=getattr(trained.prompts, "bank", None))
    cond = {"label": torch.tensor(labels)} if labelled else {}
    if texts:
        cond["text"] = encoders.Prompts(trained.encoder, texts)
        if run.is_main and trained.encoder.cut(sorted(set(texts))):
            logging.warning(trained.encoder.cut(sorted(set(texts))))
    elif "text" in sampler.null:
        cond["text"] = pipeline.described(trained.prompts).draw(cond.get("label"), len(labels), seed=seed)
        texts = cond["text"].texts
    # Each request has a folder of its own, so that one does not overwrite the other.
    guided = f"{pipeline.measure_name(config.sample.gradient.measure)}{config.sample.gradient.scale:g}" if sampler.guides else ""
    words = re.sub(r"\W+", "_", prompt or Path(input_path).stem or counts or label)[:60].strip("_")
    folder = Path(config.sample.path or Path(workdir) / "_".join(filter(None, ["images", words, guided, f"seed{seed}"])))
    weights = engine.weights_hash(trained.source, ema_rate=config.sample.get("ema_rate", 0.0))
    known = {"seed": seed, "nnet": trained.source, "step": trained.step, "sha256": weights, "sampler": sampler.describe(),
             "precision": run.accelerator.mixed_precision}
    if sampler.guides:
        known["classifier"] = engine.weights_hash(sampler.classifier.source)

    def facts(index):
        return {"prompt": texts[index] if texts else "", "label": classes[labels[index]] if labelled else "", "index": index,
                **known}

    def name(index):
        kind = facts(index)["label"].replace("/", "_")
        return f"{kind}/{index:06d}.png" if layout == "classes" else f"{index:06d}_{kind}".rstrip("_") + ".png"

    for each in {(folder / name(index)).parent for index in range(len(labels))}:
        each.mkdir(parents=True, exist_ok=True)
    there = {index for index in range(len(labels)) if evaluation.is_there(folder / name(index), facts(index))}
    listed = run.from_main(evaluation.listed_samples(folder) if run.is_main else None)
    run.barrier()
    if run.is_main and len(there) < len(labels):
        (folder / "metadata.csv").unlink(missing_ok=True)  # it may tell of another request; a stopped one has none
    for indices, images in evaluation.generate(run, sampler, cond, len(labels), seed=seed, without=there,
                                               batch_size=config.sample.mini_batch_size):
        for index, image in zip(indices, images):
            evaluation.save_png(folder / name(index), image, **facts(index))
    run.barrier()
    if run.is_main:
        rows = [{"file_name": name(index), **facts(index)} for index in range(len(labels))]
        evaluation.finish_samples(folder, rows, before=listed)
        print(f"{len(labels)} images in {folder}")
    run.finish()


if __name__ == "__main__":
    cli.main(sample, label=("", "a class name, or 'all'; by default classes in turn"),
             prompt=("", "a description, for networks that take text"),
             input_path=("", "a file of descriptions, one in each line, or a .csv with columns prompt and label"),
             counts=("", "so many of each class: nevus=45,melanoma=372"),
             layout=("flat", "flat, or classes for a folder of each class"),
             n_samples=(16, "images; of each class with --label=all, of each description with --prompt or --input_path"),
             seed=(0, "seed of the images"))
