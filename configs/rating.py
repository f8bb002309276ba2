"""A pool of images for raters, and the page on which they score it.

    python scripts/build_rating_pool.py --config=configs/rating.py --models=workdir/a/images_seed0,workdir/b/images_seed0 \
        --config.pool.real=/path/to/images
    python rate.py --config=configs/rating.py --add_rater=NAME
    python rate.py --config=configs/rating.py
    python scripts/rating_agreement.py --pool=workdir/rating/pool

The scale is copied into the pool, so that a later change here never changes what a number meant when it was given.
"""

from configs.common import d


def get_config():
    config = d()
    config.seed = 1234
    # size: different images in the pool, 0 for all that there are. Shares are of these. resolution: side of all images, at most
    # the smallest of theirs, 0 as they are. real: a folder or table of real images with labels or texts, '' for none;
    # real_window: (low, high) in its grey levels. repeat_share: shown a second time, to compare raters with themselves.
    # controls: known to be wrong, to see who looks: under another prompt (swapped), or damaged
    config.pool = d(path="workdir/rating/pool", models=(), size=0, resolution=0, real="", real_split="", real_window=(),
                    real_share=0.2, repeat_share=0.1,
                    controls=d(swapped=0.04, blurred=0.01, noisy=0.01, occluded=0.01, cast=0.01))
    # names: under which a reverse proxy is asked for the page
    config.page = d(host="127.0.0.1", port=8000, names=())
    # order: of the questions on the page. levels: the meaning of 1, 2, ...; good: the least of them that is good
    config.scale = d(
        order=("quality", "congruence"),
        axes=d(
            quality=d(question="Could this be a real image of its kind, whatever was asked for?", good=2,
                      levels=("Unusable: artefacts, damage or impossible anatomy",
                              "Usable: small faults that mislead nobody",
                              "As good as a real image")),
            congruence=d(question="Does the image show what the prompt says?", good=2,
                         levels=("No: something else, or the main finding is missing",
                                 "In part: the main finding is there, a detail is missing or wrong",
                                 "Yes: everything that the prompt says"))),
        tags=("blurred", "noise or artefacts", "impossible anatomy", "wrong colour or contrast", "covered or cut off",
              "text or marks in the image", "wrong or missing finding"),
        guide="Judge the two questions apart: a flawless image may show something else than the prompt says. Take the prompt at "
              "its word, and do not mind what it leaves open. Some images are real, and some are shown twice. If you are in "
              "doubt between two numbers, give the lower one.")
    return config
