"""Drawn lesions 64x64 with descriptions, in the latent space of an autoencoder of one's own: the whole latent line, offline.

The experiment of phantom64_vap with a KL autoencoder that shrinks images fourfold in place of pixels.

    python train_autoencoder.py --config=configs/phantom64_autoencoder.py --workdir=workdir/phantom64_autoencoder
    python scripts/extract_feature.py --config=configs/phantom64_vap_latent.py
    python train_t2i_discrete.py --config=configs/phantom64_vap_latent.py --workdir=workdir/phantom64_vap_latent
"""

from configs.common import adamw, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=1_600, batch_size=48, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", workers=0, balanced=True, weighting="clamped_snr", p_uncond=0.1, prototype_weight=0.1,
                     ema_rate=0.995, ema_warmup=True, grad_clip=1.0, init="", keep_checkpoints=2, log_interval=20,
                     preview_interval=400, eval_interval=0, save_interval=400, validation_interval=400, validation_size=256,
                     validation_split="test", best_metric="frechet")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99))
    config.lr_scheduler = d(name="cosine", warmup_steps=100)
    # 0 in num_classes, clip_dim and num_clip_token: as many as the data and the encoder give
    config.nnet = d(name="uvit_t2i_prototype", img_size=16, patch_size=2, in_chans=4, embed_dim=192, depth=4, num_heads=4,
                    mlp_ratio=4, qkv_bias=False, mlp_time_embed=False, clip_dim=0, num_clip_token=0, num_classes=0,
                    mechanism="code", label_token=False, use_checkpoint=False)
    config.schedule = d(name="sd")
    config.denoiser = d(predicts="x0", clip=False)
    config.codec = d(name="kl", path="workdir/phantom64_autoencoder/autoencoder", scale_factor=0.0)
    config.encoder = d(name="words", max_length=20, dim=64)
    config.features = d(path="workdir/features/phantom64_vap_latent", dtype="float16")
    config.dataset = d(name="phantoms", resolution=64, size=4_000, seed=0, split="train", tell_class=False, wordings=4,
                       random_flip=True)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", n_samples=600, mini_batch_size=100,
                      guidance=2.5, labels="balanced", prompts="bank", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("classifier",), n_samples=256, algorithm="dpmpp_2m", sample_steps=20, measure="phantoms",
                             attributes=dict(size=("small", "medium", "large"), shape=("round", "oval", "irregular"),
                                             colour=("light brown", "dark brown", "black", "red", "purple"),
                                             skin=("light skin", "tan skin", "brown skin")))
    return config
