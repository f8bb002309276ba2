"""Train a diffusion model on latents from descriptions, or from descriptions, labels and class prototypes (VAP-Diffusion).

U-ViT on MS-COCO (Bao et al., CVPR 2023) and VAP-Diffusion (Huang et al., MICCAI 2025): descriptions by a multimodal LLM,
features, then the training; README.md has the whole line.

    accelerate launch --multi_gpu --num_processes 2 scripts/extract_feature.py --config=configs/COT_ISIC256_uvit_text_label.py
    accelerate launch --multi_gpu --num_processes 2 --mixed_precision fp16 train_t2i_discrete.py --config=configs/COT_ISIC256_uvit_text_label.py

The run keeps the training captions of each class in bank.json: samples are described from there. A table's column `weight` counts
in the loss of the diffusion, not in that of the prototypes, which describe all images. The same command resumes a run that was
stopped.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, nn, pipeline

SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "attention", "workers", "balanced", "weighting", "p_uncond",
            "prototype_weight", "ema_rate", "ema_warmup", "grad_clip", "init", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    if not config.features.path:
        raise ValueError("config.features.path is '': texts are encoded once, by scripts/extract_feature.py; give its folder")
    run = engine.start(config, workdir)
    codec = codecs.get(**config.codec).to(run.device)
    encoder = run.main_first(lambda: pipeline.text_encoder(config, run.device))
    images, features, held_out = data.open_all(config.dataset, config.features, pipeline.identity(codec, encoder),
                                               validation_split=config.train.validation_split,
                                               shape=pipeline.latent_shape(config.nnet))
    pipeline.check_labels(config, features.classes)
    run.record("classes.json", features.classes, fixed=True)
    if run.is_main and features.captions is not None:
        evaluation.bank_of(features).save(run.folder / "bank.json")
    run.barrier()
    stream = data.Stream(features, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)

    nn.use_backend(config.train.attention)
    schedule = diffusion.schedule(**config.schedule)
    net = pipeline.build_net(config, features.classes, features.text_shape)
    if config.train.get("init", "") and not run.resumes:
        pipeline.start_from(net, engine.load_weights(config.train.init)[0])
    null = pipeline.null_conditions(net, features.classes, features.null["text"])
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile)
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)

    def loss_fn(net, batch):
        z = codecs.latents(codec, batch)
        # Text and label are left out together, so that the network also learns the score without either.
        cond = conditions.drop({key: batch[key] for key in null}, sampler.null, config.train.p_uncond if net.training else 0.0)
        t = schedule.sample_times(len(z), device=z.device)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        losses, own = diffusion.loss.simple(denoise, z, t, weighting=config.train.weighting, with_losses=True, **cond)
        eps = diffusion.loss.batch_mean(losses, batch.get("weight"))
        loss = eps + sum(config.train.prototype_weight * each for each in own.values())
        return loss, {"diffusion": eps.detach(), **{name: each.detach() for name, each in own.items()}}

    prompts = evaluation.describer(config, run.folder, encoder, dataset=images, features=features)
    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config, prompts),
               evaluate=evaluation.evaluator(run, sampler, config, images, prompts))
    run.finish()


if __name__ == "__main__":
    cli.main(train)
