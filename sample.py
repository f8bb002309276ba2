"""Make images with a trained network, one PNG each, a grid and a table of what was asked for.

    python sample.py --workdir=workdir/phantom32 --label=all
    python sample.py --workdir=workdir/phantom32_adm --counts=nevus=45,melanoma=372 --layout=classes
    python sample.py --workdir=workdir/demo --prompt="a large red irregular lesion" --label=angioma --n_samples=8
    python sample.py --workdir=workdir/demo --input_path=prompts.txt --config.sample.path=lesions
    python sample.py --workdir=workdir/phantom32_controlnet --mask_path=masks --label=all --n_samples=2
    python sample.py --config=configs/cifar10_uvit_small.py --nnet_path=cifar10_uvit_small.pth --n_samples=64
    python sample.py --workdir=workdir/demo --label=all --config.filter.path=workdir/filter --config.filter.keep_rejects=True

A network that takes text is asked with --prompt, with the lines of --input_path (a .csv may have columns prompt,label), or,
without either, with descriptions of the class from the run's prompt bank. One that takes masks is asked with --mask_path: a
mask, a folder of them, or one with a metadata.csv; without, with those of its training images. Images are called after their
mask, and comparison.png shows both. Image i of a seed is the same for any number of processes, and for any batch size but for
rounding. The same command goes on where it was stopped; another one in the same folder takes its place. The folder is a data
set: metadata.csv says what each image is.

With --config.filter.path, the filter of a run of train_filter.py, each image is drawn again until the filter accepts it, at most
max_attempts times; acceptance.json says how often it did, by class and by prompt.
"""

from libs import cli, engine, evaluation


def sample(config, workdir, nnet_path, label, prompt, input_path, mask_path, counts, n_samples, layout, seed):
    run = engine.start(config, workdir, claim=False)
    options = evaluation.RequestOptions(label=label, prompt=prompt, input_path=input_path, mask_path=mask_path,
                                        counts=counts, n_samples=n_samples, layout=layout)
    rejection = run.main_first(lambda: evaluation.open_filter(config, run.device))
    trained = evaluation.open_trained(run, config, workdir, nnet_path, with_data=False, with_prompts=not options.prompts)
    request = evaluation.compose(run, config, workdir, trained, options, seed=seed, rejection=rejection)

    for folder in {(request.folder / name).parent for name in request.names}:
        folder.mkdir(parents=True, exist_ok=True)
    there = evaluation.samples_there(request)
    listed = run.from_main(evaluation.listed_samples(request.folder) if run.is_main else None)
    run.barrier()
    if run.is_main and len(there) < len(request):
        (request.folder / "metadata.csv").unlink(missing_ok=True)  # it may tell of another request; a stopped one has none
    timing = evaluation.Timing()
    for draw in evaluation.draws(run, trained.sampler, request.cond, len(request), seed=seed, without=there, timing=timing,
                                 batch_size=config.sample.mini_batch_size, rejection=rejection, prompts=request.prompts):
        evaluation.keep_draw(request, draw)
    times = timing.told(run, trained.sampler.steps, what="draw" if rejection else "image")  # and all processes are done
    if run.is_main:
        made, filtered = evaluation.finish_samples(request, before=listed)
        print(f"{made} images in {request.folder}")
        print(f"weights: {evaluation.weights_used(trained, config.sample.get('ema_rate', 0.0))}")
        print("\n".join(filter(None, [filtered, times or "all of them were there already"])))
    run.finish()


if __name__ == "__main__":
    cli.main(sample, label=("", "a class name, or 'all' ('\"all\"' for a class of that name); by default classes in turn, with --mask_path "
                        "those of the masks"),
             prompt=("", "a description, for networks that take text"),
             input_path=("", "a file of descriptions, one in each line, or a .csv with columns prompt and label"),
             mask_path=("", "a mask, a folder of masks or one with metadata.csv, for networks that take masks"),
             counts=("", "so many of each class: nevus=45,melanoma=372; a name with a comma in double quotes: '\"a, b\"=5'"),
             layout=("flat", "flat, or classes for a folder of each class"),
             n_samples=(0, "images, by default 16; of each class with --label=all, of each description with --prompt or "
                           "--input_path; of each mask, by default 1", 1),
             seed=(0, "seed of the images"))
