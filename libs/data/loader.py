"""Batches in an order that depends on the seed alone, whatever the number of workers, ranks or restarts."""

import atexit
import contextlib
import logging
import multiprocessing.util  # noqa: F401  its atexit waits for workers; ours, registered later, runs first
import signal
import sys
import time
import weakref

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import weights
from .base import stack_items

log = logging.getLogger(__name__)
STALLED = 1800  # seconds without a batch after which the workers count as hung
LOOK = 5  # seconds between looks for workers whose death no signal told
_SIGNALS = (signal.SIGTERM, signal.SIGINT)  # to a whole group of processes they mean its first one
_running = weakref.WeakSet()  # iterators with workers


class Stream:
    """The endless shuffled sequence of a data set, cut into steps and shared among ranks.

    Epoch e is a permutation drawn from (seed, e); epochs follow each other without a gap, so no image is left
    out. Step k holds positions k*B .. (k+1)*B - 1, of which rank r takes its contiguous slice. What a visit
    shows (its flip, its crop) is a function of (seed, epoch, index). Hence any step can be made at once.

    Args:
        dataset: `base.Dataset`.
        batch_size: images per step over all ranks, a multiple of `world`, at most one epoch.
        seed: of order and augmentation.
        rank, world: this process and how many there are.
        workers: processes that prepare batches ahead; 0 does it in this one.
        balanced: draw each class with equal probability, with replacement, instead of permuting; what a visit
            shows is then a function of (seed, position).
        pin_memory: page-locked batches, for faster copies to a GPU.
    Raises:
        ValueError: for sizes that cannot be met; while iterating, for a file that cannot be read, naming it.
        RuntimeError: while iterating, within seconds of a worker's death.
    """

    def __init__(self, dataset, batch_size, *, seed, rank=0, world=1, workers=0, balanced=False,
                 pin_memory=False):
        if not 0 < batch_size <= len(dataset):
            raise ValueError(f"batch_size={batch_size}, but the data set {dataset.name!r} has {len(dataset)} "
                             f"images: expected 1 .. {len(dataset)}")
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank={rank}, world={world}: expected 0 <= rank < world")
        check_batch(batch_size, world)
        if workers < 0:
            raise ValueError(f"workers={workers}: expected 0 or more")
        if balanced and dataset.labels is None:
            raise ValueError(f"balanced=True needs labels; the data set {dataset.name!r} has none: "
                             "set balanced=False")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world, self.workers, self.balanced = rank, world, workers, balanced
        self.pin_memory = pin_memory
        self._epoch, self._order = None, None

    def __call__(self, start=0):
        """This rank's batches of step start, start + 1, ... without end: dicts of tensors with 'index'."""
        if start < 0:
            raise ValueError(f"start={start}: expected a step >= 0")
        return _batches(self.dataset, self._keys(start), self.workers, self.seed, self.pin_memory, start)

    @property
    def facts(self):
        """What a run notes of the data beside its config: their weights, which are in no fingerprint."""
        return weights.summary(getattr(self.dataset, "weights", None))

    def file_name(self, i):
        """What to call image i in a message."""
        return self.dataset.file_name(i)

    def positions(self, step):
        """(visits, indices) of this rank's share of a step; visits tell showings of one image apart."""
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        places = range(first, first + share)
        epochs = [p // len(self.dataset) for p in places]
        indices = [int(self._epoch_order(e)[p % len(self.dataset)])
                   for e, p in zip(epochs, places, strict=True)]
        return list(places) if self.balanced else epochs, indices

    def _keys(self, step):
        while True:
            yield list(zip(*self.positions(step), strict=True))
            step += 1

    def _epoch_order(self, epoch):
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed % 2**63, epoch))
            self._order = self._draw_balanced(rng) if self.balanced else rng.permutation(len(self.dataset))
            self._epoch = epoch
        return self._order

    def _draw_balanced(self, rng):
        labels = self.dataset.labels.numpy()
        by_class = np.argsort(labels, kind="stable")
        _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
        drawn = rng.integers(len(count), size=len(labels))
        return by_class[first[drawn] + (rng.random(len(labels)) * count[drawn]).astype(np.int64)]


def check_batch(batch_size, world):
    """Raise ValueError unless `world` processes can share a batch, which `Stream` asks too: for scripts that have long work before
    they make one."""
    if batch_size % world:
        raise ValueError(f"config.train.batch_size={batch_size} cannot be shared by {world} processes: use a multiple, such as "
                         f"{batch_size - batch_size % world or world}")


def in_order(dataset, indices, batch_size, workers=0):
    """Batches of the images `indices` in this order, without augmentation; the last one may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more")
    indices = [int(i) for i in indices]
    keys = [[(0, i) for i in indices[k:k + batch_size]] for k in range(0, len(indices), batch_size)]
    return _batches(dataset, keys, workers, None, False, 0)


class _Visits(torch.utils.data.Dataset):
    """The data set as the loader asks for it: whole batches by (visit, index)."""

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, keys):
        visits, indices = zip(*keys, strict=True)
        seeds = None if self.seed is None else visit_seeds(self.seed, visits, indices)
        try:
            batch = getattr(self.dataset, "batch", None)
            found = batch(indices, seeds) if batch else stack_items(self.dataset, indices, seeds)
        except (ValueError, OSError) as error:  # sent as text: the loader would add a worker's traceback
            return _Failure(str(error))
        return found | {"index": torch.tensor(indices)}


class _Failure(str):
    """Why a batch could not be made."""


def visit_seeds(seed, visits, indices):
    """One 64-bit seed per visit from (seed, visit, index): splitmix64's mixing of each in turn."""
    mixed = np.full(len(indices), seed % 2**64, np.uint64)
    for part in (visits, indices):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.asarray(part, np.uint64) + np.uint64(1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed >> np.uint64(1)


def _batches(dataset, keys, workers, seed, pin_memory, first):
    """Batches for lists of (visit, index), in their order."""
    loader = DataLoader(
        _Visits(dataset, seed), batch_sampler=keys, collate_fn=_as_it_is, num_workers=workers,
        pin_memory=pin_memory, generator=torch.Generator(), worker_init_fn=_start_worker,
        timeout=LOOK if workers else 0,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None)
    with _signals_later() if workers else contextlib.nullcontext():
        iterator = iter(loader)
    if workers:
        _running.add(iterator)
    step = first
    try:
        while True:
            try:
                batch = _next(iterator, step)
            except StopIteration:
                return
            if isinstance(batch, _Failure):
                raise ValueError(f"step {step}: {batch}")
            yield batch
            step += 1
    finally:
        _end(iterator)


def _next(iterator, step):
    """The loader's next batch. RuntimeError within LOOK seconds of a worker's death, and after STALLED without a batch."""
    patience = time.monotonic() + STALLED
    while True:
        try:
            return next(iterator)
        except (RuntimeError, OSError, EOFError) as error:  # OSError: a worker died while handing a batch over
            workers = getattr(iterator, "_workers", [])
            ends = {_told(worker.exitcode) for worker in workers if worker.exitcode is not None}
            if ends or workers and not isinstance(error, RuntimeError):
                raise RuntimeError(f"a data worker died at step {step} ({', '.join(sorted(ends)) or error}); killed for memory? "
                                   "Try fewer workers") from error
            if not str(error).startswith("DataLoader timed out"):
                raise
            if time.monotonic() > patience:
                raise RuntimeError(f"the data workers live, but made no batch for step {step} in {STALLED} s: a file system that "
                                   "does not answer, or a library that does not bear fork: "
                                   "set workers=0") from error


def _told(code):
    """An exit code of a process in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _as_it_is(batch):
    return batch


@contextlib.contextmanager
def _signals_later():
    """Holds signals back while workers are started: they come into the world with them blocked, until they ignore them.

    One that a signal reached before that left as if it had finished, with exit code 0, and nobody missed it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_):
    """A worker leaves signals to the training process, which ends it."""
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)


def _end(iterator):
    """Stop the workers; kill those that do not stop, for they ignore SIGTERM."""
    workers = getattr(iterator, "_workers", [])
    _running.discard(iterator)
    try:
        if workers:
            iterator._shutdown_workers()
    except RuntimeError:  # torch's signal handler reports a dead worker wherever the process happens to be
        log.debug("a data worker died while the workers were stopped")
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join(5)


@atexit.register
def _end_all():
    for iterator in list(_running):
        _end(iterator)
