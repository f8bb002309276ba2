"""Train a filter on people's ratings: how likely they are to call an image good, given its prompt.

A frozen encoder of images and texts, a small ordinal network on both, swapped prompts as examples of what does not fit, optionally
real pairs, and a calibration; tested on prompts that it did not see. Closest published work: Sun et al. 2023 (arXiv 2306.12438).

    python train_filter.py --config=configs/filter_words.py --config.ratings.pool=workdir/rating/pool \
        --config.pairs.path=/path/to/real/images --workdir=workdir/filter

Then sample.py and every eval script take --config.filter.path=workdir/filter/filter; scripts/apply_filter.py sorts a folder.
"""

import json

import torch

from libs import cli, data, engine, evaluation, pipeline, ratings
from libs.engine.checkpoint import write_text
from libs.ratings import embedding, judged, learning, training
from libs.ratings.store import Store


def train(config, workdir):
    run = engine.start(config, workdir)
    pool, seed = ratings.Pool(config.ratings.pool), config.seed
    found = learning.rated(pool, given_answers(config.ratings.path, pool))
    rows, split = learning.divide(found, seed=seed, **config.split)
    real = real_pairs(config.pairs)

    options = config.encoder.to_dict()
    if "images" in options:
        names = options["images"] if isinstance(options["images"], (list, tuple)) else (options["images"],)
        options["images"] = [own_network(real, seed) if name == "classifier" else name for name in names]
    encoder = embedding.get(**options, device=run.device)
    pictures = [pipeline.to_uint8(torch.from_numpy(data.read_image(pool.folder / item.image))) for item in found.items]
    settings = config.filter.to_dict()
    precision, most_pairs = settings.pop("precision"), settings.pop("most_pairs")
    examples = training.rated_examples(encoder.images(pictures), encoder.texts(found.prompts), found, matches=settings["matches"],
                                       by=config.split.by)
    unseen = {learning.plain(found.items[i].prompt) for part in ("calibration", "test") for i in rows[part]}
    pairs = embedded_pairs(real, encoder, found.axes, most_pairs, unseen)
    judge = training.train(examples.part(rows["train"]), found.axes, pairs=pairs, blocks=encoder.blocks, cosine=encoder.aligned,
                           seed=seed, **settings)
    judge_of = ratings.Filter(judge, encoder, found.axes)
    own, tested = examples.part(rows["calibration"]), examples.part(rows["test"])
    chosen = learning.calibrate(judge_of, own.image, own.text, found.passed[rows["calibration"]], precision=precision)
    scores = judged.judge(judge_of, tested.image, tested.text, found.part(rows["test"]), by=config.split.by, seed=seed)
    judge_of.known = {"split": split, "parts": {part: len(rows[part]) for part in rows}, "threshold_is": chosen,
                      "pool": pool.fingerprint, "answers": found.fingerprint, "real_pairs": len(pairs) if pairs else 0,
                      "rater_bias": {axis: sorted(bias.values()) for axis, bias in found.bias.items()}}  # a filter names nobody

    run.describe()
    folder = judge_of.save(run.folder / "filter")
    shown = run.folder / "eval" / "filter"
    shown.mkdir(parents=True, exist_ok=True)
    judged.figures(judge_of.report, scores, found.part(rows["test"]), [pictures[i] for i in rows["test"]], shown)
    told = judged.scores_json(judge_of.report, encoder=json.dumps(encoder.options), nnet=folder, seed=seed)
    write_text(shown / "scores.json", json.dumps(told, indent=1))
    print(f"{judged.told(judge_of.report)}\nThreshold: {chosen}. Split {split}; images: {judge_of.known['parts']}, real pairs: "
          f"{judge_of.known['real_pairs']}\n{folder}: use it by --config.filter.path={folder}")
    run.finish()


def given_answers(path, pool):
    """Those in the pool's own store, or in a table that rate.py exported."""
    if path:
        return learning.answers_of_table(path, pool)
    with Store.of(pool) as store:
        return store.answers()


def real_pairs(options):
    """The data set of real images with texts or labels; None where config.pairs names no folder."""
    if options.name != "phantoms" and not options.path:
        return None
    dataset = data.get(**{key: value for key, value in options.to_dict().items() if value != ""})
    data.preflight(dataset)
    return dataset


def own_network(real, seed):
    """The name of the small network that tells the classes of the real images apart; trained at the first call."""
    if real is None or real.labels is None:
        raise ValueError("config.encoder.images has 'classifier', a network that is trained on config.pairs: give it real images "
                         "with labels (config.pairs.path), or name classifier:<folder> of scripts/train_feature_network.py, or "
                         "timm:<network>")
    return f"classifier:{evaluation.feature_network(real, seed=seed)}"


def embedded_pairs(real, encoder, axes, most, without):
    """`training.Examples` of at most so many real images under their own texts, but for prompts that are to stay unseen."""
    if real is None or not most:
        return None
    labels = [""] * len(real) if real.labels is None else [real.classes[int(label)] for label in real.labels]
    texts = [""] * len(real) if real.captions is None else [text if isinstance(text, str) else text[i % len(text)]
                                                            for i, text in enumerate(real.captions)]
    prompts = [ratings.wording(text, label) for text, label in zip(texts, labels)]
    rows = [i for i in data.some(real, most) if prompts[i] and learning.plain(prompts[i]) not in without]
    if not rows:
        return None
    image = torch.cat([encoder.images(pipeline.to_uint8(batch["image"])) for batch in data.in_order(real, rows, 32)])
    labels, prompts = [labels[i] for i in rows], [prompts[i] for i in rows]
    return training.real_examples(image, encoder.texts(prompts), axes, labels, prompts)


if __name__ == "__main__":
    cli.main(train)
