"""Your own images at 64x64 with labels: a small classifier of noisy images, beside configs/folder64_adm.py.

    python train_classifier.py --config=configs/folder64_adm_classifier.py --config.dataset.path=/path/to/images \
        --workdir=workdir/classifier

Nothing is mirrored unless asked (--config.dataset.random_flip=True), as left and right may matter. Classes of very different
size: --config.train.balanced=True.
"""

from configs.common import adamw, as_data, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=5_000, batch_size=64, accumulation=1, mixed_precision="auto", fp16_scale_growth=0.0,
                     compile=False, attention="auto", workers=4, balanced=False, noised=True, respacing="", init="",
                     init_without=(), ema_rate=0.0, ema_warmup=True, grad_clip=1.0, keep_checkpoints=3, log_interval=50,
                     eval_interval=500, save_interval=500, validation_split="val", best_metric="nll")
    config.optimizer = adamw(5e-4, betas=(0.9, 0.99), weight_decay=0.05)
    config.lr_scheduler = d(name="linear", warmup_steps=100)
    # out_channels = 0: as many as the data have classes
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="adm_classifier", image_size=0, in_channels=0, model_channels=32, out_channels=0, num_res_blocks=1,
                    attention_resolutions=(4, 8), dropout=0.1, channel_mult=(1, 2, 2, 3), num_heads=1,
                    num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False,
                    pool="attention", use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.dataset = d(name="folder", path="", resolution=64, channels=3, split="train", holdout=0.1, crop="random",
                       random_flip=False, label_column="label", group_column="", weight_column="weight", drop_classes=(), window=())
    config.metrics = d(levels=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0), bootstrap=1_000)
    return as_data(config)
