"""Your own class folders at 256x256, class-conditional latent diffusion: the published network of Diffusion-Model-SOTA.

MaybeRichard/Diffusion-Model-SOTA, ldm/ (142 M trained parameters; the authors publish no scores). As there: UNet, class tokens
with 10 % dropout, linear schedule, AdamW at 1e-4, guidance 3. Beyond it: latents cached, moving average, min-SNR weights
(weighting="eps" is the original's loss), held-out validation loss, DPM-Solver++ in 20 steps in place of DDIM in 50.

    accelerate launch --multi_gpu --num_processes 2 --mixed_precision bf16 train_class_ldm.py \
        --config=configs/folder256_unet_label.py --config.dataset.path=/path/to/images --workdir=workdir/ldm
    python sample.py --workdir=workdir/ldm --label=all --n_samples=100 --layout=classes

The original's checkpoint_best.pt: --nnet_path, with this config.
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 42
    config.train = d(mode="cond", n_steps=100_000, batch_size=32, accumulation=1, mixed_precision="auto", compile=False,
                     workers=4, balanced=False, weighting="min_snr", p_uncond=0.1, ema_rate=0.9999, ema_warmup=True,
                     grad_clip=1.0, init="", init_without=(), keep_checkpoints=3, log_interval=50, preview_interval=2_500,
                     eval_interval=0, save_interval=2_500, validation_interval=2_500, validation_size=512,
                     validation_split="val", best_metric="validation_loss")
    config.optimizer = adamw(1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    config.lr_scheduler = d(name="cosine", warmup_steps=500)
    # num_classes = 0: as many as the data have; attention_head_dim: heads, as in diffusers
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="unet_label", sample_size=0, in_channels=0, out_channels=0, block_out_channels=(128, 256, 512, 512),
                    layers_per_block=2,
                    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                    cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32, num_classes=0, adaptive_norm=False,
                    dropout=0.0, use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="eps", clip=False)
    config.codec = d(name="kl", path="stabilityai/sd-vae-ft-mse", scale_factor=0.18215)
    config.features = d(path="auto", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=256, channels=3, split="train", holdout=0.1, crop="center",
                       random_flip=False, label_column="label", group_column="", weight_column="weight", classes=(),
                       drop_classes=(), window=(), upscale=False)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=10_000,
                      mini_batch_size=16, guidance=3.0, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=1_000, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
