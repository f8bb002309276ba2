"""Train a class-conditional diffusion model on latents in discrete time, on the schedule of Stable Diffusion.

U-ViT-H (Bao et al., CVPR 2023) on ImageNet, and on one's own images; features first, then the training:

    accelerate launch --multi_gpu --num_processes 8 scripts/extract_feature.py --config=configs/imagenet256_uvit_huge.py
    accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp16 train_ldm_discrete.py --config=configs/imagenet256_uvit_huge.py

The same command resumes a run that was stopped.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, nn, pipeline

SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "attention", "workers", "balanced", "weighting", "p_uncond",
            "ema_rate", "ema_warmup", "grad_clip", "init", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    schedule = diffusion.schedule(**config.schedule)
    if schedule.steps is None:
        raise ValueError(f"config.schedule.name is {config.schedule.name!r}, which has no discrete steps: use sd, linear or "
                         "cosine, or train_ldm.py for continuous time")
    run = engine.start(config, workdir)
    codec = codecs.get(**config.codec).to(run.device)
    images, examples, held_out = data.open_all(config.dataset, config.features, pipeline.identity(codec),
                                               validation_split=config.train.validation_split,
                                               shape=pipeline.latent_shape(config.nnet))
    if examples is images:
        run.main_first(lambda: data.preflight(images, remember=run.folder / "preflight.json"))
    evaluation.record_identity(run, codec)
    run.record("classes.json", examples.classes if config.train.mode == "cond" else [], fixed=True)
    stream = data.Stream(examples, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)
    data.record_summary(run, stream, config.dataset, images=images, held_out=held_out, codec=codec)

    nn.use_backend(config.train.attention)
    net = pipeline.build_net(config, examples.classes)
    if config.train.get("init", "") and not run.resumes:
        pipeline.start_from(net, engine.load_weights(config.train.init)[0])
    null = pipeline.null_conditions(net, examples.classes)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile)
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)

    def loss_fn(net, batch):
        z = codecs.latents(codec, batch)
        cond = conditions.drop({key: batch[key] for key in null}, sampler.null, config.train.p_uncond if net.training else 0.0)
        t = schedule.sample_times(len(z), device=z.device)  # n / N, n uniform in 1 .. N
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        losses = diffusion.loss.simple(denoise, z, t, weighting=config.train.weighting, **cond)
        return diffusion.loss.batch_mean(losses, batch.get("weight")), {}

    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config),
               evaluate=evaluation.evaluator(run, sampler, config, images))
    run.finish()


if __name__ == "__main__":
    cli.main(train)
