"""Stable Diffusion's autoencoder fine-tuned on one's own images at 256x256: the ceiling of what latent diffusion can show.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_autoencoder.py \
        --config=configs/folder256_autoencoder.py --config.dataset.path=/path/to/images --workdir=workdir/autoencoder

Look at <workdir>/samples (real above reconstruction) and compare PSNR with that of step 0 (--config.train.n_steps=1) before
training a diffusion model on it. --config.train.adversarial_weight=0.1 sharpens texture, and can invent it. Without a
network: --config.nnet.path=<file or folder>, see assets/stable-diffusion/README.md. With --config.nnet.path= a new one is
trained: then set optimizer.lr=1e-4 and train for longer.
"""

from configs.common import as_data, d, warm_up


def get_config():
    config = d()
    config.seed = 1234
    # kl_weight is per number of a latent: 2e-8 is the 1e-6 of latent diffusion at 4x32x32 for 3x256x256
    config.train = d(n_steps=20_000, batch_size=16, accumulation=1, mixed_precision="auto", compile=False, workers=4,
                     balanced=False, kl_weight=2e-8, perceptual_weight=0.1, perceptual_path="", adversarial_weight=0.0,
                     adversarial_start=5_000, adversarial_channels=64, ema_rate=0.999, ema_warmup=True, grad_clip=1.0,
                     keep_checkpoints=2, log_interval=50, preview_interval=1_000, eval_interval=1_000, save_interval=1_000,
                     validation_interval=1_000, validation_size=256, validation_split="val", best_metric="l1")
    config.optimizer = d(name="adamw", lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = warm_up(500)
    # path decides the architecture; the other options are those of a new network
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="kl", path="stabilityai/sd-vae-ft-mse", in_channels=0, latent_channels=4,
                    block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32,
                    mid_block_add_attention=True)
    config.dataset = d(name="folder", path="", resolution=256, channels=3, split="train", holdout=0.1, random_flip=True,
                       label_column="label", group_column="", weight_column="weight", drop_classes=(), window=())
    return as_data(config)
