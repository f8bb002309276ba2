"""Your own images at 64x64 with labels, a small guided-diffusion UNet for few images or one small GPU.

Predicts v, with the weights of the noise levels clamped, in place of the published eps; bridges and all guidance work as with
configs/folder128_adm.py.

    python train_guided_diffusion.py --config=configs/folder64_adm.py --config.dataset.path=/path/to/images --workdir=workdir/adm
    python sample.py --workdir=workdir/adm --label=all --n_samples=100 --layout=classes

The classifier for guidance: configs/folder64_adm_classifier.py.
"""

from configs.common import adamw, as_data, d, filtering, gradient, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=50_000, batch_size=64, accumulation=1, mixed_precision="auto",
                     fp16_scale_growth=0.0, compile=False, attention="auto", workers=4, balanced=False,
                     weighting="clamped_snr", rescale_learned_sigmas=True, use_kl=False, time_sampler="uniform", respacing="",
                     p_uncond=0.1, ema_rate=0.999, ema_warmup=True, more_ema_rates=(), grad_clip=1.0, init="",
                     init_without=(), keep_checkpoints=3, log_interval=50, preview_interval=2_500, eval_interval=10_000,
                     save_interval=2_500, validation_interval=2_500, validation_size=512, validation_split="val",
                     best_metric="frechet")
    config.optimizer = adamw(5e-4, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="linear", warmup_steps=200)
    # num_classes = 0: as many as the data have
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="adm_unet", image_size=0, in_channels=0, model_channels=64, out_channels=0, num_res_blocks=1,
                    attention_resolutions=(4, 8), dropout=0.1, channel_mult=(1, 2, 2, 3), num_classes=0, num_heads=4,
                    num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False,
                    use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="v", learned_var=True, clip=True)
    config.codec = d(name="pixels")
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, random_flip=False,
                       label_column="label", group_column="", weight_column="weight", drop_classes=(), window=())
    config.sample = d(algorithm="ddim", sample_steps=50, weights="average", spacing="stride", eta=0.0, n_samples=10_000,
                      mini_batch_size=50, guidance=1.5, gradient=gradient(), ema_rate=0.0, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=1_000, algorithm="ddim", sample_steps=25)
    return as_data(config)
