"""MS-COCO 256x256, U-ViT-S/2 on latents from captions; U-ViT-S/2 (Deep) with --config.nnet.depth=16.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.
Expected: FID 5.95 (45 M parameters), Deep 5.48 (58 M), on 30,000 captions of the validation images.
By our estimate for 4 GPUs of 12 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 4 scripts/extract_mscoco_feature.py --split=train
    accelerate launch --multi_gpu --num_processes 4 scripts/extract_mscoco_feature.py --split=val
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision fp16 train_t2i_discrete.py \
        --config=configs/mscoco_uvit_small.py
"""

from configs.common import adamw, d, filtering, metrics, warm_up


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=1_000_000, batch_size=256, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", workers=8, balanced=False, weighting="eps", p_uncond=0.1, prototype_weight=0.0,
                     ema_rate=0.9999, ema_warmup=False, grad_clip=0.0, init="", keep_checkpoints=3, log_interval=10,
                     preview_interval=5_000, eval_interval=50_000, save_interval=50_000, validation_interval=0,
                     validation_size=512, validation_split="", best_metric="frechet")
    config.optimizer = adamw(2e-4, betas=(0.9, 0.9))
    config.lr_scheduler = warm_up(5_000)
    config.nnet = d(name="uvit_t2i", img_size=32, patch_size=2, in_chans=4, embed_dim=512, depth=12, num_heads=8, mlp_ratio=4,
                    qkv_bias=False, mlp_time_embed=False, clip_dim=768, num_clip_token=77, use_checkpoint=False)
    config.schedule = d(name="sd")
    config.denoiser = d(predicts="eps", clip=False)
    # the scale factor that gives latents of COCO unit deviation; a part of the codec wherever it is used
    config.codec = d(name="kl", path="assets/stable-diffusion/autoencoder_kl.pth", scale_factor=0.23010)
    config.encoder = d(name="clip", path="openai/clip-vit-large-patch14", max_length=77)
    config.features = d(path="assets/datasets/mscoco256_features", dtype="float16")
    config.dataset = d(name="mscoco", path="assets/datasets/coco", resolution=256, split="train", random_flip=False)
    # scale as published: guidance is 1 + scale
    config.sample = d(algorithm="dpmpp_fast", sample_steps=50, weights="average", n_samples=30_000, mini_batch_size=50,
                      scale=1.0, labels="data", prompts="val", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(fid_stat="assets/fid_stats/fid_stats_mscoco256_val.npz", algorithm="dpmpp_fast", attributes={})
    return config
