"""Your own images at 64x64 with labels: class folders, or a folder with metadata.csv. A class-conditional U-ViT-S/4.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train.py \
        --config=configs/folder64_uvit_label.py --config.dataset.path=/path/to/images

The first training on one's own data: README.md, "Your own images". Scores use Inception features where their weights
can be had, and always those of a small classifier trained on the same images.
"""

from configs.common import adamw, as_data, d, filtering, metrics, warm_up


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=100_000, batch_size=128, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", workers=4, balanced=False, weighting="clamped_snr", p_uncond=0.1, ema_rate=0.9999,
                     ema_warmup=True, grad_clip=1.0, init="", keep_checkpoints=3, log_interval=50, preview_interval=2_500,
                     eval_interval=10_000, save_interval=2_500, validation_interval=2_500, validation_size=512,
                     validation_split="val", best_metric="frechet")
    config.optimizer = adamw(2e-4, betas=(0.9, 0.99))
    config.lr_scheduler = warm_up(2_500)
    # num_classes = 0: as many as the data have, and the null class of classifier-free guidance
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="uvit", img_size=0, patch_size=4, in_chans=0, embed_dim=512, depth=12, num_heads=8,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, num_classes=0, use_checkpoint=False)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="x0", clip=True)
    config.codec = d(name="pixels")
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, random_flip=False,
                       label_column="label", group_column="", weight_column="weight", drop_classes=(), window=())
    config.sample = d(algorithm="dpmpp_2m", sample_steps=50, weights="average", n_samples=10_000, mini_batch_size=100,
                      guidance=1.5, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=1_000, algorithm="dpmpp_2m",
                             sample_steps=20)
    return as_data(config)
