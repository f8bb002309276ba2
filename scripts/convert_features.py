"""Pack features that U-ViT or VAP-Diffusion published, one .npy per item, into a feature store; once.

    python scripts/convert_features.py --path=assets/datasets/imagenet256_npy \\
        --output=assets/datasets/imagenet256_features/train
    python scripts/convert_features.py --path=assets/datasets/coco256_npy --split=train \\
        --output=assets/datasets/mscoco256_features/train

A conversion that was stopped goes on. Pickles in the files are read, but nothing in them is run. Where the images are at
hand, too, classes must have the names that they have there: for ImageNet --class_names=$(ls ImageNet/train | paste -sd,),
which a finished store takes, too.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data  # noqa: E402
from libs.data import published_features  # noqa: E402

flags.DEFINE_string("path", None, "folder of the .npy files, or of the splits", required=True)
flags.DEFINE_string("output", None, "folder of the store: <config.features.path>/<split, or all>", required=True)
flags.DEFINE_string("split", "", "folder below --path, such as train")
flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "type of what is stored")
flags.DEFINE_bool("mirrored", True, "without texts: 256 images are followed by their 256 mirrored copies, as U-ViT extracts")
flags.DEFINE_integer("classes", 0, "number of classes; 0: the highest label and one", lower_bound=0)
flags.DEFINE_list("class_names", [], "a,b,c: names of the classes, in the order of the labels; by default 0,1,2")


def main(argv):
    options = {name: flags.FLAGS[name].value for name in ("path", "output", "split", "dtype", "mirrored", "classes",
                                                          "class_names")}
    published_features.convert(**options)
    features = data.Features(options["output"])
    print(f"{options['output']}: {len(features):,} images of {features.shape}, {len(features.classes)} classes"
          + (f", texts {features.text_shape}" if features.text_shape else ""))


if __name__ == "__main__":
    cli.run(main)
