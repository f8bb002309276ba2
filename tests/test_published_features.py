"""One-.npy-per-item folders become a store of the same numbers, and a pickle that wants to run something is refused."""

import importlib
import os
import pickle

import numpy as np
import pytest
import torch

from libs import data
from libs.data.published_features import convert
from libs.data.restricted import read_npy
from tests.conftest import ROOT

RNG = np.random.default_rng(0)


def save(path, value):
    """As the original scripts: whatever is no array of numbers becomes an object array, and is pickled."""
    if isinstance(value, tuple):
        array = np.empty(len(value), object)
        array[:] = value
        value = array
    np.save(path, value)


def moments(c=2):
    return RNG.normal(size=(2 * c, 4, 4)).astype(np.float32)


def imagenet(folder, count=300):
    """Blocks of 256 images, each followed by its mirrored copies; labels are numpy scalars."""
    folder.mkdir()
    images, copies = [moments() for _ in range(count)], [moments() for _ in range(count)]
    labels, k = np.arange(count) * 7 % 5, 0
    for first in range(0, count, 256):
        for part in (images, copies):
            for i in range(first, min(first + 256, count)):
                save(folder / f"{k}.npy", (part[i], labels[i]))
                k += 1
    return np.stack(images), np.stack(copies), labels


def expected(found):
    mean, logvar = np.split(found, 2, axis=1)
    return torch.from_numpy(mean), torch.from_numpy(np.exp(np.clip(logvar, -30, 20) / 2))


def test_imagenet_with_mirrored_copies(tmp_path):
    images, copies, labels = imagenet(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "new", dtype="float32", progress=False)
    features = data.Features(tmp_path / "new", random_flip=True)
    assert features.labels.tolist() == labels.tolist() and features.classes == list("01234")
    plain = features.batch(range(300))
    assert all(torch.equal(plain[key], value) for key, value in zip(("mean", "std"), expected(images)))
    seen = torch.stack([features.batch(range(300), [seed] * 300)["mean"] for seed in range(6)])
    is_plain = (seen == expected(images)[0]).flatten(2).all(2)
    assert (is_plain | (seen == expected(copies)[0]).flatten(2).all(2)).all()
    assert not is_plain.all() and is_plain.any()
    assert features.file_name(0) == "0.npy" and features.file_name(256) == "512.npy"
    data.store.check(tmp_path / "new", {"codec": {"name": "kl", "fingerprint": "ab"}, "encoder": {}}, "cd")


def test_coco(tmp_path):
    folder = tmp_path / "old" / "train"
    folder.mkdir(parents=True)
    images, texts, empty = [moments() for _ in range(5)], {}, RNG.normal(size=(3, 6)).astype(np.float32)
    for i in range(5):
        save(folder / f"{i}.npy", images[i])
        for k in range(1 + i % 3):
            texts[i, k] = RNG.normal(size=(3, 6)).astype(np.float32)
            save(folder / f"{i}_{k}.npy", texts[i, k])
    save(tmp_path / "old" / "empty_context.npy", empty)
    convert(tmp_path / "old", tmp_path / "new", split="train", dtype="float32", progress=False)
    features = data.Features(tmp_path / "new")
    assert torch.equal(features.batch(range(5))["mean"], expected(np.stack(images))[0])
    assert all(torch.equal(features.texts([i], [k])[0], torch.from_numpy(text)) for (i, k), text in texts.items())
    assert torch.equal(features.null["text"], torch.from_numpy(empty)) and list(features.null) == ["text"]
    assert features.captions is None and features.labels is None and features.text_shape == (3, 6)
    with pytest.raises(IndexError, match=r"caption 1 of 3\.npy, which has 1"):
        features.texts([3], [1])
    (folder / "4_0.npy").unlink()
    (folder / "2.npy").unlink()
    with pytest.raises(ValueError, match=r"(?s)2 problems.*2\.npy is missing.*4_0\.npy is missing"):
        convert(tmp_path / "old", tmp_path / "other", split="train")


@pytest.mark.parametrize("key", ["text", "caption"])
def test_vap_dicts(tmp_path, key):
    folder = tmp_path / "old"
    folder.mkdir()
    texts = RNG.normal(size=(4, 3, 6)).astype(np.float32)
    for i in range(4):
        save(folder / f"{i}.npy", moments())
        np.save(folder / f"{i}_0.npy", {key: texts[i], "label": i % 3, "prompt": "a lesion"})
    convert(folder, tmp_path / "new", classes=7, progress=False)
    features = data.Features(tmp_path / "new")
    batch = features.batch([3, 1])
    assert torch.allclose(batch["text"], torch.from_numpy(texts[[3, 1]]), atol=1e-2)
    assert batch["label"].tolist() == [0, 1] and len(features.classes) == 7 and features.null["label"] == 7


def test_resumes_and_refuses_another_folder(tmp_path, monkeypatch):
    imagenet(tmp_path / "old")
    calls = []

    def counting(path):
        calls.append(path)
        if len(calls) == 550:
            raise KeyboardInterrupt
        return read_npy(path)

    monkeypatch.setattr("libs.data.published_features.read_npy", counting)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "old", tmp_path / "new", progress=False)
    with pytest.raises(ValueError, match=r"unfinished, 44 of 300 images and 0 of 0 texts are missing"):
        data.Features(tmp_path / "new")
    convert(tmp_path / "old", tmp_path / "new", progress=False)
    assert len(calls) < 550 + 100
    convert(tmp_path / "old", tmp_path / "new", progress=False)
    data.store.verify(tmp_path / "new")
    with pytest.raises(ValueError, match="dtype: stored 'float16', now 'float32'"):
        convert(tmp_path / "old", tmp_path / "new", dtype="float32")


def test_classes_get_the_names_of_the_images(tmp_path):
    imagenet(tmp_path / "old", count=20)
    options = {"dtype": "float32", "progress": False}
    for names, problem in (("abc", r"old: 3 class_names for 5 classes.*--classes"), ("abcda", "'a' occurs 2 times"),
                           (("a", "b", "", "d", "e"), "a name is empty")):
        with pytest.raises(ValueError, match=problem):
            convert(tmp_path / "old", tmp_path / "new", class_names=names, **options)
    with pytest.raises(ValueError, match="5 names for classes=6"):
        convert(tmp_path / "old", tmp_path / "new", class_names="abcde", classes=6, **options)
    convert(tmp_path / "old", tmp_path / "new", class_names="abcde", **options)
    named = data.Features(tmp_path / "new")
    assert named.classes == list("abcde") and named.labels.tolist() == (np.arange(20) * 7 % 5).tolist()
    convert(tmp_path / "old", tmp_path / "new", **options)
    assert data.Features(tmp_path / "new").classes == list("abcde"), "no names change nothing"
    convert(tmp_path / "old", tmp_path / "new", class_names="edcba", **options)
    renamed = data.Features(tmp_path / "new")
    assert renamed.classes == list("edcba") and renamed.labels.equal(named.labels)
    assert renamed.fingerprint == named.fingerprint
    with pytest.raises(ValueError, match="4 class_names for 5 classes"):
        convert(tmp_path / "old", tmp_path / "new", class_names="abcd", **options)
    convert(tmp_path / "old", tmp_path / "more", class_names="abcdef", classes=6, **options)
    assert data.Features(tmp_path / "more").classes == list("abcdef")
    with pytest.raises(ValueError, match=r"nowhere: no feature store.*extract_feature.py, .*scripts/convert_features.py"):
        data.Features(tmp_path / "nowhere")


def test_other_folders_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        convert(tmp_path / "none", tmp_path / "new")
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="no features there"):
        convert(tmp_path / "old", tmp_path / "new")
    for i, label in enumerate((3, 4, 5)):
        save(tmp_path / "old" / f"{i}.npy", (moments(), label))
    with pytest.raises(ValueError, match="odd number.*--nomirrored"):
        convert(tmp_path / "old", tmp_path / "new")
    save(tmp_path / "old" / "3.npy", (moments(), 5))
    with pytest.raises(ValueError, match=r"0\.npy has label 3, 2\.npy 5.*--nomirrored"):
        convert(tmp_path / "old", tmp_path / "new", progress=False)
    with pytest.raises(ValueError, match=r"labels 3 \.\. 5, expected 0 \.\. 4"):
        convert(tmp_path / "old", tmp_path / "plain", mirrored=False, classes=5, progress=False)
    save(tmp_path / "old" / "2.npy", (moments(3), 5))
    with pytest.raises(ValueError, match=r"2\.npy: shape \(6, 4, 4\), but .*0\.npy has \(4, 4, 4\)"):
        convert(tmp_path / "old", tmp_path / "other", mirrored=False, progress=False)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call, name", [
    (Call(os.system, "touch {}"), "posix.system"), (Call(eval, "open('{}', 'w')"), "builtins.eval"),
    (Call(getattr, "text", "upper"), "builtins.getattr"), (Call(np.load, "x"), "numpy.load"),
    (torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2")])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(tmp_path, call, name):
    trap = tmp_path / "executed"
    if isinstance(call, Call):
        function, (first, *others) = call.call
        call = Call(function, first.format(trap), *others)
    array = np.empty(2, object)
    array[:] = [np.zeros(3), call]
    np.save(tmp_path / "0.npy", array)
    with pytest.raises(ValueError, match=rf"0\.npy: refused: its pickle asks for {name}"):
        read_npy(tmp_path / "0.npy")
    assert not trap.exists()
    if name in ("posix.system", "builtins.eval"):  # the trap does work
        function(first.format(trap))
        assert trap.exists()


def header(path, pickled):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        file.write(pickled)


@pytest.mark.parametrize("pickled", [
    b"", b"\x80\x04", pickle.dumps([1, 2])[:-3], b"cnumpy\ndtype\n(S'O8'\ntR.",  # cut off, or a bare type
    b"cnumpy.core.multiarray\nscalar\n(N(S'value'\nI1\nstb.",                     # attributes of a class of ours
    b"cnumpy\ndtype\n(S'V8'\ntR.", b"]\x94h\x00a."])                              # structured type, a list in itself
def test_damaged_and_crafted_pickles_are_named(tmp_path, pickled):
    header(tmp_path / "7.npy", pickled)
    with pytest.raises(ValueError, match=r"7\.npy: not a whole \.npy file"):
        read_npy(tmp_path / "7.npy")


def test_reads_what_numpy_wrote(tmp_path):
    inner = {"f": np.arange(6, dtype=">f4").reshape(2, 3), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
             "bool": np.array([True, False]), "half": np.float16(1.5), "int": np.int64(-3), "list": [1, ("a", None)]}
    np.save(tmp_path / "a.npy", inner)
    found = read_npy(tmp_path / "a.npy")
    assert found.keys() == inner.keys() and found["list"] == inner["list"]
    assert all(np.array_equal(found[key], inner[key]) for key in ("f", "fortran", "bool", "half", "int"))
    np.save(tmp_path / "b.npy", inner["f"])
    assert np.array_equal(read_npy(tmp_path / "b.npy"), inner["f"])
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"b\.npy: not a whole"):
        read_npy(tmp_path / "b.npy")
    (tmp_path / "c.npy").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match=r"c\.npy: not a whole"):
        read_npy(tmp_path / "c.npy")


def test_script(tmp_path, script, inside):
    imagenet(tmp_path / "old", count=3)
    options = f"--path={tmp_path / 'old'}", f"--output={tmp_path / 'new'}"
    done = script("scripts/convert_features.py", *options, "--class_names=a,b,c,d,e")
    assert "3 images of (2, 4, 4), 5 classes" in done.stdout
    assert data.Features(tmp_path / "new").classes == list("abcde")
    (tmp_path / "old" / "1.npy").write_bytes(b"")
    done = inside("scripts/convert_features.py", options[0], f"--output={tmp_path / 'again'}", fails=True)
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "1.npy" in done.stderr


def test_the_examples_write_where_configs_look(monkeypatch):
    monkeypatch.chdir(ROOT)
    said = (ROOT / "scripts" / "convert_features.py").read_text()
    for name, split in (("imagenet256_uvit_huge", "train"), ("mscoco_uvit_small", "train")):
        config = importlib.import_module(f"configs.{name}").get_config()
        assert f"--output={config.features.path}/{split}\n" in said and config.dataset.split == split
