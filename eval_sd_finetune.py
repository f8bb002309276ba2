"""Evaluate a network trained by train_sd_finetune.py: images from descriptions, and their scores.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 eval_sd_finetune.py --workdir=workdir/sd
    python eval_sd_finetune.py --workdir=workdir/sd --config.sample.prompts=test --config.sample.guidance=4.

`config.sample.prompts` says where descriptions come from: 'bank' (the training captions), or a split of the data such as 'test',
which a run has not seen where it was trained with `--config.dataset.split=train`.
Weights are the averaged ones of the best checkpoint; `--nnet_path` takes another checkpoint, or a bare `unet/` folder. See
eval.py for what is written where.
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
