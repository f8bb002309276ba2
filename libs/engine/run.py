"""One run: its processes, its folder, its log.

`start` is called once by a script. It joins the processes that `accelerate launch` or `torchrun` started, claims the
run folder and writes down what was asked (config.json) and by what it was done (run.json).
"""

import datetime
import fcntl
import gc
import json
import logging
import math
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

from libs import files
from libs.engine import devices, fixed
from libs.engine.checkpoint import steps, write_text

METRICS = "metrics.jsonl"
_PACKAGES = ("torch", "torchvision", "accelerate", "diffusers", "transformers", "timm", "numpy", "pillow")
# What SLURM and container schedulers send before they kill; Ctrl-C; and a terminal that is gone.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # a shell has them ignored where they are not meant for a process
EXIT_AFTER_SIGTERM = 143  # 128 + SIGTERM, what schedulers expect of a job that obeyed
PATIENCE = datetime.timedelta(hours=12)  # of a process that waits for another
SAME_CTRL_C = 3.0  # seconds: a launcher hands on the Ctrl-C that its processes have had from the terminal already


class Run:
    """What the processes of one run share: accelerator, folder, seed, metric log and the wish to stop.

    Attributes:
        folder: Path of the run folder.
        seed: int; every random number of the run derives from it.
        rank, world: this process and how many there are.
        is_main: True on the one process that writes files.
        precision: 'no' (float32), 'fp16' or 'bf16', what is really computed in.
        tf32: whether float32 products on CUDA are rounded to TF32.
    """

    def __init__(self, folder, *, seed=0, mixed_precision="", claim=True, fp16_scale_growth=0.0, auto_fp16=True):
        """
        Args:
            folder: the run folder.
            seed: an integer of 0 or more.
            mixed_precision, auto_fp16: see devices.choose_precision.
            claim: whether the folder is this run's, to train in; else that of another run, to read.
            fp16_scale_growth: doublings of the loss scale per good step of fp16, 0 for PyTorch's 1/2000.

        Raises:
            ValueError: a seed below 0, a precision that the device does not compute, a folder that is a file or in use.
        """
        if seed < 0:
            raise ValueError(f"`config.seed` is {seed}: every random number is drawn from it, and it must be 0 or greater. Set such "
                             "as `--config.seed=1234`")
        self.folder, self.seed, self.tf32 = Path(folder), seed, False
        self._last = {} if claim else last_session(self.folder)
        self.precision = devices.choose_precision(mixed_precision, training=claim, recorded=devices.recorded_precision(self._last),
                                                  fp16=auto_fp16)
        world = int(os.environ.get("WORLD_SIZE", 1))
        growth = [GradScalerKwargs(growth_interval=round(1 / fp16_scale_growth))] if fp16_scale_growth else []
        self.accelerator = Accelerator(
            mixed_precision=self.precision, cpu=True if not devices.has_accelerator() else None,
            kwargs_handlers=[*growth, DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                             # The others wait while one process checks a million files or trains a feature network.
                             InitProcessGroupKwargs(timeout=PATIENCE)])
        if self.accelerator.num_processes != world:
            raise RuntimeError(f"{world} processes were launched but accelerate joined {self.accelerator.num_processes}; "
                               "each would train its own copy. Launch with `accelerate launch --multi_gpu` or `torchrun`")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self._stop = Stop(self.world)
        self._tensorboard = self._lock = None
        self._record, self._changes, self._states = {}, [], []
        if claim and self.is_main:
            _make_folder(self.folder)
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
            self._changes += _differences(*chosen)
        self._record[name] = content

    @property
    def changes(self):
        """What was recorded and differs from what the run folder holds, a line each."""
        return list(self._changes)

    def is_to_write(self, name, n_steps):
        """Whether a script writes the file `name` of the run folder anew: it is missing, or training goes on to `n_steps`."""
        return max(steps(self.folder / "ckpts"), default=-1) < n_steps or not (self.folder / name).is_file()

    def is_stale(self, path):
        """Whether what is made of the weights of a finished training, a file or folder, is missing or older than they are."""
        saved = steps(self.folder / "ckpts")
        newest = (self.folder / "ckpts" / f"{saved[-1]}.ckpt").stat().st_mtime_ns if saved else 0
        return not path.exists() or path.stat().st_mtime_ns < newest

    def describe(self):
        """Write what was recorded, and add this session (command, versions, device, commit) to run.json.

        Called when a run is known to begin, so that a command that fails leaves the folder as it was.
        """
        if not self.is_main:
            return
        for line in self._changes:
            logging.warning("this run continues with another setting: %s", line)
        self._changes = []
        for name, content in self._record.items():
            write_text(self.folder / name, files.json_text(content))
        sessions = read_json(self.folder / "run.json", {"sessions": []})
        sessions["sessions"].append({
            "command": shlex.join([Path(sys.executable).name, *sys.argv]), "started": _now(), "processes": self.world,
            "device": device_name(self.device), "device_type": self.device.type, "precision": self.accelerator.mixed_precision,
            "tf32": self.tf32, "versions": {"python": platform.python_version(), **dict(_versions())}, "git": _commit()})
        write_text(self.folder / "run.json", files.json_text(sessions))

    def log(self, step, kind, values):
        """Append one line to metrics.jsonl and the same numbers to TensorBoard. Main process only.

        Args:
            step: number of finished optimizer steps.
            kind: 'train', 'validation' or 'eval'.
            values: {name: float}; one that is not finite, for which JSON has no word, is left out.
        """
        if not self.is_main:
            return
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        with files.disk_errors(self.folder / METRICS), open(self.folder / METRICS, "a") as stream:
            stream.write(files.json_text({"step": step, "kind": kind, **values}, indent=None) + "\n")
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
        """From now on SIGTERM, SIGUSR1, a first Ctrl-C and a terminal that is gone mean: save and stop at the end of a step."""
        self._stop.listen()

    def rewind_log(self, step):
        """Drop the metric lines after `step` and those that are damaged: those steps are about to be done again."""
        path = self.folder / METRICS
        if self.is_main and path.is_file():
            self._purge = step + 1
            kept = [line for line in read_metrics(path) if line["step"] <= step]
            write_text(path, "".join(files.json_text(line, indent=None) + "\n" for line in kept))

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
        """True on every process at the same step, once a signal to stop has reached any of them."""
        return self._stop.agreed()

    @property
    def exit_code(self):
        """Of a run that was asked to stop: 130 after Ctrl-C, 129 after a lost terminal, 143 otherwise."""
        return self._stop.exit_code

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
        self.exit_code, self._first, self._terminals = EXIT_AFTER_SIGTERM, 0.0, ()
        self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None
        self._pending = None

    def listen(self):
        """Take over the signals; before, they end the process as usual. What is ignored, as under nohup, stays ignored."""
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        for name in _SIGNALS:
            if name not in _OF_A_TERMINAL or signal.getsignal(name) is not signal.SIG_IGN:
                signal.signal(name, self._note)

    def _note(self, signum, frame):
        if signum == signal.SIGINT and self._asked and not self._same(time.monotonic()):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if signum == signal.SIGHUP:  # writing to a terminal that is gone would end the process before it has saved
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in self._terminals:
                os.dup2(nowhere, number)
            os.close(nowhere)
        if not self._asked:
            self._asked, self._first = True, time.monotonic()
            self.exit_code = 128 + signum if signum in _OF_A_TERMINAL else EXIT_AFTER_SIGTERM
            if signum == signal.SIGINT:  # not through the log, which this may have interrupted
                os.write(2, b"\nstopping after this step, which is saved; Ctrl-C again ends at once and loses it\n")

    def _same(self, now):
        """Whether a Ctrl-C is the one before once more, by the hand of a launcher."""
        return any(name in os.environ for name in devices.LAUNCHERS) and now - self._first < SAME_CTRL_C

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


def start(config, workdir, *, claim=True, auto_fp16=True):
    """Begin a run: join the other processes, claim `workdir`, log to the terminal.

    Args:
        config: ConfigDict with `seed` and, where training, `train.mixed_precision` (see devices.choose_precision);
            `train.fp16_scale_growth`: doublings of the loss scale per good step of fp16, 0 for PyTorch's 1/2000;
            `train.tf32`: see `use_tf32`; without this key a training on CUDA uses TF32, and what only reads a run does as the
            last session of the run did.
        workdir: the run folder.
        claim: False for scripts that only read the folder of another run. Where neither their config nor their launcher says a
            precision, they take that of the run's last session.
        auto_fp16: whether `train.mixed_precision='auto'` may be fp16.

    Raises:
        ValueError: the folder holds weights that were trained with settings which are fixed for the life of a run, see `fixed`; or
            as `Run`.
    """
    logging.getLogger().setLevel(logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING)
    train = config.train if "train" in config else {}
    growth = train.get("fp16_scale_growth", 0.0)
    if not 0 <= growth <= 1:
        raise ValueError(f"config.train.fp16_scale_growth is {growth}; it must lie between 0 (PyTorch's 1/2000) and 1")
    run = Run(workdir, seed=config.seed, mixed_precision=train.get("mixed_precision", ""), claim=claim, fp16_scale_growth=growth,
              auto_fp16=auto_fp16)
    devices.use_threads()
    last = {} if claim else last_session(workdir)
    run.tf32 = choose_tf32(run.device, train.get("tf32"), training=claim, recorded=last.get("tf32"))
    torch.manual_seed(config.seed)  # of the initial weights; every training step is seeded anew
    if claim:
        if run.is_main:
            devices.log_unused()
            devices.warn_of_slow_products(run.device, run.precision, run.tf32, device_name(run.device))
        content = json.loads(config.to_json_best_effort())
        if run.resumes:
            fixed.check(read_json(run.folder / "config.json", {}), content, run.folder)
        run.record("config.json", content)
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


def choose_tf32(device, asked, *, training, recorded=None):
    """Set TF32 on a CUDA device; True where matrix products then use it.

    Args:
        device: torch.device of the run; on others nothing is set.
        asked: config.train.tf32, None where the config does not say: True for a training.
        training: whether weights are trained.
        recorded: what the last session of a run that is read had, None where it does not say: then PyTorch's defaults stay.
    """
    if device.type != "cuda":
        return False
    allowed = asked if asked is not None else True if training else recorded
    if allowed is not None:
        use_tf32(allowed)
    return torch.get_float32_matmul_precision() != "highest"


def read_json(path, default):
    """The content of a JSON file, or `default` where there is none; ValueError that names a damaged one."""
    return files.read_json(path) if Path(path).is_file() else default


def saved_config(folder):
    """What the config.json of a run holds, as a dict; {} where there is none, or where it is damaged.

    A damaged one is logged and not refused: for scripts that read a run, and were given a config by --config.
    """
    try:
        content = read_json(Path(folder) / "config.json", {})
        fault = "" if isinstance(content, dict) and all(isinstance(content.get(name, {}), dict) for name in fixed.SECTIONS) \
            else f"{Path(folder) / 'config.json'} holds no sections: it is damaged"
    except ValueError as error:
        fault = str(error)
    if fault:
        logging.warning("%s. The config of the command line is used", fault)
        return {}
    return content


def last_session(folder):
    """What run.json says of the last session of a run: command, precision, tf32, ...; {} where there is none."""
    sessions = read_json(Path(folder) / "run.json", {})
    sessions = sessions.get("sessions") if isinstance(sessions, dict) else None
    return sessions[-1] if sessions and isinstance(sessions[-1], dict) else {}


def read_metrics(path):
    """The lines of a metrics.jsonl as dicts.

    A last line that was torn by a kill is dropped. A line that is damaged elsewhere is named in the log and left out.
    """
    entries = []
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and "kind" in entry:
            entries.append(entry)
        elif line.strip() and line.endswith("\n"):
            logging.warning("%s: line %d is damaged and left out: %s", path, number, line.strip()[:80])
    return entries


def device_name(device):
    """What a person calls the device: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        return f"{names[0]}, {torch.get_num_threads()} threads"
    except (OSError, IndexError):
        return platform.processor() or device.type


def _make_folder(folder):
    """Make a run folder; ValueError where there is a file in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise ValueError(f"`--workdir={folder}`: {file} is a file, and the run needs a folder there. Give another --workdir, or move "
                         "the file away") from error


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
