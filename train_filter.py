"""Train a filter on people's ratings: how likely they are to call an image good, given its prompt.

A frozen encoder of images and texts, a small ordinal network on both, swapped prompts as examples of what does not fit, optionally
real pairs, and a calibration; tested on prompts that it did not see. Closest published work: Sun et al. 2023 (arXiv 2306.12438).

    python train_filter.py --config=configs/filter_words.py --config.ratings.pool=workdir/rating/pool \
        --config.pairs.path=/path/to/real/images --workdir=workdir/filter

Then sample.py and every eval script take --config.filter.path=workdir/filter/filter; scripts/apply_filter.py sorts a folder.
"""

import json

import torch

from libs import cli, data, engine, files, pipeline, ratings
from libs.engine.checkpoint import write_text
from libs.evaluation import rated_pairs
from libs.ratings import embedding, judged, learning, training
from libs.ratings.filter import seen_in
from libs.ratings.store import Store


def train(config, workdir):
    run = engine.start(config, workdir)
    if run.world > 1:
        raise ValueError(f"{run.world} processes, where one trains a filter in minutes: start it without accelerate launch")
    pool, seed = ratings.Pool(config.ratings.pool), config.seed
    found = learning.rated(pool, given_answers(config.ratings.path, pool))
    rows, split = learning.divide(found, seed=seed, **config.split)
    pictures = [pipeline.to_uint8(torch.from_numpy(data.read_image(pool.folder / item.image))) for item in found.items]
    held_out = [found.items[i] for part in ("calibration", "test") for i in rows[part]]
    real = rated_pairs.beside(config.pairs, pool, pictures=pictures, unseen=held_out if config.split.by == "prompt" else ())

    options = config.encoder.to_dict()
    if "images" in options:
        names = options["images"] if isinstance(options["images"], (list, tuple)) else (options["images"],)
        options["images"] = [rated_pairs.own_network(real, seed, run.device) if name == "classifier" else name
                             for name in names]
    encoder = embedding.get(**options, device=run.device)
    settings = config.filter.to_dict()
    precision, most_pairs = settings.pop("precision"), settings.pop("most_pairs")
    examples = training.rated_examples(encoder.images(pictures), encoder.texts(found.prompts), found, matches=settings["matches"],
                                       by=config.split.by)
    pairs = rated_pairs.embedded(real, encoder, found.axes, most_pairs)
    judge = training.train(examples.part(rows["train"]), found.axes, pairs=pairs, blocks=encoder.blocks, cosine=encoder.aligned,
                           seed=seed, **settings)
    judge_of = ratings.Filter(judge, encoder, found.axes)
    judge_of.seen = seen_in(pictures, found.prompts + (pairs.prompts if pairs else []), encoder)
    own, tested = examples.part(rows["calibration"]), examples.part(rows["test"])
    chosen = learning.calibrate(judge_of, own.image, own.text, found.passed[rows["calibration"]], precision=precision)
    scores = judged.judge(judge_of, tested.image, tested.text, found.part(rows["test"]), by=config.split.by, seed=seed)
    judge_of.known = {"split": split, "parts": {part: len(rows[part]) for part in rows}, "threshold_is": chosen,
                      "pool": pool.fingerprint, "answers": found.fingerprint, "real_pairs": len(pairs) if pairs else 0,
                      "pairs_left_out": real.left_out,
                      "rater_bias": {axis: sorted(bias.values()) for axis, bias in found.bias.items()}}  # a filter names nobody

    run.describe()
    folder = judge_of.save(run.folder / "filter")
    shown = run.folder / "eval" / "filter"
    shown.mkdir(parents=True, exist_ok=True)
    judged.figures(judge_of.report, scores, found.part(rows["test"]), [pictures[i] for i in rows["test"]], shown)
    told = judged.scores_json(judge_of.report, encoder=json.dumps(encoder.options), nnet=folder, seed=seed)
    write_text(shown / "scores.json", files.json_text(told))
    print(f"{judged.told(judge_of.report)}\nThreshold: {chosen}. Split {split}; images: {judge_of.known['parts']}, real pairs: "
          f"{judge_of.known['real_pairs']}\n{folder}: use it by --config.filter.path={folder}")
    run.finish()


def given_answers(path, pool):
    """Those in the pool's own store, or in a table that rate.py exported."""
    if path:
        return learning.answers_of_table(path, pool)
    with Store.of(pool) as store:
        return store.answers()


if __name__ == "__main__":
    cli.main(train)
