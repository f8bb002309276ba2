"""Colonoscopy (class folders or metadata.csv of your own; the authors' images are partly private), 256x256.

VAP-Diffusion (Huang et al., MICCAI 2025): U-ViT-S/2 (Deep) on latents with text, label and class prototypes.
Expected (paper, Table 1, other images): FID 32.147, IS 4.812, precision .405, recall .612.

The settings of COT_ISIC256_uvit_text_label; the data set's 8:2 split is random. `dataset.path` is where the captions were written:
a metadata.csv with file_name, text and label.
By our estimate for 2 GPUs of 40 GB in half precision, or one of 80 GB. On one of 40 GB, or two of 24 GB, add
--config.train.accumulation=2.

    python scripts/caption_images.py --config=configs/colonoscopy_captions.py --config.input.path=assets/datasets/Colonoscopy
    accelerate launch --multi_gpu --num_processes 2 scripts/extract_feature.py \
        --config=configs/COT_Colonoscopy256_uvit_text_label.py
    accelerate launch --multi_gpu --num_processes 2 --mixed_precision fp16 train_t2i_discrete.py \
        --config=configs/COT_Colonoscopy256_uvit_text_label.py
"""

from configs.common import adamw, d, filtering, metrics, warm_up


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=500_000, batch_size=256, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", workers=8, balanced=True, weighting="eps", p_uncond=0.1, prototype_weight=1.0,
                     ema_rate=0.9999, ema_warmup=False, grad_clip=0.0, init="", keep_checkpoints=3, log_interval=10,
                     preview_interval=5_000, eval_interval=50_000, save_interval=10_000, validation_interval=0,
                     validation_size=512, validation_split="", best_metric="frechet")
    config.optimizer = adamw(2e-4, betas=(0.9, 0.9))
    config.lr_scheduler = warm_up(5_000)
    # num_classes: 0 = as many as the data have, and the null class
    config.nnet = d(name="uvit_t2i_prototype", img_size=32, patch_size=2, in_chans=4, embed_dim=512, depth=16, num_heads=8,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, clip_dim=768, num_clip_token=256,
                    num_classes=0, mechanism="code", label_token=False, use_checkpoint=False)
    config.schedule = d(name="sd")
    config.denoiser = d(predicts="eps", clip=False)
    config.codec = d(name="kl", path="assets/stable-diffusion/autoencoder_kl.pth", scale_factor=0.18215)
    config.encoder = d(name="hf", path="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", max_length=256)
    config.features = d(path="assets/datasets/colonoscopy256_features", dtype="float16")
    config.dataset = d(name="folder", path="assets/datasets/Colonoscopy/metadata_captions.csv", resolution=256, split="train",
                       holdout=0.2, random_flip=False, weight_column="weight", require=("label", "text"),
                       missing_captions="error", doubled_files="error")
    # scale as published: guidance is 1 + scale
    config.sample = d(algorithm="dpmpp_fast", sample_steps=50, weights="average", n_samples=10_000, mini_batch_size=50,
                      scale=1.0, labels="data", prompts="bank", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), algorithm="dpmpp_fast",
                             fid_stat="assets/fid_stats/fid_stats_colonoscopy_train.npz",
                             attributes=dict(shape=("round", "oval", "irregular", "flat"), colour=("pink", "red", "white", "yellow")))
    return config
