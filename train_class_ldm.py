"""Train a class-conditional latent diffusion model: diffusers' UNet with learned class embeddings, over any codec.

The first stage of Diffusion-Model-SOTA, on your own class folders; train_controlnet.py is the second.

    python train_class_ldm.py --config=configs/folder256_unet_label.py --config.dataset.path=/path/to/images --workdir=workdir/ldm
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_class_ldm.py \
        --config=configs/folder256_unet_label.py --config.dataset.path=/path/to/images --workdir=workdir/ldm

Latents are encoded once, before the first step, and kept in <workdir>/features (`--config.features.path=` encodes at every step).
The same command resumes a run that was stopped. At the end <workdir>/pipeline holds the best weights as diffusers reads them.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, extraction, pipeline

SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "workers", "balanced", "weighting", "p_uncond", "ema_rate",
            "ema_warmup", "grad_clip", "init", "init_without", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    data.check_batch(config.train.batch_size, run.world)
    codec = codecs.get(**config.codec).to(run.device)
    images = data.at_hand(config.dataset)
    if images is not None:
        pipeline.check_images(config, codec, images.shape)
        pipeline.check_classes(config, images.classes)
        run.main_first(lambda: data.preflight(images, remember=run.folder / "preflight.json"))
    features = extraction.ready(run, config, codec)
    examples, held_out = data.open_all(config.dataset, features, pipeline.identity(codec),
                                       validation_split=config.train.validation_split)[1:]
    evaluation.record_identity(run, codec)
    run.record("classes.json", examples.classes if config.train.mode == "cond" else [], fixed=True)
    run.record(evaluation.CODEC, pipeline.identity(codec)["codec"], fixed=True)
    stream = data.Stream(examples, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)
    data.record_summary(run, stream, config.dataset, images=images, held_out=held_out, codec=codec)

    schedule = diffusion.schedule(**config.schedule)
    net = pipeline.build_net(config, examples.classes)
    if config.train.init and not run.resumes:
        pipeline.start_from(net, engine.load_weights(config.train.init)[0], without=config.train.init_without)
    null = pipeline.null_conditions(net, examples.classes)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile)
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)
    evaluation.warn_unexportable(run, sampler)
    evaluation.tell_parameters(run, net, codec)

    def loss_fn(net, batch):
        z = codecs.latents(codec, batch)
        cond = conditions.drop({key: batch[key] for key in null}, sampler.null, config.train.p_uncond if net.training else 0.0)
        t = schedule.sample_times(len(z), device=z.device)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        losses = diffusion.loss.simple(denoise, z, t, weighting=config.train.weighting, **cond)
        return diffusion.loss.batch_mean(losses, batch.get("weight")), {}

    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config),
               evaluate=evaluation.evaluator(run, sampler, config, images))
    evaluation.export_best(run, config)
    run.finish()


if __name__ == "__main__":
    cli.main(train)
