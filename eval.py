"""Evaluate a network trained by train.py: exactly N images over all processes, scores overall and per class, intervals.

    python eval.py --config=configs/phantom32_uvit_label.py --workdir=workdir/demo
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision fp16 eval.py \
        --config=configs/cifar10_uvit_small.py --nnet_path=cifar10_uvit_small.pth

Writes <workdir>/eval/<name>/scores.json and what the report shows. `--config.sample.path=DIR` keeps the images,
`--config.sample.npz=FILE` an archive for the ADM suite.
"""

import logging
from pathlib import Path

from libs import cli, data, engine, evaluation, pipeline


def evaluate(config, workdir, nnet_path, seed, name):
    run = engine.start(config, workdir, claim=False)
    weights, step, source = engine.load_weights(nnet_path or workdir)
    without_data = Path(config.metrics.fid_stat).is_file() and not Path(config.dataset.get("path", ".")).exists()
    if without_data:
        logging.warning("no data at %s: only what %s allows is scored, labels are drawn with equal probability",
                        config.dataset.path, config.metrics.fid_stat)
    dataset = None if without_data else data.get(**config.dataset)
    trained = engine.read_json(Path(workdir) / "classes.json", [])
    classes = dataset.classes if dataset else trained or pipeline.classes_without_data(config)
    if config.train.mode == "cond" and trained and trained != classes:
        raise ValueError(f"the network was trained on the classes {trained}, the data have {classes}; "
                         "give the data of the run, or config.dataset.classes")
    sampler = pipeline.load(config, weights, classes=classes, device=run.device)
    result = evaluation.evaluate(run, sampler, config, dataset, n=config.sample.n_samples, seed=seed, step=step,
                                 nnet=source, name=name or f"{source.stem}_{config.sample.n_samples}")
    if run.is_main:
        print(evaluation.table(result))
    run.finish()


if __name__ == "__main__":
    cli.main(evaluate, seed=(1, "seed of the images; another than that of the evaluations during training"),
             name=("", "name of the result folder; by default <checkpoint>_<number of images>"))
