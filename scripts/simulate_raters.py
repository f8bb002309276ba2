"""A rehearsal of a rating: programs that know the truth answer a pool as people would, with errors and bias that you choose.

    python scripts/simulate_raters.py --pool=workdir/rating/pool --raters="anna:noise=0.15;bob:noise=0.15,bias=-0.5"
    python scripts/rating_agreement.py --pool=workdir/rating/pool

It shows how many images and raters a filter needs, before people spend hours. An image is taken for right unless it is a control
of the pool; with --truth=phantoms, for drawn lesions, what is read off the picture must also be what the prompt says. Rehearse in a
copy of the pool: answers are never deleted. The raters are called 'scripted anna', so that nobody takes them for people.
"""

import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs.ratings import Pool, scripted  # noqa: E402
from libs.ratings.store import Store  # noqa: E402

flags.DEFINE_string("pool", None, "folder of the pool", required=True)
flags.DEFINE_string("raters", "anna:noise=0.15;bob:noise=0.15,bias=-0.5", "NAME:option=number,...; options: noise (share of wrong "
                    "scores), bias (in levels), careless (share of items that get the best scores unseen), share (of the pool)")
flags.DEFINE_enum("truth", "controls", ["controls", "phantoms"], "what is known to be wrong")
flags.DEFINE_integer("seed", 0, "of the raters' errors")


def main(argv):
    options = flags.FLAGS
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}: options are written --name=value")
        raters, pool = scripted.parse(options.raters), Pool(options.pool)
        truth = scripted.truths(pool, phantom_faults(pool) if options.truth == "phantoms" else None)
        with Store.of(pool) as store:
            for rater in raters:
                n = scripted.rate(pool, store, rater, truth, seed=options.seed)
                print(f"{scripted.PREFIX}{rater.name}: {n} items answered")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def phantom_faults(pool):
    """item -> {axis: level}: whether size, colour and skin of a drawn lesion are those of its prompt.

    Without a lesion in it the image is of the lowest quality and fits no prompt; one wrong word leaves the level below the best.
    """
    import numpy as np
    from PIL import Image

    from libs.data import phantoms
    image_axis, prompt_axis = pool.axes[0], pool.axes[-1]

    def faults(item):
        with Image.open(pool.folder / item.image) as picture:
            seen = phantoms.measure(np.asarray(picture.convert("RGB")))
        words = {key: [word for word in phantoms.ATTRIBUTES[key] if asked_for(key, word, item.prompt)] for key in
                 ("size", "colour", "skin")}
        wrong = sum(bool(asked) and seen[key] not in asked for key, asked in words.items())
        if not seen["size"]:
            return {image_axis.name: 1, prompt_axis.name: 1}
        return {prompt_axis.name: max(prompt_axis.levels) - 1 if wrong == 1 else 1} if wrong else {}

    return faults


def asked_for(key, word, prompt):
    """Whether a prompt in the phantoms' words has this one; skin is told as 'on tan skin', which a colour may share a word with."""
    prompt = prompt.casefold()
    return f"{word} skin" in prompt if key == "skin" else word in prompt.partition(" on ")[0]


if __name__ == "__main__":
    app.run(main)
