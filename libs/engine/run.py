"""One run: its processes, its folder, its log.

`start` is called once by a script. It joins the processes that `accelerate launch` or `torchrun` started, claims the
run folder and writes down what was asked (config.json) and by what it was done (run.json).
"""

import datetime
import fcntl
import gc
import json
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs, InitProcessGroupKwargs

from libs.engine.checkpoint import steps, write_text

_PACKAGES = ("torch", "torchvision", "accelerate", "diffusers", "transformers", "timm", "numpy", "pillow")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what SLURM and container schedulers send before they kill


class Run:
    """What the processes of one run share: accelerator, folder, seed, metric log and the wish to stop.

    Attributes:
        folder: Path of the run folder.
        seed: int; every random number of the run derives from it.
        rank, world: this process and how many there are.
        is_main: True on the one process that writes files.
    """

    def __init__(self, folder, *, seed=0, mixed_precision="", claim=True, fp16_scale_growth=0.0):
        self.folder, self.seed = Path(folder), seed
        world = int(os.environ.get("WORLD_SIZE", 1))
        growth = [GradScalerKwargs(growth_interval=round(1 / fp16_scale_growth))] if fp16_scale_growth else []
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision or None, cpu=True if not _has_accelerator() else None,
            kwargs_handlers=[*growth, DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                             # The others wait while one process checks a million files or trains a feature network.
                             InitProcessGroupKwargs(timeout=datetime.timedelta(hours=12))])
        if self.accelerator.num_processes != world:
            raise RuntimeError(f"{world} processes were launched but accelerate joined {self.accelerator.num_processes}; "
                               "each would train its own copy. Launch with `accelerate launch --multi_gpu` or `torchrun`")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self._stop = Stop(self.world)
        self._tensorboard = self._lock = None
        self._record, self._states = {}, []
        if claim and self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _claim(self.folder)
        self.barrier()

    def barrier(self):
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    @property
    def place(self):
        """What a data stream must know of this process: rank, world, and whether batches are page-locked for a GPU."""
        return {"rank": self.rank, "world": self.world, "pin_memory": self.device.type == "cuda"}

    @property
    def resumes(self):
        """Whether the folder holds a checkpoint, so that training goes on from there."""
        return bool(steps(self.folder / "ckpts"))

    def record(self, name, content, *, fixed=False, compared=None):
        """Remember what the run folder is to keep as the JSON file `name`; `describe` writes it.

        compared: the keys of a dict whose changes since an earlier session are logged; None logs all.

        Raises:
            ValueError: the folder holds another content already and it is `fixed` for the life of a run.
        """
        before = read_json(self.folder / name, content)
        if before != content:
            if fixed:
                raise ValueError(f"{self.folder / name} says {before}, now it would be {content}: that belongs to another "
                                 "run; choose another --workdir, or make the data as they were")
            chosen = [each if compared is None else {key: value for key, value in each.items() if key in compared}
                      for each in (before, content)]
            for line in _differences(*chosen):
                logging.warning("this run continues with another setting: %s", line)
        self._record[name] = content

    def describe(self):
        """Write what was recorded, and add this session (command, versions, device, commit) to run.json.

        Called when a run is known to begin, so that a command that fails leaves the folder as it was.
        """
        if not self.is_main:
            return
        for name, content in self._record.items():
            write_text(self.folder / name, json.dumps(content, indent=1))
        sessions = read_json(self.folder / "run.json", {"sessions": []})
        sessions["sessions"].append({
            "command": shlex.join([Path(sys.executable).name, *sys.argv]), "started": _now(), "processes": self.world,
            "device": device_name(self.device), "precision": self.accelerator.mixed_precision,
            "versions": {"python": platform.python_version(), **dict(_versions())}, "git": _commit()})
        write_text(self.folder / "run.json", json.dumps(sessions, indent=1))

    def log(self, step, kind, values):
        """Append one line to metrics.jsonl and the same numbers to TensorBoard. Main process only.

        Args:
            step: number of finished optimizer steps.
            kind: 'train', 'validation' or 'eval'.
            values: {name: float}.
        """
        if not self.is_main:
            return
        with open(self.folder / "metrics.jsonl", "a") as stream:
            stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self.tensorboard.add_scalar(f"{kind}/{name}", value, step)

    @property
    def tensorboard(self):
        """TensorBoard's writer, opened at the first use."""
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter
            self._tensorboard = SummaryWriter(self.folder / "tensorboard", purge_step=self._purge)
        return self._tensorboard

    _purge = None  # the first step whose TensorBoard entries of an earlier session no longer count

    def own(self, state):
        """Let go of a state's wrapped network and optimizer when the run ends."""
        self._states.append(state)

    def listen(self):
        """From now on SIGTERM and SIGUSR1 mean: save and stop at the end of a step."""
        self._stop.listen()

    def rewind_log(self, step):
        """Drop the metric lines after `step` and a torn last line: those steps are about to be done again."""
        path = self.folder / "metrics.jsonl"
        if self.is_main and path.is_file():
            self._purge = step + 1
            kept = [line for line in read_metrics(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def gather_rows(self, rows):
        """Concatenate the rows of every process, in order of rank; each may bring another number of them.

        Args:
            rows: Tensor (n, ...), same trailing shape and dtype everywhere.

        Returns:
            CPU Tensor (sum of n, ...), on every process.
        """
        if self.world == 1:
            return rows.cpu()
        rows = rows.to(self.device)
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=self.device)).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[:len(rows)] = rows
        together = self.accelerator.gather(padded).cpu()
        return torch.cat([part[:count] for part, count in zip(together.split(max(counts)), counts)])

    def from_main(self, value):
        """The main process's `value` (anything JSON can hold) on every process."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def main_first(self, function):
        """Call `function` on the main process, then on the others, which find what it has cached.

        An exception on the main process does not keep the others waiting: they meet it themselves.
        """
        if not self.is_main:
            self.barrier()
        try:
            return function()
        finally:
            if self.is_main:
                self.barrier()

    def stop_asked(self):
        """True on every process at the same step, once SIGTERM or SIGUSR1 has reached any of them."""
        return self._stop.agreed()

    def finish(self):
        """Leave cleanly: close logs and the process group. Nothing of the run may be used afterwards."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._stop.settle()
        for state in self._states:  # a gloo run may abort at exit while a wrapped network is still alive
            state.net = state.optimizer = state.update = None
        self.accelerator.free_memory()
        gc.collect()
        self.barrier()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if self._lock is not None:
            self._lock.close()


class Stop:
    """A wish to stop that all processes learn of at the same step.

    Each process notes its own signals; the notes are combined by a reduction between hosts that is begun at one step
    and read at the next, so that no step waits for it and no device is synchronised.
    """

    def __init__(self, world):
        self._asked = False  # by a signal to this process
        self._group = torch.distributed.new_group(backend="gloo") if world > 1 else None
        self._pending = None

    def listen(self):
        """Take over the signals; before, they end the process as usual."""
        for name in _SIGNALS:
            signal.signal(name, self._note)

    def _note(self, signum, frame):
        self._asked = True

    def agreed(self):
        if self._group is None:
            return self._asked
        answer = self.settle()
        flag = torch.tensor([float(self._asked)])
        self._pending = torch.distributed.all_reduce(flag, group=self._group, async_op=True), flag
        return answer

    def settle(self):
        """Wait for the reduction under way; True if it found a wish to stop."""
        if self._pending is None:
            return False
        (work, flag), self._pending = self._pending, None
        work.wait()
        return bool(flag.item())


def start(config, workdir, *, claim=True):
    """Begin a run: join the other processes, claim `workdir`, log to the terminal.

    Args:
        config: ConfigDict with `seed` and, where training, `train.mixed_precision` ('' takes what
            `accelerate launch --mixed_precision` says, 'auto' bf16 where the processor multiplies it natively);
            `train.fp16_scale_growth`: doublings of the loss scale per good step of fp16, 0 for PyTorch's 1/2000;
            `train.tf32`: see `use_tf32`; without this key PyTorch's own defaults stay.
        workdir: the run folder.
        claim: False for scripts that only read the folder of another run.
    """
    precision = config.train.get("mixed_precision", "") if "train" in config else ""
    precision = ("bf16" if _multiplies_bf16() else "no") if precision == "auto" else precision
    growth = config.train.get("fp16_scale_growth", 0.0) if "train" in config else 0.0
    if not 0 <= growth <= 1:
        raise ValueError(f"config.train.fp16_scale_growth is {growth}; it must lie between 0 (PyTorch's 1/2000) and 1")
    run = Run(workdir, seed=config.seed, mixed_precision=precision, claim=claim, fp16_scale_growth=growth)
    if run.device.type == "cuda" and "tf32" in config.get("train", {}):
        use_tf32(config.train.tf32)
    logging.getLogger().setLevel(logging.INFO if run.is_main else logging.WARNING)
    torch.manual_seed(config.seed)  # of the initial weights; every training step is seeded anew
    if claim:
        run.record("config.json", json.loads(config.to_json_best_effort()))
    return run


def use_tf32(allowed):
    """Whether CUDA may round the inputs of float32 products to TF32, 10 bits of fraction in place of 23.

    True allows it in matrix products and convolutions, False in neither. (PyTorch by itself: in convolutions alone.)
    What asks for float32 by name, as the metrics do, has it in any case.
    """
    # Not torch.backends.*.fp32_precision, the newer way to say this: after it the older getters, which torch.compile still reads
    # when it tunes kernels (torch 2.11), raise. These two setters leave both views of the setting in agreement.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = bool(allowed)


def read_json(path, default):
    """The content of a JSON file, or `default` where there is none."""
    return json.loads(Path(path).read_text()) if Path(path).is_file() else default


def read_metrics(path):
    """The lines of a metrics.jsonl as dicts; a last line torn by a kill is dropped."""
    lines = []
    for line in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def device_name(device):
    """What a person calls the device: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        return f"{names[0]}, {torch.get_num_threads()} threads"
    except (OSError, IndexError):
        return platform.processor() or device.type


def _has_accelerator():
    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()) \
        or torch.backends.mps.is_available()


def _multiplies_bf16():
    """Whether the device has instructions for bf16 products; elsewhere they are emulated and slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _claim(folder):
    """Hold a lock on the run folder as long as this process lives; the kernel drops it even after kill -9."""
    lock = open(folder / ".lock", "w")
    for _ in range(40):  # a killed predecessor's children may hold on for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(0.25)
        except OSError:  # a file system without locks: go on as before
            return lock
    raise ValueError(f"another process is using the run folder {folder}; stop it or choose another --workdir")


def _differences(old, new, path=""):
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key} was {a!r}, is now {b!r}"


def _versions():
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _commit():
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True,
                                timeout=5, cwd=Path(__file__).parent)
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
