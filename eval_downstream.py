"""Does synthetic data help a classifier, or a segmentation network? Train it on real, on synthetic and on both, and test it on
real images held out.

    python sample.py --workdir=workdir/mine --label=all --n_samples=200 --config.sample.path=synthetic
    python eval_downstream.py --config=configs/folder64_downstream.py --config.dataset.path=/path/to/images \
        --config.synthetic.path=synthetic --workdir=workdir/downstream
    torchrun --nproc_per_node=4 eval_downstream.py ...    # shares the trainings; the same files come out

    python sample.py --workdir=workdir/controlnet --mask_path=/path/to/masks --n_samples=2 --config.sample.path=pairs
    python eval_downstream.py --config=configs/folder64_segmentation.py --config.dataset.path=/path/to/pairs \
        --config.synthetic.path=pairs --workdir=workdir/segmentation

The synthetic images may come from anywhere: a folder with metadata.csv (file_name, label), or one of class folders; for
segmentation, metadata.csv with file_name, mask_file_name: the mask that an image was asked for is its truth. Writes
<workdir>/downstream.json, .csv, .md (printed too) and .png. The same command goes on with a study that was stopped.
"""

from libs import cli, downstream, engine


def study(config, workdir):
    downstream.check(config)
    run = engine.start(config, workdir, auto_fp16=False)
    real, test, synthetic, warnings = downstream.open_all(run, config)
    settings = downstream.settings(run, config)
    plan = downstream.plan.trainings(real, synthetic, test, fractions=config.study.fractions, ratios=config.study.ratios,
                                     seeds=config.study.seeds, with_all=config.study.with_all, settings=settings)
    kept = downstream.carry_out(run, plan, real, synthetic, test, config)
    if run.is_main:
        rows, result = downstream.report(run.folder, plan, kept, real, test, synthetic, config, settings, warnings)
        print(downstream.summary.as_text(rows, result))
        print(f"{run.folder / 'downstream.md'}, .csv, .json and .png")
    run.finish()


if __name__ == "__main__":
    cli.main(study)
