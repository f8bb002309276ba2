"""Evaluate a network trained by train_ldm_discrete.py: latents in discrete time. See eval.py for what is written where.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 eval_ldm_discrete.py \
        --config=configs/imagenet256_uvit_huge.py --nnet_path=imagenet256_uvit_huge.pth
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
