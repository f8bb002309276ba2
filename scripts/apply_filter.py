"""Sort a folder of images by a filter: scores.csv, accepted.csv and rejected.csv beside its metadata.csv, which stays as it is.

    python scripts/apply_filter.py --filter=workdir/filter/filter --images=workdir/run/images_seed0 --weights=1
    python scripts/apply_filter.py --filter=workdir/filter/filter --images=workdir/run/images_seed0 --threshold=0 --weights=1 \
        --output=data/next_round

--weights adds the column `weight`, the score over its mean among the images accepted, by which every trainer multiplies the loss of
an image (reward-weighted fine-tuning: Lee et al. 2023, arXiv 2302.12192); without it a column of that name stays as it is.
--threshold=0 accepts all, so that weights alone decide.
--output copies what is accepted into a new folder, a data set for config.dataset.name=folder. accepted.csv itself is one for
path_text: --config.dataset.path_column=file_name --config.dataset.text_column=text.
"""

import csv
import io
import shutil
import sys
from pathlib import Path

import torch
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import data, pipeline, ratings  # noqa: E402
from libs.engine.checkpoint import write_text  # noqa: E402
from libs.nn.pretrained import written_whole  # noqa: E402
from libs.ratings.judged import share  # noqa: E402

flags.DEFINE_string("filter", None, "folder of the filter, written by train_filter.py", required=True)
flags.DEFINE_string("images", None, "folder of images with metadata.csv (file_name, text and label or one of them)", required=True)
flags.DEFINE_float("threshold", -1.0, "least score that is accepted; by default the filter's own")
flags.DEFINE_integer("weights", 0, "1: a column `weight` of mean 1 among the images accepted")
flags.DEFINE_string("output", "", "new folder for copies of the images accepted, with their metadata.csv")

TABLE, FILES, BATCH, MOST = "metadata.csv", ("file_name", "mask_file_name"), 64, 10.0


def main(argv):
    options = flags.FLAGS
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}: options are written --name=value")
        sort(Path(options.images), ratings.load_filter(options.filter, device="cuda" if torch.cuda.is_available() else "cpu"),
             options.threshold, bool(options.weights), options.output and Path(options.output))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def sort(folder, judge, threshold, weighted, output):
    if threshold != -1 and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold={threshold:g}: a score is a probability between 0 and 1")
    if output and output.exists():
        raise ValueError(f"--output={output} is there already: give a new folder")
    threshold = judge.threshold if threshold == -1 else threshold
    rows, columns = listed(folder, anew=("score", "weight") if weighted else ("score",))
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
    write_text(folder / "scores.csv", table(rows, ["file_name", "prompt", "score", *[f"{axis.name}_level" for axis in judge.axes]]))
    write_text(folder / "accepted.csv", table(kept, [*columns, *extra]))
    write_text(folder / "rejected.csv", table([row for row in rows if not row["passed"]], [*columns, "score"]))
    told(rows, kept, threshold, folder)
    if output:
        with written_whole(output) as staged:
            for row in kept:
                for name in (row[key] for key in FILES if row.get(key)):
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, staged / name)
            write_text(staged / TABLE, table(kept, [*columns, *extra]))
        print(f"{len(kept)} images in {output}")


def listed(folder, anew):
    """(rows of metadata.csv with their `prompt`, its columns without those that are written anew)."""
    path = folder / TABLE
    if not path.is_file():
        raise ValueError(f"{folder} has no {TABLE}: a folder of sample.py has one, with the prompt of each image")
    with open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        columns = [name for name in reader.fieldnames or () if name not in anew]
    if "file_name" not in columns or not {"text", "label"} & set(columns):
        raise ValueError(f"{path}: its columns are {', '.join(columns)}; file_name and text or label are needed")
    for number, row in enumerate(rows, 2):
        for name in (row[key] for key in FILES if row.get(key)):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{path}: image {number - 1}: {name!r} leads out of the folder")
        row["prompt"] = ratings.wording(*(row.get(key) or "" for key in ("text", "label", "modality")))
        if not row["prompt"]:
            raise ValueError(f"{path}: image {number - 1}, {row['file_name']!r}, has neither text nor label")
    if not rows:
        raise ValueError(f"{path} names no image")
    return rows, columns


def table(rows, columns):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def told(rows, kept, threshold, folder):
    """Print how much is kept, of each class too."""
    def line(name, own):
        count = sum(row["passed"] for row in own)
        found = share(count, len(own))
        return f"{name}: {count} of {len(own)} accepted, {found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
    print(f"{line(f'score >= {threshold:.4g}', rows)}; {folder / 'accepted.csv'}, rejected.csv, scores.csv")
    classes = {}
    for row in rows:
        classes.setdefault(row.get("label") or "", []).append(row)
    for name, own in sorted(classes.items()) if len(classes) > 1 else ():
        print(f"  {line(name or 'no class', own)}")
    if not kept:
        print("warning: no image is accepted; a lower --threshold accepts more")


if __name__ == "__main__":
    app.run(main)
