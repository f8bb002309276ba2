"""Drawn lesions 32x32: what synthetic ones are worth to a classifier. The study takes two minutes on two CPU cores.

    python train_guided_diffusion.py --config=configs/phantom32_adm.py --workdir=workdir/adm
    python sample.py --workdir=workdir/adm --label=all --n_samples=250 --layout=classes --config.sample.path=workdir/stage1
    torchrun --nproc_per_node=2 eval_downstream.py --config=configs/phantom32_downstream.py \
        --config.synthetic.path=workdir/stage1 --workdir=workdir/downstream

The 400 real images are the first of the 4,000 that configs/phantom32_adm.py trains on; a generator trained on those knows
more than these classifiers see, and the page says so. The test images chose no checkpoint: trainings are validated on 'val'.
"""

from configs.common import adamw, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=300, batch_size=32, balanced=True, mixed_precision="", label_smoothing=0.0, random_flip=True,
                     random_vflip=True, random_shift=0, threads=1)
    config.optimizer = adamw(3e-3, betas=(0.9, 0.999), weight_decay=0.05)
    config.lr_scheduler = d(name="cosine", warmup_steps=30)
    config.nnet = d(name="small", weights="", size=0, width=24)
    config.dataset = d(name="phantoms", resolution=32, size=400, seed=0, split="train")
    config.test = d(size=1_000)
    config.synthetic = d(path="", label_column="label", split="", upscale=False)
    config.study = d(fractions=(0.02, 0.1, 1.0), ratios=(0.5, 1.0, 2.0), with_all=True, seeds=(0, 1, 2), test_split="test",
                     shared="error", bootstrap=1_000)
    return config
