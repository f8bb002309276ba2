"""ImageNet 256x256, U-ViT-L/2 on latents in continuous time, class-conditional.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.
Expected: FID 3.40 (287 M parameters).
By our estimate for 8 GPUs of 16 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 8 scripts/extract_feature.py --config=configs/imagenet256_uvit_large.py
    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 train_ldm.py \
        --config=configs/imagenet256_uvit_large.py
"""

from configs.common import adamw, d, filtering, metrics, warm_up


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=300_000, batch_size=1024, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", workers=8, balanced=False, weighting="eps", p_uncond=0.15, ema_rate=0.9999,
                     ema_warmup=False, grad_clip=0.0, init="", keep_checkpoints=3, log_interval=10, preview_interval=5_000,
                     eval_interval=50_000, save_interval=50_000, validation_interval=0, validation_size=512,
                     validation_split="", best_metric="frechet")
    config.optimizer = adamw(2e-4, betas=(0.99, 0.99))
    config.lr_scheduler = warm_up(5_000)
    config.nnet = d(name="uvit", img_size=32, patch_size=2, in_chans=4, embed_dim=1024, depth=20, num_heads=16, mlp_ratio=4,
                    qkv_bias=False, mlp_time_embed=False, conv=True, num_classes=1001, use_checkpoint=True)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="eps", clip=False)
    config.codec = d(name="kl", path="assets/stable-diffusion/autoencoder_kl.pth", scale_factor=0.18215)
    config.features = d(path="assets/datasets/imagenet256_features", dtype="float16")
    config.dataset = d(name="imagenet", path="assets/datasets/ImageNet", resolution=256, split="train", random_flip=True)
    # scale as published: guidance is 1 + scale
    config.sample = d(algorithm="dpm_solver", sample_steps=50, weights="average", n_samples=50_000, mini_batch_size=50,
                      scale=0.4, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(fid_stat="assets/fid_stats/fid_stats_imagenet256_guided_diffusion.npz", algorithm="dpm_solver")
    return config
