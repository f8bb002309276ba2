"""ISIC 2018 (seven lesion classes), 256x256: DiT-XL/2 on latents, from ImageNet's weights or from none.

Settings are those of DiT (Peebles and Xie, ICCV 2023); steps, batch size and guidance are a choice for 10,015 images, and no scores
are published for them. Classes are drawn evenly, as VAP-Diffusion trains on these data. The first line begins with the published
weights, all but the embeddings of the classes; without the last three options the training begins with none, for 100,000 steps.
By our estimate for 2 GPUs of 24 GB or more, in half precision.

    accelerate launch --multi_gpu --num_processes 2 --mixed_precision bf16 train_dit.py --config=configs/isic256_dit_label.py \
        --workdir=workdir/isic256_dit --config.train.n_steps=20000 --config.train.init=DiT-XL-2-256x256.pt \
        --config.train.init_without="('y_embedder',)"
    python sample.py --workdir=workdir/isic256_dit --label=all --n_samples=100 --layout=classes
"""

from configs.common import adamw, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(mode="cond", n_steps=100_000, batch_size=64, accumulation=1, mixed_precision="auto", compile=False,
                     attention="auto", tf32=True, workers=8, balanced=True, weighting="eps", rescale_learned_sigmas=False,
                     use_kl=False, time_sampler="uniform", p_uncond=0.1, ema_rate=0.9999, ema_warmup=True, grad_clip=0.0,
                     init="", init_without=(), keep_checkpoints=3, log_interval=50, preview_interval=2_500,
                     eval_interval=10_000, save_interval=2_500, validation_interval=2_500, validation_size=512,
                     validation_split="val", best_metric="frechet")
    config.optimizer = adamw(1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    config.lr_scheduler = d(name="constant", warmup_steps=0)
    # num_classes = 0: as many as the data have
    config.nnet = d(name="dit", model="DiT-XL/2", input_size=32, in_channels=4, class_dropout_prob=0.1, num_classes=0,
                    use_checkpoint=True)
    config.schedule = d(name="linear", steps=1000)
    config.denoiser = d(predicts="eps", learned_var=True, clip=False)
    config.codec = d(name="kl", path="stabilityai/sd-vae-ft-ema", scale_factor=0.0)
    config.features = d(path="auto", dtype="float16")
    config.dataset = d(name="isic2018", path="assets/datasets/ISIC2018", resolution=256, split="train", random_flip=True)
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="", n_samples=10_000,
                      mini_batch_size=32, guidance=1.5, guided_channels="all", guidance_interval=(0.0, 1.0), labels="data",
                      path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), n_samples=2_000, algorithm="dpmpp_2m", sample_steps=20,
                             fid_stat="assets/fid_stats/fid_stats_isic2018_train.npz")
    return config
