"""A pool of images for raters: folders of sample.py, real images, repeats and controls, mixed so that nobody can tell them apart.

    python scripts/build_rating_pool.py --config=configs/rating.py --models=workdir/a/images_seed0,workdir/b/images_seed0
    python scripts/build_rating_pool.py --config=configs/rating.py --models=workdir/a/images_seed0 --output=workdir/rating/pool \
        --config.pool.real=/path/to/images --config.pool.size=200

Models and prompts take turns. Real images are cut to the size of the generated ones, and asked about in the same form: give them
labels or texts like those of the prompts. A folder that holds ratings is never replaced. Then: rate.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data, pipeline  # noqa: E402
from libs.nn.pretrained import written_whole  # noqa: E402
from libs.ratings import building, pool as pools  # noqa: E402


def build(config, models, output):
    options, folder = config.pool, Path(output or config.pool.path)
    building.check_free(folder)
    axes = building.scale(config.scale.axes, config.scale.order)
    folders = [Path(each.strip()) for each in (models.split(",") if models else options.models)]
    if not folders:
        raise ValueError("--models=FOLDER,FOLDER is missing: folders that sample.py has filled")
    synthetic = [each for path, name in zip(folders, building.distinct(folders)) for each in samples(path, name)]
    side = options.resolution or min(synthetic[0].pixels().shape[:2])
    real = real_images(options, side) if options.real else []
    with written_whole(folder) as staged:
        made = building.build(staged, synthetic, real, axes=axes, tags=config.scale.tags, guide=config.scale.guide,
                              size=options.size, real_share=options.real_share, repeat_share=options.repeat_share,
                              controls=options.controls, resolution=options.resolution, seed=config.seed)
        building.check_free(folder)  # someone may have answered meanwhile
    print(f"{len(made.items)} items in {folder}: {building.contents(made.items)}")
    print(f"raters come next: python rate.py --config=configs/rating.py --pool={folder} --add_rater=NAME")


def samples(folder, model):
    """The `Candidate`s of a folder of sample.py, which has a metadata.csv."""
    if not (folder / "metadata.csv").is_file():
        raise ValueError(f"--models: {folder} has no metadata.csv: expected a folder that sample.py has filled; several folders "
                         "are given with commas between them")
    found = data.get("folder", path=str(folder), resolution=1, split="", split_column="", min_per_class=0, unlisted_files="ignore",
                     cache="")
    return [building.Candidate(_reader(folder / row["file_name"]), row["text"].strip(), row["label"],
                               row.get("modality", "").strip(), mask=found.masks and _mask_reader(found, i),
                               source=_source(folder, model, row))
            for i, row in enumerate(found.rows)]


def real_images(options, side):
    """The `Candidate`s of real images, as training on them would see them: cut to a square of `side` pixels."""
    found = data.get("folder", path=options.real, resolution=side, split=options.real_split, window=tuple(options.real_window),
                     min_per_class=0, unlisted_files="ignore", cache="", upscale=True)  # small ones are named where they are read
    data.check_sample(found, window_option="config.pool.real_window")
    rows = found.rows or [{"file_name": found.file_name(i)} for i in range(len(found))]
    root = Path(options.real)
    return [building.Candidate(_real_reader(found, i, side),
                               (row.get("text") or "").strip(), found.classes[int(found.labels[i])] if found.classes else "",
                               row.get("modality", "").strip(), pools.REAL,
                               found.masks and (lambda i=i: found.masks_as.levels(found[i]["mask"][None])[0].numpy()),
                               _source(root, root.resolve().name, row))
            for i, row in enumerate(rows)]


def _source(folder, model, row):
    told = {key: value for key, value in row.items() if value not in ("", None)}
    return {**told, "folder": str(folder), "model": model}  # last: a table may have columns of these names


def _reader(file):
    return lambda: pipeline.to_uint8(torch.from_numpy(data.read_image(file))).permute(1, 2, 0).numpy()


def _real_reader(found, i, side):
    def read():
        from libs.data.reading import decode
        file = Path(found.root) / found.file_name(i)
        smallest = min(decode(file).size)
        if smallest < side:
            raise ValueError(f"{file} has a side of {smallest} pixels, less than the {side} of the pool's images: remove it, or "
                             "set config.pool.resolution to the smallest side of all")
        return pipeline.to_uint8(found[i]["image"]).permute(1, 2, 0).numpy()
    return read


def _mask_reader(found, i):
    from libs.data.reading import decode
    file = Path(found.root) / found.masks[i]
    return lambda: np.array(decode(file).convert("L" if decode(file).mode in ("1", "L", "P") else "RGB"))


if __name__ == "__main__":
    cli.main(build, models=("", "folders of sample.py, with commas between them; by default config.pool.models"),
             output=("", "the pool's folder; by default config.pool.path"))
