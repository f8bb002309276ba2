"""A rehearsal of a rating: programs that know the truth answer a pool as people would, with errors and bias that you choose.

    python scripts/simulate_raters.py --pool=workdir/rating/pool --raters="anna:noise=0.15;bob:noise=0.15,bias=-0.5"
    python scripts/rating_agreement.py --pool=workdir/rating/pool

It shows how many images and raters a filter needs, before people spend hours. An image is taken for right unless it is a control
of the pool; with --truth=phantoms, for drawn lesions, what is read off the picture must also be what the prompt says. Rehearse in a
copy of the pool: answers are never deleted. The raters are called 'scripted anna', so that nobody takes them for people.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli  # noqa: E402
from libs.evaluation import rehearsal  # noqa: E402
from libs.ratings import Pool, scripted  # noqa: E402
from libs.ratings.store import Store  # noqa: E402

flags.DEFINE_string("pool", None, "folder of the pool", required=True)
flags.DEFINE_string("raters", "anna:noise=0.15;bob:noise=0.15,bias=-0.5", "NAME:option=number,...; options: noise (share of wrong "
                    "scores), bias (in levels), careless (share of items that get the best scores unseen), share (of the pool)")
flags.DEFINE_enum("truth", "controls", ["controls", "phantoms"], "what is known to be wrong")
flags.DEFINE_integer("seed", 0, "of the raters' errors", lower_bound=0)


def main(argv):
    options = flags.FLAGS
    raters, pool = scripted.parse(options.raters), Pool(options.pool)
    truth = scripted.truths(pool, rehearsal.phantom_faults(pool) if options.truth == "phantoms" else None)
    with Store.of(pool) as store:
        for rater in raters:
            n = scripted.rate(pool, store, rater, truth, seed=options.seed)
            print(f"{scripted.PREFIX}{rater.name}: {n} items answered")


if __name__ == "__main__":
    cli.run(main)
