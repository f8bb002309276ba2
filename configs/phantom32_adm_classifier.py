"""Drawn lesions 32x32 of four classes: a small classifier of noisy images, to guide configs/phantom32_adm.py.

    python train_classifier.py --config=configs/phantom32_adm_classifier.py --workdir=workdir/phantom32_classifier

Then sample.py and sample_dual_bridge.py with --config.sample.gradient.classifier=workdir/phantom32_classifier.
"""

from configs.common import adamw, as_data, d


def get_config():
    config = d()
    config.seed = 1234
    config.train = d(n_steps=1_000, batch_size=64, accumulation=1, mixed_precision="auto", fp16_scale_growth=0.0,
                     compile=False, attention="auto", workers=0, balanced=False, noised=True, respacing="", init="",
                     init_without=(), ema_rate=0.0, ema_warmup=True, grad_clip=1.0, keep_checkpoints=2, log_interval=20,
                     eval_interval=500, save_interval=500, validation_split="val", best_metric="nll")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.99), weight_decay=0.05)
    config.lr_scheduler = d(name="linear", warmup_steps=100)
    # out_channels = 0: as many as the data have classes
    # 0 in sizes and channels: those of config.dataset
    config.nnet = d(name="adm_classifier", image_size=0, in_channels=0, model_channels=32, out_channels=0, num_res_blocks=1,
                    attention_resolutions=(4,), dropout=0.1, channel_mult=(1, 2, 2), num_heads=1, num_head_channels=64,
                    use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=False, pool="attention",
                    use_checkpoint=False)
    config.schedule = d(name="linear", steps=1000)
    config.dataset = d(name="phantoms", resolution=32, size=4_000, seed=0, split="train", random_flip=True)
    config.metrics = d(levels=(0.0, 0.1, 0.25, 0.5, 0.75), bootstrap=200)
    return as_data(config)
