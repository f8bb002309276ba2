"""Drawn lesions 32x32 of four classes, a small UNet of diffusers with class embeddings, in pixels: minutes on two CPU cores.

    python train_class_ldm.py --config=configs/phantom32_unet_label.py --workdir=workdir/phantom32_ldm
    python sample.py --workdir=workdir/phantom32_ldm --label=all

Then ControlNet from masks on its weights: configs/phantom32_controlnet.py.
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=1_500, batch_size=32, accumulation=1, mixed_precision="auto", compile=False,
                     workers=0, balanced=False, weighting="clamped_snr", p_uncond=0.1, ema_rate=0.995, ema_warmup=True,
                     grad_clip=1.0, init="", init_without=(), keep_checkpoints=2, log_interval=20, preview_interval=500,
                     eval_interval=0, save_interval=500, validation_interval=250, validation_size=512, validation_split="val",
                     best_metric="validation_loss")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="linear", warmup_steps=100)
    # num_classes = 0: as many as the data have; attention_head_dim: heads, as in diffusers
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="unet_label", sample_size=0, in_channels=0, out_channels=0, block_out_channels=(32, 64, 96),
                    layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64,
                    attention_head_dim=4, norm_num_groups=16, num_classes=0, adaptive_norm=True, dropout=0.0,
                    use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="v", clip=False)
    config.codec = d(name="pixels")
    config.features = d(path="", dtype="float16")
    config.dataset = d(name="phantoms", resolution=32, size=4_000, seed=0, split="train", random_flip=True)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=1_000,
                      mini_batch_size=100, guidance=1.5, labels="balanced", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
