"""Evaluate a network trained by train_controlnet.py: image quality, and whether images follow the masks they were made for.

    python eval_controlnet.py --workdir=workdir/controlnet
    python eval_controlnet.py --workdir=workdir/controlnet --config.sample.masks=val    # masks of another split

Every image is asked for with mask and class of one real image. A small network that segments the real images, trained on the
training pairs once, segments it again; `dice_<class>` is the overlap 2 |A and B| / (|A| + |B|) of the mask asked for with the
one obtained, `dice` its mean over the classes but the background, with 95 % intervals over images, for all and for each image
class. The same of real pairs that it was not trained on is stated beside it: no more can be hoped for. Fréchet distance, KID,
precision and recall are those of every evaluation. See eval.py for what is written where.
"""

from libs import cli, evaluation


def evaluate(config, workdir, nnet_path, seed, name, npz=""):
    scores = evaluation.evaluate_run(config, workdir, nnet_path, seed, name, npz)
    if scores:
        print(scores)


if __name__ == "__main__":
    cli.main(evaluate, **evaluation.FLAGS)
