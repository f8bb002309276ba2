"""The feature store: the same bytes after any kill, with any number of processes; refused where it is torn or stale."""

import collections
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from libs import data
from libs.data import store
from libs.data.base import Dataset, fingerprint
from libs.data.store import writer as writing
from tests.conftest import ROOT

IDENTITY = {"codec": {"name": "halves", "fingerprint": "a1b2c3d4" * 8},
            "encoder": {"name": "lengths", "fingerprint": "e5" * 32, "shape": [2, 3]}}
WORDS = ["red", "small red", "round", "a dark and irregular one", "pale"]


class Marked(Dataset):
    """Grey images of which each pixel tells image and column; image i has 1 + i % 3 captions."""

    name, shape, classes = "marked", (1, 2, 4), ["a", "b", "c"]

    def __init__(self, n=600, labelled=True, captioned=True, version=0):
        self.n, self.version = n, version
        if not labelled:
            self.classes = []
        self.labels = torch.arange(n) % 3 if labelled else None
        self.captions = [WORDS[i % 5:][:1 + i % 3] or WORDS[:1] for i in range(n)] if captioned else None

    def __len__(self):
        return self.n

    def batch(self, indices, seeds=None):
        values = torch.tensor(indices)[:, None, None, None] / self.n + torch.arange(4) / 8
        batch = {"image": values.expand(-1, 1, 2, 4).contiguous()}
        return batch if self.labels is None else batch | {"label": self.labels[list(indices)]}

    def item(self, i, generator=None):
        return {key: value[0] for key, value in self.batch([i]).items()}

    def file_name(self, i):
        return f"images/{i}.png"

    @property
    def fingerprint(self):
        return fingerprint(self.name, self.n, self.version)


def encode_images(images):
    return images[..., ::2], images[..., 1::2].abs() + 1


def encode_texts(texts):
    return torch.stack([torch.full((2, 3), float(len(text))) for text in texts])


OPTIONS = dict(encode_images=encode_images, encode_texts=encode_texts, empty=torch.full((2, 3), -1.0), identity=IDENTITY,
               flips=True, progress=False)


def made(path, dataset=None, **options):
    store.write(path, Marked() if dataset is None else dataset, **{**OPTIONS, **options})
    return path


def content(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made(tmp_path_factory.mktemp("store") / "train")


def test_shows_what_was_encoded(whole):
    dataset, features = Marked(), data.Features(whole, random_flip=True)
    batch = features.batch([599, 0, 300, 0])
    mean, std = encode_images(dataset.batch([599, 0, 300, 0])["image"])
    assert torch.equal(batch["mean"], mean.half().float()) and torch.equal(batch["std"], std.half().float())
    assert {key: value.dtype for key, value in batch.items()} == {
        "mean": torch.float32, "std": torch.float32, "text": torch.float32, "label": torch.int64, "index": torch.int64}
    assert batch["label"].tolist() == [2, 0, 0, 0] and batch["index"].tolist() == [599, 0, 300, 0]
    assert batch["text"][:, 0, 0].tolist() == [len(dataset.captions[i][0]) for i in (599, 0, 300, 0)]
    assert features.texts([1, 2], [1, 2])[:, 0, 0].tolist() == [len(dataset.captions[1][1]), len(dataset.captions[2][2])]
    assert features.captions == dataset.captions and features.file_name(7) == "images/7.png"
    assert len(features) == 600 and features.shape == (1, 2, 2) and features.text_shape == (2, 3)
    assert features.classes == ["a", "b", "c"] and torch.equal(features.labels, dataset.labels)
    assert features.null["label"] == 3 and torch.equal(features.null["text"], torch.full((2, 3), -1.0))
    assert len(np.load(whole / "text.npy")) == 5  # each distinct caption once
    for bad in ([600], [-1]):
        with pytest.raises(IndexError, match="of 600"):
            features.batch(bad)


def test_a_visit_follows_from_its_seed_alone(whole):
    features = data.Features(whole, random_flip=True)
    indices, seeds = np.arange(600), data.loader.visit_seeds(0, [1] * 600, range(600))
    batch = features.batch(indices, seeds)
    some = [5, 17, 599]
    again = features.batch(some, seeds[some])
    assert all(torch.equal(again[key], batch[key][some]) for key in batch)
    for k in some:
        item = features.item(k, torch.Generator().manual_seed(int(seeds[k])))
        assert all(torch.equal(item[key], batch[key][k]) for key in batch)
    plain = features.batch(indices)
    flipped = (batch["mean"] != plain["mean"]).flatten(1).any(1)
    mirrored = encode_images(Marked().batch(indices)["image"].flip(-1))
    assert torch.equal(batch["mean"][flipped], mirrored[0][flipped].half().float())
    assert torch.equal(batch["std"][flipped], mirrored[1][flipped].half().float())
    unflipped = data.Features(whole).batch(indices, seeds)
    assert torch.equal(unflipped["mean"], plain["mean"]) and torch.equal(unflipped["text"], batch["text"])


def test_flips_and_captions_are_drawn_equally_and_independently(whole):
    features, visits = data.Features(whole, random_flip=True), 3000
    batch = features.batch([2] * visits, data.loader.visit_seeds(0, range(visits), [2] * visits))
    flipped = (batch["mean"] != features.batch([2])["mean"]).flatten(1).any(1)
    count = collections.Counter(zip(flipped.tolist(), batch["text"][:, 0, 0].tolist()))
    assert len(count) == 6 and all(abs(n - visits / 6) < 5 * (visits * 5 / 36) ** 0.5 for n in count.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_and_subset(whole, workers):
    features = data.Features(whole, random_flip=True)
    batches = list(itertools.islice(data.Stream(features, 64, seed=3)(0), 12))
    on_disk = data.Features(whole, random_flip=True, memory_gb=0)
    for mine, its in zip(batches, data.Stream(on_disk, 64, seed=3, workers=workers)(0)):
        assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)
    assert data.preflight(features) == 600
    subset = data.Subset(features, [9, 4])
    assert subset.captions == [Marked().captions[9], Marked().captions[4]] and subset.labels.tolist() == [0, 1]
    found = subset.batch([1, 0], [11, 12])
    assert torch.equal(found["mean"], features.batch([4, 9], [11, 12])["mean"]) and found["index"].tolist() == [1, 0]
    assert torch.equal(pickle.loads(pickle.dumps(features)).batch([5], [1])["mean"], features.batch([5], [1])["mean"])


def test_without_labels_texts_spread_or_flips(tmp_path):
    path = made(tmp_path / "bare", Marked(5, labelled=False, captioned=False), encode_texts=None, empty=None, flips=False,
                encode_images=lambda images: (images.bfloat16(), None), dtype="float32")
    features = data.Features(path)
    assert features.batch([1, 2], [1, 2]).keys() == {"mean", "index"} and features.null == {} and features.classes == []
    assert features.labels is features.captions is features.text_shape is None
    assert torch.equal(features.batch([1])["mean"], Marked(5).batch([1])["image"].bfloat16().float())
    with pytest.raises(ValueError, match="no texts"):
        features.texts([0], [0])
    with pytest.raises(ValueError, match="no mirrored images.*random_flip=True, or set it to False"):
        data.Features(path, random_flip=True)


def test_each_text_is_encoded_once_and_a_finished_store_is_left_alone(tmp_path):
    seen = []

    def counting(texts):
        seen.extend(texts)
        return encode_texts(texts)

    made(tmp_path / "a", encode_texts=counting)
    assert sorted(seen[1:]) == sorted(WORDS)  # the first call only asks for the shape
    made(tmp_path / "a", encode_texts=lambda texts: 1 / 0, encode_images=lambda images: 1 / 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def ranks(path, world, fail_at=None):
    """`world` writers at once; the last one fails at its `fail_at`-th call of the codec."""
    barrier, errors = threading.Barrier(world), []

    def run(rank):
        calls = itertools.count()

        def encode(images):
            if rank == world - 1 and next(calls) == fail_at:
                raise RuntimeError("the codec died")
            return encode_images(images)

        try:
            made(path, rank=rank, world=world, barrier=barrier.wait, encode_images=encode, batch_size=256)
        except (RuntimeError, threading.BrokenBarrierError) as error:
            errors.append(str(error))
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_any_number_of_processes_and_another_number_after_a_failure(whole, tmp_path):
    assert not ranks(tmp_path / "two", 2) and content(tmp_path / "two") == content(whole)
    assert not ranks(tmp_path / "five", 5) and content(tmp_path / "five") == content(whole)
    assert "the codec died" in ranks(tmp_path / "failed", 2, fail_at=0)
    with pytest.raises(ValueError, match=r"unfinished, 256 of 600 images and 0 of 5 texts are missing; to go on, run the"):
        data.Features(tmp_path / "failed")
    assert content(made(tmp_path / "failed", batch_size=50)) == content(whole)
    assert content(made(tmp_path / "workers", workers=2, batch_size=32)) == content(whole)


def test_two_extractions_at_once_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PATIENCE", 0)
    lock = {}

    def encode(images):
        if not lock:
            lock["held"] = True
            with pytest.raises(ValueError, match="another process is writing"):
                made(tmp_path / "a")
        return encode_images(images)

    made(tmp_path / "a", encode_images=encode)
    store.verify(tmp_path / "a")


@pytest.mark.parametrize("options, told", [
    ({"identity": IDENTITY | {"codec": {"name": "halves", "fingerprint": "c3d4" * 16}}},
     r"set config\.codec as.*codec\.fingerprint: stored a1b2c3d4\.\., now c3d4c3d4\.\."),
    ({"identity": IDENTITY | {"encoder": {}}}, r"3 problems.*encoder\.shape: stored \[2, 3\], now nothing"),
    ({"dtype": "float32"}, r"features\.dtype.*dtype: stored 'float16', now 'float32'"),
    ({"flips": False}, r"random_flip.*flips: stored True, now False"),
    ({"dataset": Marked(version=1)}, r"config\.dataset.*data\.fingerprint: stored \w{8}\.\., now \w{8}\.\."),
])
def test_a_stale_store_is_refused_finished_or_not(whole, tmp_path, options, told):
    before = content(whole)
    with pytest.raises(ValueError, match=f"(?s)delete the folder.*{told}"):
        made(whole, **options)
    with pytest.raises(RuntimeError):
        made(tmp_path / "half", encode_texts=_Dies())
    with pytest.raises(ValueError, match=rf"(?s)half\.partial: .*{told}"):
        made(tmp_path / "half", **options)
    assert content(whole) == before == content(made(tmp_path / "half"))


class _Dies:
    """A text encoder that fails at its second call."""

    calls = 0

    def __call__(self, texts):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("out of memory")
        return encode_texts(texts)


def test_check(whole):
    store.check(whole, IDENTITY, Marked().fingerprint)
    store.check(whole, IDENTITY, "")
    with pytest.raises(ValueError, match=r"(?s)2 problems.*codec\.name: stored 'halves', now 'kl'.*data\.fingerprint"):
        store.check(whole, IDENTITY | {"codec": {**IDENTITY["codec"], "name": "kl"}}, "0" * 64)


@pytest.mark.parametrize("name, damage, told", [
    ("mean.npy", lambda f: f.write_bytes(f.read_bytes()[:-1]), r"mean\.npy: 9,727 bytes, expected 9,728 bytes"),
    ("captions.jsonl", lambda f: f.unlink(), r"captions\.jsonl: missing, expected"),
    ("manifest.json", lambda f: f.write_text("{"), r"manifest\.json: not JSON"),
    ("manifest.json", lambda f: f.write_text('{"format": 9}'), "not a feature store of format 1"),
    ("manifest.json", lambda f: f.unlink(), r"no feature store \(it has no manifest\.json\)")])
def test_a_damaged_store_is_not_read(whole, tmp_path, name, damage, told):
    path = tmp_path / "train"
    path.mkdir()
    for file, found in content(whole).items():
        (path / file).write_bytes(found)
    store.verify(path)
    damage(path / name)
    for read in (data.Features, store.verify, lambda path: store.check(path, IDENTITY, "")):
        with pytest.raises(ValueError, match=told):
            read(path)


def test_verify_finds_a_changed_byte(whole, tmp_path):
    path = made(tmp_path / "train")
    changed = bytearray((path / "std.npy").read_bytes())
    changed[1000] ^= 1
    (path / "std.npy").write_bytes(changed)
    with pytest.raises(ValueError, match=r"1 problem\n  std\.npy: the content has changed"):
        store.verify(path)
    with pytest.raises(ValueError, match="no feature store there; make it with"):
        store.verify(tmp_path / "none")


class Torn(Marked):
    """An image that cannot be read."""

    def batch(self, indices, seeds=None):
        if 300 in indices:
            raise ValueError("images/300.png: empty (0 bytes)")
        return super().batch(indices)


def _captions(*texts):
    dataset = Marked(3)
    dataset.captions = list(texts)
    return dataset


@pytest.mark.parametrize("dataset, options, told", [
    (Torn(), {}, r"images/300\.png: empty"),
    (Marked(9), {"encode_images": lambda x: (x * 1e5, None)}, r"images/\d\.png: its mean is too large for float16.*float32"),
    (Marked(9), {"encode_images": lambda x: (x / 0, None)}, r"images/\d\.png: its mean is not a number"),
    (_captions("a", "b", "bad"), {"encode_texts": lambda t: encode_texts(t) * (1e6 if "bad" in t else 1)},
     "a: its text is too large"),
    (_captions(["a"], [], []), {}, r"(?s)images without caption: 2 problems.*images/1\.png"),
    (Marked(3, captioned=False), {}, "no captions, but a text encoder is set"),
    (Marked(3), {"dtype": "float8"}, r"dtype='float8': expected one of \['float16', 'float32'\]"),
    (Marked(0), {"encode_texts": None, "empty": None}, "'marked' has no images"),
])
def test_what_cannot_be_stored_is_named(tmp_path, dataset, options, told):
    with pytest.raises(ValueError, match=told):
        made(tmp_path / "a", dataset, **options)
    assert not (tmp_path / "a").exists()


def test_a_small_disk_and_a_foreign_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: collections.namedtuple("Usage", "free")(100))
    with pytest.raises(ValueError, match=r"the features need 0\.0 GB, the disk has 0\.0 GB free"):
        made(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds files that are no feature store"):
        made(tmp_path / "b")


def life(path, last_line):
    """Write in a child that ends without a word at the last_line-th line of the store's code; lines it has run, or 0."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines, own = itertools.count(1), str(Path(writing.__file__).parent)

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(own):
            return None
        if event == "line" and next(lines) == last_line:
            os._exit(9)
        return trace

    code = 1
    try:
        torch.set_num_threads(1)
        sys.settrace(trace)
        made(path)
        sys.settrace(None)
        path.with_name("lines.json").write_text(json.dumps(next(lines)))
        code = 0
    finally:
        os._exit(code)


def ten_kills(folder):
    rng, whole = random.Random(0), folder / "whole"
    assert life(whole, 0) == 0
    lines = json.loads((folder / "lines.json").read_text())
    unfinished = 0
    for k in range(10):
        path = folder / f"killed{k}"
        # The end, where the store is sealed, is hit as often as all the rest.
        for _ in range(3):
            code = life(path, rng.randrange(lines - 80, lines) if rng.random() < 0.5 else rng.randrange(1, lines))
            assert code in (0, 9)
            try:
                data.store.verify(path)
            except ValueError as error:
                assert "unfinished" in str(error) or "no feature store there" in str(error), error
                unfinished += 1
        assert life(path, 0) == 0
        assert content(path) == content(whole)
        assert not path.with_name(f"{path.name}.partial").exists()
    assert unfinished >= 10


def test_ten_kills_and_the_store_is_the_same_byte_for_byte(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tests.test_store", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    ten_kills(Path(sys.argv[1]))
