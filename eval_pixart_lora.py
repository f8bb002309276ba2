"""Evaluate a network trained by train_pixart_lora.py: images from descriptions, and their scores.

    python eval_pixart_lora.py --workdir=workdir/medart
    python eval_pixart_lora.py --workdir=workdir/medart --config.metrics.features='("inception", "classifier:FOLDER")'

Frechet distances are those in Inception (FID) and in a network of the domain, Med-Art's KFD and HFD: 'classifier' trains one on
the data of the run where they have labels, FOLDER is one that scripts/train_feature_network.py has trained.
`config.sample.prompts` says where descriptions come from: 'bank' (the training captions), or a split of the data such as 'test'.
Weights are the averaged ones of the best checkpoint; `--nnet_path` takes another checkpoint, or a folder of LoRA as Med-Art writes
it. See eval.py for what is written where.
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
