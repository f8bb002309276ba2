"""A filter of ratings on CLIP: an encoder of images and texts that were trained together, so that few ratings go far.

    python train_filter.py --config=configs/filter_clip.py --config.ratings.pool=workdir/rating/pool --workdir=workdir/filter
    python train_filter.py --config=configs/filter_clip.py --config.ratings.pool=workdir/rating/pool \
        --config.encoder.path=/path/to/siglip --config.pairs.path=/path/to/real/images --workdir=workdir/filter

Any CLIP or SigLIP that transformers reads (safetensors), from a folder or the hub. The cosine of image and text is one of the
features (ImageReward and PickScore train whole networks of this kind on 10^5 and more choices; here they stay frozen).
"""

from configs.common import d


def get_config():
    config = d()
    config.seed = 1234
    # path: a table that rate.py exported, in place of the answers in the pool's folder
    config.ratings = d(pool="workdir/rating/pool", path="")
    # by: 'image' only where prompts are class names. Shares of the rated images; the rest is trained on.
    # A verdict on its use takes 20 prompts in the test (20 images in a split by image)
    config.split = d(by="prompt", calibration=0.2, test=0.2)
    config.encoder = d(kind="clip", path="openai/clip-vit-base-patch32")
    # see configs/filter_words.py
    config.filter = d(precision=0.8, matches="congruence", swaps=1.0, ranking=0.5, pair_weight=0.5, most_pairs=2_000, width=32,
                      hidden=0, members=8, dropout=0.4, lr=3e-3, weight_decay=0.05, epochs=150, patience=30, batch_size=64)
    config.pairs = d(name="folder", path="", resolution=224, split="", window=())
    return config
