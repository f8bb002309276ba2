"""ISIC 2018 and 2019 and ChestX-ray14 from the files of their publishers, with texts from a caption table.

Class names are in a documented order, because the published programs disagree: VAP-Diffusion's loader sorts the names
of ISIC's classes, its feature extraction takes them as the CSV has them. Here it is the CSV's order; `classes` asks for
another one.
"""

import logging
from pathlib import Path

from . import official
from .base import did_you_mean, fail, one_of
from .files import ImageFiles
from .split import hold_out, leaks
from .table import Row

log = logging.getLogger(__name__)

ISIC2018_CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
NO_FINDING = "No Finding"
FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
            "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")
ISIC_ARCHIVE = "https://challenge.isic-archive.com/data"
NIH_ARCHIVE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"


class ISIC2018(ImageFiles):
    """ISIC 2018 task 3 (HAM10000): dermoscopic images of seven classes, in the official splits.

    Args:
        path: holds ISIC2018_Task3_Training_Input/ISIC_0024306.jpg ... and
            ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv; likewise _Validation_ and _Test_.
        split: 'train' (10,015 images), 'val' (193), 'test' (1,512), or '' for all.
        classes: names in label order; images of other classes are left out. () = the CSV's columns.
        captions: a .csv or .jsonl table with columns file_name and text; '' = none.
        missing_captions: 'error', or 'skip' to leave out the images without a text.
        options: of `files.ImageFiles`.
    Raises:
        ValueError: for all faults of the tables at once, each with file and line.
    """

    PARTS = {"train": ("Training", 10_015), "val": ("Validation", 193), "test": ("Test", 1_512)}

    def __init__(self, path, resolution=256, split="train", channels=3, *, classes=(), captions="",
                 missing_captions="error", **options):
        root, rows, folders = Path(path).expanduser(), [], []
        for part in [one_of("split", split, ("", *self.PARTS))] if split else self.PARTS:
            title, count = self.PARTS[part]
            stem = f"ISIC2018_Task3_{title}"
            table = official.there(root, "ISIC 2018 task 3", ISIC_ARCHIVE, f"{stem}_GroundTruth/{stem}_GroundTruth.csv",
                           f"{stem}_GroundTruth.csv")
            folders.append(official.there(root, "ISIC 2018 task 3", ISIC_ARCHIVE, f"{stem}_Input"))
            found = _one_hot_rows(table, ISIC2018_CLASSES, split=part)
            official.compare("isic2018", f"images in {table.name}", len(found), count)
            rows += found
        rows, classes = official.of_classes("isic2018", rows, classes, ISIC2018_CLASSES)
        official.locate(root, rows, folders)
        rows = official.describe(rows, captions, missing_captions)
        super().__init__(root, rows, resolution, channels, name="isic2018", classes=classes, texts=bool(captions), **options)


class ISIC2019(ImageFiles):
    """ISIC 2019: dermoscopic images of eight classes, divided at random as no official test labels came with them.

    No image of one lesion is in two splits, where ISIC_2019_Training_Metadata.csv is there to tell the lesions.

    Args:
        path: holds ISIC_2019_Training_Input/ISIC_0000000.jpg ... and ISIC_2019_Training_GroundTruth.csv.
        split: 'train', 'test', 'val' (with `holdout`), or '' for all 25,331 images.
        test_share: share of the images (of each class) that are split 'test'; VAP-Diffusion has 0.2.
        holdout: share of the remaining training images that become split 'val'.
        split_seed: which ones.
        classes, captions, missing_captions, options: as for `ISIC2018`. The column UNK is no class: no training image
            has it, and images that do are left out.
    Raises:
        ValueError: as `ISIC2018`.
    """

    def __init__(self, path, resolution=256, split="train", channels=3, *, test_share=0.2, holdout=0.0, split_seed=0,
                 classes=(), captions="", missing_captions="error", **options):
        _check_share(test_share=test_share, holdout=holdout)
        root = Path(path).expanduser()
        table = official.there(root, "ISIC 2019", ISIC_ARCHIVE, "ISIC_2019_Training_GroundTruth.csv")
        folder = official.there(root, "ISIC 2019", ISIC_ARCHIVE, "ISIC_2019_Training_Input/ISIC_2019_Training_Input",
                        "ISIC_2019_Training_Input")
        rows = _one_hot_rows(table, (*ISIC2019_CLASSES, "UNK"))
        official.compare("isic2019", f"images in {table.name}", len(rows), 25_331)
        _join_lesions(rows, root / "ISIC_2019_Training_Metadata.csv")
        hold_out(rows, test_share, split_seed)
        for row in rows:
            row.split = "test" if row.split == "val" else row.split
        hold_out(rows, holdout, split_seed)
        rows, classes = official.of_classes("isic2019", official.of_split(root, rows, split), classes, ISIC2019_CLASSES)
        official.locate(root, rows, [folder])
        rows = official.describe(rows, captions, missing_captions)
        super().__init__(root, rows, resolution, channels, name="isic2019", classes=classes, texts=bool(captions), **options)


class ChestXray14(ImageFiles):
    """NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients, in the official splits.

    Args:
        path: holds Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), train_val_list.txt, test_list.txt, and the images
            in images/, or in images_001/images/ ... images_012/images/.
        split: 'train', 'test', 'val' (with `holdout`), or '' for all.
        channels: 3 or 1.
        single_label: leave out images with several findings, as VAP-Diffusion does. False keeps them, and then there are
            no labels: a label is one class.
        no_finding: whether images without a finding are a class, the last (15 classes), or are left out (14).
        holdout: share of train_val_list.txt that becomes split 'val', by patients; holdout_seed: which ones.
        classes, captions, missing_captions, options: as for `ISIC2018`; () = the order of the data set's paper.
    Raises:
        ValueError: as `ISIC2018`.
    """

    def __init__(self, path, resolution=256, split="train", channels=3, *, single_label=True, no_finding=True, holdout=0.0,
                 holdout_seed=0, classes=(), captions="", missing_captions="error", **options):
        _check_share(holdout=holdout)
        root, title = Path(path).expanduser(), "ChestX-ray14"
        table = official.there(root, title, NIH_ARCHIVE, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
        lists = {part: official.there(root, title, NIH_ARCHIVE, f"{part}_list.txt") for part in ("train_val", "test")}
        rows = _finding_rows(table)
        official.compare("chestxray14", f"images in {table.name}", len(rows), 112_120)
        _split_by_lists(rows, table, lists)
        if not no_finding:
            rows = [row for row in rows if row.label != NO_FINDING]
        if single_label:
            rows = [row for row in rows if "|" not in row.label]
        hold_out(rows, holdout, holdout_seed)
        rows = official.of_split(root, rows, split)
        if single_label:
            known = (*FINDINGS, NO_FINDING) if no_finding else FINDINGS
            rows, classes = official.of_classes("chestxray14", rows, classes, known)
        elif classes:
            raise ValueError(f"classes={tuple(classes)} with single_label=False: images with several findings have no "
                             "label. Leave the classes out, or set single_label=True")
        official.locate(root, rows, [folder for pattern in ("images", "images_*/images", "images_*")
                                     for folder in sorted(root.glob(pattern)) if folder.is_dir()])
        rows = official.describe(rows, captions, missing_captions)
        super().__init__(root, rows, resolution, channels, name="chestxray14", classes=classes, texts=bool(captions),
                         **options)


def _check_share(**shares):
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share!r}: expected a share in [0, 1)")


def _one_hot_rows(table, classes, split=""):
    """Rows of an ISIC ground truth: a column `image` and one for each class, 1.0 in exactly one of them."""
    rows, problems = [], []
    for where, record in official.records(table, ("image", *classes)):
        marks = {name: record[name].strip() for name in classes}
        ones = [name for name, mark in marks.items() if mark in ("1", "1.0")]
        if len(ones) == 1 and set(marks.values()) <= {"0", "0.0", "1", "1.0"}:
            rows.append(Row(f"{record['image'].strip()}.jpg", where, ones[0], split=split))
        else:
            problems.append(f"{where}: {record['image']} has {len(ones)} ones in {','.join(marks.values())}; expected "
                            f"1.0 for one of {', '.join(classes)} and 0.0 for the others")
    fail(str(table), problems + official.doubles(rows))
    return rows


def _join_lesions(rows, table):
    """Give each row the lesion that it shows, where the metadata tell it."""
    if not table.is_file():
        log.warning("%s is missing: images of one lesion may come into different splits", table)
        return
    lesions = {record["image"].strip(): record["lesion_id"].strip()
               for _, record in official.records(table, ("image", "lesion_id"))}
    for row in rows:
        row.group = lesions.get(row.name.removesuffix(".jpg"), "")


def _finding_rows(table):
    """Rows of ChestX-ray14; the label holds every finding, separated by '|', and the group the patient."""
    rows, problems, known = [], [], {*FINDINGS, NO_FINDING}
    for where, record in official.records(table, ("Image Index", "Finding Labels", "Patient ID")):
        label = record["Finding Labels"].strip()
        problems += [f"{where}: unknown finding {name!r}{did_you_mean(name, known)}"
                     for name in label.split("|") if name not in known]
        if not record["Patient ID"].strip():
            problems.append(f"{where}: Patient ID is empty")
        rows.append(Row(record["Image Index"].strip(), where, label, group=record["Patient ID"].strip()))
    fail(str(table), problems + official.doubles(rows))
    return rows


def _split_by_lists(rows, table, lists):
    """Set the rows' split from the official lists; every image of the table is in exactly one of them."""
    by_name, problems = {row.name: row for row in rows}, []
    for part, path in lists.items():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            row, where = by_name.get(line.strip()), f"{path.name}:{number}"
            if line.strip() and row is None:
                problems.append(f"{where}: unknown image {line.strip()!r}; it is not in {table.name}")
            elif line.strip() and row.split:
                problems.append(f"{where}: {row.name} is in split {row.split!r} already")
            elif line.strip():
                row.split = part.removesuffix("_val")
    problems += [f"{row.where}: {row.name} is in none of {', '.join(path.name for path in lists.values())}"
                 for row in rows if not row.split]
    fail(str(table.parent), problems + leaks(rows))
