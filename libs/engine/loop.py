"""The training loop: batches in, checkpoints, previews and numbers out.

It has never heard of diffusion. A step depends on (seed, step) alone: the batch by the stream's contract, every
random number by seeding torch before the loss. So a resumed run repeats exactly what the undisturbed one would have
done, and no generator state needs saving.
"""

import contextlib
import difflib
import itertools
import logging
import math
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from libs.engine import checkpoint
from libs.engine.item_noise import ItemNoise

DATA = "data.json"  # of a run: what `batches` says of its data
SKIPPED = "skipped_steps"  # of fp16, whose gradients overflowed
VALIDATION = "validation_loss"  # the best_metric that needs no evaluation

# Every key of config.train that `fit` reads, with its default. 0 is off for an interval.
SETTINGS = dict(n_steps=0, log_interval=10, validation_interval=0, preview_interval=0, eval_interval=0,
                save_interval=1000, keep_checkpoints=3, accumulation=1, best_metric="")


START = ("mixed_precision", "tf32")  # keys of config.train that `start` reads


def fit(run, state, batches, loss_fn, settings, *, validation=None, preview=None, evaluate=None):
    """Train until `settings.n_steps`, resuming from the run folder if it holds a checkpoint.

    Args:
        run, state: engine.Run and engine.State.
        batches: batches(start) -> iterator of this process's batches of step start, start + 1, ...; a batch is a dict
            of tensors of which 'index' names the items; `batches.file_name(index)` names one for error messages, and
            `batches.facts`, where it is there, is what the run folder notes of the data.
        loss_fn: loss_fn(net, batch) -> (loss, {name: scalar Tensor}); may draw from torch's default generators, which
            are seeded for every part of every step and process. A term may be missing at some steps: what is logged of it is
            the mean over those that have it.
        settings: config.train; the keys of SETTINGS are read here, others belong to the script.
        validation: () -> iterator of this process's held-out batches, the same at each call.
        preview: preview(ema, step) -> uint8 array (H, W, 3) on the main process, None where there is none to
            keep; called by every process.
        evaluate: evaluate(ema, step) -> {name: number}, {} where there are none this time; called by every
        process. `best_metric` names the number whose
            smallest value marks the best checkpoint, which is kept; 'validation_loss' is that of `validation`, whose noise
            is a function of (seed, item).

    Raises:
        FloatingPointError: a loss or gradient was not finite; no weight was changed by it. Names step and files.
        SystemExit: after a signal to stop on any process, when all have saved the same step: SIGTERM or SIGUSR1 (code 143), a
            first Ctrl-C (130), a terminal that is gone (129).
    """
    settings = {key: settings.get(key, default) for key, default in SETTINGS.items()}
    if settings["best_metric"] == VALIDATION and not (validation and settings["validation_interval"]):
        logging.warning("train.best_metric='validation_loss' needs held-out data (train.validation_split) and a "
                        "train.validation_interval: the newest checkpoint will count as the best")
    checkpoints = run.folder / "ckpts"
    window = Window(run)
    extra = state.resume(checkpoints)
    if state.step >= settings["n_steps"]:
        logging.info("%s has its %d steps already (train.n_steps=%d): nothing is trained, and nothing of it is changed", run.folder,
                     state.step, settings["n_steps"])
        for line in run.changes:
            logging.warning("this setting is of no effect, the run has its steps: %s", line)
        return
    if run.is_main:
        checkpoint.sweep(checkpoints)
    run.rewind_log(state.step)
    facts = getattr(batches, "facts", {})
    if facts or (run.folder / DATA).is_file():
        run.record(DATA, facts, compared=("weights",))  # what else has changed, data.record_summary says in one line
    run.describe()
    if extra is not None:
        window.restore(extra)

    def due(name):
        return settings[name] and (state.step % settings[name] == 0 or state.step == settings["n_steps"])

    state.warn_of_start(settings["n_steps"])
    bar = tqdm(total=settings["n_steps"], initial=state.step, unit="step", disable=None if run.is_main else True)
    stream = batches(state.step)
    state.net.train()
    run.listen()
    for batch in stream:
        loss, terms = _gradients(run, state, loss_fn, batch, settings["accumulation"])
        norm, verdict = state.advance(loss)
        window.add({"loss": loss, **_norm_terms(run, norm), **terms}, verdict, batch["index"], state.step, batches)
        bar.update()
        if due("log_interval"):
            window.check()
            numbers = window.close()
            run.log(state.step, "train", numbers | {"lr": state.optimizer.param_groups[0]["lr"]})
            _show(bar, state.step, settings["n_steps"], numbers)
        with window.paused():
            best = False
            if validation and due("validation_interval"):
                window.check()
                numbers, items = _mean_of_items(run, loss_fn, state.averaged(), validation())
                run.log(state.step, "validation", numbers)
                best = settings["best_metric"] == VALIDATION and _is_best(
                    state, {VALIDATION: numbers["loss"]}, VALIDATION, [f"{VALIDATION} of {items} items, noise of seed {run.seed}"])
            if preview and due("preview_interval"):
                window.check()
                _keep_preview(run, preview(state.averaged(), state.step), state.step)
            if evaluate and due("eval_interval"):
                window.check()
                best = _evaluate(run, state, evaluate, settings["best_metric"]) or best
            stop = run.stop_asked()
            if best or stop or due("save_interval") or state.step == settings["n_steps"]:
                window.check()
                state.save(checkpoints, keep=settings["keep_checkpoints"], extra=window.record())
        if stop:
            logging.warning("asked to stop: step %d is saved. Start the same command again to go on from there", state.step)
            stream.close()
            bar.close()
            run.finish()
            sys.exit(run.exit_code)
        if state.step == settings["n_steps"]:
            break
    stream.close()
    bar.close()


def check_settings(train, known=()):
    """Refuse keys of config.train that nobody reads, before anything is built.

    Args:
        train: config.train.
        known: the keys that the script itself and the state read.
    """
    allowed = {*SETTINGS, *START, *known}
    for key in train:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            raise ValueError(f"unknown setting config.train.{key}" + (f"; did you mean {close[0]}?" if close else
                             f"; known: {', '.join(sorted(allowed))}"))


def validation_loss(run, loss_fn, net, batches):
    """Mean of the loss over held-out batches, over all processes; noise and times of an item are fixed by (seed, item).

    However the items are cut into batches and shared among processes, the mean is the same, but for the rounding of sums.

    Args:
        run: engine.Run; its seed counts.
        loss_fn: as `fit` takes it. Its loss and terms are means over the items of a batch.
        net: the network, in eval mode.
        batches: iterator of this process's batches; 'index' names the items, and two items of one index meet the same noise.

    Returns:
        {name: float}, each term weighted by the items of its batch.

    Raises:
        ValueError: the loss draws random numbers that cannot be given to single items, see `ItemNoise`.
    """
    return _mean_of_items(run, loss_fn, net, batches)[0]


def _mean_of_items(run, loss_fn, net, batches):
    """`validation_loss`, and the number of items."""
    sums, count = {}, 0
    with torch.no_grad(), torch.random.fork_rng(_devices(run)):
        for batch in batches:
            index = batch["index"].tolist()
            batch = _to(run.device, batch)
            with run.accelerator.autocast(), ItemNoise(run.seed, index):
                loss, terms = loss_fn(net, batch)
            n = len(batch["index"])
            count += n
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + value.double() * n
    names = run.from_main(sorted(sums))  # a process may have had no batch
    mine = [float(sums.get(name, 0.0)) for name in names] + [float(count)]
    total = run.gather_rows(torch.tensor([mine], dtype=torch.float64)).sum(0)
    return dict(zip(names, (total[:-1] / total[-1]).tolist())), int(total[-1])


class Window:
    """What the loop has seen since the last log line, kept on the device until that line is due.

    The sums are part of a checkpoint, so that the first log line after a resume is the one of an undisturbed run.
    """

    def __init__(self, run):
        self.run = run
        self._reset()

    def _reset(self):
        self.sums, self.counts, self.verdicts = {}, {}, []
        self._clock, self._images = time.perf_counter(), 0

    def add(self, terms, verdict, index, step, batches):
        """Note one step: scalar Tensors by name, and which items it used."""
        known = [name for name in terms if name in self.sums]
        if known:
            torch._foreach_add_([self.sums[name] for name in known], [terms[name].detach() for name in known])
        for name, value in terms.items():
            if name not in self.sums:
                self.sums[name] = value.detach().clone().float()
            self.counts[name] = self.counts.get(name, 0) + 1
        self._images += len(index) * self.run.world
        # As a list: a tensor from a data worker would hold on to its shared memory.
        self.verdicts.append((step, verdict, index.tolist(), batches))
        if len(self.verdicts) >= 100:
            self.check()

    def check(self):
        """Stop the run if a step since the last check was not finite. The one place that waits for the device."""
        if not self.verdicts:
            return
        finite = torch.stack([verdict for _, verdict, _, _ in self.verdicts]).isfinite().tolist()
        if not all(finite):
            step, _, index, batches = self.verdicts[finite.index(False)]
            names = ", ".join(str(batches.file_name(i)) for i in index[:8])
            more = f" and {len(index) - 8} more" if len(index) > 8 else ""
            raise FloatingPointError(
                f"loss or gradient of step {step} is not finite; no weight was changed by it and the last checkpoint is "
                f"good. Items of that batch on process {self.run.rank}: {names}{more}. Try a lower optimizer.lr, "
                "train.grad_clip, or bf16 in place of fp16")
        self.verdicts.clear()
        scaler = self.run.accelerator.scaler
        if scaler is not None and scaler.get_scale() < 2.0 ** -14:
            raise FloatingPointError("float16 gradients overflow at every scale of the loss: this training has diverged. Go "
                                     "back to the last checkpoint with a lower optimizer.lr, or use bf16")

    def close(self):
        """The means over all processes since the last log line, with images per second; starts a new window."""
        names, sums, counts = self._of_all()
        means = (sums.double().sum(0) / counts.double().sum(0)).tolist()
        numbers = _without_skipped(dict(zip(names, means)), dict(zip(names, counts[0].tolist())))
        seconds = time.perf_counter() - self._clock
        numbers |= {"images_per_second": self._images / max(seconds, 1e-9)}
        self._reset()
        return numbers

    @contextlib.contextmanager
    def paused(self):
        """Leave the time spent here - evaluating, saving - out of the images per second."""
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def record(self):
        """What a checkpoint keeps of an unfinished window: the sums of every process. Called by all of them."""
        names, sums, counts = self._of_all()
        finite = sums.isfinite()  # JSON has no word for others: of such a term the next log line is the mean over what follows
        return {"names": names, "sums": sums.where(finite, 0.0).tolist(), "counts": counts.where(finite, 0.0).tolist()}

    def restore(self, record):
        """Go on with an unfinished window."""
        rows = record["sums"]
        counts = record.get("counts") or [[record["count"]] * len(record["names"])] * len(rows)  # one count was kept once
        sums, counts = (each[self.run.rank] if len(rows) == self.run.world else [sum(row) / len(rows) for row in zip(*each)]
                        for each in (rows, counts))
        self.counts = {name: count for name, count in zip(record["names"], counts) if count}
        self.sums = {name: torch.tensor(value, device=self.run.device) for name, value in zip(record["names"], sums)
                     if name in self.counts}

    def _of_all(self):
        """Names of the terms that any process has seen, and their sums and counts, each (processes, names)."""
        names = list(self.sums)
        if self.run.world > 1:
            gathered = [None] * self.run.world
            torch.distributed.all_gather_object(gathered, names)
            names = list(dict.fromkeys(itertools.chain(*gathered)))
        nothing = torch.zeros((), device=self.run.device)
        sums = [torch.stack([self.sums.get(name, nothing) for name in names])] if names else [torch.empty(0)]
        counts = torch.tensor([[self.counts.get(name, 0) for name in names]], dtype=torch.float32, device=self.run.device)
        return names, self.run.gather_rows(torch.stack(sums)), self.run.gather_rows(counts)


def _gradients(run, state, loss_fn, batch, accumulation):
    """Forward and backward of one step, in `accumulation` parts; returns the mean loss and terms, detached."""
    batch = _to(run.device, batch)
    items = len(batch["index"])
    size = math.ceil(items / accumulation)
    parts = range(0, items, size)
    scaler = run.accelerator.scaler
    totals, shares = {}, {}
    for number, begin in enumerate(parts):
        part = {key: value[begin:begin + size] for key, value in batch.items()}
        share = len(part["index"]) / items
        _seed(run, 0, state.step, number)
        with state.gradients_later(number + 1 < len(parts)):
            loss, terms = loss_fn(state.net, part)
            scaled = loss if share == 1.0 else loss * share
            (scaled if scaler is None else scaler.scale(scaled)).backward()
        for name, value in {"loss": loss, **terms}.items():
            value = value.detach() if share == 1.0 else value.detach() * share
            totals[name] = totals[name] + value if name in totals else value
            shares.setdefault(name, []).append(share)
    for name, of_parts in shares.items():
        if len(of_parts) < len(parts):  # the mean over the parts that have this term
            totals[name] = totals[name] / sum(of_parts)
    return totals.pop("loss"), totals


def _norm_terms(run, norm):
    """What is summed of a gradient's norm. In fp16 a gradient may overflow, which is routine: the scaler skips that step, and its
    norm, which is not finite, is counted in place of summed, on the device."""
    if run.accelerator.scaler is None:
        return {"grad_norm": norm}
    finite = norm.isfinite()
    return {"grad_norm": torch.where(finite, norm, 0.0), SKIPPED: (~finite).float()}


def _without_skipped(means, counts):
    """Means of a window in which the norm is that of the steps that were not skipped, and `skipped_steps` their number."""
    if SKIPPED not in means:
        return means
    share, steps = means.pop(SKIPPED), counts[SKIPPED]
    skipped = round(share * steps)
    total = means.pop("grad_norm")
    return means | ({"grad_norm": total / (1.0 - share)} if skipped < steps else {}) | {SKIPPED: skipped}


def _evaluate(run, state, evaluate, metric):
    """Log an evaluation; True if it is the best so far."""
    scores = evaluate(state.averaged(), state.step)
    if not scores:
        return False
    run.log(state.step, "eval", scores)
    if not metric or metric == VALIDATION:
        return False
    if metric not in scores:
        logging.warning("train.best_metric %r is not among the scores: %s", metric, ", ".join(sorted(scores)))
        return False
    return _is_best(state, scores, metric)


def _is_best(state, scores, metric, judged=()):
    """Whether this step is the best so far, which the state then remembers.

    judged: what has to be the same for two values to be compared; the names of the scores by default.
    """
    # Every process holds the same numbers: evaluation ends with a gather, not with an opinion of rank 0.
    judged = list(judged) or sorted(scores)
    if state.best and state.best["judged_by"] != judged:
        logging.warning("the best checkpoint so far was judged by other scores (%s) than now (%s); the search begins anew",
                        ", ".join(state.best["judged_by"]), ", ".join(judged))
        state.best = {}
    if math.isfinite(scores[metric]) and scores[metric] < state.best.get("value", math.inf):
        state.best = {"step": state.step, "metric": metric, "value": scores[metric], "judged_by": judged}
        return True
    return False


def _keep_preview(run, grid, step):
    if run.is_main and grid is not None:
        from PIL import Image
        folder = run.folder / "samples"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(grid)).save(folder / f"{step}.png")
        run.tensorboard.add_image("samples", grid, step, dataformats="HWC")


def _seed(run, *path):
    """Seed torch for one part of the work of this process: a function of (seed, rank, path) alone."""
    torch.manual_seed(int(np.random.SeedSequence([run.seed, run.rank, *path]).generate_state(1, np.uint64)[0] >> 1))


def _devices(run):
    return [run.device] if run.device.type == "cuda" else []


def _to(device, batch):
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def _show(bar, step, n_steps, numbers):
    """Loss and speed beside the progress bar, or as a line now and then where the output is not a terminal."""
    if not bar.disable:
        bar.set_postfix(loss=f"{numbers['loss']:.4f}", img_s=f"{numbers['images_per_second']:.0f}")
    elif logging.getLogger().isEnabledFor(logging.INFO) and time.monotonic() - _show.last > 20:
        _show.last = time.monotonic()
        logging.info("step %d of %d: loss %.4f, %.0f images/s", step, n_steps, numbers["loss"],
                     numbers["images_per_second"])


_show.last = -math.inf
