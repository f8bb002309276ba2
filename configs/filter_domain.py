"""A filter of ratings on encoders of the domain: image networks of one's own, or fine-tuned ones, with a clinical language model.

    python train_filter.py --config=configs/filter_domain.py --config.ratings.pool=workdir/rating/pool \
        --config.pairs.path=/path/to/real/images --workdir=workdir/filter
    python train_filter.py --config=configs/filter_domain.py --config.ratings.pool=workdir/rating/pool \
        --config.encoder.images="('timm:resnet50@cells.safetensors','colour')" --config.encoder.text.path=/path/to/bert \
        --workdir=workdir/filter

Images and texts were never trained together, so give real pairs where there are some: they teach which words belong to which image.
A domain's own CLIP (PubMedCLIP and the like) goes into configs/filter_clip.py.
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
    # classifier: a network trained on config.pairs; names as for config.metrics.features. text: an encoder of libs/encoders
    config.encoder = d(kind="pair", images=("classifier", "dinov2", "colour"),
                       text=d(name="hf", path="michiyasunaga/BioLinkBERT-base", max_length=256))
    # see configs/filter_words.py
    config.filter = d(precision=0.8, matches="congruence", swaps=1.0, ranking=0.5, pair_weight=0.5, most_pairs=5_000, width=32,
                      hidden=0, members=8, dropout=0.4, lr=3e-3, weight_decay=0.05, epochs=150, patience=30, batch_size=64)
    config.pairs = d(name="folder", path="", resolution=224, split="", window=())
    return config
