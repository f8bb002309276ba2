"""Your own images at 64x64 with labels: class folders, or a folder with metadata.csv. DiT-S/4 in pixels.

Predicts the clean image, with the weights of the noise levels clamped, in place of the published eps; learns variances as
published.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_dit.py \
        --config=configs/folder64_dit_label.py --config.dataset.path=/path/to/images --workdir=workdir/dit
    python sample.py --workdir=workdir/dit --label=all --n_samples=100 --layout=classes
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=50_000, batch_size=64, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", tf32=True, workers=4, balanced=False, weighting="clamped_snr",
                     rescale_learned_sigmas=True, use_kl=False, time_sampler="uniform", p_uncond=0.1, ema_rate=0.999,
                     ema_warmup=True, grad_clip=1.0, init="", init_without=(), keep_checkpoints=3, log_interval=50,
                     preview_interval=2_500, eval_interval=10_000, save_interval=2_500, validation_interval=2_500,
                     validation_size=512, validation_split="val", best_metric="frechet")
    config.optimizer = adamw(3e-4, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="constant", warmup_steps=500)
    # num_classes = 0: as many as the data have
    # those of DiT-S/4; another published one by its name: model="DiT-B/4" and none of its sizes
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="dit", model="", input_size=0, patch_size=4, in_channels=0, hidden_size=384, depth=12, num_heads=6,
                    mlp_ratio=4.0, class_dropout_prob=0.1, num_classes=0, use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="x0", learned_var=True, clip=True)
    config.codec = d(name="pixels")
    config.features = d(path="", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, crop="center",
                       random_flip=False, label_column="label", group_column="", weight_column="weight", classes=(),
                       drop_classes=(), window=(), upscale=False)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=10_000,
                      mini_batch_size=50, guidance=1.5, guided_channels="all", guidance_interval=(0.0, 1.0), labels="data",
                      path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=1_000, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
