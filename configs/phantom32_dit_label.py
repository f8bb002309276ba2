"""Drawn lesions 32x32 of four classes, a small DiT in pixels: minutes on two CPU cores.

Predicts the clean image, with the weights of the noise levels clamped, in place of the published eps.

    python train_dit.py --config=configs/phantom32_dit_label.py --workdir=workdir/phantom32_dit
    python sample.py --workdir=workdir/phantom32_dit --label=all
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=3_000, batch_size=64, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", tf32=True, workers=0, balanced=False, weighting="clamped_snr",
                     rescale_learned_sigmas=True, use_kl=False, time_sampler="uniform", p_uncond=0.1, ema_rate=0.995,
                     ema_warmup=True, grad_clip=1.0, init="", init_without=(), keep_checkpoints=2, log_interval=20,
                     preview_interval=500, eval_interval=750, save_interval=500, validation_interval=500, validation_size=512,
                     validation_split="val", best_metric="frechet")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="cosine", warmup_steps=100)
    # num_classes = 0: as many as the data have
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="dit", model="", input_size=0, patch_size=4, in_channels=0, hidden_size=128, depth=6, num_heads=4,
                    mlp_ratio=4.0, class_dropout_prob=0.1, num_classes=0, use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="x0", learned_var=True, clip=True)
    config.codec = d(name="pixels")
    config.features = d(path="", dtype="float16")
    config.dataset = d(name="phantoms", resolution=32, size=4_000, seed=0, split="train", random_flip=True, cast=(1.0, 1.0, 1.0))
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=1_000,
                      mini_batch_size=100, guidance=1.5, guided_channels="all", guidance_interval=(0.0, 1.0),
                      labels="balanced", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
