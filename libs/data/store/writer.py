"""A store in the making: in chunks, by any number of processes, killed and resumed at will."""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from .manifest import FORMAT, done, partial, read, read_json, refuse, sha256_of, write_json

CHUNK = 256  # rows written, and lost by a kill, together
PATIENCE = 10  # seconds in which the children of a killed predecessor let go of its lock
_NAMES = {"images": "file_names", "texts": "captions"}  # where the rows of a group have their names


class Writer:
    """Rows of arrays, put in chunks of 256 in any order by any process, then sealed: `with writer: ...`

    All lies in `<path>.partial` until `finish` renames it. A chunk counts once it is on disk, so a kill costs one chunk
    per process.

    Args:
        wanted: JSON dict with 'identity', 'data', 'dtype' and 'flips': decides whether what is found at `path` fits.
        rank, world, barrier: this process, how many there are, and how to wait for all.
    Attributes:
        finished: whether the store is there already; then there is nothing to do.
        plan: after `prepare`, what was laid out.
    Raises:
        ValueError: something else is at `path`, finished or not; names what differs.
    """

    def __init__(self, path, wanted, *, rank=0, world=1, barrier=lambda: None):
        self.path, self.partial, self.wanted = Path(path), partial(path), wanted
        self.rank, self.world, self.barrier, self._lock = rank, world, barrier, None
        self.finished = (self.path / "manifest.json").is_file()
        if self.finished:
            _refuse(self.path, read(self.path), wanted)
            if rank == 0:
                shutil.rmtree(self.partial, ignore_errors=True)  # left by a kill between renaming and cleaning up
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path}: holds files that are no feature store; choose another config.features.path")
        elif (self.partial / "plan.json").is_file():
            _refuse(self.partial, read_json(self.partial / "plan.json"), wanted)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._lock:
            self._lock.close()

    def prepare(self, layout):
        """Lay out the files, unless a predecessor did.

        layout: called on rank 0 alone, -> (plan, tables). plan: a JSON dict with 'counts' {group: rows}, 'groups' {group:
            {array: (shape of a row, dtype)}}, 'name', 'classes', 'about'; the groups are 'images' and 'texts'. tables:
            {name: array or list of strings}, what is known at once.
        Raises:
            ValueError: another process is at it, or the disk is too small.
        """
        if self.rank == 0:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = _claim(self.partial)
            if not (self.partial / "plan.json").is_file():
                self._lay_out(*layout())
        self.barrier()
        self.plan = read_json(self.partial / "plan.json")

    def missing(self, group):
        """This process's share of the chunks that are not on disk yet: a list of (start, stop)."""
        count, chunk = self.plan["counts"].get(group, 0), self.plan["chunk"]
        return [(start, min(start + chunk, count)) for k, start in enumerate(range(0, count, chunk))
                if k % self.world == self.rank and not done(self.path, group, start).exists()]

    def put(self, group, start, rows):
        """Write one whole chunk: rows {array: (n, ...)} of all arrays of the group, rounded to the type of the store."""
        if rows.keys() != self.plan["groups"][group].keys():
            raise ValueError(f"{self.path}: {group} need {sorted(self.plan['groups'][group])}, got {sorted(rows)}")
        for name, values in rows.items():
            file_name = self.partial / "store" / f"{name}.npy"
            array = np.load(file_name, mmap_mode="r", allow_pickle=False)
            offset, row = array.offset, array.strides[0]
            values = _rounded(torch.as_tensor(values), array.dtype, lambda k: self._row_name(group, start + k), name)
            if values.shape[1:] != array.shape[1:]:
                raise ValueError(f"{self._row_name(group, start)}: {name} of shape {values.shape[1:]}, the first one had "
                                 f"{array.shape[1:]}")
            with open(file_name, "r+b") as file:
                file.seek(offset + start * row)
                file.write(values.tobytes())
                _flush(file)
        done(self.path, group, start).touch()

    def rows(self, name):
        """The array `name` as far as it is written."""
        return np.load(self.partial / "store" / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def finish(self, **more):
        """Seal the store once all processes have put all their chunks: hashes, manifest, and the name it was asked for.

        more: entries of the manifest that are known only now.
        """
        self.barrier()
        if self.rank == 0:
            folder = self.partial / "store"
            # A predecessor may have been killed while it wrote the manifest.
            files = sorted(file for file in folder.iterdir() if not file.name.startswith("manifest"))
            entries = {file.name: {"bytes": file.stat().st_size, "sha256": digest}
                       for file, digest in zip(files, sha256_of(files), strict=True)}
            write_json(folder / "manifest.json", {"format": FORMAT, **self.plan, **more, "files": entries})
            folder.rename(self.path)
            _flush_folder(self.path.parent)
            shutil.rmtree(self.partial)
        self.barrier()

    def _lay_out(self, plan, tables):
        counts, folder = plan["counts"], self.partial / "store"
        for part in ("store", "done"):
            shutil.rmtree(self.partial / part, ignore_errors=True)
            (self.partial / part).mkdir()
        arrays = {name: ((counts[group], *shape), np.dtype(dtype).newbyteorder("<"))
                  for group, found in plan["groups"].items() for name, (shape, dtype) in found.items()}
        needed = sum(dtype.itemsize * int(np.prod(shape)) for shape, dtype in arrays.values())
        free = shutil.disk_usage(self.partial).free
        if needed > free:
            raise ValueError(f"{self.path}: the features need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free")
        for name, (shape, dtype) in arrays.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", shape=shape, dtype=dtype)
        for name, table in tables.items():
            with open(folder / f"{name}.{'npy' if isinstance(table, np.ndarray) else 'jsonl'}", "wb") as file:
                if isinstance(table, np.ndarray):
                    np.save(file, table, allow_pickle=False)
                else:
                    file.writelines(json.dumps(text).encode() + b"\n" for text in table)
                _flush(file)
        write_json(self.partial / "plan.json", {**self.wanted, **plan, "chunk": CHUNK})

    def _row_name(self, group, k):
        names = self.partial / "store" / f"{_NAMES[group]}.jsonl"
        return json.loads(names.read_text().splitlines()[k]) if names.is_file() else f"{self.path}: {group} {k}"


def _rounded(values, dtype, name_of, what):
    """A tensor as an array of a store; ValueError that names the first row with a value that is not finite there."""
    values = (values.float() if values.is_floating_point() else values).numpy(force=True)
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, dtype)
    if dtype.kind == "f" and not np.isfinite(rounded).all():
        bad = int(np.argmin(np.isfinite(rounded).reshape(len(rounded), -1).all(1)))
        advice = f"too large for {dtype.name}; use config.features.dtype='float32'" if np.isfinite(values[bad]).all() \
            else "not a number or infinite; the codec or encoder fails on it"
        raise ValueError(f"{name_of(bad)}: its {what} is {advice}")
    return rounded


def _refuse(path, found, wanted):
    rest = wanted.keys() - {"identity"}
    refuse(path, *({**told["identity"], **{key: told[key] for key in rest}} for told in (found, wanted)))


def _claim(folder):
    """Hold a lock as long as this process lives; the kernel drops it even after kill -9."""
    lock, until = open(folder / "lock", "w"), time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() > until:
                lock.close()
                raise ValueError(f"{folder}: another process is writing these features; wait or stop it") from error
            time.sleep(0.25)
        except OSError:  # a file system without locks
            return lock


def _flush(file):
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder):
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
