"""ImageNet 64x64, U-ViT-M/4 in pixel space, class-conditional.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.
Expected: FID 5.85 (131 M parameters).
By our estimate for 8 GPUs of 12 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 train.py \
        --config=configs/imagenet64_uvit_mid.py
"""

from configs.common import adamw, d, filtering, metrics, warm_up


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=300_000, batch_size=1024, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", workers=8, weighting="eps", p_uncond=0.0, ema_rate=0.9999, ema_warmup=False,
                     grad_clip=0.0, init="", keep_checkpoints=3, log_interval=10, preview_interval=5_000,
                     eval_interval=50_000, save_interval=50_000, validation_interval=0, validation_size=512,
                     validation_split="", best_metric="frechet")
    config.optimizer = adamw(3e-4, betas=(0.99, 0.99))
    config.lr_scheduler = warm_up(5_000)
    config.nnet = d(name="uvit", img_size=64, patch_size=4, in_chans=3, embed_dim=768, depth=16, num_heads=12,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, num_classes=1000, use_checkpoint=True)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="eps", clip=False)
    config.codec = d(name="pixels")
    config.dataset = d(name="imagenet", path="assets/datasets/ImageNet", resolution=64, random_flip=True)
    config.sample = d(algorithm="dpm_solver", sample_steps=50, weights="average", n_samples=50_000, mini_batch_size=200,
                      guidance=1.0, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(fid_stat="assets/fid_stats/fid_stats_imagenet64_guided_diffusion.npz")
    return config
