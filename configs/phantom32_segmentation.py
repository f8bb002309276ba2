"""Drawn lesions 32x32: what synthetic pairs are worth to a segmentation network. The study takes three minutes on two CPU cores.

    python sample.py --workdir=workdir/phantom32_controlnet --label=all --n_samples=100 --config.sample.path=workdir/pairs
    torchrun --nproc_per_node=2 eval_downstream.py --config=configs/phantom32_segmentation.py \
        --config.synthetic.path=workdir/pairs --workdir=workdir/segmentation

Without --mask_path, sample.py asks for masks of training images. The 400 real pairs are the first of the 4,000 that
configs/phantom32_controlnet.py trains on; the page says what that means.
"""

from configs.common import adamw, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=300, batch_size=32, balanced=False, mixed_precision="", label_smoothing=0.0, random_flip=True,
                     random_vflip=True, random_shift=0, threads=1)
    config.optimizer = adamw(5e-3, betas=(0.9, 0.999), weight_decay=0.01)
    config.lr_scheduler = d(name="cosine", warmup_steps=30)
    config.nnet = d(name="small", weights="", size=0, width=16)
    config.dataset = d(name="phantoms", resolution=32, size=400, seed=0, split="train", masks=True)
    config.test = d(size=1_000)
    config.synthetic = d(path="", label_column="label", mask_column="mask_file_name", split="", upscale=False)
    config.study = d(task="segmentation", fractions=(0.02, 0.1, 1.0), ratios=(1.0,), with_all=True, seeds=(0, 1, 2),
                     test_split="test", shared="error", bootstrap=1_000)
    return config
