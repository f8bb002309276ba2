"""Drawn lesions 32x32 of four classes, a small guided-diffusion UNet: MGDM end to end in minutes on two CPU cores.

    python train_guided_diffusion.py --config=configs/phantom32_adm.py --workdir=workdir/phantom32_adm
    python train_classifier.py --config=configs/phantom32_adm_classifier.py --workdir=workdir/phantom32_classifier

then sample.py and sample_dual_bridge.py: README.md, "MGDM, step by step".
"""

from configs.common import adamw, as_data, d, filtering, gradient, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=1_500, batch_size=32, accumulation=1, mixed_precision="auto", fp16_scale_growth=0.0,
                     compile=False, attention="auto", workers=0, balanced=False, weighting="clamped_snr",
                     rescale_learned_sigmas=True, use_kl=False, time_sampler="uniform", respacing="", p_uncond=0.1,
                     ema_rate=0.995, ema_warmup=True, more_ema_rates=(), grad_clip=1.0, init="", init_without=(),
                     keep_checkpoints=2, log_interval=20, preview_interval=500, eval_interval=750, save_interval=500,
                     validation_interval=500, validation_size=512, validation_split="val", best_metric="frechet")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="linear", warmup_steps=100)
    # num_classes = 0: as many as the data have
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="adm_unet", image_size=0, in_channels=0, model_channels=32, out_channels=0, num_res_blocks=1,
                    attention_resolutions=(4,), dropout=0.0, channel_mult=(1, 2, 3), num_classes=0, num_heads=4,
                    num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False,
                    use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="v", learned_var=True, clip=True)
    config.codec = d(name="pixels")
    config.dataset = d(name="phantoms", resolution=32, size=4_000, seed=0, split="train", random_flip=True)
    config.sample = d(algorithm="ddim", sample_steps=50, weights="average", spacing="stride", eta=0.0, n_samples=1_000,
                      mini_batch_size=100, guidance=1.5, gradient=gradient(), ema_rate=0.0, labels="balanced", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="ddim", sample_steps=25)
    return as_data(config)
