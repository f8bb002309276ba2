"""What a data folder holds: tables or class folders, at once or below train/, val/, test/."""

import fnmatch
import logging
import os
import posixpath
import re
import shlex
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from libs import names

from .base import did_you_mean, fail
from .paths import LINK, Inside, natural
from .reading import EXTENSIONS
from .table import Row, table_rows
from .table import read as read_table

log = logging.getLogger(__name__)
TABLES = ("metadata.csv", "metadata.jsonl")
SPLITS = ("train", "val", "valid", "validation", "test")
UNREADABLE = (".gif", ".webp", ".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha", ".jp2", ".heic", ".svs",
              ".npy")
OTHER_IMAGES = (*UNREADABLE, ".heif", ".avif", ".j2k", ".jpx", ".tga", ".psd", ".mhd", ".czi", ".ndpi",
                ".mrxs", ".scn", ".mgz", ".img", ".ima", ".exr", ".pcx", ".sgi", ".ras", ".xcf", ".svg",
                ".raw", ".dng")
IMAGES = (*EXTENSIONS, *OTHER_IMAGES)
# what commonly lies beside images and is none
BY_FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".db", ".md", ".html", ".htm", ".pdf",
            ".ini", ".yaml", ".yml", ".log", ".xlsx", ".xls", ".ods", ".parquet", ".csv.gz", ".doc",
            ".docx", ".rtf", ".bib", ".url", ".lnk", ".py", ".ipynb", ".sh", ".m", ".sha256", ".md5",
            ".sqlite", ".cfg", ".toml", ".rst")
BY_NAMES = ("readme", "license", "licence", "copying", "citation", "makefile", "authors", "notice",
            "changelog", "md5sums", "sha256sums")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".npz", ".h5", ".hdf5", ".mat",
            ".pkl", ".tfrecord", ".lmdb", ".zst")
OTHER_TABLES = (".csv", ".tsv", ".jsonl", ".xlsx", ".xls", ".ods", ".parquet", ".csv.gz")
JSON_TABLES = re.compile(r"(meta|label|caption|annot|prompt)[^/]*\.json$")
SNIFFED_FILES = 50  # of those that are passed over, whose first bytes are read


@dataclass(slots=True)
class Found:
    """All rows of a data set, of every split; `fields`: what they have of label, text, mask, split, group.

    problems: every fault of the structure, as sentences; the rows are then those that could be read.
    """

    root: Path
    rows: list
    fields: set
    folders: set  # class folders, empty ones included
    table: bool
    columns: list = field(default_factory=list)  # of the tables
    problems: list = field(default_factory=list)
    ignore_files: tuple = ()  # patterns of files that are no images


@dataclass(slots=True)
class Walk:
    """What is met on the way through the folders of a data set.

    Attributes:
        inside: `paths.Inside` of the data folder.
        problems: faults of the structure, as sentences.
        classes: names of class folders.
        ignore_files: patterns of files that are no images, see `is_ignored`.
        passed: names of files that are neither images nor common by-files.
        by_files: names of tables, texts and the like.
        ignored: names of files that a pattern leaves out.
    """

    inside: Inside
    problems: list
    classes: set
    ignore_files: tuple = ()
    passed: list = field(default_factory=list)
    by_files: list = field(default_factory=list)
    ignored: list = field(default_factory=list)


def find(path, columns, **options):
    """`look`, with a ValueError for every fault of the structure."""
    found = look(path, columns, **options)
    fail(str(path), found.problems)
    return found


def look(path, columns, *, follow_links=False, read=None, ignore_files=(),
         path_option="--config.dataset.path"):
    """Read the structure of a data set; its faults are in `Found.problems`.

    Args:
        path: a folder with a metadata table, a folder of class folders or of loose images, either of them
            below train/, val/, test/; or a metadata table.
        columns: `table.Columns`; for class folders label='' says that folders are no classes.
        follow_links: whether links may lead out of the folder.
        read: in place of `folder_rows`, with its arguments; then there are folders alone, and no tables.
        ignore_files: patterns of files that are no images, see `is_ignored`.
        path_option: the option of the command line that `path` comes from, for messages.
    Returns:
        Found.
    Raises:
        ValueError: there is nothing at `path` that could be read.
    """
    if not str(path):
        raise ValueError("path is empty: give the folder of the images, --config.dataset.path=/path/to/images")
    path = Path(path).expanduser()
    if path.is_file() and not read:
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError(f"{path}: expected a folder of images, a .csv or a .jsonl file")
        root, parts = path.parent, [("", path)]
    elif path.is_dir():
        root, parts = path, _parts(path, _table_in if read is None else lambda folder: None)
    else:
        raise ValueError(f"{path}: no such folder or file (looked from {Path.cwd()}){_nearest(path)}")
    inside, problems = Inside(root, follow_links, anywhere=columns.loose), []
    is_table, have = any(part.is_file() for _, part in parts), {}
    found = Found(root, [], set(), set(), is_table, ignore_files=tuple(ignore_files))
    walk = Walk(inside, problems, found.folders, found.ignore_files)
    for split, part in parts:
        prefix = f"{split}/" if split else ""
        if split and inside.escapes(os.fspath(root / split)):
            problems.append(f"{split} {LINK}")
        if part.is_file():
            rows, fields, header = table_rows(part, prefix, columns, inside, problems)
            found.columns += [name for name in header if name not in found.columns]
        else:
            rows, fields = (read or folder_rows)(part, prefix, columns, walk)
        if part.is_file():
            walk.ignored += [row.name for row in rows if is_ignored(row.name, walk.ignore_files)]
            rows = [row for row in rows if not is_ignored(row.name, walk.ignore_files)]
        for row in rows:
            row.split = names.visible(split) or row.split
        found.rows += rows
        found.fields |= fields | ({"split"} if split else set())
        have[split] = sorted(fields - {"split"})
    if len({tuple(fields) for fields in have.values()}) > 1:
        problems.append(f"the splits have different columns: {have}; make them alike, or "
                        "give the path of one split")
    passed = describe_passed(root, walk.passed)
    if not found.rows and not problems:
        problems.append(f'no images: expected {", ".join(EXTENSIONS)} in class folders, or one of {TABLES}'
                        f'{f"; {passed}" if passed else ""}')
    elif passed:
        log.warning("%s: %s", path, passed)
    if not found.table:
        _log_other_tables(root, parts, walk, found, path_option)
    if walk.ignore_files and not walk.ignored and not problems and not found.table:
        log.warning("%s: no file is called as ignore_files=%s says", path, walk.ignore_files)
    found.problems = problems
    return found


def is_ignored(name, patterns):
    """Whether one of the glob `patterns` fits a file's name or its path below the data folder, in any case of
    letters."""
    name = unicodedata.normalize("NFC", name).lower()
    return any(fnmatch.fnmatchcase(each, unicodedata.normalize("NFC", pattern).lower())
               for pattern in patterns for each in (name, posixpath.basename(name)))


def describe_passed(root, files):
    """Which files are passed over, by extension, with an example each, in a sentence; '' for none."""
    if not files:
        return ""
    by_extension = defaultdict(list)
    for name in files:
        extension = "folders of images" if name.endswith("/") else PurePosixPath(name).suffix.lower()
        by_extension[extension].append(name)
    shown = []
    for extension, of in sorted(by_extension.items(), key=lambda item: -len(item[1])):
        note = ", an archive: unpack it" if extension in ARCHIVES else ""
        shown.append(f"{len(of)} {extension or 'without extension'} ({min(of, key=natural)}{note})")
    first = sorted(files, key=natural)[:SNIFFED_FILES]
    kinds = {name: kind for name in first if (kind := _content(root / name))}
    text = (f"{len(files)} file{'s' * (len(files) > 1)} passed over, with names of no image that is read: "
            f"{', '.join(shown[:8])}{' ...' * (len(shown) > 8)}")
    for name, kind in list(kinds.items())[:1]:
        advice = f"{kind} is not read: convert it to .png"
        if kind in EXTENSIONS:
            advice = f"rename it to {PurePosixPath(name).stem}{kind}"
        text += f"; {len(kinds)} of them hold{'s' * (len(kinds) == 1)} an image, such as {name}: {advice}"
    return text


def _content(path):
    """The extension that the first bytes of a file ask for, '' where they are of no image."""
    try:
        with open(path, "rb") as file:
            begin = file.read(132)
    except OSError:
        return ""
    kinds = ((b"\x89PNG\r\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"),
             (b"GIF8", "GIF"))
    found = next((kind for magic, kind in kinds if begin.startswith(magic)), "")
    if begin[:2] == b"BM" and len(begin) > 30 and begin[6:10] == b"\0\0\0\0":
        return ".bmp"
    if begin[128:132] == b"DICM":
        return "DICOM"
    return found or ("WebP" if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP" else "")


def _log_other_tables(root, parts, walk, found, path_option):
    """Mention tables and texts beside images that are not read, and how they would be."""
    places = {root: ""} | {root / split: f"{split}/" for split, _ in parts if split}
    beside = {before + entry.name for place, before in places.items() for entry in visible(place)
              if entry.is_file()}
    files = sorted({*walk.by_files, *beside}, key=natural)
    others = [name for name in files
              if (name.lower().endswith(OTHER_TABLES) or JSON_TABLES.search(name.lower()))
              and not is_ignored(name, walk.ignore_files)]
    if others:
        readable = [name for name in others if name.lower().endswith((".csv", ".jsonl"))]
        first = (readable or others)[0]
        instead = "the images have no labels and no texts"
        if "label" in found.fields:
            instead = "folder names are the labels"
        if readable:
            name = "--config.dataset.name=folder " if path_option == "--config.dataset.path" else ""
            option = f"{name}{path_option}={shlex.quote(str(root / first))}"
            header = read_table(root / first, [])[0]
            if header and "file_name" not in header:
                advice = f"call its column of file names file_name (it has {header}), then {option} reads it"
            else:
                rename = f", or rename it metadata{PurePosixPath(first).suffix.lower()}"
                advice = f"{option} reads it{rename * (PurePosixPath(first).name not in TABLES)}"
        else:
            advice = "save it as CSV in UTF-8 under the name metadata.csv, with a column file_name"
        log.warning("%s: %s %s not read, and %s: %s", root, text_of(others),
                    "are" if len(others) > 1 else "is", instead,
                    advice if len(others) == 1 else f"{advice} (of {first})")
    stems = {row.name.rsplit(".", 1)[0] for row in found.rows}
    texts = [name for name in files
             if name.lower().endswith((".txt", ".caption")) and name.rsplit(".", 1)[0] in stems]
    if texts:
        log.warning("%s: %d .txt file%s with the name of an image, such as %s, %s not read: captions stand "
                    "in a table metadata.csv with the columns file_name,text", root, len(texts),
                    "s" * (len(texts) > 1), texts[0], "are" if len(texts) > 1 else "is")


def text_of(files, shown=5):
    """'a, b and 3 more'."""
    return ", ".join(files[:shown]) + (f" and {len(files) - shown} more" if len(files) > shown else "")


def unlisted(found):
    """Names of the images, of formats that are read or not, beside or below the tables of `found` that no row
    of them names, as image, mask or in any column."""
    known = {name for row in found.rows for name in (row.name, row.mask)}
    for row in found.rows:
        known |= {posixpath.normpath(posixpath.join(posixpath.dirname(row.where), value)) for value in row.extra.values()
                  if isinstance(value, str) and value.lower().endswith(IMAGES)}
    images = []
    for place, folders, files in os.walk(found.root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        below = os.path.relpath(place, found.root).replace(os.sep, "/")
        images += [posixpath.normpath(f"{below}/{name}") for name in files
                   if name.lower().endswith(IMAGES) and not name.startswith(".")
                   and not name.lower().endswith(".npy")]  # beside a table: arrays of a feature store, rather
    return sorted((name for name in set(images) - known if not is_ignored(name, found.ignore_files)),
                  key=natural)


def _parts(path, table_in):
    """[(split, table or folder)] of a data folder."""
    table = table_in(path)
    if table:
        return [("", table)]
    folders = [f for f in visible(path) if f.is_dir()]
    splits = [f for f in folders if names.visible(f.name).lower() in SPLITS]
    others = [f.name for f in folders if f not in splits and holds_images(f)]
    if splits and others:
        alone = len(splits) == 1 and all("mask" in name.lower() for name in others)
        advice = f"; to train without these masks: --config.dataset.path={splits[0]}" if alone else ""
        raise ValueError(f"{path}: {[f.name for f in splits]} look like splits and {others} like classes: "
                         f"put the classes below the splits{advice}")
    return [(f.name, table_in(f) or f) for f in splits] or [("", path)]


def _table_in(folder):
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f'{folder} holds {" and ".join(TABLES)}: keep one, or give its path')
    return tables[0] if tables else None


def visible(folder):
    """What lies in a folder, hidden files aside, in natural order."""
    return sorted((f for f in folder.iterdir() if not f.name.startswith((".", "__MACOSX"))),
                  key=lambda f: natural(f.name))


def holds_images(folder):
    """Whether an image lies in a folder or below it."""
    return any(name.lower().endswith(EXTENSIONS) for _, _, files in os.walk(folder) for name in files)


def _nearest(path):
    try:
        return did_you_mean(path.name, [f.name for f in path.parent.iterdir()])
    except OSError:
        return ""


def folder_rows(folder, prefix, columns, walk):
    """(rows, fields) of the images below `folder`; the class is the first folder on the way to an image."""
    rows = [Row(name, name) for name in images_in(folder, prefix, walk, deep=False)]
    loose, classes = len(rows), walk.classes
    for entry in visible(folder):
        if entry.is_dir() and not (entry.is_symlink() and not walk.inside.follow_links):
            before = len(walk.ignored)
            images = images_in(entry, f"{prefix}{entry.name}/", walk)
            rows += [Row(name, name, label=entry.name if columns.label else "") for name in images]
            # a folder of ignored files is no class
            if columns.label and (images or len(walk.ignored) == before):
                classes.add(entry.name)
    if not columns.label or len(rows) == loose and not classes:
        return rows, set()
    if loose:
        walk.problems.append(f"{loose} images beside the class folders ({rows[0].name} ...): move them into "
                             "a class, or set label_column='' for no classes")
    return rows, {"label"}


def images_in(folder, prefix, walk, deep=True):
    """Names of the images in a folder (deep: and below it), sorted; what else is met goes to `walk`."""
    inside, problems, queue, seen = walk.inside, walk.problems, [(os.fspath(folder), prefix)], set()
    images = []
    while queue:
        place, before = queue.pop()
        if inside.follow_links and (real := os.path.realpath(place)) in seen:  # links may lead in a circle
            continue
        elif inside.follow_links:
            seen.add(real)
        with os.scandir(place) as entries:
            for entry in entries:
                name = before + entry.name
                if entry.name.startswith("."):
                    continue
                lower = entry.name.lower()
                if entry.is_symlink() and (inside.escapes(entry.path)
                                           or entry.is_dir() and not inside.follow_links):
                    problems.append(f"{name} {LINK}" if inside.escapes(entry.path) else
                                    f"{name} is a link to a folder: copy it, or set follow_links=True")
                elif entry.is_dir():
                    if deep and not entry.name.startswith("__MACOSX"):
                        queue.append((entry.path, name + "/"))
                elif walk.ignore_files and is_ignored(name, walk.ignore_files):
                    walk.ignored.append(name)
                elif lower.endswith(UNREADABLE):
                    problems.append(f'{name}: a format that is not read: convert it to '
                                    f'{", ".join(EXTENSIONS[:6])}')
                elif lower.endswith(EXTENSIONS):
                    images.append(name)
                    if not entry.is_file():
                        problems.append(f"{name} is not a file")
                elif lower.endswith(BY_FILES) or lower in BY_NAMES:
                    walk.by_files.append(name)
                else:
                    walk.passed.append(name)
    return sorted(images)
