"""Train a ControlNet: images that follow a mask, on the weights of a class-conditional latent diffusion model.

The second stage of Diffusion-Model-SOTA (Zhang et al., ICCV 2023), on pairs of images and masks; the first is train_class_ldm.py.

    python train_controlnet.py --config=configs/folder256_controlnet.py --config.dataset.path=/path/to/pairs \
        --config.train.ldm=workdir/ldm --workdir=workdir/controlnet
    python sample.py --workdir=workdir/controlnet --mask_path=/path/to/masks

The UNet is frozen (`--config.nnet.freeze_unet=False` trains it too) and stays class-conditional, so that masks, classes and
guidance go together. The same command resumes a run that was stopped. At the end <workdir>/pipeline holds the best weights as
diffusers reads them.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, extraction, pipeline

SETTINGS = ("mode", "ldm", "batch_size", "mixed_precision", "compile", "workers", "balanced", "weighting", "p_uncond",
            "ema_rate", "ema_warmup", "grad_clip", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    data.check_batch(config.train.batch_size, run.world)
    codec = codecs.get(**config.codec).to(run.device)
    images = data.get(**config.dataset)
    pipeline.check_images(config, codec, images.shape)
    masks_as = pipeline.check_masks(images)
    run.main_first(lambda: data.preflight(images, remember=run.folder / "preflight.json"))
    base = evaluation.base_weights(config, images.classes, codec) if not run.resumes else {}
    pipeline.check_classes(config, images.classes)
    features = extraction.ready(run, config, codec, masks=True)
    examples, held_out = data.open_all(config.dataset, features, pipeline.identity(codec),
                                       validation_split=config.train.validation_split)[1:]
    evaluation.record_identity(run, codec)
    run.record("classes.json", images.classes if config.train.mode == "cond" else [], fixed=True)
    run.record("masks.json", masks_as.settings, fixed=True)
    stream = data.Stream(examples, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)
    data.record_summary(run, stream, config.dataset, images=images, held_out=held_out, codec=codec)

    schedule = diffusion.schedule(**config.schedule)
    net = pipeline.build_net(config, images.classes, mask_channels=masks_as.channels)
    if base:
        pipeline.start_controlnet(net, base)
    engine.keep_frozen(run, net)
    null = pipeline.null_conditions(net, images.classes)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile)
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null, masks_as=masks_as,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)
    evaluation.warn_unexportable(run, sampler)
    evaluation.tell_parameters(run, net, codec)

    def loss_fn(net, batch):
        z = codecs.latents(codec, batch)
        # The class is left out at times, the mask never: guidance is between classes, under the same mask.
        cond = conditions.drop({key: batch[key] for key in sampler.takes}, sampler.null,
                               config.train.p_uncond if net.training else 0.0)
        t = schedule.sample_times(len(z), device=z.device)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        losses = diffusion.loss.simple(denoise, z, t, weighting=config.train.weighting, **cond)
        return diffusion.loss.batch_mean(losses, batch.get("weight")), {}

    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config, masks=held_out or images),
               evaluate=evaluation.evaluator(run, sampler, config, images))
    evaluation.export_best(run, config)
    run.finish()


if __name__ == "__main__":
    cli.main(train)
