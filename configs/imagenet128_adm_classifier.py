"""ImageNet 128x128: ADM's classifier of noisy images, half of guided-diffusion's UNet (43 M parameters).

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021. Published guidance scale 0.5 with 250
steps (DDIM with 25 steps: 1.25), on configs/imagenet128_adm.py.
By our estimate for 8 GPUs of 12 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 train_classifier.py \
        --config=configs/imagenet128_adm_classifier.py

Judged on ImageNet's validation images as val/n01440764/*.JPEG; where these are not at hand, --config.train.validation_split=''.
"""

from configs.common import adamw, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=300_000, batch_size=256, accumulation=1, mixed_precision="", fp16_scale_growth=0.0,
                     compile=False, attention="auto", workers=8, balanced=False, noised=True, respacing="", init="",
                     init_without=(), ema_rate=0.0, ema_warmup=False, grad_clip=0.0, keep_checkpoints=3, log_interval=50,
                     eval_interval=25_000, save_interval=10_000, validation_split="val", best_metric="nll")
    config.optimizer = adamw(3e-4, betas=(0.9, 0.999), weight_decay=0.05)
    config.lr_scheduler = d(name="linear", warmup_steps=0)
    config.nnet = d(name="adm_classifier", image_size=128, in_channels=3, model_channels=128, out_channels=1000,
                    num_res_blocks=2, attention_resolutions=(4, 8, 16), dropout=0.0, channel_mult=(1, 1, 2, 3, 4), num_heads=1,
                    num_head_channels=64, use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False,
                    pool="attention", use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.dataset = d(name="imagenet", path="assets/datasets/ImageNet", resolution=128, split="train", crop="random",
                       random_flip=True)
    config.metrics = d(levels=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0), bootstrap=200)
    return config
