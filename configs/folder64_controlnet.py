"""Your own images and masks at 64x64, from a table: a ControlNet on the UNet of configs/folder64_unet_label.py.

metadata.csv has file_name, mask_file_name, and label where there are classes; dataset.mask_values names the grey levels (or
colours) of the masks, dataset.mask_names what they are; without values a mask is one channel, from black to dataset.mask_max.
Pairs in folders images/ and masks/ without a table: --config.dataset.name=image_mask (and dataset.image_prefix=Img_ and so on).

    python train_controlnet.py --config=configs/folder64_controlnet.py --config.dataset.path=/path/to/images \
        --config.dataset.mask_values="(0,128,255)" --config.train.ldm=workdir/ldm --workdir=workdir/controlnet
    python sample.py --workdir=workdir/controlnet --mask_path=/path/to/masks
    python eval_controlnet.py --workdir=workdir/controlnet
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", ldm="", n_steps=10_000, batch_size=32, accumulation=1, mixed_precision="auto",
                     compile=False, workers=4, balanced=False, weighting="clamped_snr", p_uncond=0.1, ema_rate=0.999,
                     ema_warmup=True, grad_clip=1.0, keep_checkpoints=3, log_interval=50, preview_interval=1_000,
                     eval_interval=0, save_interval=1_000, validation_interval=1_000, validation_size=512,
                     validation_split="val", best_metric="validation_loss")
    config.optimizer = adamw(5e-4, betas=(0.9, 0.99), weight_decay=0.0)
    config.lr_scheduler = d(name="linear", warmup_steps=200)
    # conditioning_channels = 0: those of the masks; one width more than the codec halves images
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="controlnet", sample_size=0, in_channels=0, out_channels=0, block_out_channels=(64, 128, 128, 192),
                    layers_per_block=1,
                    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
                    cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16, num_classes=0, adaptive_norm=True,
                    dropout=0.0, use_checkpoint=False, conditioning_channels=0,
                    conditioning_embedding_out_channels=(16,), freeze_unet=True,
                    legacy=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="v", clip=False)
    config.codec = d(name="pixels")
    config.features = d(path="", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, crop="center",
                       random_flip=False, label_column="label", mask_column="mask_file_name", images_folder="images",
                       masks_folder="masks", image_prefix="", mask_prefix="", mask_values=(), mask_names=(), mask_max=255,
                       group_column="", weight_column="weight", classes=(), drop_classes=(), window=(), upscale=False)
    # masks: the split whose masks are asked for; '' that of config.dataset
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=1_000,
                      mini_batch_size=50, guidance=1.5, controlnet_scale=1.0, labels="data", masks="val", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=500, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
