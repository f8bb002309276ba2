"""Try a filter on a pool that it was not trained on: how many wrong images it accepts, and what that costs in yield.

    python scripts/test_filter.py --filter=workdir/filter --pool=workdir/rating/second_pool
    python scripts/test_filter.py --filter=workdir/filter --pool=workdir/rehearsal/second --unlike=workdir/rehearsal/first \
        --truth=phantoms

Which images are wrong, by --truth: `raters` (their answers, without the raters' bias), `controls` (made wrong on purpose when the
pool was built), or for drawn lesions `phantoms` (controls, and what is read off the picture is not what the prompt says).
--unlike=POOL leaves out prompts that stand in that pool, usually the one that the filter was trained on. On that pool itself the
numbers are of images that it knows, and a warning says so.
"""

import json
import sys
from pathlib import Path

import torch
from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data, pipeline, ratings  # noqa: E402
from libs.engine.checkpoint import write_text  # noqa: E402
from libs.evaluation import rehearsal  # noqa: E402
from libs.ratings import learning, scripted, tested  # noqa: E402
from libs.ratings.store import Store  # noqa: E402

flags.DEFINE_string("filter", None, "folder of the filter, or of its run", required=True)
flags.DEFINE_string("pool", None, "folder of the pool", required=True)
flags.DEFINE_string("unlike", "", "another pool, whose prompts are left out")
flags.DEFINE_enum("truth", "raters", ["raters", "controls", "phantoms"], "what tells which images are wrong")
flags.DEFINE_float("threshold", -1.0, "least score that is accepted; by default the filter's own")
flags.DEFINE_string("output", "", ".json to write the numbers to; by default none")
BATCH = 64


def main(argv):
    options = flags.FLAGS
    found = measure(ratings.load_filter(options.filter), ratings.Pool(options.pool), options)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, json.dumps(found, indent=1))
    print(tested.told(found))


def measure(judge, pool, options):
    if options.threshold != -1 and not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold={options.threshold:g}: a score is a probability between 0 and 1")
    if judge.known.get("pool") == pool.fingerprint:
        print(f"warning: {options.pool} is the pool that this filter was trained on. It knows these images, and does worse "
              "on others: its own test, of images held out, is in its report")
    known = {learning.plain(item.prompt) for item in ratings.Pool(options.unlike).items} if options.unlike else set()
    right = {name: good for name, good in truth(pool, options.truth).items()
             if learning.plain(pool.by_name[name].prompt) not in known}
    items = [pool.by_name[name] for name in right]
    if not items:
        raise ValueError(f"--pool={options.pool}: no image of it has a prompt that {options.unlike} does not have")
    scores = []
    for begin in range(0, len(items), BATCH):
        part = items[begin:begin + BATCH]
        images = [torch.from_numpy(data.read_image(pool.folder / item.image)) for item in part]  # of one size in a pool
        scores += judge.score(pipeline.to_uint8(torch.stack(images)), [item.prompt for item in part]).tolist()
    return tested.tested(scores, list(right.values()), items, seed=0,
                         threshold=judge.threshold if options.threshold == -1 else options.threshold)


def truth(pool, how):
    """{item: whether it is right}, without repeats."""
    if how == "raters":
        with Store.of(pool) as store:
            found = learning.rated(pool, store.answers())
        return {item.item: bool(good) for item, good in zip(found.items, found.passed)}
    levels = scripted.truths(pool, rehearsal.phantom_faults(pool) if how == "phantoms" else None)
    return {item.item: all(levels[item.item][axis.name] == max(axis.levels) for axis in pool.axes)
            for item in pool.items if not item.repeat_of}


if __name__ == "__main__":
    cli.run(main)
