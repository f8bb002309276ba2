"""Evaluate a network trained by train_ldm.py: latents in continuous time. See eval.py for what is written where.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 eval_ldm.py \
        --config=configs/imagenet256_uvit_large.py --nnet_path=imagenet256_uvit_large.pth

Without the images of ImageNet, assets/fid_stats/fid_stats_imagenet256_guided_diffusion.npz stands in for them.
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
