"""Your own pairs of images and masks at 256x256: Diffusion-Model-SOTA's ControlNet, on an LDM of folder256_unet_label.

MaybeRichard/Diffusion-Model-SOTA, controlnet/ (60 M trained parameters; the authors publish no scores). As there: a copy of the
UNet's way down, AdamW at 1e-5, UNet frozen. Unlike there, class and guidance are kept, and masks of several classes are told apart:
dataset.mask_values=(0,1,2) names the grey levels of the files, ((0,0,0),(255,0,0)) the colours.

    python train_controlnet.py --config=configs/folder256_controlnet.py --config.dataset.path=/path/to/pairs \
        --config.train.ldm=workdir/ldm --workdir=workdir/controlnet
    python sample.py --workdir=workdir/controlnet --mask_path=/path/to/masks
    python eval_controlnet.py --workdir=workdir/controlnet

Pairs are images/ and masks/, alone or in class folders (prefixes: dataset.image_prefix=Img_ dataset.mask_prefix=seg_); a table
with mask_file_name: --config.dataset.name=folder. The original's checkpoint_best.pt, together with that of
its LDM: --nnet_path=ldm.pt,controlnet.pt --config.nnet.legacy=True --config.nnet.conditioning_channels=3
--config.train.mode=uncond --config.nnet.num_classes=-1 --config.sample.guidance=1.
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 42
    config.train = d(mode="cond", ldm="", n_steps=20_000, batch_size=32, accumulation=1, mixed_precision="auto",
                     compile=False, workers=4, balanced=False, weighting="min_snr", p_uncond=0.1, ema_rate=0.9995,
                     ema_warmup=True, grad_clip=1.0, keep_checkpoints=3, log_interval=50, preview_interval=1_000,
                     eval_interval=0, save_interval=1_000, validation_interval=1_000, validation_size=512,
                     validation_split="val", best_metric="validation_loss")
    config.optimizer = adamw(1e-5, betas=(0.9, 0.999), weight_decay=0.01)
    config.lr_scheduler = d(name="cosine", warmup_steps=500)
    # conditioning_channels = 0: those of the masks; one width more than the codec halves images
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="controlnet", sample_size=0, in_channels=0, out_channels=0, block_out_channels=(128, 256, 512, 512),
                    layers_per_block=2,
                    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                    cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32, num_classes=0, adaptive_norm=False,
                    dropout=0.0, use_checkpoint=False, conditioning_channels=0,
                    conditioning_embedding_out_channels=(16, 32, 96, 256),
                    freeze_unet=True, legacy=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="eps", clip=False)
    config.codec = d(name="kl", path="stabilityai/sd-vae-ft-mse", scale_factor=0.18215)
    config.features = d(path="auto", dtype="float16")
    config.dataset = d(name="image_mask", path="", resolution=256, channels=3, split="train", holdout=0.1, crop="center",
                       random_flip=False, images_folder="images", masks_folder="masks", image_prefix="", mask_prefix="",
                       mask_values=(), mask_names=(), mask_max=255, group_column="", weight_column="weight", classes=(),
                       drop_classes=(), window=(), upscale=False)
    # masks: the split whose masks are asked for; '' that of config.dataset
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=1_000,
                      mini_batch_size=16, guidance=3.0, controlnet_scale=1.0, labels="data", masks="val", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=500, algorithm="dpmpp_2m", sample_steps=20)
    return as_data(config)
