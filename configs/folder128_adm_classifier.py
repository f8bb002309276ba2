"""Your own images at 128x128 with labels: the classifier of noisy images that guides MGDM, half of guided-diffusion's UNet.

Luo et al., "Measurement Guidance in Diffusion Models: Insight from Medical Image Synthesis", TPAMI 2024: dropout 0.4, weight
decay 1e-5, 200,000 steps of 64 images (42 M parameters). Trained, as configs/folder128_adm.py is, on 250 of 1,000 steps, but told
the same times as the diffusion model; --config.train.respacing='' trains on all.

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_classifier.py \
        --config=configs/folder128_adm_classifier.py --config.dataset.path=/path/to/images --workdir=workdir/classifier

MGDM crops and mirrors at random in training. Here nothing is mirrored unless asked (--config.dataset.random_flip=True), as left
and right may matter. Classes of very different size: --config.train.balanced=True. The classifier of another training:
--config.train.init=RUN, with --config.train.init_without="('out.',)" where the classes are others.
"""

from configs.common import adamw, as_data, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=200_000, batch_size=64, accumulation=1, mixed_precision="auto", fp16_scale_growth=0.0,
                     compile=False, attention="auto", workers=4, balanced=False, noised=True, respacing="ddim250", init="",
                     init_without=(), ema_rate=0.0, ema_warmup=True, grad_clip=0.0, keep_checkpoints=3, log_interval=50,
                     eval_interval=5_000, save_interval=5_000, validation_split="val", best_metric="nll")
    config.optimizer = adamw(3e-4, betas=(0.9, 0.999), weight_decay=1e-5)
    config.lr_scheduler = d(name="customized", warmup_steps=0)
    # out_channels = 0: as many as the data have classes
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="adm_classifier", image_size=0, in_channels=0, model_channels=128, out_channels=0, num_res_blocks=2,
                    attention_resolutions=(4, 8, 16), dropout=0.4, channel_mult=(1, 1, 2, 3, 4), num_heads=1,
                    num_head_channels=64, use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False,
                    pool="attention", use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.dataset = d(name="folder", path="", resolution=128, channels=3, split="train", holdout=0.1, crop="random",
                       random_flip=False, label_column="label", group_column="", weight_column="weight", drop_classes=(), window=())
    config.metrics = d(levels=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0), bootstrap=1_000)
    return as_data(config)
