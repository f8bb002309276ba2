"""Train a small classifier on one's own labelled images, as the feature network of scores named `..._classifier-<data>`.

    python scripts/train_feature_network.py --config=configs/folder64_uvit_label.py --config.dataset.path=/path/to/images

Evaluation does this by itself where config.metrics.features has 'classifier'; here it is done beforehand, or for use
elsewhere: config.metrics.features takes the folder. Prints the folder and how well held-out images are recognised.
Its Fréchet distance is of the kind of Med-Art's KFD and HFD; a larger backbone trained elsewhere is 'timm:<model>@<file>'.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data, evaluation  # noqa: E402
from libs.metrics import load_classifier  # noqa: E402


def train(config):
    dataset = data.get(**config.dataset)
    data.preflight(dataset)
    folder = evaluation.feature_network(dataset, seed=config.seed, flip=config.dataset.get("random_flip", False),
                                        device="cuda" if torch.cuda.is_available() else "cpu")
    report = load_classifier(folder).report
    print(f"{folder}: {100 * report['accuracy']:.1f} % of {report['held_out']} held-out images recognised")
    for name, accuracy in zip(report["classes"], report["accuracy_per_class"]):
        print(f"  {name}: " + ("no image held out" if accuracy is None else f"{100 * accuracy:.1f} %"))


if __name__ == "__main__":
    cli.main(train)
