"""Make images with a trained network, one PNG each, a grid and a table of what was asked for.

    python sample.py --workdir=workdir/demo --label=all
    python sample.py --workdir=workdir/demo --label=melanoma --n_samples=32 --seed=7 --config.sample.path=lesions
    python sample.py --config=configs/cifar10_uvit_small.py --nnet_path=cifar10_uvit_small.pth --n_samples=64

Image i of a seed is the same for any batch size and number of processes.
"""

import csv
from pathlib import Path

import torch
from PIL import Image

from libs import cli, engine, evaluation, pipeline


def sample(config, workdir, nnet_path, label, n_samples, seed):
    run = engine.start(config, workdir, claim=False)
    weights, step, source = engine.load_weights(nnet_path or workdir)
    classes = engine.read_json(Path(workdir) / "classes.json", None) or pipeline.classes_without_data(config)
    sampler = pipeline.load(config, weights, classes=classes, device=run.device)
    labels = pipeline.choose_labels(label, classes, n_samples, conditional=bool(sampler.null))
    cond = {"label": torch.tensor(labels)} if sampler.null else {}
    folder = Path(config.sample.path or Path(workdir) / f"images_seed{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    known = {"seed": seed, "nnet": source, "step": step, "sha256": engine.weights_hash(source),
             "sampler": sampler.describe()}

    def class_name(index):
        return classes[labels[index]] if sampler.null else ""

    def name(index):
        return f"{index:06d}_{class_name(index)}".rstrip("_").replace("/", "_") + ".png"

    shown = []
    for indices, images in evaluation.generate(run, sampler, cond, len(labels), seed=seed,
                                               batch_size=config.sample.mini_batch_size):
        for index, image in zip(indices, images):
            evaluation.save_png(folder / name(index), image, index=index, label=class_name(index), **known)
            shown += [(index, image)] if index < 64 else []
    order = run.gather_rows(torch.tensor([index for index, _ in shown], dtype=torch.int64)).argsort()
    images = run.gather_rows(torch.stack([image for _, image in shown]) if shown else
                             torch.empty(0, *sampler.image_shape, dtype=torch.uint8))[order]
    if run.is_main:
        Image.fromarray(pipeline.grid(images, 8)).save(folder / "grid.png")
        with open(folder / "samples.csv", "w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["file_name", "label", "index", *known])
            for index in range(len(labels)):
                table.writerow([name(index), class_name(index), index, *known.values()])
        print(f"{len(labels)} images in {folder}")
    run.finish()


if __name__ == "__main__":
    cli.main(sample, label=("", "a class name, or 'all'; by default classes in turn"),
             n_samples=(16, "images; of each class with --label=all"), seed=(0, "seed of the images"))
