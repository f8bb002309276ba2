"""Drawn lesions 64x64 with descriptions: VAP-Diffusion small, the demo, minutes on two CPU cores.

Text, label and class prototypes on top of U-ViT. The text says how a lesion looks and never which class it is of; that the
label says, as a token and through the prototypes. Codec `pixels`: within these minutes an autoencoder of 64x64 images costs more than it gives
(README.md, "What to expect"); `configs/phantom64_vap_latent.py` is the same with one. Expected: colour, size and skin as described
in more than nine of ten images, shape in half of them.

    python scripts/extract_feature.py --config=configs/phantom64_vap.py
    python train_t2i_discrete.py --config=configs/phantom64_vap.py --workdir=workdir/demo
    python sample.py --workdir=workdir/demo --prompt="a large red irregular lesion" --label=angioma
    python eval_t2i_discrete.py --workdir=workdir/demo
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=2_200, batch_size=48, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", workers=0, balanced=True, weighting="clamped_snr", p_uncond=0.1, prototype_weight=0.1,
                     ema_rate=0.995, ema_warmup=True, grad_clip=1.0, init="", keep_checkpoints=2, log_interval=20,
                     preview_interval=550, eval_interval=0, save_interval=550, validation_interval=0, validation_size=256,
                     validation_split="", best_metric="frechet")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99))
    config.lr_scheduler = d(name="cosine", warmup_steps=100)
    # 0 in num_classes, clip_dim and num_clip_token: as many as the data and the encoder give
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="uvit_t2i_prototype", img_size=0, patch_size=16, in_chans=0, embed_dim=256, depth=4, num_heads=4,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, clip_dim=0, num_clip_token=0, num_classes=0,
                    mechanism="code", label_token=True, use_checkpoint=False)
    config.schedule = d(name="vpsde")
    config.denoiser = d(predicts="x0", clip=True)
    config.codec = d(name="pixels", channels=0)
    config.encoder = d(name="words", max_length=20, dim=64)
    config.features = d(path="workdir/features/phantom64_vap", dtype="float16")
    config.dataset = d(name="phantoms", resolution=64, size=4_000, seed=0, split="train", tell_class=False, wordings=4,
                       random_flip=True)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", n_samples=600, mini_batch_size=100,
                      guidance=2.5, labels="balanced", prompts="bank", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="dpmpp_2m", sample_steps=20, measure="phantoms",
                             attributes=dict(size=("small", "medium", "large"), shape=("round", "oval", "irregular"),
                                             colour=("light brown", "dark brown", "black", "red", "purple"),
                                             skin=("light skin", "tan skin", "brown skin")))
    return as_data(config)
