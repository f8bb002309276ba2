"""Sort a folder of images by a filter: scores.csv, accepted.csv and rejected.csv beside its metadata.csv, which stays as it is.

    python scripts/apply_filter.py --filter=workdir/filter/filter --images=workdir/run/images_seed0 --weights
    python scripts/apply_filter.py --filter=workdir/filter/filter --images=workdir/run/images_seed0 --threshold=0 --weights \
        --output=data/next_round

--weights adds the column `weight`, the score over its mean among the images accepted, by which every trainer multiplies the loss of
an image (reward-weighted fine-tuning: Lee et al. 2023, arXiv 2302.12192); without it a column of that name stays as it is.
--threshold=0 accepts all, so that weights alone decide.
--output copies what is accepted into a new folder, a data set for config.dataset.name=folder. accepted.csv itself is one for
path_text: --config.dataset.path_column=file_name --config.dataset.text_column=text.
"""

import sys
from pathlib import Path

import torch
from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data, pipeline, ratings  # noqa: E402
from libs.engine.checkpoint import write_text  # noqa: E402
from libs.evaluation import sorting  # noqa: E402
from libs.nn.pretrained import written_whole  # noqa: E402

flags.DEFINE_string("filter", None, "folder of the filter, written by train_filter.py", required=True)
flags.DEFINE_string("images", None, "folder of images with metadata.csv (file_name, text and label or one of them)", required=True)
flags.DEFINE_float("threshold", -1.0, "least score that is accepted; by default the filter's own")
flags.DEFINE_boolean("weights", False, "a column `weight` of mean 1 among the images accepted")
flags.DEFINE_string("output", "", "new folder for copies of the images accepted, with their metadata.csv")

BATCH, MOST = 64, 10.0


def main(argv):
    options = flags.FLAGS
    sort(Path(options.images), ratings.load_filter(options.filter, device="cuda" if torch.cuda.is_available() else "cpu"),
         options.threshold, options.weights, options.output and Path(options.output))


def sort(folder, judge, threshold, weighted, output):
    if threshold != -1 and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold={threshold:g}: a score is a probability between 0 and 1")
    if output and output.exists():
        raise ValueError(f"--output={output} is there already: give a new folder")
    threshold = judge.threshold if threshold == -1 else threshold
    rows, columns = sorting.listed(folder, anew=("score", "weight") if weighted else ("score",))
    if not judge.useful:
        print(f"warning: {judge.report.get('verdict', 'this filter was never tested')}")
    for start in range(0, len(rows), BATCH):
        part = rows[start:start + BATCH]
        pictures = [pipeline.to_uint8(torch.from_numpy(data.read_image(folder / row["file_name"]))) for row in part]
        scores, levels = judge.judged(pictures, [row["prompt"] for row in part])
        for i, row in enumerate(part):
            row |= {"score": f"{scores[i]:.6f}", "passed": bool(scores[i] >= threshold), **{f"{axis}_level": f"{value[i]:.3f}"
                                                                                          for axis, value in levels.items()}}
    kept = [row for row in rows if row["passed"]]
    extra = ["score"]
    if weighted and kept:
        mean = sum(float(row["score"]) for row in kept) / len(kept)
        for row in kept:
            row["weight"] = f"{min(MOST, float(row['score']) / mean):.6f}" if mean else "1"
        extra.append("weight")
    write_text(folder / "scores.csv", sorting.table(rows, ["file_name", "prompt", "score", *[f"{axis.name}_level" for axis in judge.axes]]))
    write_text(folder / "accepted.csv", sorting.table(kept, [*columns, *extra]))
    write_text(folder / "rejected.csv", sorting.table([row for row in rows if not row["passed"]], [*columns, "score"]))
    print(sorting.told(rows, kept, threshold, folder))
    if output:
        with written_whole(output) as staged:
            sorting.copy(folder, kept, [*columns, *extra], staged)
        print(f"{len(kept)} images in {output}")


if __name__ == "__main__":
    cli.run(main)
