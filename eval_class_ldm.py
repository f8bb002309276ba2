"""Evaluate a network trained by train_class_ldm.py. See eval.py for what is written where.

    python eval_class_ldm.py --workdir=workdir/ldm
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 eval_class_ldm.py --workdir=workdir/ldm
    python eval_class_ldm.py --config=configs/folder256_unet_label.py --config.dataset.path=/path/to/images \
        --nnet_path=ldm_checkpoints/checkpoint_best.pt --workdir=workdir/original
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
