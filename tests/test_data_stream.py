"""The order and content of batches follow from the seed alone, and what goes wrong in a worker is said."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling

from libs import data
from libs.data.base import Dataset
from libs.data.loader import visit_seeds


class Noise(Dataset):
    """Items that show which generator state they were given."""

    name, shape = "noise", (1, 1, 2)

    def __init__(self, n, classes=3):
        self.n, self.classes = n, [str(k) for k in range(classes)]
        self.labels = torch.tensor([0] * (n - 2 * (classes - 1))
                                   + [k for k in range(1, classes) for _ in range(2)])

    def __len__(self):
        return self.n

    def item(self, i, generator=None):
        drawn = torch.zeros(()) if generator is None else torch.rand((), generator=generator)
        return {"image": torch.stack([torch.tensor(float(i)), drawn]).reshape(1, 1, 2),
                "label": self.labels[i]}


def take(stream, start, steps):
    batches = stream(start)
    found = list(itertools.islice(batches, steps))
    batches.close()
    return found


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
               for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_same_batches_for_any_workers_ranks_and_restarts(workers, balanced):
    dataset = Noise(17)
    whole = take(data.Stream(dataset, 6, seed=5, balanced=balanced), 0, 9)
    for world in (1, 2, 3):
        ranks = [take(data.Stream(dataset, 6, seed=5, rank=r, world=world, workers=workers,
                                  balanced=balanced), 0, 9)
                 for r in range(world if workers < 2 else 1)]
        if len(ranks) == world:
            joined = [{k: torch.cat([b[k] for b in parts]) for k in parts[0]}
                      for parts in zip(*ranks, strict=True)]
            assert same(joined, whole)
        else:
            assert same([{k: v[:6 // world] for k, v in b.items()} for b in whole], ranks[0])
    for start in (1, 4, 7):
        assert same(take(data.Stream(dataset, 6, seed=5, workers=workers, balanced=balanced), start, 2),
                    whole[start:start + 2])


def test_every_epoch_shows_every_image_once_and_differently():
    batches = take(data.Stream(Noise(10), 4, seed=0), 0, 10)
    shown = torch.cat([b["index"] for b in batches]).reshape(4, 10)
    assert (shown.sort(1).values == torch.arange(10)).all() and not (shown[0] == shown[1]).all()
    drawn = torch.cat([b["image"][:, 0, 0, 1] for b in batches])
    assert len(set(drawn.tolist())) == 40
    other = take(data.Stream(Noise(10), 4, seed=1), 0, 10)
    assert not torch.equal(torch.cat([b["index"] for b in other]), shown.flatten())
    assert all(torch.equal(b["image"][:, 0, 0, 0].long(), b["index"]) for b in batches)


def test_content_of_a_visit_depends_on_epoch_and_index_alone():
    def visits(batch_size, steps):
        found = {}
        for k, batch in enumerate(take(data.Stream(Noise(12), batch_size, seed=3), 0, steps)):
            for j, i in enumerate(batch["index"].tolist()):
                found[(k * batch_size + j) // 12, i] = batch["image"][j, 0, 0, 1].item()
        return found
    assert visits(4, 6) == visits(3, 8) == visits(12, 2)


def test_visit_seeds_spread():
    seeds = visit_seeds(0, [e for e in range(100) for _ in range(100)], list(range(100)) * 100)
    assert len(set(seeds.tolist())) == 10_000 and len(set((seeds & np.uint64(0xFFFFFFFF)).tolist())) > 9_990
    bits = (seeds[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.03
    assert visit_seeds(1, [0], [0]) != visit_seeds(0, [0], [0]) and (visit_seeds(-1, [0], [0]) >= 0).all()


def test_balanced_draws_classes_equally():
    dataset = Noise(50, classes=4)
    labels = torch.cat([b["label"] for b in take(data.Stream(dataset, 50, seed=0, balanced=True), 0, 80)])
    share = labels.bincount() / len(labels)
    assert (share - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
    indices = torch.cat([b["index"] for b in take(data.Stream(dataset, 50, seed=0, balanced=True), 0, 80)])
    members = Counter(indices.tolist())
    assert set(members) == set(range(50)) and 350 < members[49] < 650


def test_loading_leaves_the_global_random_state_alone():
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        take(data.Stream(Noise(10), 4, seed=0, workers=workers), 0, 3)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_order(workers):
    batches = list(data.in_order(Noise(10), [7, 1, 1, 9, 0], 2, workers=workers))
    assert [b["index"].tolist() for b in batches] == [[7, 1], [1, 9], [0]]
    assert all((b["image"][:, 0, 0, 1] == 0).all() for b in batches)
    assert list(data.in_order(Noise(10), [], 2, workers=workers)) == []
    with pytest.raises(ValueError, match="batch_size=0"):
        data.in_order(Noise(10), [1], 0)


@pytest.mark.parametrize("options, fault", [
    ({"batch_size": 11}, "batch_size=11, but the data set 'noise' has 10 images"),
    ({"batch_size": 0}, "expected 1 .. 10"),
    ({"batch_size": 5, "world": 2}, "cannot be shared by 2 processes: use a multiple, such as 4"),
    ({"batch_size": 4, "world": 2, "rank": 2}, "rank=2, world=2"),
    ({"batch_size": 4, "workers": -1}, "workers=-1")])
def test_sizes_that_cannot_be_met(options, fault):
    with pytest.raises(ValueError, match=fault):
        data.Stream(Noise(10), seed=0, **options)


def test_balanced_needs_labels():
    dataset = Noise(10)
    dataset.labels = None
    with pytest.raises(ValueError, match="needs labels"):
        data.Stream(dataset, 2, seed=0, balanced=True)
    with pytest.raises(ValueError, match="start=-1"):
        data.Stream(Noise(10), 2, seed=0)(-1)


def images(folder, n=12):
    folder.mkdir()
    for k in range(n):
        array = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{k}.png")
    return folder


@pytest.mark.parametrize("cache", ["", "memory"])
def test_real_images_with_flips_for_any_workers(tmp_path, cache):
    dataset = data.get(name="folder", path=str(images(tmp_path / "set")), resolution=16, random_flip=True,
                       cache=cache)
    plain = data.get(name="folder", path=str(tmp_path / "set"), resolution=16, random_flip=True, cache="")
    whole = take(data.Stream(plain, 6, seed=0), 0, 6)
    assert same(whole, take(data.Stream(dataset, 6, seed=0, workers=2), 0, 6))
    if cache:  # what the workers decoded is there for all
        assert dataset.cache.filled.all()
    flipped = [torch.equal(b["image"][k], plain[int(i)]["image"].flip(-1))
               for b in whole for k, i in enumerate(b["index"])]
    assert 8 < sum(flipped) < 28


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_named(tmp_path, workers):
    dataset = data.get(name="folder", path=str(images(tmp_path / "set")), resolution=16, cache="")
    (tmp_path / "set" / "7.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^step \d+: .*7\.png: empty \(0 bytes\)$"):
        take(data.Stream(dataset, 4, seed=0, workers=workers), 0, 3)
    with pytest.raises(ValueError, match=r"7\.png"):
        list(data.in_order(dataset, range(12), 4, workers=workers))


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_worker_ends_the_iteration(after):
    batches = data.Stream(Noise(100), 4, seed=0, workers=2)(0)
    for _ in range(after + 1):
        next(batches)
    workers = [worker.pid for worker in list(data.loader._running)[0]._workers]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="worker"):
        os.kill(workers[0], signal.SIGKILL)
        for _ in range(10_000):
            next(batches)
            time.sleep(0.01)
    batches.close()
    assert time.monotonic() - start < 30
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


@pytest.fixture
def late(monkeypatch):
    """Workers that take half a second to begin, and a parent that looks after them more often."""
    begin = data.loader._start_worker

    def slowly(number):
        time.sleep(0.5)
        begin(number)

    monkeypatch.setattr(data.loader, "_start_worker", slowly)
    monkeypatch.setattr(data.loader, "LOOK", 0.2)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_to_workers_that_have_not_begun_are_ignored(name, late, monkeypatch):
    """torch's own handlers make them leave with exit code 0, which looks like no fault, and their batches never come."""
    monkeypatch.setattr(data.loader, "STALLED", 20)
    batches = data.Stream(Noise(100), 4, seed=0, workers=2)(0)
    start, struck = BaseProcess.start, []

    def start_and_strike(process):
        start(process)
        time.sleep(0.1)  # by then torch's handlers are set
        os.kill(process.pid, getattr(signal, name))
        struck.append(process.pid)

    monkeypatch.setattr(BaseProcess, "start", start_and_strike)
    found = list(itertools.islice(batches, 4))
    batches.close()
    assert len(struck) == 2 and same(found, take(data.Stream(Noise(100), 4, seed=0), 0, 4))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_worker_killed_before_its_parent_listens_is_missed_and_named(late, monkeypatch):
    told = signal_handling._set_worker_pids

    def after_a_death(key, pids):
        os.kill(pids[1], signal.SIGKILL)
        os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
        told(key, pids)

    monkeypatch.setattr(signal_handling, "_set_worker_pids", after_a_death)
    batches, begun = data.Stream(Noise(100), 4, seed=0, workers=2)(3), time.monotonic()
    with pytest.raises(RuntimeError, match=r"a data worker died at step [34] \(killed by SIGKILL\)"):
        for _ in range(2):
            next(batches)
    assert time.monotonic() - begun < 10 and not data.loader._running


class Faulty(Noise):
    """Items that cannot be made, in one way or another."""

    def __init__(self, way):
        super().__init__(100)
        self.way = way

    def item(self, i, generator=None):
        if self.way == "leave":
            os._exit(0)
        if self.way == "hang":
            time.sleep(1.0)
        raise RuntimeError("a tensor of the wrong shape")


@pytest.mark.parametrize("way, fault", [
    ("leave", r"a data worker died at step 0 \(exit code 0\)"),
    ("hang", r"the data workers live, but made no batch for step 0 in 0.3 s.*set workers=0"),
    ("raise", "a tensor of the wrong shape")])
def test_workers_that_leave_hang_or_fail(way, fault, monkeypatch):
    monkeypatch.setattr(data.loader, "LOOK", 0.1)
    monkeypatch.setattr(data.loader, "STALLED", 0.3 if way == "hang" else 20)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=fault) as error:
        next(data.Stream(Faulty(way), 4, seed=0, workers=1)(0))
    assert time.monotonic() - begun < 10
    assert "died" not in str(error.value) or way == "leave"


SCRIPT = """
import os, signal, sys, time
import torch.utils.data._utils.worker
from libs import data
from tests.test_data_stream import Noise
torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2  # s between looks for the parent, else 5
batches = data.Stream(Noise(100), 4, seed=0, workers=2)(0)
next(batches)  # of one worker; the other may not have begun yet
workers = [w.pid for w in list(data.loader._running)[0]._workers]
print(*workers, flush=True)
for pid in workers:
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
for _ in range(20):
    next(batches)
print('went on', flush=True)
if sys.argv[1] == 'wait':
    time.sleep(60)
if sys.argv[1] == 'raise':
    raise ValueError('on purpose')
"""


def test_workers_ignore_signals_and_leave_with_their_process():
    """They outlive SIGTERM, and end when training fails with the stream still open, or is killed."""
    ends = {"raise": 1, "wait": -9}
    processes = {end: subprocess.Popen([sys.executable, "-c", SCRIPT, end], stdout=subprocess.PIPE, text=True,
                                       stderr=subprocess.DEVNULL,
                                       cwd=os.path.dirname(os.path.dirname(__file__)))
                 for end in ends}
    for end, process in processes.items():
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert process.stdout.readline() == "went on\n"
        if end == "wait":
            process.kill()
        assert process.wait(30) == ends[end]
        patience = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < patience:
            time.sleep(0.1)
        assert len(workers) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in workers)
        process.stdout.close()
