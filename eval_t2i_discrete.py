"""Evaluate a network trained by train_t2i_discrete.py: images from descriptions, scores, agreement with the descriptions.

    accelerate launch --multi_gpu --num_processes 2 --mixed_precision fp16 eval_t2i_discrete.py \
        --config=configs/COT_ISIC256_uvit_text_label.py --workdir=workdir/isic
    python eval_t2i_discrete.py --workdir=workdir/demo --config.sample.prompts=unseen

`config.sample.prompts` says where descriptions come from: 'bank' (each class's own training captions), 'unseen' (attributes in
combinations that no caption of the class has), or a split of the data such as 'test'. See eval.py for what is written where.
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
