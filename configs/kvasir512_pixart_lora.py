"""PixArt-alpha, adapted by LoRA to endoscopic images with descriptions by an MLLM, 512x512, with a loss of colours.

Med-Art (Guo et al., 2025), Kvasir, 8 classes. Expected (its Table 2): FID 51.99, Frechet distance in a network trained on Kvasir
(KFD) 1.21, KID 0.012; without the loss of colours (its Table 3) 72.86, 1.85, 0.030. Ours are not comparable to the digit: which
images were scored, how many, and by which network, is not published.

The data are a folder of images with a metadata.csv (file_name,text), as scripts/caption_images.py writes it with
configs/kvasir_captions.py and --config.output.table=metadata.csv. A column label is not needed to train: it tells evaluations the
classes, by which the network of the domain is trained.

Not as published: descriptions are left out in one case of ten (published: never, --config.train.p_uncond=0.), since guidance, in
the loss of colours as in sampling, needs the network without one. Images are cut in the middle and encoded once (published: at a
random place of the long side, at every step; --config.features.path= --config.dataset.crop=random comes near, and also draws how
large the cut is). The sum of the paper, three times what its code computes: --config.colour.reduction=sum.

    python train_pixart_lora.py --config=configs/kvasir512_pixart_lora.py --config.dataset.path=dataset/kvasir/train \
        --workdir=workdir/medart
    python eval_pixart_lora.py --workdir=workdir/medart
    python sample.py --workdir=workdir/medart --prompt="An endoscopic image of polyps"

A machine without a copy of the weights, or another size of them: --config.nnet.path=FOLDER; of 256 or 1024 pixels also
--config.dataset.resolution.
"""

from configs.common import adamw_8bit, as_data, d, filtering, metrics


def get_config():
    config = d()
    config.seed = 42
    # 15 epochs of 6,400 images
    config.train = d(mode="cond", n_steps=96_000, batch_size=1, accumulation=1, mixed_precision="bf16", tf32=False,
                     compile=False, workers=4, balanced=False, weighting="eps", p_uncond=0.1, noise_offset=0.0, ema_rate=0.0,
                     ema_warmup=False, grad_clip=1.0, init="", keep_checkpoints=10, log_interval=50, preview_interval=6_400,
                     eval_interval=0, save_interval=12_800, validation_interval=0, validation_size=256, validation_split="",
                     best_metric="")
    config.optimizer = adamw_8bit(1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    config.lr_scheduler = d(name="constant", warmup_steps=0)
    # lora_alpha: what is learned counts lora_alpha / lora_rank; text_targets: 'all' adapts wi_0 and wi_1 of T5 too;
    # both take ends of the names of layers as well, such as to_q,to_k; text_dropout: T5 drops out as its config.json says
    # sample_size 0: an eighth of dataset.resolution
    config.nnet = d(name="pixart", path="PixArt-alpha/PixArt-XL-2-512x512", subfolder="transformer", sample_size=0, any_size=False,
                    in_channels=4, lora_rank=8, lora_alpha=8.0, lora_targets="medart", train_text_encoder=True,
                    text_targets="published", text_dropout=False, use_dora=False, use_rslora=False, base_dtype="bfloat16",
                    use_checkpoint=True)
    config.schedule = d(name="linear")
    config.denoiser = d(predicts="eps", clip=False)
    # path: '' is that of config.nnet
    config.codec = d(name="kl", path="", subfolder="vae", scale_factor=0.0, decode_batch=4)
    config.encoder = d(name="t5", path="", subfolder="text_encoder", max_length=120, dtype="bfloat16")
    # path: 'auto' is <workdir>/features; '' encodes images at every step, for train_text_encoder only
    config.features = d(path="auto", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=512, channels=3, split="", holdout=0.0, crop="center", random_flip=False,
                       random_vflip=False, label_column="label", text_column="text", split_column="split", group_column="",
                       weight_column="weight", classes=(), require=("text",), missing_captions="error", doubled_files="error",
                       upscale=False)
    # every: a step in so many has the loss of colours, 0 none; last: gradients of the last so many steps alone, 0 of all;
    # weight: 0 is 1 / steps
    config.colour = d(every=500, steps=20, guidance=4.5, last=0, reduction="mean", weight=0.0, checkpoint_steps=True,
                      checkpoint_decoder=True)
    # validation_prompts: a row of each preview for each of them; () takes descriptions of the data
    config.sample = d(algorithm="dpmpp_2m", sample_steps=20, weights="average", spacing="linspace", n_samples=1_000,
                      mini_batch_size=8, guidance=4.5, labels="data", prompts="bank", validation_prompts=(), path="", npz="")
    config.filter = filtering()
    config.metrics = metrics(features=("inception", "classifier"), algorithm="dpmpp_2m", sample_steps=20, n_samples=1_000,
                             attributes={})
    return as_data(config)
