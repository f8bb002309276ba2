"""captions.csv: one line per image, written as it comes, and the tables made from it."""

import contextlib
import csv
import fcntl
import io
import json
import os
import threading
import time
from collections import Counter
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

# Failures that are no judgement of the text: the next session asks again.
PASSING = ("unanswered", "image")
PATIENCE = 10.0  # seconds in which a process that was killed lets go of its table


@dataclass(frozen=True)
class Caption:
    """The description of one image: `text` is '' where it failed, and `checks` says why."""

    file_name: str
    text: str
    label: str
    model: str
    prompt: str
    attempts: int
    answers: dict[str, str] = field(default_factory=dict)
    checks: str = ""

    @property
    def failed_for(self) -> list[str]:
        """Names of the checks that the description failed; [] where it has a text."""
        return [] if self.text else [reason.split(":")[0] for reason in self.checks.split(" | ")]


COLUMNS = tuple(entry.name for entry in fields(Caption))


class Table:
    """The captions of one data set on disk; a context manager that holds the file open, for one process at a time.

    Each row reaches the disk before `append` returns. Where a session was killed while it wrote, the torn last
    line is dropped. The last row of a file name counts. `append` may be called from several threads.

    Attributes:
        rows: {file name: Caption}, in order of first appearance.
    Raises:
        ValueError: for a file that is no such table, naming the line; and while another process describes into it.
    """

    def __init__(self, path):
        self.path, self.rows, self._lock = Path(path), {}, threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            self._claim()
            self._read()
        except ValueError:
            self._file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def append(self, caption: Caption):
        """Add a row, on disk when this returns."""
        values = list(astuple(caption))
        values[COLUMNS.index("answers")] = json.dumps(caption.answers, ensure_ascii=False)
        if any("\n" in str(value) or "\r" in str(value) for value in values):
            raise ValueError(f"{caption.file_name!r}: a line break in the file name or label; rename it")
        with self._lock:
            self._write(values)
            self.rows[caption.file_name] = caption

    def todo(self, names: list[str], *, model: str, prompt: str, on_change: str, redo_failed: bool = False) -> list[str]:
        """Those of `names` that still need a caption, in their order.

        on_change: what to do with rows of another model or prompt version: 'keep' them, 'redo' them, or 'stop'.
        redo_failed: ask again for images whose descriptions failed the checks.
        Raises ValueError where on_change is 'stop' and there are such rows.
        """
        if on_change not in ("keep", "redo", "stop"):
            raise ValueError(f"on_change={on_change!r}; known: keep, redo, stop")
        other = [row for name in names if (row := self.rows.get(name)) and (row.model, row.prompt) != (model, prompt)]
        if other and on_change == "stop":
            (before, asked), count = Counter((row.model, row.prompt) for row in other).most_common(1)[0]
            raise ValueError(f"{self.path} holds {len(other)} captions of another model or prompt ({count} by {before}, "
                             f"{asked}; now {model}, {prompt}): --config.output.on_change=keep leaves them, =redo asks "
                             "again, or give another --workdir")
        again = {row.file_name for row in other} if on_change == "redo" else set()
        again |= {name for name, row in self.rows.items()
                  if row.failed_for and (redo_failed or set(row.failed_for) & set(PASSING))}
        return [name for name in names if name not in self.rows or name in again]

    def _claim(self):
        """Hold a lock on the file until it is closed; the kernel drops it even after kill -9."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(f"another process is describing into {self.path}; wait or stop it, or give another "
                                     "--workdir") from None
                time.sleep(0.25)
            except OSError:  # a file system without locks
                return None

    def _write(self, values):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        self._file.write(line.getvalue().encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self):
        self._file.seek(0)
        content = self._file.read()
        whole = content[:content.rfind(b"\n") + 1]
        if content and not whole and not ",".join(COLUMNS).encode().startswith(content):
            raise ValueError(f"{self.path}: not a table of captions; give another --workdir, or move it away")
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        if not whole:
            return self._write(COLUMNS)
        try:
            lines = whole.decode().split("\n")[:-1]  # no field holds a line break
            if lines[0] != ",".join(COLUMNS):
                raise ValueError(f"line 1: expected {','.join(COLUMNS)}")
            csv.field_size_limit(max(csv.field_size_limit(), len(whole)))  # else 131,072 characters, answers as one field
            for number, line in enumerate(lines[1:], 2):
                with _named(number):
                    values = dict(zip(COLUMNS, next(csv.reader([line], strict=True)), strict=True))
                    values |= {"attempts": int(values["attempts"]), "answers": json.loads(values["answers"])}
                    self.rows[values["file_name"]] = Caption(**values)
        except ValueError as error:
            raise ValueError(f"{self.path}: not a table of captions ({error}); mend it, or move it away") from None


@contextlib.contextmanager
def _named(number):
    """Whatever a damaged line raises, as a ValueError that names the line."""
    try:
        yield
    except (ValueError, csv.Error, StopIteration) as error:
        raise ValueError(f"line {number}: {error}") from None


def write_metadata(path, rows: list[dict]):
    """A table of images for training, atomically: file_name, text, then the columns that some row fills.

    `rows` are dicts with file_name and text, paths relative to the folder of the table.
    """
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if value))
    columns = ["file_name", "text"] + [name for name in names if name not in ("file_name", "text")]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path, text: str):
    """Write a file that is either whole or as before."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(staged, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
