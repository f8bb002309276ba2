"""Stable Diffusion, fine-tuned on pairs of image and description, 512x512.

MINIM (Wang et al., Nature Medicine 2025): Stable Diffusion 1.4 on medical images of several modalities, described by their reports.
Expected (its repository, 20,000 steps, by scripts that are not comparable with ours): FID 57.91, IS 5.89, MS-SSIM 0.18.

Published: learning rate 1e-5, constant, 320 to 1600 pairs a step, 2,000 to 5,000 steps, random flips. Not as published: no
flips (left is not right in medicine), texts left out in one case of ten so that guidance has learned what it asks for, min-SNR.
Every Stable Diffusion 1.x or 2.x works, by the name or folder of config.nnet.path alone; what of it disagrees with this file is
said before training. Version 2.x at 768 pixels: --config.denoiser.predicts=v --config.dataset.resolution=768.

    python train_sd_finetune.py --config=configs/medical512_sd_finetune.py --config.dataset.path=/path/to/data.csv \
        --config.nnet.path=CompVis/stable-diffusion-v1-4 --workdir=workdir/sd
    python train_sd_finetune.py --config=configs/medical512_sd_finetune.py --config.dataset.path=/path/to/data.csv \
        --config.nnet.lora_rank=4 --config.optimizer.lr=1e-4 --workdir=workdir/lora

A CSV with a column `split`: --config.dataset.split=train, else all of it is trained on.
"""

from configs.common import adamw, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    # one step of 64 pairs is taken in parts of 64 / accumulation, on all processes together
    config.train = d(mode="cond", n_steps=20_000, batch_size=64, accumulation=4, mixed_precision="auto", compile=False,
                     workers=8, balanced=False, weighting="min_snr", p_uncond=0.1, noise_offset=0.0, input_perturbation=0.0,
                     ema_rate=0.999, ema_warmup=True, grad_clip=1.0, keep_checkpoints=2, log_interval=10,
                     preview_interval=500, eval_interval=0, save_interval=1_000, validation_interval=0, validation_size=512,
                     validation_split="", best_metric="")
    # name: also adamw_8bit; lr: 1e-4 for LoRA
    config.optimizer = adamw(1e-5, betas=(0.9, 0.999), weight_decay=0.01)
    config.lr_scheduler = d(name="constant", warmup_steps=0)
    # lora_rank: 0 trains all weights; lora_alpha: 0 is lora_rank
    # sample_size 0: an eighth of dataset.resolution
    config.nnet = d(name="unet_sd", path="CompVis/stable-diffusion-v1-4", subfolder="unet", sample_size=0, any_size=False,
                    in_channels=4, lora_rank=0, lora_alpha=0.0, lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
                    train_text_encoder=False, use_checkpoint=True)
    config.schedule = d(name="sd", beta_start=0.00085, beta_end=0.012, shift=-1)
    config.denoiser = d(predicts="eps", clip=False)
    # path: '' is that of config.nnet
    config.codec = d(name="kl", path="", subfolder="vae", scale_factor=0.0, decode_batch=4)
    config.encoder = d(name="clip", path="", subfolder="text_encoder", max_length=77)
    # path: 'auto' is <workdir>/features; '' encodes images at every step, for train_text_encoder only
    config.features = d(path="auto", dtype="float16")
    config.dataset = d(name="path_text", path="", resolution=512, channels=3, split="", holdout=0.0, path_column="path",
                       text_column="Text", modality_column="modality", label_column="", split_column="split", group_column="",
                       weight_column="weight", missing_captions="error", doubled_files="keep", crop="center", random_flip=False,
                       upscale=False)
    # validation_prompts: a row of each preview for each of them; () takes descriptions of the data
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="linspace", n_samples=1_000,
                      mini_batch_size=8, guidance=7.5, labels="data", prompts="bank", validation_prompts=(), path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(algorithm="dpmpp_2m", sample_steps=20, n_samples=1_000, attributes={})
    return as_data(config)
