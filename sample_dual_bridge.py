"""Carry images over a dual bridge: encode them to noise under their class, decode them to a class under guidance.

MGDM's second stage (Luo et al., TPAMI 2024): every image onto its own class, pushed to where a classifier is unsure.

    python sample_dual_bridge.py --workdir=workdir/adm --input_path=workdir/adm/images_all_seed0 \\
        --config.sample.gradient.classifier=workdir/clf --config.sample.gradient.measure=entropy --config.sample.gradient.scale=5

DDIB (Su et al., ICLR 2023): from one network to another.

    python sample_dual_bridge.py --workdir=workdir/ct --target_workdir=workdir/mr --input_path=ct_images

Results are <output_path>/<target class>/<measure><scale>_<source>.png ('unguided_...' at scale 0) with a metadata.csv, so
that the folder is a data set, and a page, index.html. A source that shares its stem with another one is called by its whole
path. The same command goes on where it was stopped. At scale 0 the classifier only judges: two forward passes for each image.

Classifier-free guidance is that of --guidance, not of config.sample, whose number is meant for images from noise: encoding
goes without, so anything but 1 changes an image even where nothing else does; the results are then called cfg<guidance>_...
The precision is the run's; --config.train.mixed_precision=no (float32) reconstructs best.
"""

from pathlib import Path

import torch

from libs import cli, data, engine, metrics, report
from libs.evaluation import bridge as bridges


def sample(config, workdir, nnet_path, target_workdir, input_path, output_path, maps, n_samples, guidance, encode_to_noise,
           compare_path, recogniser, page_images):
    prefix = bridges.settle(config.sample, guidance)
    if config.sample.algorithm != "ddim" or config.sample.get("eta", 0.0):
        raise ValueError(f"config.sample.algorithm={config.sample.algorithm} with eta={config.sample.get('eta', 0.0):g}: a bridge "
                         "goes there and back by DDIM without noise, over config.sample.sample_steps times spaced as "
                         "config.sample.spacing says; give --config.sample.algorithm=ddim and eta 0")
    if encode_to_noise not in (0, 1) or page_images < 0:
        raise ValueError(f"--encode_to_noise={encode_to_noise}: 1 encodes in as many steps as it decodes (MGDM), 0 in one less; "
                         f"--page_images={page_images}: 0 or more")
    run = engine.start(config, workdir, claim=False)
    bridge = bridges.open_bridge(run, config, workdir, nnet_path, target_workdir, to_noise=bool(encode_to_noise))
    dataset, source = bridges.open_images(config, input_path, bridge.encoder.sampler.image_shape)
    folder = Path(output_path or config.sample.path or Path(workdir) / f"bridge_{source.stem}_{prefix}")
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--output_path={folder} lies in the folder of the images, {source}; choose another")
    routes = bridges.routes(maps, images=dataset.classes, encoder=bridge.sources, decoder=bridge.targets,
                            without_class=config.train.get("p_uncond", 0.0) > 0)
    jobs = bridges.plan(dataset, routes, prefix)
    asked = bridges.some(jobs, n_samples)
    if not asked:
        raise ValueError(f"{source}: no image of a class in --maps={maps}")

    settings = bridge.settings() | {
        "ema_rate": config.sample.get("ema_rate", 0.0), "precision": run.accelerator.mixed_precision,
        "images": str(source.resolve()) if source.exists() else dataset.fingerprint[:16],
        "maps": sorted(f"{name or ours or '*'}:{target or name}" for name, pairs in routes.items() for ours, target in pairs)}
    beside = bridges.unguided(compare_path, settings) if compare_path else None
    independent = metrics.extractor(f"classifier:{recogniser}", device=run.device) if recogniser else None
    bridges.check_judges(asked, beside, independent)
    run.main_first(lambda: bridges.claim(folder, settings))
    chosen = data.Subset(dataset, dict.fromkeys(job.index for job in asked))
    run.main_first(lambda: data.preflight(chosen, remember=folder / ".preflight.json"))

    facts = {"nnet": str(bridge.decoder.source), "step": bridge.decoder.step, "sampler": bridge.decoder.sampler.describe(),
             **{name: value for name, value in settings.items() if name not in ("images", "maps")}}
    made = bridges.carry(run, bridge, dataset, asked, folder, batch_size=config.sample.mini_batch_size, facts=facts,
                         shown=[asked[k] for k in bridges.spread(asked, page_images)])
    made = int(run.gather_rows(torch.tensor([made])).sum())  # and all processes are done
    rows = bridges.read_rows(folder, jobs)
    judged = bridges.judge(run, bridge, dataset, rows, folder, beside=beside, recogniser=independent,
                           batch_size=config.sample.mini_batch_size)
    if run.is_main:
        bridges.write_table(folder, rows)
        result = bridges.finish(bridge, dataset, rows, judged, folder, shown=page_images, beside=beside, seed=config.seed,
                                settings={**facts, **settings, "compared with": compare_path, "recogniser": recogniser})
        print(f"{len(rows)} images in {folder}, {made} of them made now; page: {report.write_bridge(folder)}")
        print(bridges.sentence(result))
    run.finish()


if __name__ == "__main__":
    cli.main(sample, target_workdir=("", "run folder of a second network, which decodes (DDIB); by default the first one does"),
             input_path=("", "images: a folder of class folders, or one with metadata.csv; by default those of config.dataset"),
             output_path=("", "folder of the results; by default <workdir>/bridge_<images>_<measure><scale>"),
             guidance=("", "classifier-free guidance of the decoding, uncond + s (cond - uncond); by default 1, off, whatever "
                           "config.sample says"),
             maps=("", "source:target,source:target by class names; several targets for one source are allowed, 'all' or '*' is "
                       "every class; by default every class onto itself"),
             n_samples=(0, "images to carry, a choice that is always the same; 0 for all", 0),
             encode_to_noise=(1, "1: as many steps there as back, to the predicted noise (MGDM); 0: one less, which may "
                                 "reconstruct better (ADM, appendix F)"),
             compare_path=("", "results of the same command at scale 0, to compare with on the page"),
             recogniser=("", "folder of an independent classifier (scripts/train_feature_network.py), which says on the page how "
                             "often the target class is recognised"),
             page_images=(24, "results shown on the page", 0))
