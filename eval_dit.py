"""Evaluate a network trained by train_dit.py, or published weights of DiT. See eval.py for what is written where.

    python eval_dit.py --workdir=workdir/dit
    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 eval_dit.py --config=configs/imagenet256_dit_xl2.py \
        --nnet_path=DiT-XL-2-256x256.pt --workdir=workdir/dit_published --npz=samples.npz

--npz keeps exactly config.sample.n_samples images, uint8 (N, H, W, 3) under `arr_0`, for ADM's suite (scripts/adm_suite.py).
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
