"""The answers of raters: appended, never overwritten, never lost or doubled; names, access codes and sign-ins."""

import csv
import hashlib
import io
import json
import sqlite3
import threading

import numpy as np
import pytest

from libs.ratings import building
from libs.ratings import pool as pools
from libs.ratings import store as stores
from libs.ratings.store import AGAIN, OUTDATED, WRITTEN, Store, TooManyTries, clean_name, new_token, table
from tests.ratings_pools import AXES, tiny_pool

GOOD = {"quality": 3, "congruence": 2}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return tiny_pool(tmp_path_factory.mktemp("ratings") / "pool")


@pytest.fixture
def store(tmp_path, pool):
    with Store(tmp_path / "ratings.sqlite", pool.fingerprint, pool=pool) as opened:
        yield opened


@pytest.fixture
def ana(store):
    """A rater who has answered nothing; scrypt is not needed for that."""
    store.add_rater("Ana")
    return "Ana"


def answer(store, rater, item, scores=GOOD, **more):
    return store.answer(rater, item, scores=scores, token=more.pop("token", new_token()), **more)


# -- answers ------------------------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_as_it_was_given(store, pool, ana):
    item = pool.items[3].item
    said = answer(store, ana, item, tags=["cut off", "blurred"], remark=" a line\r\nand ‘another’ \x00", seconds=2.5)
    assert said.state == WRITTEN and store.answers() == [said.answer]
    read = said.answer
    assert (read.number, read.rater, read.item, read.scores, read.seconds) == (1, "Ana", item, GOOD, 2.5)
    assert read.tags == ("blurred", "cut off") and read.remark == "a line\nand ‘another’"
    assert read.at.endswith("+00:00")


def test_a_change_of_mind_is_a_new_row(store, pool, ana):
    first, second = pool.items[0].item, pool.items[1].item
    answer(store, ana, first)
    answer(store, ana, second)
    assert answer(store, ana, first, {"quality": 1, "congruence": 1}, replaces=1).state == WRITTEN
    assert [(each.number, each.item, each.scores["quality"]) for each in store.answers(history=True)] == [
        (1, first, 3), (2, second, 3), (3, first, 1)]
    assert [each.number for each in store.answers()] == [2, 3]
    assert store.answered("ANA") == {each.item: each for each in store.answers()}
    about, = store.raters()
    assert (about["name"], about["answered"], about["answers"]) == ("Ana", 2, 3)


def test_the_same_form_twice_is_one_answer(store, pool, ana):
    token, item = new_token(), pool.items[0].item
    assert answer(store, ana, item, token=token).state == WRITTEN
    assert answer(store, ana, item, token=token, seconds=9).state == AGAIN
    other = answer(store, ana, item, {"quality": 1, "congruence": 1}, token=token)  # the back button, and another choice
    assert other.state == OUTDATED and other.answer.scores == GOOD
    with pytest.raises(ValueError, match="another item or another rater"):
        answer(store, ana, pool.items[1].item, token=token)
    assert len(store.answers(history=True)) == 1


def test_two_tabs_do_not_overwrite_each_other(store, pool, ana):
    item = pool.items[0].item
    answer(store, ana, item)
    second = answer(store, ana, item, {"quality": 1, "congruence": 1}, replaces=0)
    assert second.state == OUTDATED and second.answer.number == 1 and len(store.answers(history=True)) == 1
    assert answer(store, ana, item, replaces=7).state == OUTDATED
    assert answer(store, ana, item, {"quality": 1, "congruence": 1}, replaces=second.answer.number).state == WRITTEN


def test_the_same_answer_saved_again_keeps_its_time(store, pool, ana):
    """Who looks back and saves without a change has not looked at the image for two seconds only."""
    item = pool.items[0].item
    first = answer(store, ana, item, tags=["blurred"], remark="a", seconds=40)
    assert answer(store, ana, item, tags=["blurred"], remark=" a", seconds=2, replaces=1) == stores.Outcome(AGAIN, first.answer)
    assert store.answers(history=True) == [first.answer]
    for more in (dict(tags=[], remark="a"), dict(tags=[], remark=""), dict(tags=[], remark="", scores={**GOOD, "quality": 1})):
        newest = store.answers()[0].number
        assert answer(store, ana, item, replaces=newest, **more).state == WRITTEN


@pytest.mark.parametrize("statement", [
    "UPDATE answers SET scores = '{}'", "DELETE FROM answers", "INSERT OR REPLACE INTO answers SELECT * FROM answers",
    "REPLACE INTO answers SELECT number + 1, rater, item, scores, tags, remark, seconds, at, token FROM answers"])
def test_the_file_itself_keeps_answers(store, pool, ana, statement):
    before = answer(store, ana, pool.items[0].item).answer
    other = sqlite3.connect(store.path)  # whatever program opens it
    with pytest.raises(sqlite3.IntegrityError, match="an answer is never"):
        other.execute(statement)
    other.close()
    assert store.answers(history=True) == [before]


@pytest.mark.parametrize("more, message", [
    (dict(scores={"quality": 3}), "not answered yet: congruence"),
    (dict(scores={**GOOD, "quality": 4}), "quality cannot be 4; it is one of 1, 2, 3"),
    (dict(scores={**GOOD, "quality": True}), "quality cannot be True"),
    (dict(scores={**GOOD, "quality": "3"}), "quality cannot be '3'"),
    (dict(scores={**GOOD, "beauty": 3}), "no question 'beauty'; there are: quality, congruence"),
    (dict(tags=["pretty"]), "no defect 'pretty'; there are: blurred"),
    (dict(remark="a" * 2001), "2,001 characters; 2,000 fit"),
    (dict(seconds=float("nan")), "nan seconds"), (dict(seconds=-1), "-1.0 seconds"),
    (dict(token="short"), "16 to 100 characters"), (dict(rater="Bob"), "no rater 'Bob'; there are: 'Ana'"),
    (dict(item="../../etc/passwd"), "no item '../../etc/passwd'")])
def test_what_the_pool_does_not_ask_is_refused(store, pool, ana, more, message):
    given = {"rater": ana, "item": pool.items[0].item, "scores": GOOD, "token": new_token(), **more}
    with pytest.raises(ValueError, match=message):
        store.answer(given.pop("rater"), given.pop("item"), **given)
    assert not store.answers(history=True)


def test_many_threads_and_two_processes_worth_of_connections(store, pool, ana):
    """Every form is sent twice at once, by two connections; each counts once."""
    other = Store(store.path, pool.fingerprint, pool=pool)
    tokens = [new_token() for _ in pool.items]
    faults = []

    def send(through):
        try:
            for item, token in zip(pool.items, tokens):
                answer(through, ana, item.item, token=token)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=send, args=(each,)) for each in (store, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert not faults and sorted(each.item for each in store.answers(history=True)) == sorted(pool.by_name)


# -- the file -----------------------------------------------------------------------------------------------------------------


def test_lies_in_the_folder_of_its_pool(tmp_path):
    own = tiny_pool(tmp_path / "pool", n=2, repeats=0)
    with Store.of(own) as store:
        store.add_rater("Ana")
        answer(store, "Ana", own.items[0].item)
    assert (tmp_path / "pool" / pools.RATINGS).is_file()
    with Store(own.folder / pools.RATINGS, own.fingerprint) as reading:
        assert len(reading.answers()) == 1
        with pytest.raises(ValueError, match="opened for reading"):
            answer(reading, "Ana", own.items[1].item)


def test_refuses_the_ratings_of_another_pool(store, tmp_path, pool):
    other = tiny_pool(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="a pool of other images than the ratings"):
        Store(store.path, other.fingerprint)
    Store(store.path, pool.fingerprint).close()


def test_refuses_what_is_no_file_of_ratings(tmp_path, pool):
    text, strange, newer = tmp_path / "text", tmp_path / "strange", tmp_path / "newer"
    text.write_text("no database at all, but long enough to look at " * 10)
    with sqlite3.connect(strange) as db:
        db.execute("CREATE TABLE answers (a)")
    Store(newer, pool.fingerprint).close()
    with sqlite3.connect(newer) as db:
        db.execute("UPDATE about SET value = '9' WHERE name = 'format'")
    for file, message in ((text, "no file of ratings"), (strange, "another database"), (newer, "format '9', expected 1")):
        with pytest.raises(ValueError, match=message):
            Store(file, pool.fingerprint)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Store(tmp_path / "nowhere" / "ratings.sqlite", pool.fingerprint)


def test_answers_are_on_the_disk_when_they_are_acknowledged(store):
    modes = [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2]  # 2: FULL


def test_pages_are_read_while_another_program_holds_the_file(store, pool, ana, monkeypatch):
    """A writer waits; nobody who only reads does."""
    answer(store, ana, pool.items[0].item)
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=answer, args=(store, ana, pool.items[1].item))
    writer.start()
    started = stores.time.monotonic()
    while stores.time.monotonic() - started < 0.3:
        assert store.rater_of("x") is None and len(store.answers()) == 1
    assert store.sign_in("nobody", "x") is None
    assert stores.time.monotonic() - started < 2 and writer.is_alive()
    monkeypatch.setattr(stores, "BUSY", 0.1)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.sign_out("x")
    other.execute("COMMIT")
    writer.join()
    other.close()
    assert len(store.answers()) == 2


# -- the pool -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["one line\u2028and another", "one\u2029two", "one\x85two", "one\x0ctwo\x1cthree"])
def test_a_prompt_may_hold_any_separator(tmp_path, prompt):
    """The builder writes letters as they are, and several of them count as ends of lines elsewhere."""
    candidates = [building.Candidate(pixels=lambda i=i: np.full((8, 8, 3), 40 * i, np.uint8), text=f"{prompt} {i}",
                                     mask=lambda i=i: np.full((8, 8), i, np.uint8)) for i in range(5)]
    (tmp_path / "pool").mkdir()
    built = building.build(tmp_path / "pool", candidates, axes=AXES, repeat_share=0.4)
    assert {item.prompt for item in built.items} == {f"{prompt} {i}" for i in range(5)}
    for item in built.items:  # repeats too
        assert item.mask_sha256 == hashlib.sha256((built.folder / item.mask).read_bytes()).hexdigest()


@pytest.mark.parametrize("change, message", [
    (dict(image="ratings.sqlite"), "the file 'ratings.sqlite'"), (dict(mask="items.jsonl"), "the file 'items.jsonl'"),
    (dict(image="images/../pool.json"), "expected images/"), (dict(mask="/etc/passwd"), "'/etc/passwd'.*expected masks/"),
    (dict(item="../x", image="images/../x.png"), "item '../x': a name"), (dict(beauty=1), "unexpected keyword.*beauty"),
    (dict(prompt="another"), "was changed after the pool was built"), (dict(mask_sha256="0"), "was changed after the pool")])
def test_a_pool_that_was_tampered_with_is_refused(tmp_path, change, message):
    folder = tiny_pool(tmp_path / "pool", n=4, repeats=0, masks=True).folder
    first, *others = (folder / pools.ITEMS).read_text().splitlines()
    (folder / pools.ITEMS).write_text("\n".join([json.dumps({**json.loads(first), **change}), *others]))
    with pytest.raises(ValueError, match=message) as refused:
        pools.Pool(folder)
    assert str(folder / pools.ITEMS) in str(refused.value)


@pytest.mark.parametrize("file, text, message", [
    (pools.FILE, "{", "pool.json cannot be read"), (pools.FILE, "[]", "pool.json cannot be read"),
    (pools.FILE, '{"format": 1}', "pool.json cannot be read: KeyError: 'axes'"), (pools.FILE, '{"format": 9}', "format 9, expected"),
    (pools.ITEMS, "{}\n", "items.jsonl:1 cannot be read"), (pools.ITEMS, "\n\n[1]\n", "items.jsonl:3 cannot be read")])
def test_files_that_are_no_pool_are_named(tmp_path, file, text, message):
    folder = tiny_pool(tmp_path / "pool", n=4, repeats=0).folder
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        pools.Pool(folder)


# -- names and codes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dr. Weiß", "李医生", "محمد", "O'Brien; DROP TABLE raters", "<b>Ana</b>", "..", "../../etc/passwd",
                                  "=1+1", "José", "x" * 80, "👩"])
def test_odd_names_are_names(store, pool, name):
    code = store.add_rater(name)
    assert store.rater_of(store.sign_in(f"  {name.upper()} ", code)).name == name
    assert answer(store, name, pool.items[0].item).answer.rater == name
    with pytest.raises(ValueError, match="already"):
        store.add_rater(name.swapcase())


@pytest.mark.parametrize("name, message", [("", "needs a name"), (" \t", "needs a name"), ("x" * 81, "has 81"),
                                           ("a\x00b", "cannot be printed"), ("\u202egood", "cannot be printed")])
def test_names_that_cannot_be_read_are_refused(store, name, message):
    with pytest.raises(ValueError, match=message):
        store.add_rater(name)


def test_two_ways_to_write_a_name_are_one():
    assert clean_name("Jose\u0301 ") == clean_name("José") and stores.fold("WEISS") == stores.fold("Weiß")


def test_codes(store, pool):
    code = store.add_rater("Ana", admin=True)
    assert not set(code) & set("ilo01") and len(code) == 14
    for wrong in ("", "a", code[:-1], code + "x", "x" * 10_000):
        assert store.sign_in("Ana", wrong) is None
    assert store.sign_in("nobody", code) is None
    token = store.sign_in("ana", f" {code.upper().replace('-', ' ')}")
    assert store.rater_of(token).admin and store.rater_of("x") is None and store.rater_of("") is None
    kept = store.path.read_bytes() + store.path.with_name(f"{store.path.name}-wal").read_bytes()
    assert all(secret.encode() not in kept for secret in (code, code.replace("-", ""), token))


def test_a_sign_in_outlives_a_restart_and_ends(store, pool, monkeypatch):
    token = store.sign_in("Ana", store.add_rater("Ana"))
    with Store(store.path, pool.fingerprint) as again:
        assert again.rater_of(token).name == "Ana"
        again.sign_out(token)
    assert store.rater_of(token) is None
    token = store.sign_in("Ana", store.add_rater("Ana", renew=True))
    now = stores.time.time()
    monkeypatch.setattr(stores.time, "time", lambda: now + stores.SESSION + 1)
    assert store.rater_of(token) is None


def test_a_renewed_code_ends_what_the_old_one_opened(store, pool):
    old = store.add_rater("Ana", admin=True)
    token = store.sign_in("Ana", old)
    answer(store, "Ana", pool.items[0].item)
    new = store.add_rater("ANA", renew=True)
    assert store.rater_of(token) is None and store.sign_in("Ana", old) is None
    assert store.rater_of(store.sign_in("Ana", new)).admin and len(store.answers()) == 1
    with pytest.raises(ValueError, match="no rater 'Bob'.*there are: 'Ana'"):
        store.add_rater("Bob", renew=True)


def test_guessing_has_to_wait(store, monkeypatch):
    code = store.add_rater("Ana")
    monkeypatch.setattr(stores, "_HASH", dict(n=2, r=1, p=1, dklen=32))
    for name in ("Ana", "nobody"):
        for _ in range(stores.TRIES):
            assert store.sign_in(name, "wrong") is None
        with pytest.raises(TooManyTries, match="wait 5 minutes"):
            store.sign_in(name.upper(), code)
    monkeypatch.undo()
    now = stores.time.monotonic()
    monkeypatch.setattr(stores.time, "monotonic", lambda: now + stores.WITHIN + 1)
    assert store.sign_in("Ana", code)


def test_a_flood_of_sign_ins_is_sent_away(store, monkeypatch):
    """At once, so that no thread waits; and it is no wrong code of those who are sent away."""
    code, busy = store.add_rater("Ana"), threading.Event()
    real = stores.hashlib.scrypt
    monkeypatch.setattr(stores.hashlib, "scrypt", lambda *args, **more: (busy.wait(20), real(*args, **more))[1])
    crowd = [threading.Thread(target=store.sign_in, args=(f"nobody {i}", "x")) for i in range(stores.CROWD)]
    for thread in crowd:
        thread.start()
    while store._crowd._value:
        stores.time.sleep(0.01)
    for _ in range(stores.TRIES + 1):
        with pytest.raises(TooManyTries, match="at this moment"):
            store.sign_in("Ana", code)
    busy.set()
    for thread in crowd:
        thread.join()
    assert store.rater_of(store.sign_in("Ana", code)).name == "Ana"


# -- the table ----------------------------------------------------------------------------------------------------------------


def test_the_table_tells_what_an_image_is_and_holds_no_formula(store, pool):
    shown = next(item for item in pool.items if item.control)
    for name in ("=cmd()", "Ana"):
        store.add_rater(name)
    answer(store, "=cmd()", shown.item, tags=["blurred", "artefact"], remark="=HYPERLINK(\"http://x\")\n, \"quoted\"", seconds=1.26)
    answer(store, "Ana", shown.item, remark=" +1")
    first, second = csv.DictReader(io.StringIO(table(pool, store.answers())))
    assert first["rater"] == "'=cmd()" and first["remark"] == "'=HYPERLINK(\"http://x\")\n, \"quoted\""
    assert second["remark"] == "'+1"
    assert (first["quality"], first["congruence"], first["tags"], first["seconds"]) == ("3", "2", "blurred; artefact", "1.3")
    assert (first["item"], first["prompt"]) == (shown.item, shown.prompt)
    assert (first["control"], first["kind"]) == ("swapped", "synthetic")
    assert (first["source_model"], first["source_file"]) == ("run", shown.source["file_name"])
    assert json.loads(first["number"]) == 1
