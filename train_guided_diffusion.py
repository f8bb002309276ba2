"""Train guided-diffusion's UNet in pixel space on a discrete schedule, with learned variances and class labels.

ADM (Dhariwal and Nichol, NeurIPS 2021) as MGDM (Luo et al., TPAMI 2024) uses it, on one's own images:

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_guided_diffusion.py \
        --config=configs/folder128_adm.py --config.dataset.path=/path/to/images --workdir=workdir/adm
    python train_guided_diffusion.py --config=configs/phantom32_adm.py --workdir=workdir/adm

The same command resumes a run that was stopped. Guidance needs a classifier: train_classifier.py.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, nn, pipeline

SETTINGS = ("mode", "batch_size", "mixed_precision", "fp16_scale_growth", "compile", "attention", "workers", "balanced",
            "weighting", "rescale_learned_sigmas", "use_kl", "time_sampler", "respacing", "p_uncond", "ema_rate",
            "ema_warmup", "more_ema_rates", "grad_clip", "init", "init_without", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    codec = codecs.get(**config.codec)
    dataset = data.get(**config.dataset)
    pipeline.check_images(config, codec, dataset.shape)
    pipeline.check_labels(config, dataset.classes)
    held_out = data.held_out(config.dataset, config.train.validation_split) if config.train.validation_split else None
    run.record("classes.json", dataset.classes if config.train.mode == "cond" else [], fixed=True)
    run.main_first(lambda: data.preflight(dataset, remember=run.folder / "preflight.json"))
    if held_out:
        run.main_first(lambda: data.preflight(held_out, remember=run.folder / "preflight_held_out.json"))
    stream = data.Stream(dataset, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)

    nn.use_backend(config.train.attention)
    schedule = diffusion.schedule(**config.schedule)
    grid = schedule.times(config.train.respacing) if config.train.respacing else None
    uniform = diffusion.time_sampler("uniform", schedule, grid)
    time_sampler = diffusion.time_sampler(config.train.time_sampler, schedule, grid, gather=run.accelerator.gather)
    net = pipeline.build_net(config, dataset.classes)
    if config.train.init and not run.resumes:
        pipeline.start_from(net, engine.load_weights(config.train.init)[0], without=config.train.init_without)
    null = pipeline.null_conditions(net, dataset.classes)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup,
                         more_ema_rates=config.train.more_ema_rates, grad_clip=config.train.grad_clip,
                         compile=config.train.compile, keep={"time_sampler": time_sampler})
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)

    def loss_fn(net, batch):
        x0 = codec.encode(batch["image"])
        cond = conditions.drop({key: batch[key] for key in null}, sampler.null, config.train.p_uncond if net.training else 0.0)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        t, importance = (time_sampler if net.training else uniform).draw(len(x0), device=x0.device)
        counts = importance * batch.get("weight", 1.0)
        if denoise.learned_var:
            losses = diffusion.loss.hybrid(denoise, x0, t, times=grid, weighting=config.train.weighting, use_kl=config.train.use_kl,
                                           rescale_learned_sigmas=config.train.rescale_learned_sigmas, **cond)
            per_image = losses.loss
            terms = {"mse": (losses.mse * counts).mean(), "vb": (losses.vb * counts).mean()}
        else:
            per_image, terms = diffusion.loss.simple(denoise, x0, t, weighting=config.train.weighting, **cond), {}
        if net.training:
            time_sampler.update(t, per_image)
        return (per_image * counts).mean(), terms

    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config),
               evaluate=evaluation.evaluator(run, sampler, config, dataset))
    run.finish()


if __name__ == "__main__":
    cli.main(train)
