"""Make images with a trained network, one PNG each, a grid and a table of what was asked for.

    python sample.py --workdir=workdir/phantom32 --label=all
    python sample.py --workdir=workdir/demo --prompt="a large red irregular lesion" --label=angioma --n_samples=8
    python sample.py --workdir=workdir/demo --input_path=prompts.txt --config.sample.path=lesions
    python sample.py --config=configs/cifar10_uvit_small.py --nnet_path=cifar10_uvit_small.pth --n_samples=64

A network that takes text is asked with --prompt, with the lines of --input_path (a .csv may have columns prompt,label), or,
without either, with descriptions of the class from the run's prompt bank. Image i of a seed is the same for any batch size and
number of processes.
"""

import csv
import logging
import re
from pathlib import Path

import torch
from PIL import Image

from libs import cli, encoders, engine, evaluation, pipeline


def sample(config, workdir, nnet_path, label, prompt, input_path, n_samples, seed):
    run = engine.start(config, workdir, claim=False)
    asked = [(prompt, label)] if prompt else pipeline.read_prompts(input_path) if input_path else []
    trained = evaluation.open_trained(run, config, workdir, nnet_path, with_data=False, with_prompts=not asked)
    sampler, classes = trained.sampler, trained.classes
    if asked and "text" not in sampler.null:
        raise ValueError(f"{'--prompt' if prompt else '--input_path'}: this network takes no text, only --label")
    labels, texts = pipeline.requested(asked, label, classes, n_samples, labelled="label" in sampler.null,
                                       bank=getattr(trained.prompts, "bank", None))
    cond = {"label": torch.tensor(labels)} if "label" in sampler.null else {}
    if texts:
        cond["text"] = encoders.Prompts(trained.encoder, texts)
        if run.is_main and trained.encoder.cut(sorted(set(texts))):
            logging.warning(trained.encoder.cut(sorted(set(texts))))
    elif "text" in sampler.null:
        cond["text"] = pipeline.described(trained.prompts).draw(cond.get("label"), len(labels), seed=seed)
        texts = cond["text"].texts
    # Each request has a folder of its own, so that one does not overwrite the other.
    words = re.sub(r"\W+", "_", prompt or Path(input_path).stem or label)[:60].strip("_")
    folder = Path(config.sample.path or Path(workdir) / "_".join(filter(None, ["images", words, f"seed{seed}"])))
    folder.mkdir(parents=True, exist_ok=True)
    known = {"seed": seed, "nnet": trained.source, "step": trained.step, "sha256": engine.weights_hash(trained.source),
             "sampler": sampler.describe()}

    def facts(index):
        return {"prompt": texts[index] if texts else "", "label": classes[labels[index]] if "label" in sampler.null else "",
                "index": index, **known}

    def name(index):
        return f"{index:06d}_{facts(index)['label']}".rstrip("_").replace("/", "_") + ".png"

    shown = []
    for indices, images in evaluation.generate(run, sampler, cond, len(labels), seed=seed,
                                               batch_size=config.sample.mini_batch_size):
        for index, image in zip(indices, images):
            evaluation.save_png(folder / name(index), image, **facts(index))
            shown += [(index, image)] if index < 64 else []
    order = run.gather_rows(torch.tensor([index for index, _ in shown], dtype=torch.int64)).argsort()
    images = run.gather_rows(torch.stack([image for _, image in shown]) if shown else
                             torch.empty(0, *sampler.image_shape, dtype=torch.uint8))[order]
    if run.is_main:
        Image.fromarray(pipeline.grid(images, 8)).save(folder / "grid.png")
        with open(folder / "samples.csv", "w", newline="") as stream:
            table = csv.DictWriter(stream, ["file_name", *facts(0)])
            table.writeheader()
            table.writerows({"file_name": name(index), **facts(index)} for index in range(len(labels)))
        print(f"{len(labels)} images in {folder}")
    run.finish()


if __name__ == "__main__":
    cli.main(sample, label=("", "a class name, or 'all'; by default classes in turn"),
             prompt=("", "a description, for networks that take text"),
             input_path=("", "a file of descriptions, one in each line, or a .csv with columns prompt and label"),
             n_samples=(16, "images; of each class with --label=all, of each description with --prompt or --input_path"),
             seed=(0, "seed of the images"))
