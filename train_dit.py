"""Train a class-conditional DiT, on latents that are encoded once or on pixels, with learned variances.

DiT (Peebles and Xie, ICCV 2023) with fast-DiT's means of speed, each an option: latents encoded once (config.features), mixed
precision, gradient checkpointing (config.nnet.use_checkpoint), TF32 (config.train.tf32), torch.compile (config.train.compile).

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 train_dit.py --config=configs/imagenet256_dit_xl2.py
    python train_dit.py --config=configs/phantom32_dit_label.py --workdir=workdir/phantom32_dit

Published weights on your own classes, in one line (`'pos_embed'` beside `'y_embedder'` where the size differs, too):

    python train_dit.py --config=configs/isic256_dit_label.py --config.train.init=DiT-XL-2-256x256.pt \
        --config.train.init_without="('y_embedder',)"

The same command resumes a run that was stopped.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, extraction, nn, pipeline

SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "attention", "tf32", "workers", "balanced", "weighting",
            "rescale_learned_sigmas", "use_kl", "time_sampler", "p_uncond", "ema_rate", "ema_warmup", "grad_clip", "init",
            "init_without", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    data.check_batch(config.train.batch_size, run.world)
    codec = run.main_first(lambda: pipeline.image_codec(config, run.device))
    images = data.at_hand(config.dataset)
    if images is not None:
        pipeline.check_images(config, codec, images.shape)
        pipeline.check_classes(config, images.classes)
        run.main_first(lambda: data.preflight(images, remember=run.folder / "preflight.json"))
    features = extraction.ready(run, config, codec)
    images, examples, held_out = data.open_all(config.dataset, features, pipeline.identity(codec),
                                               validation_split=config.train.validation_split)
    evaluation.record_identity(run, codec)
    run.record("classes.json", examples.classes if config.train.mode == "cond" else [], fixed=True)
    stream = data.Stream(examples, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)
    data.record_summary(run, stream, config.dataset, images=images, held_out=held_out, codec=codec)

    nn.use_backend(config.train.attention)
    schedule = diffusion.schedule(**config.schedule)
    uniform = diffusion.time_sampler("uniform", schedule)
    time_sampler = diffusion.time_sampler(config.train.time_sampler, schedule, gather=run.accelerator.gather)
    net = pipeline.build_net(config, examples.classes)
    if config.train.init and not run.resumes:
        pipeline.start_from(net, engine.load_weights(config.train.init)[0], without=config.train.init_without)
    null = pipeline.null_conditions(net, examples.classes)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile, keep={"time_sampler": time_sampler})
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)
    evaluation.tell_parameters(run, net, codec)

    def loss_fn(net, batch):
        z = codecs.latents(codec, batch)
        cond = conditions.drop({key: batch[key] for key in null}, sampler.null, config.train.p_uncond if net.training else 0.0)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        t, importance = (time_sampler if net.training else uniform).draw(len(z), device=z.device)
        counts = importance * batch.get("weight", 1.0)
        if denoise.learned_var:
            losses = diffusion.loss.hybrid(denoise, z, t, weighting=config.train.weighting, use_kl=config.train.use_kl,
                                           rescale_learned_sigmas=config.train.rescale_learned_sigmas, **cond)
            per_image = losses.loss
            terms = {"mse": (losses.mse * counts).mean(), "vb": (losses.vb * counts).mean()}
        else:
            per_image, terms = diffusion.loss.simple(denoise, z, t, weighting=config.train.weighting, **cond), {}
        if net.training:
            time_sampler.update(t, per_image)
        return (per_image * counts).mean(), terms

    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config),
               evaluate=evaluation.evaluator(run, sampler, config, images))
    run.finish()


if __name__ == "__main__":
    cli.main(train)
