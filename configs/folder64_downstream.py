"""Your own images at 64x64: what synthetic ones are worth to a classifier of them. Five seconds a training on one core.

    python eval_downstream.py --config=configs/folder64_downstream.py --config.dataset.path=/path/to/images \
        --config.synthetic.path=/path/to/synthetic/images

48 trainings: 1, 10 and 100 % of the real images, alone and with synthetic ones, and synthetic ones alone, over three seeds.
The test split is the one the data name, which the generator must not have seen. Where they have none, give
--config.dataset.holdout=0.2 --config.study.test_split=val here, and the same holdout to the generator's training; a classifier
that guided it then chose its checkpoint by these images (its validation_split), which a test split of its own avoids.
"""

from configs.common import adamw, d


def get_config():
    config = d()
    config.seed = 1234
    # threads: of each training on a processor; more processes are faster than more threads
    config.train = d(n_steps=300, batch_size=32, balanced=True, mixed_precision="auto", label_smoothing=0.0, random_flip=True,
                     random_vflip=False, random_shift=4, threads=1)
    config.optimizer = adamw(3e-3, betas=(0.9, 0.999), weight_decay=0.05)
    config.lr_scheduler = d(name="cosine", warmup_steps=30)
    # name: small, timm:<model> or torchvision:<model>; weights: '' random, published, or a file; size: side that it looks
    # at, 0 as the images are; width: of the network 'small'
    config.nnet = d(name="small", weights="", size=0, width=24)
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.0, label_column="label",
                       group_column="", weight_column="", drop_classes=(), window=(), upscale=False)
    config.test = d(path="")  # a folder of test images of its own (its split test_split); '' that of the real images
    config.synthetic = d(path="", label_column="label", split="", upscale=False)
    # ratios: synthetic images for each real one in use; with_all: all of them as well; shared: error, or drop, what
    # training and test images have in common
    config.study = d(fractions=(0.01, 0.1, 1.0), ratios=(0.5, 1.0, 2.0), with_all=True, seeds=(0, 1, 2), test_split="test",
                     shared="error", bootstrap=1_000)
    return config
