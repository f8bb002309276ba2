"""What a run computes with: its precision, TF32 and the number of threads, by config, launcher and device.

What is chosen here is what is used and what the run folder notes. accelerate takes fp16 on a processor
without a word and computes in float32, so that nothing is left to it.
"""

import logging
import os
from pathlib import Path

import torch

PRECISIONS = ("no", "fp16", "bf16")
OPTION = "--config.train.mixed_precision"
LAUNCHERS = ("LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # torchrun sets the first, accelerate launch the second


def choose_precision(asked, *, training, recorded="", fp16=True):
    """The precision of a run, 'no' (float32), 'fp16' or 'bf16'.

    Args:
        asked: config.train.mixed_precision: one of these; 'auto' what the device multiplies natively, bf16,
            else on a CUDA card fp16, else float32; '' what `accelerate launch --mixed_precision` says, else
            float32. The launcher wins over 'auto', and one of the three wins over the launcher.
        training: whether weights are trained; else a run is only read.
        recorded: precision of the last session of a run that is read, see `recorded_precision`; it counts
            where neither launcher nor config name one, and before 'auto'.
        fp16: whether 'auto' may be fp16, which needs its loss scaled.

    Raises:
        ValueError: no such precision, or a training in fp16 on a device without it.
    """
    if asked not in ("", "auto", *PRECISIONS):
        raise ValueError(f"`{OPTION}={asked}` is no precision. Set one of {', '.join(PRECISIONS)} (no is float32), or auto")
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    launched = launcher if launcher not in ("", "no") else ""  # 'no' is also what accelerate launch says where nobody has
    if launched not in ("", *PRECISIONS):
        raise ValueError(f"`accelerate launch --mixed_precision {launched}` is a precision that nothing here "
                         f"computes in. Launch with one of {', '.join(PRECISIONS)}")
    source = OPTION if asked in PRECISIONS else "accelerate launch --mixed_precision"
    if asked in PRECISIONS:
        chosen = asked
        if launched and launched != asked:
            logging.info("%s=%s is used, not accelerate launch --mixed_precision %s", OPTION, asked, launched)
    elif launched:
        chosen = launched
        if asked == "auto":
            logging.info("accelerate launch --mixed_precision %s is used in place of %s=auto", launched, OPTION)
    elif recorded or asked != "auto":
        chosen, source = recorded or "no", "the run"
    else:
        chosen = _native(fp16)
    if chosen == "fp16" and not has_fp16():
        if training:
            raise ValueError(f"`{source}={chosen}` is not computed by a processor, which would train in float32 and "
                             f"call it fp16. Set `{OPTION}=no` (float32) or `{OPTION}=bf16`, or train on a GPU")
        logging.info("fp16 of %s is not computed by a processor: float32 is used", source)
        chosen = "no"
    return chosen


def recorded_precision(session):
    """The precision that a session of a run used, '' where it says none or would be slow here.

    Slow is bf16 that was computed by a GPU, on a processor that has to emulate it.
    """
    precision = session.get("precision", "")
    elsewhere = session.get("device_type", "cpu") != "cpu" and not has_fp16()
    return "" if precision not in PRECISIONS or precision == "bf16" and elsewhere and not multiplies_bf16() else precision


def has_accelerator():
    """Whether there is a device beside the processor that computes all that is needed here."""
    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def has_fp16():
    """Whether the device that a run gets computes products in float16."""
    return has_accelerator() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("true", "1", "yes", "on", "y", "t")


def log_unused():
    """Say that the GPU of a Mac is left alone: some of what runs here is float64, which it does not have."""
    if torch.backends.mps.is_available() and not has_accelerator():
        logging.info("the GPU of this Mac (MPS) is not used, since times and scores are computed in float64, which it "
                     "does not have: everything runs on the processor")


def warn_of_slow_products(device, precision, tf32, name):
    """Log a warning where a training on CUDA uses neither half precision nor TF32."""
    if device.type == "cuda" and precision == "no" and not tf32:
        logging.warning("this training computes in float32 without TF32 on %s, several times slower than it could: "
                        "set %s=auto, or --config.train.tf32=True, unless that is meant", name, OPTION)


def use_threads():
    """Let a process that a launcher started use its share of the processors.

    torchrun and accelerate launch set OMP_NUM_THREADS=1 where nobody did, and what is computed between steps,
    such as scores, then runs on one thread while the others wait. A number that the user gave, before the
    launcher or by its option, is left alone: the launcher is the parent of this process, and its own
    environment, as it was started, shows what the user gave.
    """
    launched = any(name in os.environ for name in LAUNCHERS)
    if os.environ.get("OMP_NUM_THREADS") != "1" or not launched or given_by_user(os.getppid()):
        return
    share = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, share // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def given_by_user(launcher):
    """Whether a launcher, by the id of its process, was started with OMP_NUM_THREADS or with its option of that meaning.

    True also where that cannot be seen, so that nothing is overruled.
    """
    try:
        environment = Path(f"/proc/{launcher}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{launcher}/cmdline").read_bytes().replace(b"-", b"_")
    except OSError:
        return True
    return any(entry.startswith(b"OMP_NUM_THREADS=") for entry in environment) or b"num_cpu_threads_per_process" in command


def _native(fp16):
    """The fastest precision that the device has instructions for."""
    if multiplies_bf16():
        return "bf16"
    return "fp16" if fp16 and torch.cuda.is_available() and has_fp16() else "no"


def multiplies_bf16():
    """Whether the device has instructions for bf16 products; elsewhere they are emulated and slower than float32."""
    if torch.cuda.is_available() and has_fp16():
        return torch.cuda.get_device_capability()[0] >= 8
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
