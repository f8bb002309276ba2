"""Metadata tables: metadata.csv and metadata.jsonl as Hugging Face's ImageFolder has them.

`file_name` relative to the table, `text`, `label`, `mask_file_name` (`mask_name` too), `split`, `weight`, any further
columns.
"""

import csv
import json
import re
from dataclasses import dataclass, field

from . import weights
from .base import did_you_mean

MASK_COLUMNS = ("mask_file_name", "mask_name")
MODALITY_COLUMNS = ("modality", "modal")
BLANKS = re.compile(r'"[ \t]+(?=,|\r?\n?$)')  # after a quote that ends a field


@dataclass(slots=True)
class Row:
    """One image: `name` is its path below the data folder, `where` what a message calls its row; `weight` None: it has none."""

    name: str
    where: str
    label: str = ""
    text: str = ""
    mask: str = ""
    split: str = ""
    group: str = ""
    weight: float | None = None
    extra: dict = field(default_factory=dict)


@dataclass(slots=True)
class Columns:
    """Which columns hold what, '' = none. One with another name than the default has to be there.

    A row's `modality` stands before its text: 'OCT: retina with drusen'. loose: a CSV as people write it, with blanks
    around its commas, any case in its header, and paths that may lead anywhere.
    """

    label: str = "label"
    text: str = "text"
    mask: str = MASK_COLUMNS[0]
    split: str = "split"
    group: str = ""
    weight: str = ""
    file: str = "file_name"
    modality: str = ""
    loose: bool = False


def table_rows(table, prefix, columns, inside, problems):
    """(rows, names of the fields that the table has, its columns) of a .csv or .jsonl file; faults go to `problems`.

    Args:
        prefix: the table's folder below the data folder, '' or 'train/'.
        inside: `paths.Inside` of the data folder.
    """
    header, records = _read_jsonl(table, problems) if table.suffix.lower() == ".jsonl" else _read_csv(table, problems, columns)
    used = header and _match_columns(table, header, columns, problems)
    if not used:
        return [], set(), list(header)
    rows, strange = [], []
    for line, record in records:
        where = f"{prefix}{table.name}:{line}"
        value = {key: _text(record.get(column)) if column else "" for key, column in used.items()}
        for key in ("label", "split", "group"):
            value[key] = value[key].strip()
            if used[key] and not value[key]:
                problems.append(f"{where}: {used[key]} is empty")
        for key in ("file", "mask") if used["mask"] else ("file",):
            fault = inside.fault(table.parent, value[key])
            if fault:
                problems.append(f"{where}: {used[key]} {fault}")
        weight = weights.number(value["weight"].strip()) if used["weight"] else None
        if used["weight"] and weight is None:
            strange.append((where, value["weight"]))
        rows.append(Row(_plain(prefix + value["file"]), where, value["label"], _described(value),
                        value["mask"] and _plain(prefix + value["mask"]), value["split"], value["group"], weight,
                        {key: v for key, v in record.items()
                         if key not in used.values() or key in (used["modality"], used["weight"])}))
    if strange:
        problems.append(weights.fault(used["weight"], strange))
    return rows, {key for key in ("label", "text", "mask", "split", "group") if used[key]}, list(header)


def _match_columns(table, header, columns, problems):
    """{'file' | 'label' | ...: the column that holds it, or ''}; None without a column of file names."""
    used = {key: getattr(columns, key) for key in ("file", "label", "text", "mask", "split", "group", "weight", "modality")}
    for key, names in (("mask", MASK_COLUMNS), ("modality", MODALITY_COLUMNS)):
        if used[key] in names:
            used[key] = next((c for c in names if c in (map(str.lower, header) if columns.loose else header)), names[0])
    optional = {"label", "text", "split", weights.COLUMN, *MASK_COLUMNS, *MODALITY_COLUMNS}
    for key, column in used.items():
        if column and column not in header:
            same = [h for h in header if h.strip().lower() == column.lower()]
            if columns.loose and len(same) == 1:
                used[key] = same[0]
                continue
            if same or column not in optional:
                problems.append(f"{table}: no column {column!r}; it has "
                                f"{header}{did_you_mean(column, same or header)}"
                                f"{f'; {weights.NONE_MEANT}' if key == 'weight' else ''}")
            used[key] = ""
    return used if used["file"] else None


def _text(value):
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _plain(name):
    """A path without what does not lead anywhere: './a.png' and 'a.png' are one file."""
    first, *rest = name.split("/")
    return "/".join([first] * (first != "." or not rest) + [part for part in rest if part not in ("", ".")])


def _described(value):
    """A row's text, behind its modality where it has one and does not begin with it already."""
    kind, text = value["modality"].strip(), value["text"]
    if not kind or not text.strip() or text.strip().lower().startswith(f"{kind.lower()}:"):
        return text
    return f"{kind}: {text}"


def _read_csv(table, problems, columns=None):
    """(header, [(line, {column: value})]), as far as it can be read."""
    columns = columns or Columns()
    header, records, line = [], [], 1
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = (BLANKS.sub('"', line) for line in file) if columns.loose else file
            reader = csv.reader(lines, strict=True, skipinitialspace=columns.loose)
            header = next(reader, [])
            fault = _header_fault(header, columns.file)
            if fault:
                problems.append(f"{table}:1: {fault}")
                return [], []
            header = [name.strip() for name in header] if columns.loose else header
            line = reader.line_num + 1
            for fields in reader:
                if columns.loose:
                    fields = [value.strip() for value in fields] if "".join(fields).strip() else []
                if fields and len(fields) != len(header):
                    advice = "put a text that holds a comma in double quotes" if len(fields) > len(header) else \
                        "add what is missing"
                    problems.append(f"{table}:{line}: {len(fields)} fields where the header has {len(header)}; {advice}")
                elif fields:
                    records.append((line, dict(zip(header, fields, strict=True))))
                line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{table}:{line}: not CSV from here on ({error})")
    except UnicodeDecodeError as error:
        problems.append(f'{table}: not UTF-8 (byte {error.start}): save it as "CSV UTF-8"')
    return header, records


def _header_fault(header, first):
    if not "".join(header).strip():
        return f"no header; expected {first}, ..."
    other = re.search(r"[;\t|]", header[0])
    if len(header) == 1 and other:
        return f"columns are separated by {other[0]!r}: save it separated by commas"
    twice = sorted({h for h in header if header.count(h) > 1})
    return f"columns {twice} occur twice" if twice else ""


def _read_jsonl(table, problems):
    """(every key, [(line, {key: value})])."""
    header, records = {}, []
    try:
        with open(table, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                try:
                    record = json.loads(text) if text.strip() else None
                except (ValueError, RecursionError) as error:
                    problems.append(f"{table}:{line}: not JSON ({error})")
                    continue
                if isinstance(record, dict):
                    header |= dict.fromkeys(record)
                    records.append((line, record))
                elif text.strip():
                    problems.append(f'{table}:{line}: expected an object such as {{"file_name": "1.png"}}')
    except UnicodeDecodeError as error:
        problems.append(f"{table}: not UTF-8 (byte {error.start})")
    return list(header), records
