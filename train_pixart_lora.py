"""Adapt PixArt-alpha to images and their descriptions by LoRA on its transformer and on T5, with a colour loss through the sampler.

Med-Art (Guo et al., 2025), from a folder of images with a metadata.csv (file_name,text); the config has its numbers.

    python train_pixart_lora.py --config=configs/kvasir512_pixart_lora.py --config.dataset.path=dataset/kvasir/train \
        --config.nnet.path=PixArt-alpha/PixArt-XL-2-512x512 --workdir=workdir/medart
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_pixart_lora.py \
        --config=configs/kvasir512_pixart_lora.py --config.dataset.path=dataset/kvasir/train --workdir=workdir/medart \
        --config.train.batch_size=4

Every config.colour.every steps images are made from fresh noise under the descriptions of the batch, and the distance of their
colours from those of the real images is added to the loss, with gradients through sampler, decoder and T5 (`=0`: never). A table's
column `weight` counts in the denoising loss alone: colours are those of every image of the batch.
Latents are encoded once, before the first step, and kept in <workdir>/features (`--config.features.path=` encodes at every step);
with `--config.nnet.train_text_encoder=False` so are the states of T5. `--config.train.init=FOLDER` begins with other LoRA: the
folders that Med-Art's code writes, a run, or its pipeline/. The same command resumes a run that was stopped. At the end
<workdir>/pipeline holds the LoRA of the best weights for peft and for diffusers.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, extraction, pipeline
from libs.pipeline import colour, stable_diffusion

SETTINGS = ("mode", "batch_size", "mixed_precision", "tf32", "compile", "workers", "balanced", "weighting", "p_uncond",
            "noise_offset", "ema_rate", "ema_warmup", "grad_clip", "init", "validation_split", "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    data.check_batch(config.train.batch_size, run.world)
    stable_diffusion.check(config)
    colour.check(config)
    images = data.at_hand(config.dataset)
    codec = run.main_first(lambda: pipeline.image_codec(config, run.device))
    encoder = run.main_first(lambda: pipeline.text_encoder(config, run.device))
    net = run.main_first(lambda: pipeline.build_net(config, []))
    stable_diffusion.check_fit(net, codec, encoder)
    evaluation.tie_to_base(run, net, config)
    if config.train.init and not run.resumes:
        evaluation.begin_with_lora(config, net)
    if images is not None:
        pipeline.check_images(config, codec, images.shape)
        run.main_first(lambda: data.preflight(images, remember=run.folder / "preflight.json"))

    split, own_text = config.train.validation_split, config.nnet.train_text_encoder
    if not (config.features.path or own_text):
        raise ValueError("config.features.path is '': states of a frozen text encoder are stored; 'auto' keeps them in the run")
    if images is not None:
        evaluation.tell_cut(run, encoder, images.captions)
    stored = None if own_text else encoder  # the states of a text encoder that changes cannot be stored
    features = extraction.ready(run, config, codec, stored)
    opened = data.open_all(config.dataset, features, pipeline.identity(codec, stored), validation_split=split)
    if own_text:
        opened = data.with_tokens(opened, config.dataset, encoder.encode, validation_split=split)
    evaluation.record_identity(run, codec, encoder)
    run.record("classes.json", opened.examples.classes, fixed=True)
    if run.is_main and opened.examples.captions is not None and run.is_to_write("bank.json", config.train.n_steps):
        evaluation.bank_of(opened.examples).save(run.folder / "bank.json")
    if images is None:
        evaluation.tell_cut(run, encoder, opened.examples.captions)
    run.barrier()
    stream = data.Stream(opened.examples, config.train.batch_size, seed=config.seed, workers=config.train.workers,
                         balanced=config.train.balanced, **run.place)
    data.record_summary(run, stream, config.dataset, images=images, held_out=opened.held_out, codec=codec)

    schedule = diffusion.schedule(**config.schedule)
    null = pipeline.null_conditions(net, [], encoder.empty)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=config.train.n_steps,
                         ema_rate=config.train.ema_rate, ema_warmup=config.train.ema_warmup, grad_clip=config.train.grad_clip,
                         compile=config.train.compile)
    sampler = pipeline.Pipeline(state.ema, config, codec=codec, schedule=schedule, null=null,
                                algorithm=config.metrics.algorithm, steps=config.metrics.sample_steps)
    evaluation.warn_unexportable(run, sampler)
    evaluation.tell_parameters(run, net, codec, stored)

    def loss_fn(net, batch):
        z = codecs.latents(codec, batch)
        text = conditions.drop({"text": batch["text"]}, sampler.null, config.train.p_uncond if net.training else 0.0)["text"]
        t = schedule.sample_times(len(z), device=z.device)
        noise = diffusion.loss.draw_noise(z, offset=config.train.noise_offset)
        denoise = diffusion.Denoiser(net, schedule, **config.denoiser)
        losses = diffusion.loss.simple(denoise, z, t, noise, weighting=config.train.weighting, text=text)
        loss = diffusion.loss.batch_mean(losses, batch.get("weight"))
        terms = {"denoising": loss}
        if net.training and config.colour.every and state.step % config.colour.every == 0:
            with run.accelerator.autocast():  # of a network accelerate lowers `forward` alone, not `states`, and no decoder
                found = colour.distance(sampler, batch, config.colour, net=state.module, images=images)
            names = ", ".join(stream.file_name(i) for i in batch["index"].tolist())
            loss, own = colour.add(loss, found, config.colour, f"step {state.step + 1}, {names}")
            terms |= own
        return loss, terms

    prompts = evaluation.describer(config, run.folder, encoder, dataset=images, features=opened.examples)
    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(opened.held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config, prompts),
               evaluate=evaluation.evaluator(run, sampler, config, images, prompts))
    evaluation.export_best(run, config)
    run.finish()


if __name__ == "__main__":
    cli.main(train)
