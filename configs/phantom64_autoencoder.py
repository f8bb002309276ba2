"""Drawn lesions 64x64: a small KL autoencoder, four times smaller in each direction, for the demo on two CPU cores.

    python train_autoencoder.py --config=configs/phantom64_autoencoder.py --workdir=workdir/phantom64_autoencoder

Then --config.codec.path=workdir/phantom64_autoencoder/autoencoder.
"""

from configs.common import as_data, d


def get_config():
    config = d()
    config.seed = 1234
    # kl_weight is per number of a latent; the discriminator is off
    config.train = d(n_steps=600, batch_size=32, accumulation=1, mixed_precision="auto", compile=False, workers=0,
                     balanced=False, kl_weight=1e-4, perceptual_weight=0.0, perceptual_path="", adversarial_weight=0.0,
                     adversarial_start=0, adversarial_channels=32, ema_rate=0.99, ema_warmup=True, grad_clip=1.0,
                     keep_checkpoints=2, log_interval=20, preview_interval=200, eval_interval=200, save_interval=200,
                     validation_interval=200, validation_size=256, validation_split="test", best_metric="l1")
    config.optimizer = d(name="adamw", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="cosine", warmup_steps=30)
    # Each level of block_out_channels after the first halves the image: 64 -> 16, of 4 channels.
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="kl", path="", in_channels=0, latent_channels=4, block_out_channels=(16, 32, 64),
                    layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False)
    config.dataset = d(name="phantoms", resolution=64, size=4_000, seed=0, split="train", random_flip=True)
    return as_data(config)
