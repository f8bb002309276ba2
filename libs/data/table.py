"""Metadata tables: metadata.csv and metadata.jsonl as Hugging Face's ImageFolder has them.

`file_name` relative to the table, `text`, `label`, `mask_file_name` (`mask_name` too), `split`, `weight`, any further
columns.
"""

import json
import logging
from dataclasses import dataclass, field

from libs import tables

from . import weights
from .base import did_you_mean

log = logging.getLogger(__name__)
MASK_COLUMNS = ("mask_file_name", "mask_name")
MODALITY_COLUMNS = ("modality", "modal")
WHOLE_TEXTS = ("label", "split", "group")  # compared as a whole, so that blanks around them do not count


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
    header, records = read(table, problems, columns)
    used = header and _match_columns(table, header, columns, problems)
    if not used:
        return [], set(), list(header)
    rows, strange, empty = [], [], []
    for line, record in records:
        where = f"{prefix}{table.name}:{line}"
        value = {key: _value(key, record.get(column), f"{where}: {column}", problems) if column else ""
                 for key, column in used.items()}
        refused = {key for key in value if value[key] is None}
        value |= dict.fromkeys(refused, "")
        for key in (each for each in WHOLE_TEXTS if each not in refused):
            value[key] = value[key].strip()
            if used[key] and not value[key]:
                problems.append(f"{where}: {used[key]} is empty")
            elif used[key] and key != "label" and tables.is_missing(value[key]):
                problems.append(f"{where}: {used[key]} is {value[key]!r}, which programs write where a value "
                                f"is missing: write the {key}, or another name for it")
        for key in ("text", "modality"):
            if value[key].strip() and tables.is_missing(value[key]):
                empty.append(f"{where}: {value[key]!r}")
                value[key] = ""
        for key in (each for each in ("file", "mask") if used[each] and each not in refused):
            value[key] = inside.resolve(table.parent, value[key])
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
    if empty:
        log.warning("%s: %d texts are what programs write where a value is missing, and count as empty: "
                    "%s%s", table, len(empty),
                    ", ".join(empty[:5]), " ..." if len(empty) > 5 else "")
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


def read(table, problems, columns=None):
    """(header, [(line, {column: value})]) of a .csv or .jsonl, as far as it can be read; faults go to
    `problems`."""
    columns = columns or Columns()
    if table.suffix.lower() == ".jsonl":
        return tables.read_jsonl(table, problems, first=columns.file)
    return tables.read_csv(table, problems, first=columns.file, loose=columns.loose)


def _value(key, value, where, problems):
    """A field as text, '' where there is none; None for a value of JSON that is no text, which goes to
    `problems`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if key == "weight":
        return json.dumps(value)
    if isinstance(value, float) and value != value:  # pandas writes NaN
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and key in (*WHOLE_TEXTS, "modality"):
        return str(value)
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        advice = {"text": "give each text a row of its own with the same file_name, and "
                          "--config.dataset.doubled_files=keep; or --config.dataset.text_column= reads no "
                          "texts",
                  "label": "an image has one label, a text; keep one of them, or join them to one name such "
                           "as \"a and b\"",
                  }.get(key, "write one text in quotes")
    else:
        kind = {bool: "a truth value", int: "a number", float: "a number"}[type(value)]
        advice = f"write it as a text, in quotes: \"{shown}\""
    problems.append(f"{where} is {kind}, {shown}: {advice}")
    return None


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
