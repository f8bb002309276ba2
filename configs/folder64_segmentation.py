"""Your own pairs of images and masks at 64x64: what synthetic ones are worth to a segmentation network. Ten seconds a training.

    python sample.py --workdir=workdir/controlnet --n_samples=500 --config.sample.path=synthetic
    python eval_downstream.py --config=configs/folder64_segmentation.py --config.dataset.path=/path/to/pairs \
        --config.dataset.mask_values="(0,1,2)" --config.synthetic.path=synthetic --workdir=workdir/segmentation

21 trainings: 10 and 100 % of the real pairs, alone and with synthetic ones, and synthetic ones alone, over three seeds. A
synthetic image's truth is the mask that it was asked for, in the values of the real ones. Without --mask_path, sample.py asks for
masks of training images, as it should here: masks of the test split would tell the network what it is tested on. Labels are not
needed; where there are some, fractions are drawn in every class. The test split is the one the data name; see
configs/folder64_downstream.py for data without one.
"""

from configs.common import adamw, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=300, batch_size=8, balanced=False, mixed_precision="auto", label_smoothing=0.0, random_flip=True,
                     random_vflip=True, random_shift=4, threads=1)
    config.optimizer = adamw(5e-3, betas=(0.9, 0.999), weight_decay=0.01)
    config.lr_scheduler = d(name="cosine", warmup_steps=30)
    # the U-Net of libs/metrics/segmenter.py; size: side that it looks at, 0 as the images are; width: its channels
    config.nnet = d(name="small", weights="", size=0, width=16)
    # mask_values: what the classes are in the files, the background first; () takes grey levels above one half for the foreground
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.0, label_column="label",
                       mask_column="mask_file_name", mask_values=(), mask_names=(), group_column="", weight_column="",
                       drop_classes=(), window=(), upscale=False)
    config.test = d(path="")
    config.synthetic = d(path="", label_column="label", mask_column="mask_file_name", split="", upscale=False)
    config.study = d(task="segmentation", fractions=(0.1, 1.0), ratios=(1.0,), with_all=True, seeds=(0, 1, 2), test_split="test",
                     shared="error", bootstrap=1_000)
    return config
