"""Files of weights, arrays and JSON, whole or with an error that names them: every room reads through it.

safetensors raises an exception of its own kind, which is neither ValueError nor OSError and names no file.
torch's reader guesses at pickles. Here each becomes one sentence: which file, what it is, what to do.
"""

import contextlib
import json
import math
import os
import re
import shutil
import zipfile
import zlib
from errno import ENOENT, ENOSPC
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

NAMED = "cannot be written"
LFS = b"version https://git-lfs.github.com/spec/"
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def read_safetensors(path, names=None):
    """The tensors of a .safetensors file, {name: Tensor} on the CPU.

    Args:
        path: the file.
        names: (list of all names) -> those to read; None reads all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no such file at all; names it and says what it is.
    """
    try:
        if names is None:
            return load_file(path)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names(list(file.keys()))}
    except SafetensorError as error:
        raise ValueError(_unreadable(path, error)) from error


def read_metadata(path):
    """The metadata of a .safetensors file, {} where it has none; errors as `read_safetensors`."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(_unreadable(path, error)) from error


def read_torch(path, *, allow=(), mmap=False):
    """What a file of torch.save holds, tensors on the CPU; nothing in it is executed.

    Args:
        path: the file.
        allow: classes that it may hold beside tensors and plain values.
        mmap: leave big tensors on the disk until they are used, where the file permits it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no such file at all, or holds what could run code; names it and says what
            it is.
    """
    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise
    except Exception as error:  # of unpicklers, archives and torch itself
        raise ValueError(_unreadable(path, error)) from error


def read_npz(path, names=None):
    """The arrays of a .npz file of plain arrays, {name: array}.

    Args:
        path: the file.
        names: (list of all names) -> those to read; None reads all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds objects; names it and says what it is.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names(file.files))}
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        damage = describe_damage(path)
        raise ValueError(f"{path} is not a readable .npz of plain arrays: {f'it {damage}' if damage else error}") from error


def write_safetensors(tensors, path, metadata=None):
    """Write {name: Tensor} as a .safetensors file.

    Raises:
        OSError: it cannot be written, with the system's number, such as ENOSPC where the disk is full.
    """
    with disk_errors(path, need=sum(value.numel() * value.element_size() for value in tensors.values())):
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata=metadata)


@contextlib.contextmanager
def disk_errors(path, *, need=0):
    """What fails for want of room, inside safetensors, or without the name of a file becomes an OSError that names the file
    and the room that is left.

    Args:
        path: what is being written, a file or a folder.
        need: its bytes, as far as they are known.

    Raises:
        OSError: with the system's number. Other errors pass as they are.
    """
    try:
        yield
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        raise _named(OSError(int(number[1]), str(error)) if number else OSError(str(error)), path, need) from error
    except OSError as error:
        if NAMED in str(error) or (error.errno != ENOSPC and error.filename is not None):
            raise
        raise _named(error, path, need) from error


def describe_damage(path):
    """What is wrong with a file of weights, as the end of a sentence that begins with its name; '' where nothing shows."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if not size:
        return "is empty, a download or a copy that was cut off. Fetch it again"
    if head.startswith(LFS):
        content = "weights" if path.suffix in WEIGHT_ENDINGS else "file"
        return f"is a Git LFS pointer, not the {content}: run `git lfs pull` in {path.resolve().parent}"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not weights or arrays: the link that it was fetched from shows a page. Fetch the file itself"
    if path.suffix == ".safetensors":
        return _safetensors_damage(path, head, size)
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"is cut off after {size} bytes, a download or a copy that did not finish. Fetch it again"
    return ""


def describe_damaged(folder):
    """`describe_damage` of the first damaged file of weights in a folder, with its name; '' where none shows."""
    folder = Path(folder)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in WEIGHT_ENDINGS and file.is_file() and (damage := describe_damage(file)):
            return f"{file} {damage}"
    return ""


def json_text(content, *, indent=1):
    """JSON as every reader takes it: a number that is not finite, which JSON has no word for, becomes null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(path):
    """The content of a JSON file; ValueError that names the file where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # also bytes that are no text
        why = "is empty" if not Path(path).stat().st_size else f"is not JSON ({error})"
        raise ValueError(f"{path} {why}: it is damaged, restore it from a copy") from error


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unreadable(path, error):
    damage = describe_damage(path)
    if damage:
        return f"{path} {damage}"
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    if Path(path).suffix == ".safetensors":
        return f"{path} is not a whole .safetensors file ({reason}). Fetch it again"
    foreign = _GLOBAL.search(str(error))  # torch's own words advise to switch the protection off
    if type(error).__name__ == "UnpicklingError":  # of a module that nothing here imports
        reason = f"it holds {foreign[1]}, which could run code" if foreign else "it is damaged, or no file of torch"
    return f"{path} cannot be read safely as weights: {reason}. Tensors and plain values alone can be loaded safely"


def _safetensors_damage(path, head, size):
    """The same of a file that should be safetensors: 8 bytes with the length of a JSON header, the header, the tensors."""
    length = int.from_bytes(head[:8], "little")
    if head.startswith(b"PK") or head[:2] == b"\x80\x02":
        return "is a file of torch that is called .safetensors. Rename it to .pth"
    if size < 8 or head[8:9] != b"{":
        return "is not a .safetensors file: it has no header. Fetch it again"
    end = 8 + length
    if end <= size:
        with open(path, "rb") as file:
            header = file.read(end)[8:]
        try:
            tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
            end += max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "is not a .safetensors file: its header is damaged. Fetch it again"
    return (f"is cut off after {size} of {end} bytes or more, a download or a copy that did not finish. Fetch it again"
            if end > size else "")


def _named(error, path, need):
    """The same error with the file and the room on its disk; of a folder that is missing the system says enough."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    room = ""
    if error.errno != ENOENT:
        needs = f"It needs about {need / 2**20:.0f} MiB, " if need else ""
        room = f". {needs}{shutil.disk_usage(place).free / 2**20:.0f} MiB are free on its disk"
        room += ": make room and start the same command again" if error.errno == ENOSPC else ""
    reason = os.strerror(error.errno) if error.errno else str(error)
    named = OSError(f"{path} {NAMED}: {reason}{room}")
    named.errno = error.errno
    return named
