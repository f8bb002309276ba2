"""CelebA 64x64, U-ViT-S/4 in pixel space, unconditional.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.
Expected: FID 2.87 (44 M parameters).
By our estimate for 4 GPUs of 8 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision fp16 train.py \
        --config=configs/celeba64_uvit_small.py
"""

from configs.common import adamw, d, filtering, metrics, warm_up


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="uncond", n_steps=500_000, batch_size=128, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", workers=8, weighting="eps", p_uncond=0.0, ema_rate=0.9999, ema_warmup=False,
                     grad_clip=0.0, init="", keep_checkpoints=3, log_interval=10, preview_interval=5_000,
                     eval_interval=50_000, save_interval=50_000, validation_interval=0, validation_size=512,
                     validation_split="", best_metric="frechet")
    config.optimizer = adamw(2e-4, betas=(0.99, 0.99))
    config.lr_scheduler = warm_up(5_000)
    config.nnet = d(name="uvit", img_size=64, patch_size=4, in_chans=3, embed_dim=512, depth=12, num_heads=8,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, num_classes=-1, use_checkpoint=False)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="eps", clip=False)
    config.codec = d(name="pixels")
    config.dataset = d(name="celeba", path="assets/datasets/celeba", resolution=64, random_flip=True)
    config.sample = d(algorithm="euler_maruyama_sde", sample_steps=1_000, weights="average", n_samples=50_000,
                      mini_batch_size=500, guidance=1.0, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(fid_stat="assets/fid_stats/fid_stats_celeba64_train_50000_ddim.npz")
    return config
