"""Train a KL autoencoder on one's own images, or fine-tune one: the latent space of a latent diffusion model.

L1, KL, a perceptual loss and optionally a patch discriminator (Rombach et al., CVPR 2022, section 3.1):

    python train_autoencoder.py --config=configs/phantom64_autoencoder.py --workdir=workdir/autoencoder
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_autoencoder.py \
        --config=configs/folder256_autoencoder.py --config.dataset.path=/path/to/images --workdir=workdir/mine

The same command resumes a run that was stopped. At the end <workdir>/autoencoder is what --config.codec.path takes.
"""

import logging
import math
import shlex

import torch

from libs import cli, codecs, data, engine, pipeline
from libs.codecs import pretrained, training

SETTINGS = ("batch_size", "mixed_precision", "compile", "workers", "balanced", "kl_weight", "perceptual_weight",
            "perceptual_path", "adversarial_weight", "adversarial_start", "adversarial_channels", "ema_rate", "ema_warmup",
            "grad_clip", "validation_split", "validation_size")
SHOWN = 8  # images of a preview
MEASURED = 1024  # training images behind the scale factor


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    dataset = data.get(**config.dataset)
    held_out = data.held_out(config.dataset, config.train.validation_split)
    run.main_first(lambda: data.preflight(dataset, remember=run.folder / "preflight.json"))
    run.main_first(lambda: data.preflight(held_out, remember=run.folder / "preflight_held_out.json"))
    stream = data.Stream(dataset, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)
    data.record_summary(run, stream, config.dataset, held_out=held_out)

    settings, perceptual, discriminator = config.train, None, None
    autoencoder = training.build(**config.nnet)
    if settings.perceptual_weight:
        perceptual = training.perceptual(settings.perceptual_path, channels=dataset.shape[0])
        perceptual = perceptual and perceptual.to(run.device)
    if settings.adversarial_weight:
        discriminator = training.PatchDiscriminator(dataset.shape[0], settings.adversarial_channels)
    state = engine.State(run, training.Trainee(autoencoder, discriminator), optimizer=config.optimizer,
                         lr_scheduler=config.lr_scheduler, n_steps=settings.n_steps, ema_rate=settings.ema_rate,
                         ema_warmup=settings.ema_warmup, grad_clip=settings.grad_clip, compile=settings.compile)
    codec = codecs.KL(state.ema.autoencoder, scale_factor=1.0)  # the averaged network, as it is used afterwards
    latent_shape = codec.latent_shape(dataset.shape)

    def loss_fn(net, batch):
        x, weights, found = batch["image"], batch.get("weight"), net(batch["image"])
        terms = {"l1": training.average((found["image"] - x).abs(), weights),
                 "kl": training.divergence(found["mean"], found["logvar"], weights)}
        loss = terms["l1"] + settings.kl_weight * terms["kl"]
        if perceptual:
            terms["perceptual"] = perceptual(found["image"], x, weights)
            loss = loss + settings.perceptual_weight * terms["perceptual"]
        if discriminator:  # it learns from the first step, and is listened to once it has
            terms["generator"] = -training.average(found["judged"], weights)
            terms["discriminator"] = training.hinge(found["real"], found["fake"], weights)
            heard = settings.adversarial_weight if state.step >= settings.adversarial_start else 0.0
            loss = loss + heard * terms["generator"] + terms["discriminator"]
        return loss, terms

    chosen = data.some(held_out, settings.validation_size)
    validation = data.validation(held_out, settings, run)

    def evaluate(ema, step):
        rows = [training.fidelity(codec, batch["image"].to(run.device)).cpu() for batch in validation()]
        error, psnr = run.gather_rows(torch.cat([torch.empty(0, 2), *rows])).mean(0).tolist()
        return {"l1": error, "psnr": psnr}

    shown = next(data.in_order(held_out, chosen[:SHOWN], SHOWN))["image"].to(run.device)

    @torch.no_grad()
    def preview(ema, step):
        again = codec.decode(codec.sample(codec.moments(shown).chunk(2, dim=1)[0]))
        try:
            return pipeline.grid(pipeline.to_uint8(torch.cat([shown, again])), len(shown))
        except pipeline.NotFinite as error:  # no reason to end a training, whose loss is checked by itself
            logging.warning("no preview of step %d: %s", step, error)
            return None

    engine.fit(run, state, stream, loss_fn, settings, validation=validation, preview=preview, evaluate=evaluate)

    folder = run.folder / "autoencoder"
    if not run.from_main(run.is_stale(folder)):
        if run.is_main:
            print(f"{folder} is of these weights already\n"
                  f"use it: --config.codec.name=kl --config.codec.path={folder} --config.codec.scale_factor=0.")
        run.finish()
        return

    weights, step, _ = engine.load_weights(run.folder)  # the average of the best checkpoint
    state.ema.load_state_dict(weights)
    quality = evaluate(state.ema, step)
    if not all(map(math.isfinite, quality.values())):
        raise FloatingPointError(f"{run.folder}: the images that the autoencoder of step {step} gives back "
                                 f"are not finite (PSNR "
                                 f"{quality['psnr']}), so that none is written: begin anew with a lower "
                                 f"--config.optimizer.lr")
    measured = data.in_order(dataset, data.some(dataset, MEASURED)[run.rank::run.world], settings.batch_size // run.world)
    sums = codecs.latent_sums(codec, measured, seed=run.seed, device=run.device)
    scale_factor = codecs.Spread.of(run.gather_rows(sums)).scale_factor
    if run.is_main:
        folder = pretrained.save(codec.net, run.folder / "autoencoder", scale_factor=scale_factor)
        print(f"{folder}: step {step}, PSNR {quality['psnr']:.2f} dB and L1 {quality['l1']:.4f} on {len(chosen)} images of "
              f"{settings.validation_split!r}; latents {'x'.join(map(str, latent_shape))}, scale factor {scale_factor:.5f}\n"
              f"use it: --config.codec.name=kl --config.codec.path={shlex.quote(str(folder))} "
              f"--config.codec.scale_factor=0.")
    run.finish()


if __name__ == "__main__":
    cli.main(train)
