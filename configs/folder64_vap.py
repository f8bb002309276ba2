"""Your own captioned images at 64x64: VAP-Diffusion small, on pixels or latents, no downloaded weights.

A folder with metadata.csv: file_name, text, label; a tenth is held back. With a column split of your own:
--config.dataset.holdout=0 --config.train.validation_split=test. Text states are hashed words; a language model is one line away:

    --config.encoder.name=hf --config.encoder.path=michiyasunaga/BioLinkBERT-base   (see configs/COT_ISIC256_uvit_text_label.py)

`metrics.attributes` names the attributes whose words stand in your texts; small classifiers learn them from the real images, and
evaluations say how often a generated image shows what its text asks for. The words here are those of white blood cells.

    python scripts/extract_feature.py --config=configs/folder64_vap.py --config.dataset.path=/path/to/images
    python train_t2i_discrete.py --config=configs/folder64_vap.py --config.dataset.path=/path/to/images --workdir=workdir/mine
    python eval_t2i_discrete.py --workdir=workdir/mine
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=20_000, batch_size=32, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", workers=0, balanced=True, weighting="clamped_snr", p_uncond=0.1, prototype_weight=0.1,
                     ema_rate=0.999, ema_warmup=True, grad_clip=1.0, init="", keep_checkpoints=2, log_interval=50,
                     preview_interval=1_000, eval_interval=0, save_interval=1_000, validation_interval=1_000,
                     validation_size=256, validation_split="val", best_metric="frechet")
    config.optimizer = adamw(5e-4, betas=(0.9, 0.99))
    config.lr_scheduler = d(name="cosine", warmup_steps=100)
    # 0 in num_classes, clip_dim and num_clip_token: as many as the data and the encoder give
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="uvit_t2i_prototype", img_size=0, patch_size=8, in_chans=0, embed_dim=192, depth=4, num_heads=4,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, clip_dim=0, num_clip_token=0, num_classes=0,
                    mechanism="code", label_token=True, use_checkpoint=False)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="x0", clip=True)
    config.codec = d(name="pixels", channels=0)
    config.encoder = d(name="words", max_length=32, dim=64)
    config.features = d(path="workdir/features/folder64_vap", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, random_flip=False,
                       label_column="label", group_column="", weight_column="weight", drop_classes=(), require=("label", "text"),
                       missing_captions="error", doubled_files="error")
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", n_samples=1_000, mini_batch_size=100,
                      guidance=2.0, labels="balanced", prompts="bank", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=256, algorithm="dpmpp_2m", sample_steps=20,
                             attributes=dict(size=("small", "medium-sized", "large"), background=("yellow", "grey"),
                                             nucleus=("round", "oval", "indented", "segmented"),
                                             cytoplasm=("moderate", "abundant")))
    return as_data(config)
