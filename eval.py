"""Evaluate a network trained by train.py: exactly N images over all processes, scores overall and per class, intervals.

    python eval.py --config=configs/phantom32_uvit_label.py --workdir=workdir/phantom32
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision fp16 eval.py \
        --config=configs/cifar10_uvit_small.py --nnet_path=cifar10_uvit_small.pth

Writes <workdir>/eval/<name>/scores.json and what the report shows. `--config.sample.path=DIR` keeps the images, `--npz=FILE` an
archive for the ADM suite, also where there are no real images to score them by.
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
