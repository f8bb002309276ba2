"""Your own images at 64x64 with labels, a small UNet of diffusers with class embeddings, in pixels: few images, or one small GPU.

Predicts v, with the weights of the noise levels clamped, and lets time and class scale and shift every block (adaptive_norm), in
place of the published network and its eps (configs/folder256_unet_label.py).

    python train_class_ldm.py --config=configs/folder64_unet_label.py --config.dataset.path=/path/to/images --workdir=workdir/ldm
    python sample.py --workdir=workdir/ldm --label=all --n_samples=100 --layout=classes

Then ControlNet from masks on its weights: configs/folder64_controlnet.py.
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=20_000, batch_size=32, accumulation=1, mixed_precision="auto", compile=False,
                     workers=4, balanced=False, weighting="clamped_snr", p_uncond=0.1, ema_rate=0.999, ema_warmup=True,
                     grad_clip=1.0, init="", init_without=(), keep_checkpoints=3, log_interval=50, preview_interval=1_000,
                     eval_interval=0, save_interval=1_000, validation_interval=1_000, validation_size=512,
                     validation_split="val", best_metric="validation_loss")
    config.optimizer = adamw(5e-4, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="linear", warmup_steps=200)
    # num_classes = 0: as many as the data have; attention_head_dim: heads, as in diffusers
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="unet_label", sample_size=0, in_channels=0, out_channels=0, block_out_channels=(64, 128, 128, 192),
                    layers_per_block=1,
                    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
                    cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16, num_classes=0, adaptive_norm=True,
                    dropout=0.1, use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="v", clip=False)
    config.codec = d(name="pixels")
    config.features = d(path="", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, crop="center",
                       random_flip=False, label_column="label", group_column="", weight_column="weight", classes=(),
                       drop_classes=(), window=(), upscale=False)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=10_000,
                      mini_batch_size=50, guidance=1.5, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=1_000, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
