"""Tables that people write, read strictly: CSV and JSON lines, where every faulty line is named."""

import csv
import json
import re
from pathlib import Path

LISTED = 50  # problems named in one message; the rest are counted
BLANKS = re.compile(r'"[ \t]+(?=,|\r?\n?$)')  # after a quote that ends a field
# what spreadsheets and pandas write where there is no value; 'none' in lower case may be a finding
MISSING = ("nan", "-nan", "null", "n/a", "#n/a", "<na>", "nat")
MISSING_EXACTLY = ("NA", "#NA", "None")


def is_missing(value):
    """Whether a text is what a program writes where there is no value: 'nan', 'NULL', 'NA', 'None', 'N/A',
    ''."""
    value = value.strip()
    return not value or value.lower() in MISSING or value in MISSING_EXACTLY


def read_csv(table, problems, *, first="file_name", loose=False):
    """(header, [(line, {column: value})]) of a CSV, as far as it can be read.

    Args:
        table: its path.
        problems: list that faults go to, as sentences with file and line.
        first: a column that it should have, for messages.
        loose: a CSV as people write it, with blanks around its commas.
    """
    header, records, line = [], [], 1
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = (BLANKS.sub('"', line) for line in file) if loose else file
            reader = csv.reader(lines, strict=True, skipinitialspace=loose)
            header = next(reader, [])
            fault = _header_fault(header, first)
            if fault:
                problems.append(f"{table}:1: {fault}")
                return [], []
            header = [name.strip() for name in header] if loose else header
            line = reader.line_num + 1
            for fields in reader:
                if loose:
                    fields = [value.strip() for value in fields] if "".join(fields).strip() else []
                if fields and len(fields) != len(header):
                    advice = (
                        "put a text that holds a comma in double quotes"
                        if len(fields) > len(header)
                        else "add what is missing"
                    )
                    problems.append(
                        f"{table}:{line}: {len(fields)} fields where the header has {len(header)}; {advice}"
                    )
                elif fields:
                    records.append((line, dict(zip(header, fields, strict=True))))
                line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{table}:{line}: not CSV from here on ({error})")
    except UnicodeDecodeError as error:
        problems.append(f'{table}: not UTF-8 (byte {error.start}): save it as "CSV UTF-8"')
    return header, records


def read_jsonl(table, problems, *, first="file_name"):
    """(every key, [(line, {key: value})]) of a file with a JSON object in each line; arguments as for
    `read_csv`."""
    header, records = {}, []
    try:
        with open(table, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                try:
                    record = json.loads(text, object_pairs_hook=_distinct) if text.strip() else None
                except (ValueError, RecursionError) as error:
                    problems.append(f"{table}:{line}: not JSON ({error})")
                    continue
                if isinstance(record, dict):
                    header |= dict.fromkeys(record)
                    records.append((line, record))
                elif text.strip():
                    problems.append(f'{table}:{line}: expected an object such as {{"{first}": ...}}')
    except UnicodeDecodeError as error:
        problems.append(f"{table}: not UTF-8 (byte {error.start}): save it as UTF-8")
    return list(header), records


def read(table, needed=(), *, loose=False, first=""):
    """(header, [(line, {column: value})]) of a .csv or .jsonl that has the columns `needed`; see `read_csv`.

    Raises:
        ValueError: with every fault of the file, each with its line.
    """
    table, problems = Path(table), []
    first = first or (needed[0] if needed else "file_name")
    if table.suffix.lower() == ".jsonl":
        header, records = read_jsonl(table, problems, first=first)
    else:
        header, records = read_csv(table, problems, first=first, loose=loose)
    lacking = [column for column in needed if column not in header]
    if lacking and not problems:
        problems.append(
            f"{table}:1: its columns are {', '.join(header)}; {', '.join(map(repr, lacking))} "
            f"{'are' if len(lacking) > 1 else 'is'} needed"
        )
    refuse(table, problems)
    return header, records


def read_lines(path):
    """The lines of a text file with their numbers, [(1, text), ...]; ValueError where it is no UTF-8 text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [(number, line.strip()) for number, line in enumerate(file, 1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def refuse(table, problems):
    """One ValueError that lists the faults of a table; nothing where there is none."""
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise ValueError("\n  ".join([f"{table}: {len(problems)} problems", *problems[:LISTED], *more]))


def _header_fault(header, first):
    if not "".join(header).strip():
        return f"no header; expected {first}, ..."
    other = re.search(r"[;\t|]", header[0])
    if len(header) == 1 and other:
        return f"columns are separated by {other[0]!r}: save it separated by commas"
    twice = sorted({h for h in map(str.strip, header) if [each.strip() for each in header].count(h) > 1})
    return f"columns {twice} occur twice" if twice else ""


def _distinct(pairs):
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"keys {twice} occur twice")
    return dict(pairs)
