"""The state of a training: network, averaged network, optimizer and step; what a checkpoint holds.

Only what requires a gradient is optimized, averaged and saved, so that LoRA and ControlNet checkpoints are small by
construction. What a network names as its `constants` is saved beside it, such as DiT's table of positions, which tells its size
and which other code expects in a checkpoint. Random numbers and the order of the data are functions of (seed, step), not state:
nothing of them needs to be saved for a resume to be exact.
"""

import contextlib
import copy
import logging
import math
from pathlib import Path

import torch

from libs import files
from libs.engine import checkpoint, foreign, optim
from libs.engine.finite import check_finite
from libs.engine.run import read_json
from libs.engine.frozen import frozen_of, hash_with_frozen

MOST_START = 0.05  # share of an average that may be the weights that the training began with
SMALLER_RATES = (0.9999, 0.9995, 0.999, 0.995, 0.99, 0.95, 0.9, 0.8, 0.5, 0.1, 0.0)  # what is advised in place of a larger one


class State:
    """Network, exponential moving average, optimizer and step of a run.

    Attributes:
        net: the network to call in the loss: wrapped for N processes and mixed precision.
        module: the same network bare.
        ema: float32 copy whose trainable weights are the exponential moving average; frozen weights are shared.
        step: number of finished optimizer steps.
        best: {'step', 'metric', 'value', 'judged_by'} of the best evaluation so far, or {}.
    """

    def __init__(self, run, net, *, optimizer, lr_scheduler, n_steps, ema_rate=0.9999, more_ema_rates=(), ema_warmup=True,
                 grad_clip=0.0, compile=False, keep=None):
        """
        Args:
            run: engine.Run.
            net: nn.Module; parameters that do not require a gradient stay as they are.
            optimizer: {'name', 'lr', ...}, see optim.make.
            lr_scheduler: {'name', 'warmup_steps', ...}, see optim.lr_factor.
            n_steps: steps of the whole training, which a falling learning rate must know.
            ema_rate: share of the average that is kept at each step, in [0, 1).
            more_ema_rates: further averages, which checkpoints hold beside that one (see load_weights).
            ema_warmup: limit each rate to (1 + step) / (10 + step), see `warmed_up`, so that the random start does not stay in
                the average of a short training; False keeps the rates as they are, as most published trainings did. A run that
                resumes goes on as it was begun.
            grad_clip: largest norm of the gradient; 0 is off.
            compile: pass the network through torch.compile.
            keep: {name: nn.Module}, what else has a state of its own that a resume must find, as buffers.
        """
        for rate in (ema_rate, *more_ema_rates):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"train.ema_rate must lie in [0, 1), not {rate}")
        if len({ema_rate, *more_ema_rates}) <= len(more_ema_rates) or 0.0 in more_ema_rates:
            raise ValueError(f"train.more_ema_rates={tuple(more_ema_rates)}: one is there twice, is train.ema_rate={ema_rate}, or "
                             "is 0, the weights themselves")
        self.run, self.module, self.ema_rate = run, net.to(run.device), ema_rate
        self.ema_warmup, self.resumed_warmup = bool(ema_warmup), False
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("the network has no parameter that requires a gradient: nothing to train")
        # Frozen weights are shared between the network and its average, not copied.
        self.ema = copy.deepcopy(net, {id(p): p for p in net.parameters() if not p.requires_grad})
        self.ema.requires_grad_(False).eval()
        averaged = dict(self.ema.named_parameters())
        self.names = list(trained)
        self._weights, self._averages = list(trained.values()), [averaged[name] for name in trained]
        self._more = {rate: [average.clone() for average in self._averages] for rate in more_ema_rates}
        self.keep = {name: module.to(run.device) for name, module in (keep or {}).items()}
        self.optimizer = optim.make(self._weights, **optimizer)
        self.lr, self.lr_scheduler = optimizer["lr"], {**lr_scheduler, "n_steps": n_steps}
        optim.lr_factor(0, **self.lr_scheduler)
        if compile:
            net.compile()
        self.net = run.accelerator.prepare(net)
        self.update = optim.Update(self.optimizer, grad_clip=grad_clip, world=run.world, scaler=run.accelerator.scaler)
        self.step, self.best = 0, {}
        self._saved_step = None
        run.own(self)

    def advance(self, loss):
        """Finish a step whose gradients are there: update weights and average. See optim.Update for what it returns."""
        rate = self.lr * optim.lr_factor(self.step, **self.lr_scheduler)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        verdict = self.update(loss)
        self.step += 1
        with torch.no_grad():
            for rate, averages in {self.ema_rate: self._averages, **self._more}.items():
                rate = warmed_up(rate, self.step) if self.ema_warmup else rate
                torch._foreach_lerp_(averages, self._weights, 1.0 - rate)
        return verdict

    def averaged(self):
        """The network to evaluate and to sample with: averaged weights, present buffers, eval mode."""
        for mine, its in zip(self.ema.buffers(), self.module.buffers()):
            mine.copy_(its)
        return self.ema

    def save(self, root, *, keep, extra=None):
        """Write a checkpoint durably, then delete all but the newest `keep` and the best. Called by every process."""
        if self.run.is_main and self._saved_step != self.step:
            moments, scalars = {}, {}
            for name, weight in zip(self.names, self._weights):
                for key, value in self.optimizer.state.get(weight, {}).items():
                    (moments if torch.is_tensor(value) else scalars)[f"{key}.{name}"] = value
            scaler = self.run.accelerator.scaler
            buffers = _saved_buffers(self.module)
            checkpoint.write(root, self.step, {
                "nnet": dict(zip(self.names, self._weights)) | buffers,
                "nnet_ema": dict(zip(self.names, self._averages)) | buffers,
                **{averaged_name(rate): dict(zip(self.names, each)) | buffers for rate, each in self._more.items()},
                **{name: module.state_dict() for name, module in self.keep.items() if module.state_dict()},
                "optimizer": moments,
            }, {"step": self.step, "best": self.best, "ema_rate": self.ema_rate, "ema_warmup": self.ema_warmup,
                "optimizer": scalars, "extra": extra or {},
                "scaler": scaler.state_dict() if scaler is not None else {}})
            checkpoint.prune(root, keep=keep, protect={self.best.get("step")})
        self._saved_step = self.step
        self.run.barrier()

    def resume(self, root):
        """Take over the newest whole checkpoint below `root`, if there is one; returns its `extra`, or None.

        Raises:
            ValueError: the checkpoint belongs to a network of another shape, or was written by another kind of optimizer; what
                differs is named.
        """
        found = checkpoint.read_latest(root)
        if found is None:
            return None
        folder, tensors, record = found
        began_with = read_json(self.run.folder / "config.json", {}).get("optimizer", {}).get("name", "")
        optim.check_moments(self.optimizer, {key.split(".", 1)[0] for key in tensors["optimizer"]}, folder, began_with)
        _load_into(self.module, tensors["nnet"], self.names, folder)
        _load_into(self.ema, tensors["nnet_ema"], self.names, folder)
        for rate, averages in self._more.items():
            saved = tensors.get(averaged_name(rate))
            if saved is None:
                logging.warning("%s has no average of rate %g: it begins with the present weights", folder, rate)
                saved = tensors["nnet"]
            for name, average in zip(self.names, averages):
                average.copy_(saved[name])
        for name, module in self.keep.items():
            own, saved = module.state_dict(), tensors.get(name, {})
            if {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in saved.items()}:
                module.load_state_dict(saved)
            else:
                logging.warning("%s holds %s of a %s: it begins anew", folder, "another kind" if saved else "nothing", name)
        weights = dict(zip(self.names, self._weights))
        for source in (tensors["optimizer"], record["optimizer"]):
            for key, value in source.items():
                key, name = key.split(".", 1)
                # Step counts stay float32, moments take the dtype of their weight's kind; both live on the device.
                moved = value.to(self.run.device) if torch.is_tensor(value) else value
                if torch.is_tensor(value) and value.shape == weights[name].shape:
                    # A fused optimizer walks through memory: its moments must lie there as the weights do.
                    moved = torch.empty_like(weights[name], dtype=value.dtype).copy_(moved)
                self.optimizer.state[weights[name]][key] = moved
        if self.run.accelerator.scaler is not None and record["scaler"]:
            self.run.accelerator.scaler.load_state_dict(record["scaler"])
        self.step, self.best, self._saved_step = record["step"], record["best"], record["step"]
        logging.info("resumed from %s", folder)
        self._keep_warmup(record.get("ema_warmup", False))  # checkpoints of earlier versions lack it, and had none
        return record["extra"]

    def _keep_warmup(self, began_with):
        """The averages of a run go on as they were begun: half of each way would be neither."""
        if self.ema_warmup != began_with:
            logging.info("train.ema_warmup is %s, but this run was begun with %s: its averages go on %s the warm-up of their rate",
                         self.ema_warmup, began_with, "with" if began_with else "without")
        self.ema_warmup, self.resumed_warmup = began_with, True

    def warn_of_start(self, n_steps):
        """Log a warning for every average of which too much will be the weights that the training began with."""
        for rate in (self.ema_rate, *self._more):
            share = start_share(rate, n_steps, warmup=self.ema_warmup)
            if share > MOST_START:
                option = "ema_rate" if rate == self.ema_rate else "more_ema_rates"
                smaller = next(each for each in SMALLER_RATES if each not in (self.ema_rate, *self._more)
                               and start_share(each, n_steps, warmup=self.ema_warmup) <= MOST_START)
                if option == "more_ema_rates":
                    smaller = f'"{tuple(smaller if each == rate else each for each in self._more)}"'
                warmup = "" if self.ema_warmup or self.resumed_warmup else "--config.train.ema_warmup=True, or "
                logging.warning(
                    "after %d steps %.0f %% of the average of rate %g (train.%s) will still be the weights that the training began "
                    "with, which are random unless train.init gave others: images of it would be noise. Set %s"
                    "--config.train.%s=%s, or train for more steps. The raw weights are taken by --config.sample.weights=raw",
                    n_steps, 100 * share, rate, option, warmup, option, smaller)

    @contextlib.contextmanager
    def gradients_later(self, later):
        """While `later` is true, gradients are summed on each process and not yet exchanged (accumulation)."""
        with self.run.accelerator.no_sync(self.net) if later else contextlib.nullcontext():
            yield


def warmed_up(rate, step):
    """The rate of the average at the update number `step`, 1 being the first: min(rate, (1 + step) / (10 + step)).

    The warm-up of latent diffusion's LitEma, torch_ema and diffusers' EMAModel: the average begins as a mean over the recent
    tenth of the training, and the random start leaves it within some hundred steps.
    """
    return min(rate, (1.0 + step) / (10.0 + step))


def start_share(rate, steps, *, warmup):
    """How much of the weights that a training began with is left in its average after so many steps: a share in [0, 1].

    The product of the rates of all updates; 0.9999 without warm-up leaves 0.96 after 400 steps and 0.05 after 30,000.
    """
    if not warmup:
        return rate ** steps
    return math.prod(warmed_up(rate, step) for step in range(1, steps + 1))


def averaged_name(rate, record=None):
    """The file stem of the average of one rate in a checkpoint; 0 or that of the `record` is the run's first, train.ema_rate."""
    return f"nnet_ema_{rate:g}" if rate and rate != (record or {}).get("ema_rate") else "nnet_ema"


def load_weights(path, *, averaged=True, ema_rate=0.0):
    """The weights of a network from a file, a checkpoint folder or a run folder; nothing is executed.

    Args:
        path: `.safetensors`, or `.pth`/`.pt`/`.ckpt` with a plain state_dict (the published U-ViT files), or
            `<step>.ckpt/`, or a run folder with `ckpts/` (its best checkpoint, else the newest whole one), or what
            others wrote (see foreign.read).
        averaged: of our checkpoints take the moving average, which is the better network, not the raw weights.
        ema_rate: which average, one of train.more_ema_rates; 0 takes that of train.ema_rate.

    Returns:
        ({name: Tensor}, step or None, Path of what was read).

    Raises:
        ValueError: no weights there, or some that are nan or infinite, which are named.
    """
    path = Path(path)
    if (path / "ckpts").is_dir():
        path = path / "ckpts"
    if path.is_dir() and checkpoint.steps(path):
        folder, tensors, record = checkpoint.read_latest(path)
        best = record["best"].get("step")
        if best is not None and best != record["step"]:
            try:
                tensors, record = checkpoint.read(path / f"{best}.ckpt")
                folder = path / f"{best}.ckpt"
            except ValueError as error:
                logging.warning("%s. The newest one is used in place of the best.", error)
        weights = _chosen(tensors, averaged, ema_rate, folder, record)
        return check_finite(weights, folder), record["step"], folder
    if (path / checkpoint.MANIFEST).is_file():
        tensors, record = checkpoint.read(path)
        return check_finite(_chosen(tensors, averaged, ema_rate, path, record), path), record["step"], path
    if len(foreign.split(path)) > 1 or foreign.is_folder(path):
        return check_finite(foreign.read(path), path), None, path
    if path.is_dir():
        raise ValueError(f"{path} holds no checkpoint: expected <step>.ckpt folders, a ckpts/ folder, a folder of diffusers "
                         "(model_index.json, or config.json beside weights), or give a weights file")
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: --nnet_path takes a .pth or .safetensors file, a <step>.ckpt "
                                "folder or a run folder")
    return check_finite(foreign.read(path), path), None, path


def weights_hash(path, *, averaged=True, ema_rate=0.0):
    """SHA-256 (first 16 hex digits) of the weights at a path that `load_weights` returned, with the same other arguments."""
    path = Path(path)
    if len(foreign.split(path)) > 1 or foreign.is_folder(path):
        return foreign.digest(path)[:16]
    if path.is_dir():
        record = files.read_json(path / "state.json")
        name = averaged_name(ema_rate, record) if averaged else "nnet"
        digest = checkpoint.read_manifest(path)[f"{name}.safetensors"]["sha256"]
        return hash_with_frozen(digest, path)[:16]
    return checkpoint.sha256(path)[:16]


def _saved_buffers(module):
    """The buffers that belong to a network's state_dict, and its constants; others (such as position numbers) are made anew with
    the network."""
    saved, constants = module.state_dict().keys(), _constants(module)
    return {name: buffer for name, buffer in module.named_buffers() if name in saved} | constants


def _constants(module):
    """The parameters that a network names as never trained, and of use in a checkpoint."""
    named = getattr(module, "constants", ())
    return {name: weight.detach() for name, weight in module.named_parameters() if name in named and not weight.requires_grad}


def _load_into(module, tensors, names, folder):
    """Copy saved weights into a network in place, after checking that both have the same names and shapes."""
    buffers = _saved_buffers(module)
    mine, wanted = dict(module.named_parameters()) | buffers, {*names, *buffers}
    wanted -= _constants(module).keys() - tensors.keys()  # the network has them anyway
    problems = [f"{name}: missing in the checkpoint" for name in sorted(wanted - tensors.keys())]
    problems += [f"{name}: not in this network" for name in sorted(tensors.keys() - wanted)]
    problems += [f"{name}: {tuple(tensors[name].shape)} in the checkpoint, {tuple(mine[name].shape)} in this network"
                 for name in sorted(wanted & tensors.keys()) if tensors[name].shape != mine[name].shape]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{folder} was written by a network of another shape: {'; '.join(problems[:5])}{more}. Use the "
                         "nnet section of the run's config.json, or another --workdir")
    with torch.no_grad():
        for name in wanted:
            mine[name].copy_(tensors[name])


def _chosen(tensors, averaged, ema_rate, folder, record):
    name = averaged_name(ema_rate, record) if averaged else "nnet"
    if name not in tensors:
        known = sorted(stem.removeprefix("nnet_ema_") for stem in tensors if stem.startswith("nnet_ema_"))
        raise ValueError(f"{folder} has no average of rate {ema_rate:g}; known: 0 for the first, {', '.join(known) or 'no others'} "
                         "(train.more_ema_rates)")
    return frozen_of(folder) | tensors[name]
