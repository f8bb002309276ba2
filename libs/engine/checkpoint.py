"""Checkpoints that cannot be torn: a folder is either whole and verified, or it does not count.

A checkpoint is staged in a hidden folder, every file is flushed to the disk, a manifest of sizes and SHA-256 hashes
is written last, and one rename puts the folder in its place. Old checkpoints are deleted only after that rename is
itself durable. Reading verifies the manifest, names what is damaged and falls back to the checkpoint before it.

Nothing here knows what the files mean, and nothing is ever loaded that could run code: arrays are safetensors,
everything else is JSON.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from pathlib import Path

from libs import files

MANIFEST = "manifest.json"
STAGING = ".staging-"
_NAME = re.compile(r"(\d+)\.ckpt")


def write(root, step, tensors, record):
    """Write the checkpoint of `step` below `root`, durably and all at once.

    Args:
        root: folder of the checkpoints; made if missing.
        step: number of finished optimizer steps; names the folder `<step>.ckpt`.
        tensors: {file stem: {name: Tensor}}, each becomes `<stem>.safetensors`.
        record: JSON-serialisable dict, becomes `state.json`.

    Returns:
        Path of the finished checkpoint.

    Raises:
        OSError: the disk is full or not writable; what was staged is removed and older checkpoints are untouched.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    final, staging = root / f"{step}.ckpt", root / f"{STAGING}{step}-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir()
        for stem, group in tensors.items():
            files.write_safetensors(group, staging / f"{stem}.safetensors")
        (staging / "state.json").write_text(files.json_text(record))
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
                    for file in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in staging.iterdir():
            _flush(file)
        _flush(staging)
        if final.exists():  # a damaged attempt at the same step; a rename is quicker than a deletion
            os.replace(final, root / f"{STAGING}old-{step}-{uuid.uuid4().hex[:8]}")
        os.replace(staging, final)
        _flush(root)
    except BaseException as error:  # also what a signal handler raises in the middle
        shutil.rmtree(staging, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        need = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        free = shutil.disk_usage(root).free
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(error.errno, f"cannot write checkpoint {final}: {reason}. It needs about "
                      f"{need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free. Older checkpoints are intact: make "
                      "room and start the same command again") from error
    return final


def read(folder):
    """The verified content of a checkpoint folder: ({file stem: {name: Tensor}}, record).

    Raises:
        ValueError: a file is missing, has another size or another hash than the manifest says; it is named.
    """
    folder = Path(folder)
    verify(folder)
    tensors = {file.stem: files.read_safetensors(file) for file in sorted(folder.glob("*.safetensors"))}
    return tensors, json.loads((folder / "state.json").read_text())


def verify(folder):
    """Compare a checkpoint folder with its manifest; raises ValueError naming the first file that differs."""
    folder = Path(folder)
    for name, entry in read_manifest(folder).items():
        file, size = folder / name, entry["bytes"]
        if not file.is_file():
            raise ValueError(f"checkpoint {folder} is damaged: {name} is missing")
        if file.stat().st_size != size:
            raise ValueError(f"checkpoint {folder} is damaged: {name} has {file.stat().st_size} bytes, not {size}")
        if sha256(file) != entry["sha256"]:
            raise ValueError(f"checkpoint {folder} is damaged: the content of {name} has changed since it was written")


def is_whole(folder):
    """Whether a checkpoint folder is as its manifest says."""
    try:
        verify(folder)
    except ValueError:
        return False
    return True


def read_manifest(folder):
    """{file name: {'bytes', 'sha256'}} of a checkpoint folder; ValueError if the manifest itself is damaged."""
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text())
        return {name: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: its {MANIFEST} cannot be read ({error})") from error


def steps(root):
    """Steps of all checkpoint folders below `root`, rising, whether whole or not."""
    root = Path(root)
    names = (_NAME.fullmatch(entry.name) for entry in (root.iterdir() if root.is_dir() else ()))
    return sorted(int(name.group(1)) for name in names if name)


def read_latest(root):
    """Read the newest whole checkpoint below `root`; damaged ones are named in the log and passed over.

    Returns:
        (folder, tensors, record), or None if there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints and every one is damaged; training must not silently start anew.
    """
    found = steps(root)
    for step in reversed(found):
        folder = Path(root) / f"{step}.ckpt"
        try:
            return (folder, *read(folder))
        except ValueError as error:
            logging.warning("%s. The checkpoint before it is used.", error)
    if found:
        raise ValueError(f"every checkpoint in {root} is damaged ({', '.join(f'{s}.ckpt' for s in found)}); restore one "
                         "from a backup, or move the folder away to start from step 0")
    return None


def prune(root, *, keep, protect=()):
    """Delete all but the newest `keep` whole-looking checkpoints and those of the steps in `protect`.

    Called only after a new checkpoint is durable. A folder that cannot be deleted is left with a warning: retention
    is never worth a run.
    """
    for step in steps(root)[:-keep]:
        if step not in protect:
            folder = Path(root) / f"{step}.ckpt"
            try:  # renamed first, so that a kill in the middle leaves no half checkpoint under a valid name
                doomed = folder.with_name(f"{STAGING}old-{step}-{uuid.uuid4().hex[:8]}")
                os.replace(folder, doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                logging.warning("could not delete the old checkpoint %s: %s", folder, error)


def sweep(root):
    """Delete what a killed writer left behind. Only for a run that owns the folder."""
    for leftover in Path(root).glob(f"{STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_text(path, text):
    """Replace a small text file in one step: readers see the old content or the new one, never a part."""
    path = Path(path)
    staging = path.with_name(f"{STAGING}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with files.disk_errors(path, need=len(text)):
            staging.write_text(text, encoding="utf-8", errors="replace")
            _flush(staging)
            os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def sha256(file):
    """SHA-256 of a file, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path):
    """Ask the disk to keep a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
