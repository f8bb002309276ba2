"""Train a diffusion model in pixel space on a continuous or discrete schedule, with or without class labels.

U-ViT (Bao et al., CVPR 2023) on CIFAR-10, CelebA, ImageNet 64x64, and on one's own images:

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision fp16 train.py --config=configs/cifar10_uvit_small.py
    python train.py --config=configs/folder64_uvit_label.py --config.dataset.path=/path/to/images --workdir=workdir/mine

The same command resumes a run that was stopped.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, nn, pipeline

SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "attention", "workers", "balanced", "weighting", "p_uncond",
            "ema_rate", "ema_warmup", "grad_clip", "init", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    dataset = data.get(**config.dataset)
    pipeline.check_labels(config, dataset.classes)
    held_out = data.held_out(config.dataset, config.train.validation_split) if config.train.validation_split else None
    run.main_first(lambda: data.preflight(dataset, remember=run.folder / "preflight.json"))
    if held_out:
        run.main_first(lambda: data.preflight(held_out, remember=run.folder / "preflight_held_out.json"))
    run.record("classes.json", dataset.classes if config.train.mode == "cond" else [], fixed=True)
    stream = data.Stream(dataset, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.get("balanced", False), **run.place)

    nn.use_backend(config.train.attention)
    codec = codecs.get(**config.codec)
    schedule = diffusion.schedule(**config.schedule)
    net = pipeline.build_net(config, dataset.classes)
    if config.train.get("init", "") and not run.resumes:
        pipeline.start_from(net, engine.load_weights(config.train.init)[0])
    null = pipeline.null_conditions(net, dataset.classes)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile)

    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)

    def loss_fn(net, batch):
        x0 = codec.encode(batch["image"])
        cond = conditions.drop({key: batch[key] for key in null}, sampler.null, config.train.p_uncond if net.training else 0.0)
        t = schedule.sample_times(len(x0), device=x0.device)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        losses = diffusion.loss.simple(denoise, x0, t, weighting=config.train.weighting, **cond)
        return diffusion.loss.batch_mean(losses, batch.get("weight")), {}

    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config),
               evaluate=evaluation.evaluator(run, sampler, config, dataset))
    run.finish()


if __name__ == "__main__":
    cli.main(train)
