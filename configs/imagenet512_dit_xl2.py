"""ImageNet 512x512, DiT-XL/2 on latents, class-conditional.

Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.
Expected: FID 3.04, IS 240.82 with guidance 1.5 of the first three latent channels and 250 ancestral steps (676 M parameters).
From the weights for 256x256: --config.train.init=DiT-XL-2-256x256.pt --config.train.init_without="('pos_embed',)".
By our estimate for 8 GPUs of 40 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 8 scripts/extract_feature.py --config=configs/imagenet512_dit_xl2.py
    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 train_dit.py --config=configs/imagenet512_dit_xl2.py
    accelerate launch --multi_gpu --num_processes 8 eval_dit.py --config=configs/imagenet512_dit_xl2.py \
        --nnet_path=DiT-XL-2-512x512.pt --workdir=workdir/imagenet512_dit_xl2_published --npz=samples.npz
"""

from configs.common import adamw, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 0
    config.train = d(mode="cond", n_steps=3_000_000, batch_size=256, accumulation=1, mixed_precision="", compile=False,
                     attention="auto", tf32=True, workers=8, balanced=False, weighting="eps", rescale_learned_sigmas=False,
                     use_kl=False, time_sampler="uniform", p_uncond=0.1, ema_rate=0.9999, ema_warmup=False, grad_clip=0.0,
                     init="", init_without=(), keep_checkpoints=3, log_interval=100, preview_interval=10_000,
                     eval_interval=50_000, save_interval=50_000, validation_interval=0, validation_size=512,
                     validation_split="", best_metric="frechet")
    config.optimizer = adamw(1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    config.lr_scheduler = d(name="constant", warmup_steps=0)
    config.nnet = d(name="dit", model="DiT-XL/2", input_size=64, in_channels=4, class_dropout_prob=0.1, num_classes=1000,
                    use_checkpoint=True)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="eps", learned_var=True, clip=False)
    config.codec = d(name="kl", path="stabilityai/sd-vae-ft-ema", scale_factor=0.18215)
    config.features = d(path="assets/datasets/imagenet512_dit_features", dtype="float16")
    config.dataset = d(name="imagenet", path="assets/datasets/ImageNet", resolution=512, split="train", random_flip=True)
    config.sample = d(algorithm="ddpm", sample_steps=250, weights="average", spacing="", n_samples=50_000, mini_batch_size=32,
                      guidance=1.5, guided_channels="first_three", guidance_interval=(0.0, 1.0), labels="data", path="",
                      npz="")
    config.filter = filtering()
    config.metrics = metrics(fid_stat="assets/fid_stats/fid_stats_imagenet512_guided_diffusion.npz",
                             algorithm="dpmpp_2m", sample_steps=25)
    return config
