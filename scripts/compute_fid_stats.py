"""Reference statistics of one's own data for the Fréchet distance: an .npz with mu and sigma, as U-ViT's users have them.

    python scripts/compute_fid_stats.py --config=configs/folder64_uvit_label.py --config.dataset.path=/path/to/images \
        --features=inception --output=assets/fid_stats/mine.npz

Then `--config.metrics.fid_stat=assets/fid_stats/mine.npz`. The file says which network it is of, and serves no other; for several
networks name files `mine_{features}.npz`, here and there. Runs on N processes too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data, engine, evaluation, files  # noqa: E402
from libs.engine.file_names import safe_name  # noqa: E402
from libs.engine.places import assets_folder  # noqa: E402
from libs.metrics import gaussian  # noqa: E402


def compute(config, workdir, features, output):
    run = engine.start(config, workdir, claim=False)
    dataset = data.get(**config.dataset)
    with config.unlocked():
        config.metrics.features, config.metrics.fid_stat = (features,), ""
    extractor, = evaluation.extractors(run, config, dataset)
    reference = evaluation.reference(run, extractor, dataset, workers=config.train.workers)
    stem = f"{safe_name(dataset.name)}{dataset.shape[-1]}"
    path = output or str(assets_folder() / "fid_stats" / f"{stem}_{{features}}.npz")
    if run.is_main:
        path = path.replace("{features}", extractor.name.replace("/", "_"))
        with files.disk_errors(path):
            gaussian.save_stats(path, reference.gaussian)
        print(f"{path}: {extractor.name} features of {reference.gaussian.n} images")
    run.finish()


if __name__ == "__main__":
    cli.main(compute, features=("inception", "feature network: inception, timm:<network>, timm:<network>@<file>, classifier, ..."),
             output=("", "path of the .npz; by default assets/fid_stats/<data><resolution>_{features}.npz "
                         "of the repository"))
