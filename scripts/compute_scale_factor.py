"""The scale factor of an autoencoder on one's own images: 1 / standard deviation of their sampled latents.

    python scripts/compute_scale_factor.py --config=configs/imagenet256_uvit_large.py --config.dataset.path=/path/to/images

Prints it with the option to use. 0.18215 is that of Stable Diffusion's autoencoder on its own images, 0.23010 on COCO.
Runs on N processes too, with the same result.
"""

import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, codecs, data, engine  # noqa: E402

BATCH = 16


def compute(config, n_images):
    if n_images < 1:
        raise ValueError(f"--n_images={n_images}: expected 1 or more")
    run = engine.start(config, "", claim=False)
    dataset = data.get(**config.dataset)
    codec = codecs.get(**config.codec).to(run.device)
    latent_shape = codec.latent_shape(dataset.shape)
    chosen = data.some(dataset, n_images)
    data.check_sample(dataset)
    batches = data.in_order(dataset, chosen[run.rank::run.world], BATCH)
    bar = tqdm(batches, total=-(-len(chosen[run.rank::run.world]) // BATCH), disable=None if run.is_main else True)
    spread = codecs.Spread.of(run.gather_rows(codecs.latent_sums(codec, bar, seed=config.seed, device=run.device)))
    if run.is_main:
        print(f"{len(chosen)} images of {dataset.name}, latents {'x'.join(map(str, latent_shape))} before scaling: "
              f"mean {spread.mean:.4f}, std {spread.std:.4f}")
        for channel, (mean, std) in enumerate(zip(spread.channel_mean.tolist(), spread.channel_std.tolist())):
            print(f"  channel {channel}: mean {mean:.4f}, std {std:.4f}")
        print(f"scale factor {spread.scale_factor:.5f} (now {codec.scale_factor:.5f})" +
              ("" if config.codec.name == "pixels" else f": --config.codec.scale_factor={spread.scale_factor:.5f}"))
    run.finish()


if __name__ == "__main__":
    cli.main(compute, n_images=(4096, "how many images, drawn where there are more"))
