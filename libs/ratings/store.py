"""The answers to a pool in one SQLite file: appended, never overwritten, on the disk before anybody is told that they are saved.

    store = Store.of(pool)                       # <pool>/ratings.sqlite
    code = store.add_rater("Dr. Weiß")           # told once; the file keeps a hash of it
    store.answer("Dr. Weiß", item, scores={"quality": 3, "congruence": 2}, token=new_token())
    store.answers()                              # the newest of each rater to each item

Triggers in the file abort whatever would change or delete an answer. A change of mind is a new row.
"""

import csv
import hashlib
import hmac
import io
import json
import logging
import math
import secrets
import sqlite3
import statistics
import threading
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .pool import RATINGS, Answer

logger = logging.getLogger(__name__)

FORMAT = 1
NAME, REMARK = 80, 2000  # most characters of a rater's name, of a remark
ALPHABET, LETTERS = "abcdefghjkmnpqrstuvwxyz23456789", 12  # no i, l, o, 0, 1, which people mix up; 12 letters are 59 bits
TRIES, WITHIN = 10, 300  # wrong codes of a name in so many seconds, before it has to wait
SESSION = 30 * 24 * 3600  # seconds until a sign-in ends by itself
BUSY = 30  # seconds that a writer waits for another process
CROWD = 16  # sign-ins at a time; more of them are sent away, so that a flood leaves threads to those who rate
MARK = "\ufeff"  # begins the file of a table, so that spreadsheets read it as UTF-8
_HASH = dict(n=2**14, r=8, p=1, dklen=32)  # scrypt: 16 MiB and about 50 ms

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (id INTEGER PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE, salt BLOB NOT NULL,
    code BLOB NOT NULL, admin INTEGER NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (token BLOB PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY AUTOINCREMENT, rater INTEGER NOT NULL REFERENCES raters,
    item TEXT NOT NULL, scores TEXT NOT NULL, tags TEXT NOT NULL, remark TEXT NOT NULL, seconds REAL NOT NULL, at TEXT NOT NULL,
    token TEXT NOT NULL UNIQUE);
CREATE INDEX IF NOT EXISTS answers_of ON answers (rater, item, number);
CREATE TRIGGER IF NOT EXISTS answers_stay BEFORE UPDATE ON answers
    BEGIN SELECT RAISE(ABORT, 'an answer is never changed'); END;
CREATE TRIGGER IF NOT EXISTS answers_remain BEFORE DELETE ON answers
    BEGIN SELECT RAISE(ABORT, 'an answer is never deleted'); END;
CREATE TRIGGER IF NOT EXISTS answers_are_not_replaced BEFORE INSERT ON answers
    WHEN EXISTS (SELECT 1 FROM answers WHERE number = NEW.number OR token = NEW.token)
    BEGIN SELECT RAISE(ABORT, 'an answer is never replaced'); END;
"""
_ANSWERS = ("SELECT number, raters.name, item, scores, tags, remark, seconds, answers.at FROM answers "
            "JOIN raters ON raters.id = answers.rater ")
_NEWEST = "number IN (SELECT max(number) FROM answers GROUP BY rater, item) "

WRITTEN, AGAIN, OUTDATED = "written", "again", "outdated"


@dataclass(frozen=True)
class Outcome:
    """What became of an answer.

    state: 'written', a new row; 'again', the newest answer says the same and nothing was added; 'outdated', the rater has answered
    the item since the form was shown and nothing was added. answer: the rater's newest one to the item now, None for none.
    """

    state: str
    answer: Answer


@dataclass(frozen=True)
class Rater:
    """Who signed in; an admin also sees everybody's progress."""

    name: str
    admin: bool = False


class TooManyTries(ValueError):
    """A name was tried with so many wrong codes that it has to wait, or too many sign in at once."""


class Store:
    """The ratings of one pool. All methods may be called from several threads; several processes may share the file.

    Args:
        path: the SQLite file, made where there is none.
        fingerprint: of the pool that the answers belong to (`Pool.fingerprint`).
        pool: the pool itself, which `answer` needs to check what it is given; reading does without.

    Raises:
        ValueError: the file is no file of ratings, or of a pool with other images. OSError: it cannot be opened.
    """

    def __init__(self, path, fingerprint, *, pool=None):
        self.path, self.pool = Path(path), pool
        self._lock, self._reading = threading.Lock(), threading.Lock()  # of the connection that writes, and the one that reads
        self._crowd, self._hashing = threading.BoundedSemaphore(CROWD), threading.BoundedSemaphore(2)  # scrypt takes memory
        self._tries, self._trying, self._nobody = {}, threading.Lock(), secrets.token_bytes(16)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path.parent} is no folder: ratings are kept in the folder of their pool")
        try:
            self._db = self._reader = self._connected()
        except sqlite3.Error as error:
            raise OSError(f"cannot open {self.path}: {error}") from error
        try:
            self._prepare(fingerprint)
            self._reader = self._connected()  # while a writer waits for another process, pages are read
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error) and "has no column" not in str(error):
                raise OSError(f"cannot open {self.path}: {error}") from error  # locked, read-only, the disk is full
            raise ValueError(f"{self.path} is no file of ratings: {error}") from error
        except ValueError:
            self._db.close()
            raise

    @classmethod
    def of(cls, pool):
        """The ratings that lie in the pool's folder, ready to take answers."""
        return cls(pool.folder / RATINGS, pool.fingerprint, pool=pool)

    def _connected(self):
        return sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)

    def _prepare(self, fingerprint):
        mode = self._log_ahead()
        if mode != "wal":
            logger.warning("%s: no write-ahead log on this file system (%s instead); answers are safe, several raters are slower",
                           self.path, mode)
        self._db.execute("PRAGMA synchronous = FULL")  # a commit returns when the answer is on the disk
        self._db.execute("PRAGMA foreign_keys = ON")
        tables = {name for name, in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not {"about", "answers"} <= tables:
            raise ValueError(f"{self.path} is no file of ratings but another database")
        if not tables:  # only then, so that reading never waits for a writer
            with self._writing():
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
                for name, value in (("format", str(FORMAT)), ("pool", fingerprint)):
                    self._db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value))
        told = dict(self._rows("SELECT name, value FROM about"))
        if told["format"] != str(FORMAT):
            raise ValueError(f"{self.path}: format {told['format']!r}, expected {FORMAT}")
        if told["pool"] != fingerprint:
            raise ValueError(f"{self.path} belongs to a pool of other images than the ratings that are asked for (fingerprint "
                             f"{told['pool'][:12]}, expected {fingerprint[:12]}): move it away, or name the pool it belongs to")

    def _log_ahead(self):
        """Turn the write-ahead log on; SQLite does not wait by itself where another process does the same just now."""
        until = time.monotonic() + BUSY
        while True:
            try:
                return self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def close(self):
        with self._lock, self._reading:
            self._reader.close()
            self._db.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @contextmanager
    def _writing(self):
        """One transaction; IMMEDIATE, so that what is read in it still holds when it writes."""
        if not self._lock.acquire(timeout=BUSY):  # those before are waiting for another process
            raise sqlite3.OperationalError("database is locked")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        finally:
            self._lock.release()

    def _rows(self, query, *values, db=None):
        """What is on the disk, or within a transaction what `db` sees."""
        if db is not None:
            return db.execute(query, values).fetchall()
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    # -- raters and their sign-ins ------------------------------------------------------------------------------------------

    def add_rater(self, name, *, admin=False, renew=False):
        """Enter a rater, or with `renew` give one a new access code, which ends all sign-ins under the old one.

        Returns:
            The code, such as 'k3vm-tq8x-7hnd'. It is not kept: whoever loses it gets a new one.

        Raises:
            ValueError: the name cannot be one, or is taken.
        """
        name, code, salt = clean_name(name), "".join(secrets.choice(ALPHABET) for _ in range(LETTERS)), secrets.token_bytes(16)
        kept = self._hash(code, salt)
        with self._writing() as db:
            found = db.execute("SELECT id, admin FROM raters WHERE folded = ?", (fold(name),)).fetchone()
            if found and not renew:
                raise ValueError(f"there is a rater {name!r} already: choose another name, or --renew for a new access code")
            if renew and not found:
                raise ValueError(f"there is no rater {name!r} whose code could be renewed; there are: {self._names(db)}")
            if found:
                db.execute("UPDATE raters SET salt = ?, code = ?, admin = ? WHERE id = ?",
                           (salt, kept, int(admin or found[1]), found[0]))
                db.execute("DELETE FROM sessions WHERE rater = ?", (found[0],))
            else:
                db.execute("INSERT INTO raters (name, folded, salt, code, admin, at) VALUES (?, ?, ?, ?, ?, ?)",
                           (name, fold(name), salt, kept, int(admin), _now()))
        return "-".join(code[i:i + 4] for i in range(0, LETTERS, 4))

    def sign_in(self, name, code):
        """A session's token for the right name and code, else None; both take the same time. Sign-ins outlive a restart.

        Raises:
            TooManyTries: ten wrong codes under this name within five minutes; the right one has to wait as well. Or very many sign
                in at this moment, which does not count as a try.
        """
        folded, now = fold(name), time.monotonic()
        with self._trying:
            self._tries = {who: kept for who, times in self._tries.items() if (kept := [t for t in times if now - t < WITHIN])}
            tries = self._tries.setdefault(folded, [])
            if len(tries) >= TRIES:
                raise TooManyTries(f"too many wrong codes for this name: wait {math.ceil((WITHIN - now + tries[0]) / 60)} minutes")
            tries.append(now)  # before the code is looked at, so that tries at the same time are counted
        found = self._rows("SELECT id, salt, code FROM raters WHERE folded = ?", folded)
        number, salt, kept = found[0] if found else (None, self._nobody, bytes(32))
        if not self._crowd.acquire(blocking=False):
            with self._trying:
                tries.remove(now)
            raise TooManyTries("too many people sign in at this moment: try again in a minute")
        try:
            given = self._hash("".join(letter for letter in code.casefold()[:200] if letter not in " -\t"), salt)
        finally:
            self._crowd.release()
        if not hmac.compare_digest(given, kept) or number is None:
            return None
        token = secrets.token_urlsafe(32)
        with self._trying:
            self._tries.pop(folded, None)
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE until < ?", (time.time(),))
            # the code may have been renewed while its hash was compared
            db.execute("INSERT INTO sessions SELECT ?, id, ? FROM raters WHERE id = ? AND code = ?",
                       (_digest(token), time.time() + SESSION, number, kept))
        return token

    def rater_of(self, token):
        """The `Rater` of a session, None where there is no such session any more."""
        found = self._rows("SELECT name, admin FROM sessions JOIN raters ON raters.id = rater WHERE token = ? AND until > ?",
                           _digest(token), time.time()) if token else ()
        return Rater(found[0][0], bool(found[0][1])) if found else None

    def sign_out(self, token):
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (_digest(token),))

    def raters(self):
        """A dict for each rater in the order they were added: name, admin, answered (items), answers (rows, with changes of mind),
        seconds (median time of an item's newest answer), last (when, '' for never)."""
        newest = {}
        for answer in self.answers():
            newest.setdefault(answer.rater, []).append(answer)
        rows = dict(self._rows("SELECT raters.name, count(*) FROM answers JOIN raters ON raters.id = rater GROUP BY rater"))
        return [{"name": name, "admin": bool(admin), "answered": len(newest.get(name, ())), "answers": rows.get(name, 0),
                 "seconds": statistics.median(each.seconds for each in newest[name]) if name in newest else 0.0,
                 "last": max((each.at for each in newest.get(name, ())), default="")}
                for name, admin in self._rows("SELECT name, admin FROM raters ORDER BY id")]

    def _names(self, db):
        return ", ".join(repr(name) for name, in self._rows("SELECT name FROM raters ORDER BY id", db=db)) or "none at all"

    def _hash(self, code, salt):
        with self._hashing:
            return hashlib.scrypt(code.encode("utf-8", "replace"), salt=salt, **_HASH)

    # -- answers ------------------------------------------------------------------------------------------------------------

    def answer(self, rater, item, *, scores, tags=(), remark="", seconds=0.0, token, replaces=0):
        """Append an answer in one transaction. When this returns, it is on the disk.

        Args:
            scores: {axis: level} of every axis. tags: names of defects. remark: at most 2,000 characters.
            seconds: of looking at the item. token: made for this form (`new_token`); the same once more adds nothing.
            replaces: number of the rater's newest answer to the item when the form was shown, 0 for none.

        Returns:
            `Outcome`. Where the rater has answered meanwhile (another tab, the browser's back button), nothing is written; nor
            where scores, tags and remark are those of the newest answer, whose seconds then stay.

        Raises:
            ValueError: no such rater or item, scores that the pool's scale does not have, a remark that is too long.
        """
        scores, tags, remark = self._checked(item, scores, tags, remark)
        seconds = float(seconds)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{seconds} seconds of looking: a finite number from 0 is needed")
        if not 16 <= len(token) <= 100:
            raise ValueError(f"a form's token has 16 to 100 characters, not {len(token)}; new_token() makes one")
        with self._writing() as db:
            found = db.execute("SELECT id FROM raters WHERE folded = ?", (fold(rater),)).fetchone()
            if not found:
                raise ValueError(f"there is no rater {rater!r}; there are: {self._names(db)}")
            newest = self.newest(rater, item, db=db)
            used = db.execute("SELECT rater, item FROM answers WHERE token = ?", (token,)).fetchone()
            if used and used != (found[0], item):
                raise ValueError("this form was for another item or another rater: load the page again")
            fits = (newest.number if newest else 0) == replaces
            if newest and (used or fits) and (newest.scores, newest.tags, newest.remark) == (scores, tags, remark):
                return Outcome(AGAIN, newest)
            if used or not fits:
                return Outcome(OUTDATED, newest)
            db.execute("INSERT INTO answers (rater, item, scores, tags, remark, seconds, at, token) "
                       "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                       (found[0], item, json.dumps(scores), json.dumps(tags), remark, seconds, _now(), token))
            written = self.newest(rater, item, db=db)
        return Outcome(WRITTEN, written)

    def answers(self, history=False):
        """List of `Answer` in the order of writing: the newest of each rater to each item, with `history` all rows."""
        return [_answer(row) for row in self._rows(f"{_ANSWERS} {'' if history else f'WHERE {_NEWEST}'} ORDER BY number")]

    def newest(self, rater, item, *, db=None):
        """The rater's newest `Answer` to an item, None for none; within a transaction of its connection `db`."""
        rows = self._rows(f"{_ANSWERS} WHERE folded = ? AND item = ? ORDER BY number DESC LIMIT 1", fold(rater), item, db=db)
        return _answer(rows[0]) if rows else None

    def answered(self, rater):
        """{item: newest `Answer`} of one rater."""
        return {row[2]: _answer(row) for row in self._rows(f"{_ANSWERS} WHERE folded = ? AND {_NEWEST}", fold(rater))}

    def newest_number(self):
        """Number of the last row, 0 for none: the same number, the same answers."""
        return self._rows("SELECT coalesce(max(number), 0) FROM answers")[0][0]

    def _checked(self, item, scores, tags, remark):
        """Scores, tags and remark as they are written; ValueError for what the pool does not ask."""
        if self.pool is None:
            raise ValueError("this store was opened for reading; Store.of(pool) takes answers")
        if item not in self.pool.by_name:
            raise ValueError(f"there is no item {item[:80]!r} in this pool")
        axes = {axis.name: axis for axis in self.pool.axes}
        if unknown := [*(set(scores) - set(axes))]:
            raise ValueError(f"there is no question {unknown[0]!r}; there are: {', '.join(axes)}")
        if missing := [name for name in axes if name not in scores]:
            raise ValueError(f"not answered yet: {', '.join(missing)}")
        for name, level in scores.items():
            if isinstance(level, bool) or level not in axes[name].levels:
                raise ValueError(f"{name} cannot be {level!r}; it is one of {', '.join(map(str, axes[name].levels))}")
        if unknown := [tag for tag in tags if tag not in self.pool.tags]:
            raise ValueError(f"there is no defect {unknown[0][:80]!r}; there are: {', '.join(self.pool.tags)}")
        remark = _plain(remark)
        if len(remark) > REMARK:
            raise ValueError(f"the remark has {len(remark):,} characters; {REMARK:,} fit")
        return ({name: int(scores[name]) for name in axes}, tuple(tag for tag in self.pool.tags if tag in tags), remark)


def new_token():
    """A name for one form, so that sending it twice is known to be the same answer."""
    return secrets.token_urlsafe(24)


def clean_name(name):
    """A rater's name as it is kept: NFC, single blanks; ValueError for none, a long one, or one that cannot be printed."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name:
        raise ValueError("a rater needs a name")
    if len(name) > NAME:
        raise ValueError(f"a rater's name has at most {NAME} characters, {name[:20]!r}... has {len(name)}")
    if not name.isprintable():
        raise ValueError(f"the name {name!r} has characters that cannot be printed")
    return name


def fold(name):
    """What two spellings of one name have in common: 'DR.  WEISS' and 'Dr. Weiß' are one rater."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", name[:4 * NAME]).split()).casefold())


def table(pool, answers):
    """Answers as the text of a CSV table, a row each: who, which item, what was said, and what the item really is.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    axes = [axis.name for axis in pool.axes]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["rater", "item", *axes, "tags", "remark", "seconds", "at", "prompt", "kind", "repeat_of", "control",
                   "source_model", "source_folder", "source_file", "number"])
    for answer in answers:
        item = pool.by_name[answer.item]
        source = [str(item.source.get(key, "")) for key in ("model", "folder", "file_name")]
        rows.writerow([_harmless(cell) for cell in (
            answer.rater, answer.item, *(answer.scores[axis] for axis in axes), "; ".join(answer.tags), answer.remark,
            f"{answer.seconds:.1f}", answer.at, item.prompt, item.kind, item.repeat_of, item.control, *source, answer.number)])
    return text.getvalue()


def _harmless(cell):
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(("=", "+", "-", "@")) else cell


def _plain(remark):
    """A remark with one kind of line end and without control characters."""
    text = unicodedata.normalize("NFC", remark).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs")).strip()


def _answer(row):
    number, rater, item, scores, tags, remark, seconds, at = row
    return Answer(number, rater, item, json.loads(scores), tuple(json.loads(tags)), remark, seconds, at)


def _statements(script):
    """The statements of an SQL script; a trigger's body holds a semicolon of its own."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _digest(token):
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _now():
    return datetime.now(UTC).isoformat(timespec="milliseconds")
