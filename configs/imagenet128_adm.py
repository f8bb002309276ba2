"""ImageNet 128x128, ADM: guided-diffusion's class-conditional UNet with learned variances.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021 (ADM).
Expected: FID 5.91, sFID 5.09, precision 0.70, recall 0.65 with 250 steps; guided 2.97, 5.09, 0.78, 0.59 (422 M parameters).
Guided: --config.sample.gradient.measure=log_probability --config.sample.gradient.scale=0.5 and
--config.sample.gradient.classifier=RUN of configs/imagenet128_adm_classifier.py.
Each GPU takes its 32 images in 2 parts of 16 (train.accumulation), which fit 8 GPUs of 40 GB in half
precision, by our estimate; on 80 GB --config.train.accumulation=1.
On fewer GPUs take more parts.

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 train_guided_diffusion.py \
        --config=configs/imagenet128_adm.py
    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 eval_guided_diffusion.py \
        --config=configs/imagenet128_adm.py --nnet_path=128x128_diffusion.pt
"""

from configs.common import adamw, d, filtering, gradient, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=4_360_000, batch_size=256, accumulation=2, mixed_precision="",
                     fp16_scale_growth=0.0, compile=False, attention="auto", workers=8, balanced=False, weighting="eps",
                     rescale_learned_sigmas=False, use_kl=False, time_sampler="uniform", respacing="", p_uncond=0.0,
                     ema_rate=0.9999, ema_warmup=False, more_ema_rates=(), grad_clip=0.0, init="", init_without=(),
                     keep_checkpoints=3, log_interval=10, preview_interval=10_000, eval_interval=50_000, save_interval=10_000,
                     validation_interval=0, validation_size=512, validation_split="", best_metric="frechet")
    config.optimizer = adamw(1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    config.lr_scheduler = d(name="customized", warmup_steps=0)
    config.nnet = d(name="adm_unet", image_size=128, in_channels=3, model_channels=256, out_channels=6, num_res_blocks=2,
                    attention_resolutions=(4, 8, 16), dropout=0.0, channel_mult=(1, 1, 2, 3, 4), num_classes=1000,
                    num_heads=4, num_head_channels=-1, use_scale_shift_norm=True, resblock_updown=True,
                    use_new_attention_order=False, use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="eps", learned_var=True, clip=True)
    config.codec = d(name="pixels")
    config.dataset = d(name="imagenet", path="assets/datasets/ImageNet", resolution=128, random_flip=True)
    config.sample = d(algorithm="ddpm", sample_steps=250, weights="average", spacing="respaced", eta=0.0, n_samples=50_000,
                      mini_batch_size=50, guidance=1.0, gradient=gradient(), ema_rate=0.0, labels="data", path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(fid_stat="assets/fid_stats/VIRTUAL_imagenet128_labeled.npz", algorithm="ddim", sample_steps=50)
    return config
