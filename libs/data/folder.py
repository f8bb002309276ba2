"""One's own images: class folders, or a table of files with labels, texts and masks."""

import logging
from collections import Counter

from . import official, weights
from .base import did_you_mean, fail, one_of
from .files import ImageFiles, check_options
from .masks import MaskCode
from .paths import natural
from .scan import look, unlisted
from .split import choose, hold_out, leaks
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
        window: (low, high) in raw grey levels, shown as black and white; () = the full range of 8 or 16 bits.
        upscale: whether images smaller than `resolution` (by the short side, by the long one with crop='pad') are
            enlarged instead of being a fault.
        follow_links: whether symbolic links may leave the folder.
        cache: 'auto' keeps decoded images in memory where all fit in `cache_gb`, 'memory' as many as fit, ''
            none. Not with crop='random'.
    Raises:
        ValueError: for all faults of the structure at once; `preflight` finds those inside image files.
    """

    def __init__(self, path, resolution, channels=3, split="", *, holdout=0.0, holdout_seed=0, crop="center",
                 random_flip=False, random_vflip=False, label_column="label", text_column="text",
                 mask_column="mask_file_name", split_column="split", group_column="", weight_column=weights.COLUMN,
                 classes=(), drop_classes=(), min_per_class=1, require=(), missing_captions="error",
                 doubled_files="error", unlisted_files="warn", mask_max=255, mask_values=(), mask_names=(), window=(),
                 upscale=False, follow_links=False, cache="auto", cache_gb=1.0):
        check_options(resolution, channels, crop, window, cache)
        MaskCode(mask_values, mask_max, mask_names)  # its faults are told before a file is looked for
        _check_choice(holdout, split, require, missing_captions)
        one_of("doubled_files", doubled_files, ("error", "keep"))
        one_of("unlisted_files", unlisted_files, ("warn", "error", "ignore"))
        columns = Columns(label_column, text_column, mask_column, split_column, group_column, weight_column)
        found = self._find(path, columns, follow_links)
        path = str(path)
        _look_for_unlisted(found, unlisted_files, path)
        asked = tuple(what for what in require if not (what == "text" and missing_captions == "skip"))
        if found.problems:  # what is wrong with the rows is said together with what is wrong with the files
            fail(path, found.problems + (_faults_of_rows(found.rows, found, asked, columns, doubled_files) if found.rows else []))
        names, rows = _classes(found, list(classes), set(drop_classes), path)
        rows = _rows_of_split(found, rows, split, holdout, holdout_seed, columns, path)
        if missing_captions == "skip" and "text" in found.fields:
            rows = official.described(rows, path, "skip")
        fail(path, _faults_of_rows(rows, found, require, columns, doubled_files) + _no_weight(rows, weight_column, split)
             + _small_classes(rows, names, min_per_class, split))
        if doubled_files == "keep" and (doubled := official.doubles(rows)):
            log.warning("%s: %d rows name a file that another row names, and each counts as an image: %s", path, len(doubled),
                        _listed(doubled))
        if mask_values and "mask" not in found.fields:
            raise ValueError(f"{path}: mask_values={tuple(mask_values)}, but the data have no masks (a table names them in the "
                             f"column {mask_column!r}; data set 'image_mask' finds them beside the images)")
        self.rows = [{"file_name": r.name, "label": r.label, "text": r.text, "split": r.split,
                      "group": r.group, **r.extra} for r in rows] if found.table else []
        super().__init__(found.root, rows, resolution, channels, name=found.root.resolve().name,
                         classes=names, texts="text" in found.fields, masks="mask" in found.fields, crop=crop,
                         random_flip=random_flip, random_vflip=random_vflip, mask_max=mask_max,
                         mask_values=mask_values, mask_names=mask_names, window=window, upscale=upscale,
                         cache=cache, cache_gb=cache_gb)
        weights.tell(f"{path}{f', split {split!r}' if split else ''}", self.weights)

    def _find(self, path, columns, follow_links):
        """What the data hold, as `scan.Found`; data sets of another structure override this."""
        return look(path, columns, follow_links=follow_links)


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
    there = {row.label for row in found.rows} | found.folders
    problems = [f"drop_classes: no class {name!r}{did_you_mean(name, there)}"
                for name in sorted(drop - there - set(classes))]
    rows = [row for row in found.rows if row.label not in drop]
    if not classes:
        classes = sorted(there - drop, key=natural)
        doubled = [n for n, k in Counter(name.lower() for name in classes).items() if k > 1]
        problems += [f"classes {[c for c in classes if c.lower() == n]} differ only in case" for n in doubled]
    elif len(set(classes)) < len(classes):
        problems.append(f"classes={tuple(classes)}: one occurs twice")
    classes = [name for name in classes if name not in drop]
    known, shown = set(classes), classes if len(classes) <= 20 else f"the {len(classes)} given"
    problems += [f"{row.where}: class {row.label!r} is not among {shown}{did_you_mean(row.label, classes)}"
                 for row in rows if row.label not in known]
    fail(path, problems)
    return classes, rows


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
    fail(path, problems + ([fault] if fault else []))
    return chosen


def _look_for_unlisted(found, unlisted_files, path):
    """Tell of images beside a table that no row names: in the log, or as a problem of `found`."""
    names = unlisted(found) if found.table and unlisted_files != "ignore" else []
    if names:
        said = f"{len(names)} image{'s' * (len(names) > 1)} in the folder without a row: {_listed(names)}"
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


def _listed(names, shown=5):
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _small_classes(rows, classes, min_per_class, split):
    """Classes that have fewer images than they need, as sentences."""
    count = Counter(row.label for row in rows)
    return [f'class {name!r} has {count[name]} images{f" in split {split!r}" if split else ""}, '
                 f'{min_per_class} needed: add images, leave it out by drop_classes=({name!r},), or set '
                 f'min_per_class={count[name]}' for name in classes if count[name] < min_per_class]
