"""Held-out images of little data: advice works as typed, patients stay whole, classes keep a training image."""

import hashlib
import os
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from libs import data
from libs.data.split import advise_holdout, hold_out
from libs.data.table import Row
from tests.commands import call
from tests.layouts import folder, image, mask, typed

TINY = [
    "--config.nnet.embed_dim=32",
    "--config.nnet.depth=2",
    "--config.nnet.num_heads=2",
    "--config.train.n_steps=1",
    "--config.train.batch_size=4",
    "--config.train.preview_interval=0",
    "--config.train.eval_interval=0",
    "--config.train.validation_interval=1",
]


def classes_of_four(root, side=24, draw=image, below=""):
    for label in "abcd":
        for k in range(4):
            draw(root / below / label / f"{k}.png", (side, side))
    return root


def former(rows, share, seed):
    """`hold_out` as earlier versions had it."""
    groups = defaultdict(list)
    for row in rows:
        if row.split in ("", "train"):
            groups[row.group or row.name].append(row)
    by_class = defaultdict(list)
    for group, members in groups.items():
        by_class[members[0].label].append(group)
    for names in by_class.values():
        names.sort(key=lambda name: hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest())
        wanted, taken = round(share * sum(len(groups[name]) for name in names)), 0
        for name in names[:-1]:
            if taken < wanted and taken + len(groups[name]) <= 2 * wanted:
                taken += len(groups[name])
                for row in groups[name]:
                    row.split = "val"
    for row in rows:
        row.split = row.split or "train"


def patients(seed, classes=4, people=25, most=4):
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        for _ in range(rng.integers(1, most + 1)):
            rows.append(Row(f"{len(rows)}.png", "", label=f"c{rng.integers(classes)}", group=f"p{person}"))
    return rows


def classes_in(rows, split):
    return {row.label for row in rows if row.split == split}


@pytest.mark.parametrize("seed", range(40))
def test_splits_are_those_of_earlier_versions_unless_a_class_was_lost(seed):
    share = (0.1, 0.3, 0.5)[seed % 3]
    before, now = patients(seed, most=1 + seed % 4), patients(seed, most=1 + seed % 4)
    former(before, share, seed)
    hold_out(now, share, seed)
    if classes_in(before, "train") == {row.label for row in before}:
        assert [row.split for row in now] == [row.split for row in before]
    assert classes_in(now, "train") == {row.label for row in now}


def test_a_class_keeps_a_training_image():
    """Every patient with 'rare' shows 'common' first, so that the class was held out with any of them."""
    lost = 0
    for seed in range(30):

        def rows():
            return [
                Row(f"{p}_{k}.png", "", "common" if k == 0 or p > 2 else "rare", group=f"p{p}")
                for p in range(6)
                for k in range(2)
            ]

        before, now, again = rows(), rows(), rows()
        former(before, 0.5, seed)
        hold_out(now, 0.5, seed)
        lost += "rare" not in classes_in(before, "train")
        assert classes_in(now, "train") == {"common", "rare"}
        splits = defaultdict(set)
        for row in now:
            splits[row.group].add(row.split)
        assert all(len(each) == 1 for each in splits.values()), "patients stay whole"
        hold_out(again, 0.5, seed)
        assert [row.split for row in again] == [row.split for row in now]
    assert lost, "else this test says nothing"


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (4, 3, 2), (1, 4), (2, 2), (9, 1), (3,)])
def test_the_share_that_is_advised_holds_out_an_image(sizes):
    def rows(grouped=False):
        return [
            Row(f"{c}/{k}.png", "", f"c{c}", group=f"{c}{k // 2}" if grouped else "")
            for c, n in enumerate(sizes)
            for k in range(n)
        ]

    for grouped in (False, True):
        text = advise_holdout(rows(grouped), 0.01, 0)
        assert f"holdout=0.01 of {sum(sizes)} image" in text and "holds out none" in text
        share = re.search(r"--config.dataset.holdout=(0\.\d+)", text)
        held = rows(grouped)
        hold_out(held, float(share[1]) if share else 0.5, 0)
        assert bool(share) == any(row.split == "val" for row in held)
        possible = {c for c, n in enumerate(sizes) if n > (2 if grouped else 1)}
        if share:
            assert {f"c{c}" for c in possible} == classes_in(held, "val"), "of every class that can spare one"
        else:
            assert "add some" in text and not possible


def test_the_message_and_what_it_says(tmp_path):
    classes_of_four(tmp_path)
    options = {"name": "folder", "path": str(tmp_path), "resolution": 16, "split": "train", "holdout": 0.1}
    assert len(data.get(**options)) == 16
    with pytest.raises(ValueError) as error:
        data.held_out(options, "val")
    said = str(error.value)
    assert "holdout=0.1 of 16 images in 4 classes holds out none" in said and "no split" not in said
    larger = typed(re.search(r"--config.dataset.holdout=0\.\d+", said)[0])
    assert Counter(data.held_out(options | larger, "val").labels.tolist()) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert "--config.dataset.holdout=0 --config.train.validation_split=" in said
    assert len(data.get(**options | {"holdout": 0})) == 16, (
        "split 'train' of data that are not divided is all of them"
    )
    with pytest.raises(
        ValueError, match=r"no split 'val' .*they have none: --config.dataset.holdout=0.15 makes"
    ):
        data.held_out(options | {"holdout": 0}, "val")


def test_pairs_texts_and_patients(tmp_path):
    classes_of_four(tmp_path / "pairs", below="images")
    classes_of_four(tmp_path / "pairs", draw=mask, below="masks")
    options = {"resolution": 16, "split": "train", "holdout": 0.1}
    with pytest.raises(ValueError, match="holdout=0.1 of 16 images in 4 classes holds out none"):
        data.held_out({"name": "image_mask", "path": str(tmp_path / "pairs"), **options}, "val")
    rows = [f"images/{label}/{k}.png,text,OCT\n" for label in "ab" for k in range(2)]
    (tmp_path / "pairs" / "t.csv").write_text("path,Text,modality\n" + "".join(rows))
    with pytest.raises(ValueError, match="holdout=0.1 of 4 images holds out none"):
        data.held_out({"name": "path_text", "path": str(tmp_path / "pairs" / "t.csv"), **options}, "val")
    rows = [f"images/{label}/{k}.png,{label},person{label}\n" for label in "ab" for k in range(4)]
    (tmp_path / "pairs" / "metadata.csv").write_text("file_name,label,patient\n" + "".join(rows))
    with pytest.raises(
        ValueError,
        match=r"of 8 images of 2 groups \(patients\) in 2 classes holds out none, as a class needs 2 groups",
    ):
        data.held_out(
            {"name": "folder", "path": str(tmp_path / "pairs"), **options, "group_column": "patient"}, "val"
        )


def test_commands(tmp_path):
    classes_of_four(tmp_path / "data", side=64)
    command = [
        "train.py",
        "--config=configs/folder64_uvit_label.py",
        f"--config.dataset.path={tmp_path / 'data'}",
        *TINY,
    ]
    said = call(*command, f"--workdir={tmp_path / 'a'}", fails=True).stderr
    assert "holds out none" in said and "Traceback" not in said
    share = re.search(r"--config.dataset.holdout=0\.\d+", said)[0]
    for number, options in enumerate(
        ([share], ["--config.dataset.holdout=0", "--config.train.validation_split="])
    ):
        call(*command, *options, f"--workdir={tmp_path / str(number)}")
        assert (tmp_path / str(number) / "ckpts" / "1.ckpt").is_dir()


def test_another_family_says_the_same(tmp_path):
    classes_of_four(tmp_path / "data", side=64)
    said = call(
        "train_class_ldm.py",
        "--config=configs/folder64_unet_label.py",
        f"--config.dataset.path={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'a'}",
        fails=True,
    ).stderr
    assert "holds out none" in said


def test_folders_with_splits_of_their_own_are_as_before(tmp_path):
    for split in ("train", "val"):
        image(tmp_path / split / "a" / "1.png")
    assert len(folder(tmp_path, split="train")) == 1
    with pytest.raises(ValueError, match="no split 'test' in the data; they have .'train', 'val'."):
        folder(tmp_path, split="test")
