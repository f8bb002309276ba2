"""Your own images at 128x128 with labels, guided-diffusion's UNet as MGDM trains it.

Luo et al., "Measurement Guidance in Diffusion Models: Insight from Medical Image Synthesis", TPAMI 2024; their paper's numbers
could not be had. Dropout 0.5, hybrid loss weighted by 1/sqrt(1 + SNR), trained and sampled on 250 of 1,000 steps.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_guided_diffusion.py \
        --config=configs/folder128_adm.py --config.dataset.path=/path/to/images --workdir=workdir/adm
    python sample.py --workdir=workdir/adm --label=all --n_samples=500 --layout=classes

Classifier and dual bridge: configs/folder128_adm_classifier.py, sample_dual_bridge.py. MGDM never mirrors less than half of the
images; here nothing is mirrored unless asked (--config.dataset.random_flip=True), as left and right may matter.
"""

from configs.common import adamw, as_data, d, filtering, gradient, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=100_000, batch_size=16, accumulation=1, mixed_precision="auto",
                     fp16_scale_growth=0.0, compile=False, attention="auto", workers=4, balanced=False, weighting="mgdm",
                     rescale_learned_sigmas=False, use_kl=False, time_sampler="uniform", respacing="ddim250", p_uncond=0.1,
                     ema_rate=0.9999, ema_warmup=True, more_ema_rates=(), grad_clip=0.0, init="", init_without=(),
                     keep_checkpoints=3, log_interval=10, preview_interval=2_500, eval_interval=10_000, save_interval=2_500,
                     validation_interval=2_500, validation_size=512, validation_split="val", best_metric="frechet")
    config.optimizer = adamw(1e-4, betas=(0.9, 0.999), weight_decay=1e-5)
    config.lr_scheduler = d(name="customized", warmup_steps=0)
    # num_classes = 0: as many as the data have
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="adm_unet", image_size=0, in_channels=0, model_channels=256, out_channels=0, num_res_blocks=2,
                    attention_resolutions=(4, 8, 16), dropout=0.5, channel_mult=(1, 1, 2, 3, 4), num_classes=0, num_heads=4,
                    num_head_channels=-1, use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False,
                    use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="eps", learned_var=True, clip=True)
    config.codec = d(name="pixels")
    config.dataset = d(name="folder", path="", resolution=128, channels=3, split="train", holdout=0.1, random_flip=False,
                       label_column="label", group_column="", weight_column="weight", drop_classes=(), window=())
    config.sample = d(algorithm="ddim", sample_steps=250, weights="average", spacing="stride", eta=0.0, n_samples=10_000,
                      mini_batch_size=50, guidance=1.0, gradient=gradient(), ema_rate=0.0, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=1_000, algorithm="ddim", sample_steps=50)
    return as_data(config)
