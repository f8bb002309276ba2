"""A filter of ratings without any downloaded weights: small image networks and hashed words.

    python train_filter.py --config=configs/filter_words.py --config.ratings.pool=workdir/rating/pool \
        --config.pairs.path=/path/to/real/images --workdir=workdir/filter
    python train_filter.py --config=configs/filter_words.py --config.ratings.pool=workdir/phantom_pool \
        --config.pairs.name=phantoms --config.pairs.resolution=32 --workdir=workdir/phantom_filter

Hashed words know no meaning: each word has to stand in rated prompts or in texts of config.pairs, and one that does not says
nothing. On drawn lesions, 300 of them rated by two people who are wrong about 15 % and of whom one is strict, it told right from
wrong on prompts that nobody had rated by an AUROC of 0.96 against the truth (congruence 0.96, quality 0.93; mean of 3 seeds, its
settings chosen on the same lesions), with a classifier of 2,000 labelled ones; 0.97 where 1,500 of these also were pairs, 0.89
without swapped prompts.
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
    # classifier: a network trained on config.pairs, which tells content; the other two tell damage (timm:test_resnet@random does
    # so almost as well in an eighth of the time). classifier:<folder>, timm:<model>@<file> as for config.metrics.features
    config.encoder = d(kind="pair", images=("classifier", "colour", "timm:resnet18@random"),
                       text=d(name="words", max_length=64, dim=128))
    # precision: that the threshold is to reach, as raters see it: where they err at random, the truth is better than that.
    # matches: the axis that says whether image and prompt belong together. Weights beside 1 for rated images: swaps of prompts of
    # another label, ranking above those of the same, real pairs
    config.filter = d(precision=0.8, matches="congruence", swaps=1.0, ranking=0.5, pair_weight=0.5, most_pairs=2_000, width=32,
                      hidden=0, members=8, dropout=0.4, lr=3e-3, weight_decay=0.05, epochs=150, patience=30, batch_size=64)
    # real images with texts or labels, path='' for none: a section as of other configs' dataset
    config.pairs = d(name="folder", path="", resolution=64, split="", window=())
    return config
