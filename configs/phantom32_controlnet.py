"""Drawn lesions 32x32 that follow a mask and a class: a ControlNet on the UNet of configs/phantom32_unet_label.py.

    python train_controlnet.py --config=configs/phantom32_controlnet.py --config.train.ldm=workdir/phantom32_ldm \
        --workdir=workdir/phantom32_controlnet
    python eval_controlnet.py --workdir=workdir/phantom32_controlnet
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", ldm="", n_steps=1_000, batch_size=32, accumulation=1, mixed_precision="auto", compile=False,
                     workers=0, balanced=False, weighting="clamped_snr", p_uncond=0.1, ema_rate=0.995, ema_warmup=True,
                     grad_clip=1.0, keep_checkpoints=2, log_interval=20, preview_interval=250, eval_interval=0,
                     save_interval=250, validation_interval=250, validation_size=512, validation_split="val",
                     best_metric="validation_loss")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="linear", warmup_steps=100)
    # conditioning_channels = 0: those of the masks; one width more than the codec halves images
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="controlnet", sample_size=0, in_channels=0, out_channels=0, block_out_channels=(32, 64, 96),
                    layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64,
                    attention_head_dim=4, norm_num_groups=16, num_classes=0, adaptive_norm=True, dropout=0.0,
                    use_checkpoint=False, conditioning_channels=0, conditioning_embedding_out_channels=(16,),
                    freeze_unet=True, legacy=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="v", clip=False)
    config.codec = d(name="pixels")
    config.features = d(path="", dtype="float16")
    config.dataset = d(name="phantoms", resolution=32, size=4_000, seed=0, split="train", random_flip=True, masks=True)
    # masks: the split whose masks are asked for; '' that of config.dataset
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=1_000,
                      mini_batch_size=100, guidance=1.5, controlnet_scale=1.0, labels="balanced", masks="test", path="",
                      npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
