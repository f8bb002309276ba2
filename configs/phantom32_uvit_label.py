"""Drawn lesions 32x32 of four classes, a small class-conditional U-ViT: the demo, minutes on two CPU cores.

Expected: nine in ten generated lesions are recognised as their class by a classifier of the real ones.

    python train.py --config=configs/phantom32_uvit_label.py --workdir=workdir/demo
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=2_000, batch_size=64, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", workers=0, balanced=False, weighting="clamped_snr", p_uncond=0.1, ema_rate=0.995,
                     ema_warmup=True, grad_clip=1.0, init="", keep_checkpoints=2, log_interval=20, preview_interval=400,
                     eval_interval=500, save_interval=400, validation_interval=400, validation_size=512,
                     validation_split="test", best_metric="frechet")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99))
    config.lr_scheduler = d(name="cosine", warmup_steps=100)
    # num_classes = 0: as many as the data have, and the null class of classifier-free guidance
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="uvit", img_size=0, patch_size=8, in_chans=0, embed_dim=192, depth=4, num_heads=4,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, num_classes=0, use_checkpoint=False)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="x0", clip=True)
    config.codec = d(name="pixels")
    config.dataset = d(name="phantoms", resolution=32, size=4_000, seed=0, split="train", random_flip=True)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", n_samples=1_000, mini_batch_size=100,
                      guidance=1.5, labels="balanced", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
