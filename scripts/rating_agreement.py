"""Do the raters of a pool agree, and do their scores carry a signal? A table, a figure, and sentences that say so.

    python scripts/rating_agreement.py --pool=workdir/rating/pool

Writes agreement.md, agreement.json and agreement.png, into the pool's folder unless --out names another. It only reads the answers,
so it may run while people are rating.
"""

import json
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli  # noqa: E402
from libs.engine.checkpoint import write_text  # noqa: E402
from libs.ratings import Pool, agreement  # noqa: E402
from libs.ratings.pool import RATINGS  # noqa: E402
from libs.ratings.store import Store  # noqa: E402

flags.DEFINE_string("pool", None, "folder of the pool", required=True)
flags.DEFINE_string("out", "", "folder of the results; by default the pool's")
flags.DEFINE_integer("resamples", 1000, "of the images, for the intervals")
flags.DEFINE_integer("seed", 0, "of the resamples", lower_bound=0)


def main(argv):
    options = flags.FLAGS
    if options.resamples < 100:
        raise ValueError(f"--resamples={options.resamples}: at least 100 are needed for an interval of 95 %")
    pool = Pool(options.pool)
    answers, history = answers_to(pool)
    found = agreement.summary(pool, answers, history=history, resamples=options.resamples, seed=options.seed)
    out = Path(options.out or options.pool)
    out.mkdir(parents=True, exist_ok=True)
    text = agreement.table(found)
    write_text(out / "agreement.md", f"# Agreement of raters\n\n{text}")
    write_text(out / "agreement.json", json.dumps(found, indent=1, ensure_ascii=False))
    print(text)
    agreement.figure(found, out / "agreement.png")
    print(f"table and figure: {out / 'agreement.md'}, {out / 'agreement.png'}")


def answers_to(pool):
    """The answers that count, and all that were given; none, and no file made, where no rater was added yet."""
    if not (pool.folder / RATINGS).is_file():
        return [], []
    with Store.of(pool) as store:
        return store.answers(), store.answers(history=True)


if __name__ == "__main__":
    cli.run(main)
