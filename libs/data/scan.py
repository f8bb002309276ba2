"""What a data folder holds: tables or class folders, at once or below train/, val/, test/."""

import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from .base import did_you_mean, fail
from .paths import LINK, Inside, natural
from .reading import EXTENSIONS
from .table import Row, table_rows

TABLES = ("metadata.csv", "metadata.jsonl")
SPLITS = ("train", "val", "valid", "validation", "test")
UNREADABLE = (".gif", ".webp", ".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha", ".jp2", ".heic", ".svs",
              ".npy")


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


def find(path, columns, *, follow_links=False):
    """`look`, with a ValueError for every fault of the structure."""
    found = look(path, columns, follow_links=follow_links)
    fail(str(path), found.problems)
    return found


def look(path, columns, *, follow_links=False, read=None):
    """Read the structure of a data set; its faults are in `Found.problems`.

    Args:
        path: a folder with a metadata table, a folder of class folders or of loose images, either of them
            below train/, val/, test/; or a metadata table.
        columns: `table.Columns`; for class folders label='' says that folders are no classes.
        follow_links: whether links may lead out of the folder.
        read: in place of `folder_rows`, with its arguments; then there are folders alone, and no tables.
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
    found, have = Found(root, [], set(), set(), any(part.is_file() for _, part in parts)), {}
    for split, part in parts:
        prefix = f"{split}/" if split else ""
        if split and inside.escapes(os.fspath(root / split)):
            problems.append(f"{split} {LINK}")
        if part.is_file():
            rows, fields, header = table_rows(part, prefix, columns, inside, problems)
            found.columns += [name for name in header if name not in found.columns]
        else:
            rows, fields = (read or folder_rows)(part, prefix, columns, inside, problems, found.folders)
        for row in rows:
            row.split = split or row.split
        found.rows += rows
        found.fields |= fields | ({"split"} if split else set())
        have[split] = sorted(fields - {"split"})
    if len({tuple(fields) for fields in have.values()}) > 1:
        problems.append(f"the splits have different columns: {have}; make them alike, or "
                        "give the path of one split")
    if not found.rows and not problems:
        problems.append(f'no images: expected {", ".join(EXTENSIONS)} in class folders, or one of {TABLES}')
    found.problems = problems
    return found


def unlisted(found):
    """Names of the images beside or below the tables of `found` that no row of them names, as image, mask or in any column."""
    known = {name for row in found.rows for name in (row.name, row.mask)}
    for row in found.rows:
        known |= {posixpath.normpath(posixpath.join(posixpath.dirname(row.where), value)) for value in row.extra.values()
                  if isinstance(value, str) and value.lower().endswith(EXTENSIONS)}
    names = []
    for place, folders, files in os.walk(found.root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        below = os.path.relpath(place, found.root).replace(os.sep, "/")
        names += [posixpath.normpath(f"{below}/{name}") for name in files
                  if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
    return sorted(set(names) - known, key=natural)


def _parts(path, table_in):
    """[(split, table or folder)] of a data folder."""
    table = table_in(path)
    if table:
        return [("", table)]
    folders = [f for f in visible(path) if f.is_dir()]
    splits = [f for f in folders if f.name.lower() in SPLITS]
    others = [f.name for f in folders if f not in splits and holds_images(f)]
    if splits and others:
        raise ValueError(f"{path}: {[f.name for f in splits]} look like splits and {others} like classes: "
                         "put the classes below the splits")
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
    return any(name.lower().endswith(EXTENSIONS) for _, _, names in os.walk(folder) for name in names)


def _nearest(path):
    try:
        return did_you_mean(path.name, [f.name for f in path.parent.iterdir()])
    except OSError:
        return ""


def folder_rows(folder, prefix, columns, inside, problems, classes):
    """(rows, fields) of the images below `folder`; the class is the first folder on the way to an image."""
    rows = [Row(name, name) for name in images_in(folder, prefix, inside, problems, deep=False)]
    loose = len(rows)
    for entry in visible(folder):
        if entry.is_dir() and not (entry.is_symlink() and not inside.follow_links):
            names = images_in(entry, f"{prefix}{entry.name}/", inside, problems)
            rows += [Row(name, name, label=entry.name if columns.label else "") for name in names]
            classes |= {entry.name} if columns.label else set()
    if not columns.label or len(rows) == loose and not classes:
        return rows, set()
    if loose:
        problems.append(f"{loose} images beside the class folders ({rows[0].name} ...): move them into a "
                        "class, or set label_column='' for no classes")
    return rows, {"label"}


def images_in(folder, prefix, inside, problems, deep=True):
    """Names of the images in a folder (deep: and below it), sorted."""
    names, queue, seen = [], [(os.fspath(folder), prefix)], set()
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
                if entry.is_symlink() and (inside.escapes(entry.path)
                                           or entry.is_dir() and not inside.follow_links):
                    problems.append(f"{name} {LINK}" if inside.escapes(entry.path) else
                                    f"{name} is a link to a folder: copy it, or set follow_links=True")
                elif entry.is_dir():
                    queue += [(entry.path, name + "/")] if deep else []
                elif entry.name.lower().endswith(UNREADABLE):
                    problems.append(f'{name}: a format that is not read: convert it to '
                                    f'{", ".join(EXTENSIONS)}')
                elif entry.name.lower().endswith(EXTENSIONS):
                    names.append(name)
                    if not entry.is_file():
                        problems.append(f"{name} is not a file")
    return sorted(names)
