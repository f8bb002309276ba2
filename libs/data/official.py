"""What the official releases of data sets share: tables with line numbers, files in known folders, texts beside them."""

import logging
import os
from collections import Counter
from pathlib import Path

from libs.names import visible
from libs.tables import is_missing

from .base import fail, one_of
from .split import choose
from .table import read

log = logging.getLogger(__name__)


def there(root, what, source, *names):
    """The first of `names` that is below `root`; ValueError that says where to get `what`."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise ValueError(f"{root}: no {names[0]}; expected {what} as unpacked from {source}")


def compare(name, what, count, published):
    """Log where the number of images is not the published one."""
    if count != published:
        log.warning("%s: %s %s; the published set has %s", name, f"{count:,}", what, f"{published:,}")


def records(table, needed):
    """[('table:line', {column: value})] of a .csv or .jsonl file that has the columns `needed`."""
    problems = []
    header, found = read(table, problems)
    missing = [column for column in needed if column not in header]
    if missing and not problems:
        problems.append(f"{table.name}:1: no column {', '.join(missing)}; expected {', '.join(needed)}, found "
                        f"{', '.join(header)}")
    fail(str(table), problems)
    return [(f"{table.name}:{line}", record) for line, record in found]


def doubles(rows):
    """Files that two rows name, as sentences."""
    first = {}
    return [f"{row.where}: {row.name} is in {before.where} already" for row in rows
            if (before := first.setdefault(row.name, row)) is not row]


def of_split(root, rows, split):
    """The rows of one split, '' being all of them; ValueError where there are none."""
    chosen, fault = choose(rows, split)
    if fault:
        raise ValueError(f"{root}: {fault}{'; holdout=0.1 makes one' if split == 'val' else ''}")
    return chosen


def of_classes(name, rows, asked, known):
    """(rows of the classes `asked` for, their names in label order); () asks for all that are `known`."""
    classes = [one_of(f"{name} class", each, known) for each in asked] or list(known)
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes={tuple(classes)}: one occurs twice")
    others = Counter(row.label for row in rows if row.label not in classes)
    if others:
        log.info("%s: left out %s", name, ", ".join(f"{count:,} images of {label}" for label, count in others.items()))
    rows = [row for row in rows if row.label in classes]
    if not rows:
        raise ValueError(f"{name}: no image of the classes {', '.join(classes)}")
    return rows, classes


def locate(root, rows, folders):
    """Turn the rows' file names into paths below `root`; the first folder that has a file counts."""
    paths = {}
    for folder in folders:
        for name in os.listdir(folder):
            paths.setdefault(name, f"{folder.relative_to(root).as_posix()}/{name}")
    where = ", ".join(folder.relative_to(root).as_posix() for folder in folders[:3]) or "images/"
    fail(str(root), [f"{row.where}: {row.name}: no such file in {where}" for row in rows if row.name not in paths])
    for row in rows:
        row.name = paths[row.name]


def describe(rows, table, missing):
    """The rows with their texts of a caption table; all rows where none is given.

    Args:
        rows: `table.Row`s, already located.
        table: path of a .csv or .jsonl with columns file_name (folders do not count) and text; '' = none.
        missing: 'error', or 'skip' to leave out the rows without a text.
    Raises:
        ValueError: with the number and the first names of the images without a text.
    """
    one_of("missing_captions", missing, ("error", "skip"))
    if not table:
        return rows
    table = Path(table).expanduser()
    if not table.is_file():
        raise ValueError(f"captions={str(table)!r}: no such file; expected a .csv or .jsonl with columns file_name and text")
    texts, problems = {}, []
    for where, record in records(table, ("file_name", "text")):
        name, text = visible(os.path.basename(str(record.get("file_name", "")))), record.get("text") or ""
        if not isinstance(text, str) or name in texts:
            problems.append(f"{where}: {name} {'has a text already' if name in texts else f'has no text but {text!r:.50}'}")
        elif not is_missing(text):
            texts[name] = text
    fail(str(table), problems)
    for row in rows:
        row.text = texts.get(visible(os.path.basename(row.name)), "")
    return described(rows, table, missing)


def described(rows, source, missing):
    """The rows that have a text; ValueError where some have none and `missing` is 'error', and where none has one."""
    without = [os.path.basename(row.name) for row in rows if not row.text.strip()]
    if without:
        found = (f"{source}: no text for {len(without):,} of {len(rows):,} images: {', '.join(without[:5])}"
                 f"{', ...' if len(without) > 5 else ''}")
        if missing == "error" or len(without) == len(rows):
            raise ValueError(f"{found}; describe them, or leave them out by missing_captions='skip'")
        log.warning("%s; left out", found)
    return [row for row in rows if row.text.strip()]
