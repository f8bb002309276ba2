"""Evaluate a network trained by train_guided_diffusion.py: exactly N images over all processes, scores with intervals.

    python eval_guided_diffusion.py --config=configs/phantom32_adm.py --workdir=workdir/phantom32_adm
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision fp16 eval_guided_diffusion.py \
        --config=configs/imagenet256_adm.py --nnet_path=256x256_diffusion.pt

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
