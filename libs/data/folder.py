"""One's own images: class folders, or a table of files with labels, texts and masks."""

import logging
import unicodedata
from collections import Counter, defaultdict

from libs import names, tables

from . import official, weights
from .base import did_you_mean, fail, one_of
from .files import ImageFiles, check_options
from .mask_like import check_masks, masks_among
from .masks import MaskCode
from .paths import natural
from .scan import SPLITS, look, unlisted
from .split import advise_holdout, choose, hold_out, leaks
from .table import Columns

log = logging.getLogger(__name__)
SYNONYMS = {"text": ("caption", "captions", "description", "prompt", "report"), "label": ("class", "diagnosis", "category", "dx"),
            "mask": ("mask", "segmentation")}


class Folder(ImageFiles):
    """Images below one folder, at one resolution, with labels, captions and masks where the data have them.

    `rows` holds the table: a dict per image with file_name, label, text, split and every further column.

    Args:
        path: a folder with metadata.csv or metadata.jsonl (`table.py` has the columns), a folder of class
            folders (the first folder is the class, images may lie deeper), either of them below train/, val/,
            test/; a folder of loose images (unlabelled); or the path of a table.
        resolution: side of the square images.
        channels: 3 (RGB) or 1 (grey).
        split: 'train', 'val', 'test', as the data call them; '' is everything.
        holdout: share of the training images (of each class) that become split 'val' where they have none.
        holdout_seed: which ones.
        crop: 'center'; 'random' (scale and place) when a generator is given; 'pad' keeps the whole image and its
            proportions: the long side becomes `resolution`, the rest is black (the first class, in a mask).
        random_flip, random_vflip: mirror left-right, up-down, with probability 1/2 when a generator is given.
        label_column, text_column, mask_column, split_column: names in the table, '' = do not use;
            label_column='' also says that folders are no classes. Labels are text: any values, sorted
            naturally ('10' after '2').
        weight_column: how many times the loss of each image counts in a training, numbers from 0 to 10, becomes `weights`; '' =
            do not use. A column 'weight' does not have to be there: then all count once. Held-out images count by theirs.
        group_column: what must not be in two splits, such as the patient; becomes `groups`, '' = there are none.
        classes: class names in label order; () takes those of all splits. A run stores and passes them back.
        drop_classes: classes to leave out, with their images.
        min_per_class: images that each class needs in this split; 0 allows empty classes.
        require: what the data must have, of 'label', 'text', 'mask'.
        doubled_files: 'error' lets no two rows of a table name the same file, however it is spelled; 'keep' takes each row as an
            image of its own (several texts for an image), and logs which.
        unlisted_files: images in the folder of a table that no row names are left out: 'warn' logs them, 'error' takes them for
            a fault, 'ignore' does not look.
        missing_captions: 'error' lets no text be empty where `require` asks for 'text', and any be empty otherwise;
            'skip' leaves out the images of this split whose text is empty, and logs how many and the first of them.
        mask_max: the largest grey level of the masks, which becomes 1, where mask_values=().
        mask_values: what the classes are in the mask files, the background first: grey levels, numbers of a palette, or
            colours ((0, 0, 0), (255, 0, 0), ...). Two become one channel, more a channel for each; see `masks.MaskCode`.
        mask_names: names of these classes, () for 'class 0', ...
        window: (low, high) in raw grey levels, shown as black and white, in colour files for each channel; () = the full range of
            8 or 16 bits, where `preflight` takes images that use less than a quarter of it for a mistake.
        upscale: whether images smaller than `resolution` (by the short side, by the long one with crop='pad') are
            enlarged instead of being a fault.
        follow_links: whether symbolic links may leave the folder.
        ignore_files: glob patterns of files that are no images, such as ('*_mask.*', 'thumbnails/*'); each is
            compared with a file's name and with its path below the data folder, in any case of letters. Rows
            of a table that name one are left out too.
        mask_like_files: 'error' stops where files look like masks of others: names such as 1_mask.png beside
            1.png, or 1.png beside 1.bmp, with few grey levels or hardly any but black and white; folders
            called masks. 'keep' takes them for images.
        cache: 'auto' keeps decoded images in memory where all fit in `cache_gb`, 'memory' as many as fit, ''
            none. Not with crop='random'.
    Raises:
        ValueError: for all faults of the structure at once; `preflight` finds those inside image files.
    """

    MAY_HOLD_MASKS = True  # whether its images may be mixed with masks unnoticed

    def __init__(self, path, resolution, channels=3, split="", *, holdout=0.0, holdout_seed=0, crop="center",
                 random_flip=False, random_vflip=False, label_column="label", text_column="text",
                 mask_column="mask_file_name", split_column="split", group_column="", weight_column=weights.COLUMN,
                 classes=(), drop_classes=(), min_per_class=1, require=(), missing_captions="error",
                 doubled_files="error", unlisted_files="warn", mask_max=255, mask_values=(), mask_names=(), window=(),
                 upscale=False, follow_links=False, ignore_files=(), mask_like_files="error", cache="auto",
                 cache_gb=1.0):
        check_options(resolution, channels, crop, window, cache)
        MaskCode(mask_values, mask_max, mask_names)  # its faults are told before a file is looked for
        _check_choice(holdout, split, require, missing_captions)
        one_of("doubled_files", doubled_files, ("error", "keep"))
        one_of("unlisted_files", unlisted_files, ("warn", "error", "ignore"))
        one_of("mask_like_files", mask_like_files, ("error", "keep"))
        self.ignore_files = (ignore_files,) if isinstance(ignore_files, str) else tuple(ignore_files)
        columns = Columns(label_column, text_column, mask_column, split_column, group_column, weight_column)
        found = self._find(path, columns, follow_links)
        path = str(path)
        _look_for_unlisted(found, unlisted_files, path)
        asked = tuple(what for what in require if not (what == "text" and missing_captions == "skip"))
        if found.problems:  # what is wrong with the rows is said together with what is wrong with the files
            if mask_like_files == "error" and self.MAY_HOLD_MASKS:
                drop = set(drop_classes)
                rows = [row for row in found.rows if row.label not in drop]
                _refuse_masks(found, rows, found.folders - drop, path)
            fail(path, found.problems + (_faults_of_rows(found.rows, found, asked, columns, doubled_files) if found.rows else []))
        _one_spelling(found, path)
        class_names, every_row = _classes(found, list(classes), set(drop_classes), path)
        if mask_like_files == "error" and self.MAY_HOLD_MASKS:
            _refuse_masks(found, every_row, set(class_names) & found.folders, path)
        rows = _rows_of_split(found, every_row, split, holdout, holdout_seed, columns, path)
        self.split_sizes = dict(Counter(row.split for row in every_row if row.split))
        if missing_captions == "skip" and "text" in found.fields:
            rows = official.described(rows, path, "skip")
        fail(path, _faults_of_rows(rows, found, require, columns, doubled_files) + _no_weight(rows, weight_column, split)
             + _small_classes(rows, class_names, min_per_class, split))
        if doubled_files == "keep" and (doubled := official.doubles(rows)):
            log.warning("%s: %d rows name a file that another row names, and each counts as an image: %s", path, len(doubled),
                        _listed(doubled))
        if mask_values and "mask" not in found.fields:
            raise ValueError(f"{path}: mask_values={tuple(mask_values)}, but the data have no masks (a table names them in the "
                             f"column {mask_column!r}; data set 'image_mask' finds them beside the images)")
        self.rows = [{"file_name": r.name, "label": r.label, "text": r.text, "split": r.split,
                      "group": r.group, **r.extra} for r in rows] if found.table else []
        super().__init__(found.root, rows, resolution, channels, name=found.root.resolve().name,
                         classes=class_names, texts="text" in found.fields, masks="mask" in found.fields,
                         crop=crop,
                         random_flip=random_flip, random_vflip=random_vflip, mask_max=mask_max,
                         mask_values=mask_values, mask_names=mask_names, window=window, upscale=upscale,
                         cache=cache, cache_gb=cache_gb)
        weights.tell(f"{path}{f', split {split!r}' if split else ''}", self.weights)

    def _find(self, path, columns, follow_links):
        """What the data hold, as `scan.Found`; data sets of another structure override this."""
        return look(path, columns, follow_links=follow_links, ignore_files=self.ignore_files)


def _check_choice(holdout, split, require, missing_captions):
    one_of("missing_captions", missing_captions, ("error", "skip"))
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout!r}: expected a share in [0, 1)")
    if holdout and split not in ("train", "val"):
        raise ValueError(f"holdout={holdout} with split={split!r}: expected split='train' or 'val': "
                         "set split='train'")
    for what in require:
        one_of("require", what, ("label", "text", "mask"))


def _classes(found, classes, drop, path):
    """(class names in label order, the rows whose class is kept); both over all splits."""
    if "label" not in found.fields:
        if classes or drop:
            raise ValueError(f"{path}: classes={tuple(classes)}, drop_classes={tuple(drop)}, but the "
                             "data are unlabelled")
        return [], found.rows
    problems = _one_name_each(found, classes)
    there = {row.label for row in found.rows} | found.folders
    drop = {names.match(name, there) for name in drop}
    problems += [f"drop_classes: no class {name!r}{did_you_mean(name, there)}"
                 for name in sorted(drop - there - set(classes))]
    rows = [row for row in found.rows if row.label not in drop]
    problems += _missing_labels(found, rows, set(classes))
    if not classes:
        classes = sorted(there - drop, key=natural)
        cases = defaultdict(dict)
        for name in classes:
            cases[names.visible(name).lower()][names.visible(name)] = name
        problems += [f"classes {list(alike.values())} differ only in case" for alike in cases.values()
                     if len(alike) > 1]
    elif len(set(classes)) < len(classes):
        problems.append(f"classes={tuple(classes)}: one occurs twice")
    classes = [name for name in classes if name not in drop]
    known, shown = set(classes), classes if len(classes) <= 20 else f"the {len(classes)} given"
    problems += [f"{row.where}: class {row.label!r} is not among {shown}{did_you_mean(row.label, classes)}"
                 for row in rows if row.label not in known]
    fail(path, problems)
    for alike in names.equal_numbers(classes):
        log.warning("%s: the classes %s are one number, as spreadsheets rewrite them: are they one class?",
                    path, " and ".join(alike))
    return classes, rows


def _one_name_each(found, classes):
    """Give each class one name, where the splits spell it in ways that look equal; what a single split spells
    so, as sentences.

    A name of `classes` counts as it is.
    """
    problems, new = [], {}
    folded = {}
    for alike in names.spellings([row.label for row in found.rows] + sorted(found.folders)).values():
        unsure = [name for name in alike if name not in classes]
        target = [name for name in classes if names.visible(name) == names.visible(alike[0])]
        splits = Counter(split for name in alike
                         for split in {row.split for row in found.rows if row.label == name})
        if len(target) == 1:
            new |= dict.fromkeys(unsure, target[0])
        elif unsure and (max(splits.values(), default=0) > 1
                         or found.folders.issuperset(alike) and not splits):
            problems.append(f"classes {' and '.join(map(names.escaped, alike))} look equal and are not: give "
                            "them one name, or names that a person can tell apart")
        elif unsure:
            first = next((name for name in alike if name == unicodedata.normalize("NFC", name)), alike[0])
            new |= {name: first for name in alike if name != first}
            folded[first] = alike
    for name in {row.label for row in found.rows} | found.folders:
        if name not in new and name not in classes and names.match(name, classes) != name:
            new[name] = names.match(name, classes)
    for row in found.rows:
        row.label = new.get(row.label, row.label)
    found.folders = {new.get(name, name) for name in found.folders}
    for first, alike in folded.items():
        log.warning("%s: the splits spell a class in ways that look equal, %s: one class, %r", found.root,
                    " and ".join(map(names.escaped, alike)), first)
    return problems


def _missing_labels(found, rows, classes):
    """Labels that programs write where a value is missing, such as 'nan', unless `classes` names them; as
    sentences."""
    lines = defaultdict(list)
    for row in rows:
        if row.label and tables.is_missing(row.label) and row.label not in classes and (
                found.table or row.label.lower() == "nan"):
            lines[row.label].append(row.where)
    others = sorted({row.label for row in rows} - set(lines), key=natural)
    return [f"label {label!r} of {len(where)} image{'s' * (len(where) > 1)} ({_listed(where, 10)}) is what "
            "programs write where a value is missing: write the labels; or leave the images out, "
            f"--config.dataset.drop_classes=\"({label!r},)\"; or name the classes if one is "
            f"really called so, --config.dataset.classes=\"{(label, *others)!r}\""
            for label, where in lines.items()]


def _refuse_masks(found, rows, folders, path):
    """ValueError where files of a split look like masks of its other files; a warning where that are few."""
    for split in dict.fromkeys(row.split for row in rows):
        files = [row.name for row in rows if row.split == split]
        fault, warning = check_masks(files, found.root, folders, path=path, table=found.table)
        if fault:
            raise ValueError(f"{path}{f', split {split!r}' if split else ''}: {fault}")
        if warning:
            log.warning("%s: %s", path, warning)


def _one_spelling(found, path):
    """Give each group (patient) and split one name where spellings look equal, and tell of names that may be
    meant to be one."""
    for what in ("group", "split"):
        alike = names.spellings(getattr(row, what) for row in found.rows if getattr(row, what))
        first = {name: each[0] for each in alike.values() for name in each}
        if what == "split":  # those that have a meaning are called as it is spelled
            plain = {row.split: names.visible(row.split) for row in found.rows}
            first |= {name: seen for name, seen in plain.items() if seen.lower() in SPLITS}
        for row in found.rows:
            setattr(row, what, first.get(getattr(row, what), getattr(row, what)))
        if alike:
            log.warning("%s: %d %ss are spelled in ways that look equal, such as %s, and each is one",
                        path, len(alike), what,
                        " and ".join(map(names.escaped, next(iter(alike.values())))))
    groups = {row.group for row in found.rows} - {""}
    cases = defaultdict(set)
    for name in groups:
        cases[name.lower()].add(name)
    unsure = [*names.equal_numbers(sorted(groups)),
              *(sorted(each) for each in cases.values() if len(each) > 1)]
    if unsure:
        log.warning("%s: %d groups (patients) have names that may mean one, such as %s, and count as "
                    "several: write each in one way", path, len(unsure),
                    " and ".join(map(names.escaped, unsure[0])))


def _rows_of_split(found, rows, split, holdout, holdout_seed, columns, path):
    """The rows of one split, in the order of the data."""
    problems = []
    problems += [f"{what}_column={name!r} needs a metadata table; these are class folders"
                 for what, name, default in (("group", columns.group, ""), ("weight", columns.weight, weights.COLUMN))
                 if name not in ("", default) and not found.table]
    if holdout and any(row.split == "val" for row in rows):
        problems.append(f"holdout={holdout}, but the data have a split 'val' of their own: set holdout=0")
    fail(path, problems)
    problems = leaks(rows) if "split" in found.fields else []
    if holdout:
        hold_out(rows, holdout, holdout_seed)
    chosen, fault = choose(rows, split)
    if fault and holdout and split == "val":
        fault = advise_holdout(rows, holdout, holdout_seed)
    fail(path, problems + ([fault] if fault else []))
    return chosen


def _look_for_unlisted(found, unlisted_files, path):
    """Tell of images beside a table that no row names: in the log, or as a problem of `found`."""
    files = unlisted(found) if found.table and unlisted_files != "ignore" else []
    # beside faults of the table it would be noise
    if files and not (unlisted_files == "warn" and found.problems):
        said = f"{len(files)} image{'s' * (len(files) > 1)} in the folder without a row: {_listed(files)}"
        rows = [row.name for row in found.rows]
        masks = masks_among(files, rows, found.root) if unlisted_files == "warn" else []
        if masks:
            said += (f"; {len(masks)} of them look like masks of images with a row, such as {masks[0]}: a "
                     "column mask_file_name would pair them")
        if unlisted_files == "error":
            found.problems.append(f"{said}; add rows, take the files away, or set unlisted_files='warn' to leave them out")
        else:
            log.warning("%s: %s; left out (unlisted_files='ignore' says nothing)", path, said)


def _faults_of_rows(rows, found, require, columns, doubled_files):
    """What is wrong with the rows: what they lack of `require`, files that occur twice."""
    lacking = [what for what in require if what not in found.fields]
    others = tuple(what for what in require if what not in lacking)
    problems = [f"no {what} in the data, but require={tuple(require)}{_lacking(what, found, columns)}"
                + (f". Where none is needed, set require={others}" if what == "label" else "")
                for what in lacking]
    if "text" in require and "text" in found.fields:
        problems += [f"{row.where}: text is empty (missing_captions='skip' leaves it out)"
                     for row in rows if not row.text.strip()]
    first, labels = {}, []
    for row in rows:
        before = first.setdefault(row.name, row)
        if before.label != row.label:
            labels.append(f"{row.where}: {row.name} is {row.label!r} here and {before.label!r} in {before.where}")
    if doubled_files == "error" and found.table and not labels:
        problems += [f"{double}: keep one of them, or set doubled_files='keep'" for double in official.doubles(rows)]
    return problems + labels


def _no_weight(rows, column, split):
    """Whether the images all weigh nothing, as sentences."""
    found = weights.of_rows(rows)
    return [f"every {column} is 0{f' in split {split!r}' if split else ''}, so that a training would learn nothing: "
            f"{weights.NONE_MEANT}"] if found is not None and not found.any() else []


def _lacking(what, found, columns):
    """Which column of the table would hold what is missing."""
    column = getattr(columns, what)
    if not found.table or not column or column in found.columns:
        return ""
    near = [name for name in found.columns if name.strip().lower() in SYNONYMS.get(what, ())]
    hint = f"; did you mean {what}_column={near[0]!r}?" if near else did_you_mean(column, found.columns)
    return f": the table has no column {column!r}, only {found.columns}{hint}"


def _listed(files, shown=5):
    return ", ".join(files[:shown]) + (f" and {len(files) - shown} more" if len(files) > shown else "")


def _small_classes(rows, classes, min_per_class, split):
    """Classes that have fewer images than they need, as sentences."""
    count = Counter(row.label for row in rows)
    return [f'class {name!r} has {count[name]} images{f" in split {split!r}" if split else ""}, '
                 f'{min_per_class} needed: add images, leave it out by drop_classes=({name!r},), or set '
                 f'min_per_class={count[name]}' for name in classes if count[name] < min_per_class]
