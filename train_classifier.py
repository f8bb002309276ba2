"""Train a classifier of noisy images, whose gradient guides a diffusion model: guided-diffusion's UNet encoder.

Dhariwal and Nichol, NeurIPS 2021, section 4; MGDM (Luo et al., TPAMI 2024) guides by its uncertainty:

    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_classifier.py \
        --config=configs/folder128_adm_classifier.py --config.dataset.path=/path/to/images --workdir=workdir/classifier
    python train_classifier.py --config=configs/phantom32_adm_classifier.py --workdir=workdir/phantom32_classifier

The same command resumes a run that was stopped; of a finished run it writes the evaluation again. A table's column `weight` counts
in the loss; accuracies count every image once. Guidance takes the workdir as
--config.sample.gradient.classifier (sample.py, sample_dual_bridge.py).
"""

import logging
import time

import torch
from torch.nn import functional as F

from libs import backbones, cli, data, diffusion, engine, nn, pipeline
from libs.evaluation import noisy

SETTINGS = ("batch_size", "mixed_precision", "fp16_scale_growth", "compile", "attention", "workers", "balanced", "noised",
            "respacing", "init", "init_without", "ema_rate", "ema_warmup", "grad_clip", "validation_split")


def train(config, workdir):
    engine.check_settings(config.train, SETTINGS)
    run, settings = engine.start(config, workdir), config.train
    dataset = data.get(**config.dataset)
    held_out = data.held_out(config.dataset, settings.validation_split) if settings.validation_split else None
    noisy.check_data(config, dataset, held_out)
    run.record("classes.json", dataset.classes, fixed=True)
    run.main_first(lambda: data.preflight(dataset, remember=run.folder / "preflight.json"))
    if held_out:
        run.main_first(lambda: data.preflight(held_out, remember=run.folder / "preflight_held_out.json"))
    else:
        logging.warning("config.train.validation_split is '': no held-out images, so this classifier is not evaluated")
    stream = data.Stream(dataset, settings.batch_size, seed=config.seed, workers=settings.workers, balanced=settings.balanced,
                         **run.place)
    data.record_summary(run, stream, config.dataset, held_out=held_out)

    nn.use_backend(settings.attention)
    schedule = diffusion.schedule(**config.schedule)
    grid = schedule.times(settings.respacing) if settings.respacing else None
    times = noisy.noise_times(config.metrics.levels if settings.noised else (0.0,), schedule, grid)
    net = backbones.get(**{**config.nnet, "out_channels": len(dataset.classes)})
    if settings.init and not run.resumes:
        noisy.start_from(net, settings.init, without=settings.init_without)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=settings.n_steps,
                         ema_rate=settings.ema_rate, ema_warmup=settings.ema_warmup, grad_clip=settings.grad_clip,
                         compile=settings.compile)

    def loss_fn(net, batch):
        x, t = batch["image"], 1 / schedule.steps if schedule.steps else 0.0  # a clean image counts as the lowest step
        if settings.noised:
            t = schedule.sample_times(len(x), times=grid, device=x.device)
            x = schedule.add_noise(x, torch.randn_like(x), t)
        logits = diffusion.guidance.at_network_time(net, schedule.network_time)(x, t).float()
        right = (logits.argmax(1) == batch["label"]).float().mean()
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        return diffusion.loss.batch_mean(losses, batch.get("weight")), {"accuracy": right}

    def examine(net):
        classifier = pipeline.NoisyClassifier(net, schedule, classes=dataset.classes, shape=dataset.shape, noised=settings.noised)
        return noisy.judge(run, classifier, held_out, times, workers=settings.workers,
                           batch_size=max(1, settings.batch_size // (run.world * settings.accumulation)))

    engine.fit(run, state, stream, loss_fn, settings, evaluate=held_out and (lambda ema, step: noisy.numbers(examine(ema))))

    if held_out:
        begun, (weights, step, source) = time.perf_counter(), engine.load_weights(run.folder)  # the best checkpoint
        state.ema.load_state_dict(weights)
        text = noisy.write(run, examine(state.ema), run.folder / "eval" / f"classifier_{step}", begun=begun, step=step,
                           nnet=str(source), reference=f"{dataset.name}, split {settings.validation_split!r}",
                           resamples=config.metrics.bootstrap, chosen_by=settings.best_metric if state.best else "")
        if run.is_main:
            print(text)
    run.finish()


if __name__ == "__main__":
    cli.main(train)
