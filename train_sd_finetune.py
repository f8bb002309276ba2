"""Fine-tune Stable Diffusion 1.x or 2.x on images and their descriptions: the whole UNet or LoRA, on request the text encoder too.

MINIM (Wang et al., Nature Medicine 2025), from a CSV with the columns path and Text; the config has its numbers.

    python train_sd_finetune.py --config=configs/medical512_sd_finetune.py --config.dataset.path=data.csv --workdir=workdir/sd \
        --config.nnet.path=CompVis/stable-diffusion-v1-4 --config.sample.validation_prompts='("OCT: macular edema",)'
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_sd_finetune.py \
        --config=configs/medical512_sd_finetune.py --config.dataset.path=data.csv --config.nnet.lora_rank=4 --workdir=workdir/lora

Latents and text states are encoded once, before the first step, and kept in <workdir>/features. With
`--config.nnet.train_text_encoder=True` only latents are, or nothing with `--config.features.path=`. The same command resumes a run
that was stopped. At the end <workdir>/pipeline holds the best weights: a folder for StableDiffusionPipeline.from_pretrained, or
for load_lora_weights.
"""

from libs import cli, codecs, cond as conditions, data, diffusion, engine, evaluation, extraction, pipeline
from libs.pipeline import stable_diffusion

SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "workers", "balanced", "weighting", "p_uncond",
            "noise_offset", "input_perturbation", "ema_rate", "ema_warmup", "grad_clip", "validation_split",
            "validation_size")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run = engine.start(config, workdir)
    data.check_batch(config.train.batch_size, run.world)
    stable_diffusion.check(config)
    images = data.at_hand(config.dataset)
    codec = run.main_first(lambda: pipeline.image_codec(config, run.device))
    encoder = run.main_first(lambda: pipeline.text_encoder(config, run.device))
    net = run.main_first(lambda: pipeline.build_net(config, []))
    stable_diffusion.check_fit(net, codec, encoder)
    evaluation.tie_to_base(run, net, config)
    if images is not None:
        pipeline.check_images(config, codec, images.shape)
        run.main_first(lambda: data.preflight(images, remember=run.folder / "preflight.json"))

    split, own_text = config.train.validation_split, config.nnet.train_text_encoder
    if not (config.features.path or own_text):
        raise ValueError("config.features.path is '': states of a frozen text encoder are stored; 'auto' keeps them in the run")
    stored = None if own_text else encoder  # the states of a text encoder that changes cannot be stored
    features = extraction.ready(run, config, codec, stored)
    opened = data.open_all(config.dataset, features, pipeline.identity(codec, stored), validation_split=split)
    if own_text:
        opened = data.with_tokens(opened, config.dataset, encoder.encode, validation_split=split)
    evaluation.record_identity(run, codec, encoder)
    run.record("classes.json", opened.examples.classes, fixed=True)
    if run.is_main and opened.examples.captions is not None and run.is_to_write("bank.json", config.train.n_steps):
        evaluation.bank_of(opened.examples).save(run.folder / "bank.json")
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
        losses = diffusion.loss.simple(denoise, z, t, noise, weighting=config.train.weighting, text=text,
                                       input_perturbation=config.train.input_perturbation if net.training else 0.0)
        return diffusion.loss.batch_mean(losses, batch.get("weight")), {}

    prompts = evaluation.describer(config, run.folder, encoder, dataset=images, features=opened.examples)
    engine.fit(run, state, stream, loss_fn, config.train,
               validation=data.validation(opened.held_out, config.train, run),
               preview=evaluation.previewer(run, sampler, config, prompts),
               evaluate=evaluation.evaluator(run, sampler, config, images, prompts))
    evaluation.export_best(run, config)
    run.finish()


if __name__ == "__main__":
    cli.main(train)
