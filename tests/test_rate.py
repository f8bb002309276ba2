"""The page of raters over HTTP and `rate.py`: who gets in, what is saved, what is never served, and what a kill loses: nothing."""

import multiprocessing
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import requests

from libs.ratings import learning
from libs.ratings.pool import Pool
from libs.ratings.store import REMARK, Store, new_token
from tests.conftest import ROOT
from tests.ratings_pools import tiny_pool
from tests.ratings_site import GOOD, Client, serve, serving

CONFIG = f"--config={ROOT / 'configs' / 'rating.py'}"
TRAVERSAL = ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "....//etc/passwd", "%00",
             "..\\..\\pool.json", "pool.json", "images%2fx.png")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A pool with masks, its store, the address of its page, and the codes of raters 0..9; 'Chief' is an admin."""
    pool = tiny_pool(tmp_path_factory.mktemp("rate") / "pool", n=98, repeats=2, side=8, masks=True)
    with Store.of(pool) as store:
        codes = {f"rater {i}": store.add_rater(f"rater {i}") for i in range(10)} | {"Chief": store.add_rater("Chief", admin=True)}
        with serving(pool, store) as url:
            yield pool, store, url, codes


@pytest.fixture(scope="module")
def chief(study):
    _, _, url, codes = study
    return Client(url, "Chief", codes["Chief"])


@pytest.fixture
def own(tmp_path):
    """A small pool, its store, and a client signed in as Ana."""
    pool = tiny_pool(tmp_path / "pool", n=5, repeats=0, masks=True)
    with Store.of(pool) as store, serving(pool, store) as url:
        yield pool, store, Client(url, "Ana", store.add_rater("Ana"))


# -- rating -------------------------------------------------------------------------------------------------------------------


def test_a_pool_is_rated_without_javascript(own):
    """Each page leads to the next; the rows are what was sent; the end says so, and a change of mind is a new row."""
    pool, store, ana = own
    order, sent = pool.order("Ana"), []
    place = ana.get("/next").headers["location"]
    for i, item in enumerate(order):
        assert place == f"/item/{item}" and f"Image {i + 1}</b> of 5" in ana.get(place).text
        scores = {"quality": i % 3 + 1, "congruence": (i + 1) % 3 + 1}
        answer = ana.answer(item, scores, **ana.form(item), tag="blurred" if i else None, remark=f"No. {i}", seconds="1.5")
        assert answer.status_code == 303
        place = answer.headers["location"]
        sent.append((item, scores, ("blurred",) if i else (), f"No. {i}", 1.5))
    assert place == "/finished" and "Finished" in ana.get(place).text
    assert [(each.item, each.scores, each.tags, each.remark, each.seconds) for each in store.answers(history=True)] == sent
    changed = ana.answer(order[0], **ana.form(order[0]))
    assert changed.headers["location"] == f"/overview#{order[0]}"
    assert len(store.answers()) == 5 and store.newest("Ana", order[0]).scores == GOOD


def test_goes_on_where_one_left_off(own):
    pool, store, ana = own
    order = pool.order("Ana")
    ana.answer(order[1])
    assert ana.get("/next").headers["location"] == f"/item/{order[0]}"
    assert ana.answer(order[0]).headers["location"] == f"/item/{order[2]}"
    page = ana.get(f"/item/{order[1]}").text
    assert f'href="/item/{order[0]}"' in page and f'href="/item/{order[2]}"' in page
    assert page.count(" checked") == 2 + 1  # two levels, and the switch of the keys


def test_raters_are_told_nothing_of_where_an_image_is_from(own):
    pool, _, ana = own
    ana.answer(pool.items[0].item)
    for item in pool.items:
        pages = ana.get(f"/item/{item.item}").text + ana.get("/overview").text
        assert not re.search(r"swapped|synthetic|source|atlas|0000\d\d|repeat|images/", pages)


def test_the_overview_does_not_look_ahead(own):
    pool, _, ana = own
    seen, *others = pool.order("Ana")
    ana.answer(seen, remark="<i>odd</i>")
    page = ana.get("/overview").text
    assert f"/image/{seen}" in page and "&lt;i&gt;odd" in page
    for item in others:
        assert f"/item/{item}" in page and f"/image/{item}" not in page and pool.by_name[item].prompt not in page


def test_two_tabs_and_the_back_button(own):
    """What the second tab sends is not saved and not lost: the page shows both, and saving again replaces."""
    pool, store, ana = own
    item = pool.items[0].item
    first, second = ana.form(item), ana.form(item)
    assert ana.answer(item, {"quality": 1, "congruence": 1}, **first).status_code == 303
    again = ana.answer(item, {"quality": 1, "congruence": 1}, **first)  # a double click
    assert again.status_code == 303
    late = ana.answer(item, {"quality": 3, "congruence": 2}, **second, remark="<late>", seconds="7.5")
    assert late.status_code == 409 and "quality 1, congruence 1" in late.text and "&lt;late&gt;" in late.text
    assert len(store.answers(history=True)) == 1
    assert 'id="seconds" value="7.5"' in late.text  # the time of looking goes on
    assert re.findall(r'name="score.(\w+)" value="(\d)" required checked', late.text) == [("quality", "3"), ("congruence", "2")]
    form = {name: re.search(rf'name="{name}" value="([^"]*)"', late.text)[1] for name in ("token", "replaces")}
    assert form["replaces"] == "1" and ana.answer(item, **form).status_code == 303
    back = ana.answer(item, {"quality": 2, "congruence": 2}, **first)  # the first form once more, with another choice
    assert back.status_code == 409 and [each.scores["quality"] for each in store.answers(history=True)] == [1, 3]


@pytest.mark.parametrize("fields, message", [
    ({"score.quality": "4"}, "quality cannot be 4"), ({"score.quality": "x"}, "quality cannot be &#39;x&#39;"),
    ({"score.quality": None}, "not answered yet: quality"), ({"score.beauty": "1"}, "no question"),
    ({"tag": "pretty"}, "no defect"),
    ({"score.quality": "9" * 5000}, "quality cannot be"), ({"token": "x"}, "16 to 100"), ({"token": None}, "16 to 100"),
    ({"remark": "a" * (REMARK + 1)}, "2,001 characters"), ({"score.quality": "-1"}, "quality cannot be"),
    ({"score.quality": "２"}, "quality cannot be")])
def test_a_bad_answer_is_not_saved_and_says_why(study, chief, fields, message):
    pool, store, *_ = study
    before = len(store.answers(history=True))
    refused = chief.answer(pool.items[0].item, **fields)
    assert refused.status_code == 400 and message in refused.text and 'id="answer"' in refused.text
    assert len(store.answers(history=True)) == before


def test_a_huge_form_is_refused(own):
    pool, store, ana = own
    huge = ana.answer(pool.items[0].item, remark="ä" * 500_000)
    assert huge.status_code == 413 and "Nothing was saved" in huge.text
    assert ana.post(f"/item/{pool.items[0].item}", data=b"\xff\xfe=%zz").status_code == 400
    assert ana.post(f"/item/{pool.items[0].item}", data="&".join("a=1" for _ in range(500))).status_code == 400
    assert ana.answer(pool.items[0].item, remark="ä" * REMARK, seconds="nan").status_code == 303
    assert store.answers()[0].seconds == 0


def test_a_thousand_answers_at_once(study):
    """40 threads of 10 raters, 25 answers each, some sent twice: none lost, none doubled, no fault of the server."""
    pool, store, url, codes = study
    before = len(store.answers(history=True))
    tasks = [(f"rater {i // 4}", [item.item for item in pool.items[i % 4::4]]) for i in range(40)]
    clients = {name: Client(url, name, codes[name]) for name, _ in tasks}
    statuses, lock = [], threading.Lock()

    def work(name, items):
        client = Client(url)
        client.cookies.update(clients[name].cookies)
        mine = []
        for i, item in enumerate(items):
            token = new_token()
            mine += [client.answer(item, token=token).status_code for _ in range(2 if i % 10 == 0 else 1)]
        with lock:
            statuses.extend(mine)

    threads = [threading.Thread(target=work, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = store.answers(history=True)[before:]
    assert len(rows) == 1000 and set(statuses) == {303} and len(statuses) == 1000 + 3 * 40
    assert {(row.rater, row.item) for row in rows} == {(name, item) for name, items in tasks for item in items}


# -- images that are gone -----------------------------------------------------------------------------------------------------


def test_an_image_deleted_under_the_page(own, caplog):
    """The page says so and names no path, the log does; it is passed over, and the end tells of it."""
    pool, store, ana = own
    order = pool.order("Ana")
    gone, changed = pool.by_name[order[0]], pool.by_name[order[1]]
    (pool.folder / gone.image).unlink()
    (pool.folder / changed.image).write_bytes((pool.folder / pool.by_name[order[2]].image).read_bytes())
    for item in (gone, changed):
        page = ana.get(f"/item/{item.item}")
        assert page.status_code == 200 and "This image cannot be shown" in page.text and 'id="answer"' not in page.text
        assert item.image not in page.text and str(pool.folder) not in page.text
        assert ana.get(f"/image/{item.item}").status_code == 404
        assert str(pool.folder / item.image) in caplog.text
    assert ana.get("/next").headers["location"] == f"/item/{order[2]}"
    for item in order[2:]:
        place = ana.answer(item).headers["location"]
    assert place == "/finished" and "2 images could not be shown" in ana.get(place).text


def test_images_and_masks_come_as_they_lie_in_the_pool(own):
    pool, _, ana = own
    item = pool.items[0]
    for kind, file in (("image", item.image), ("mask", item.mask)):
        answer = ana.get(f"/{kind}/{item.item}")
        assert answer.content == (pool.folder / file).read_bytes() and answer.headers["content-type"] == "image/png"


# -- who gets in --------------------------------------------------------------------------------------------------------------


def test_nobody_sees_anything_unsigned(study):
    pool, store, url, codes = study
    item, stranger = pool.items[0].item, Client(url)
    for path in (f"/item/{item}", f"/image/{item}", f"/mask/{item}", "/next", "/overview", "/finished", "/admin",
                 "/admin/ratings.csv", "/item/unknown"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/", "")
    before = len(store.answers(history=True))
    refused = stranger.answer(item)
    assert refused.status_code == 401 and "nothing was saved" in refused.text and len(store.answers(history=True)) == before


def test_sign_in_and_out(study):
    _, store, url, codes = study
    client = Client(url)
    wrong = client.post("/sign-in", data={"name": "<b>rater 1", "code": "nonsense"})
    assert wrong.status_code == 401 and "&lt;b&gt;rater 1" in wrong.text and "<b>rater" not in wrong.text
    assert client.post("/sign-in", data={}).status_code == 401
    right = client.post("/sign-in", data={"name": "RATER 1", "code": codes["rater 1"].upper()})
    flags = right.headers["set-cookie"].lower()
    assert right.status_code == 303 and all(flag in flags for flag in ("httponly", "samesite=lax", "path=/"))
    token = client.cookies.values()[0]
    assert client.post("/sign-out").headers["location"] == "/" and store.rater_of(token) is None


def test_guessing_a_code_has_to_wait(own):
    _, store, ana = own
    answers = [ana.post("/sign-in", data={"name": "ana", "code": str(i)}).status_code for i in range(12)]
    assert answers == [401] * 10 + [429] * 2
    assert ana.get("/overview").status_code == 200  # who is in stays in


def test_only_admins_see_the_others(study, chief):
    _, _, url, codes = study
    rater = Client(url, "rater 0", codes["rater 0"])
    for path in ("/admin", "/admin/ratings.csv"):
        assert rater.get(path).status_code == 403
    assert "/admin" not in rater.get("/overview").text
    page, ratings = chief.get("/admin"), chief.get("/admin/ratings.csv")
    assert page.status_code == 200 and "rater 9" in page.text and "Agreement so far" in page.text
    assert ratings.headers["content-disposition"] == 'attachment; filename="ratings.csv"'
    assert ratings.content.startswith(b"\xef\xbb\xbfrater,item,quality,congruence,tags,remark,seconds,at,prompt,")
    assert chief.get("/admin/ratings.csv?history=true").status_code == 200
    assert chief.get("/admin/ratings.csv?history=../../x").status_code == 400


@pytest.mark.parametrize("text", TRAVERSAL)
def test_no_path_reaches_a_file(study, chief, text):
    pool, _, url, _ = study
    for place in ("item", "image", "mask", "static", "admin", ""):
        request = chief.prepare_request(requests.Request("GET", url))
        request.url = f"{url}/{place}/{text}"  # as it is, not tidied up
        answer = chief.send(request, allow_redirects=False, timeout=30)
        assert answer.status_code in (400, 404), (place, answer.status_code)
        assert "root:" not in answer.text and str(pool.folder) not in answer.text and "fingerprint" not in answer.text
    form = {"token": text, "replaces": text, "tag": text, "remark": text, "seconds": text}
    assert chief.answer(pool.items[0].item, **form).status_code == 400
    assert Client(url).post("/sign-in", data={"name": text, "code": text}).status_code == 401


def test_headers_leave_no_way_out_and_no_trace(study):
    pool, _, url, codes = study
    client = Client(url, "rater 2", codes["rater 2"])
    for path in ("/", "/overview", f"/item/{pool.items[0].item}", "/nothing", f"/image/{pool.items[0].item}"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == ("private, max-age=600" if path.startswith("/image") else "no-store")
    page = client.get(f"/item/{pool.items[0].item}").text
    assert not re.search(r"https?://|<style|style=|<script>| on\w+=", page)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_other_sites_and_other_names_are_kept_out(study):
    """DNS rebinding, and forms of another site or of another port of this machine."""
    pool, store, url, codes = study
    client = Client(url, "rater 3", codes["rater 3"])
    port = url.rsplit(":", 1)[1]
    for host, status in (("evil.example", 400), (f"evil.example:{port}", 400), ("localhost", 303), (f"LOCALHOST:{port}", 303),
                         ("192.168.0.7", 303), ("[::1]:80", 303), ("", 400)):
        assert client.get("/next", headers={"Host": host}).status_code == status, host
    before, item = len(store.answers(history=True)), pool.items[5].item
    form = {"score.quality": 1, "score.congruence": 1, "token": new_token(), "replaces": 0}
    for headers in ({"Origin": "http://127.0.0.1:9"}, {"Origin": "null"}, {"Origin": "https://evil.example"},
                    {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site", "Origin": url}):
        assert client.post(f"/item/{item}", data=form, headers=headers).status_code == 403, headers
    assert len(store.answers(history=True)) == before
    assert client.post("/sign-out", headers={"Origin": url}).status_code == 303


@pytest.mark.parametrize("host, right", [
    ("[bad", False), ("evil.example:8000", False), ("127.0.0.1.evil.example", False), ("a b", False),
    ("127.0.0.1", True), ("Machine.ward:8000", True), ("[fe80::1]:80", True)])
def test_names_that_the_page_is_served_under(host, right):
    from libs.ratings.page import served_as
    assert served_as(host.lower(), {"machine.ward"}) == right


def test_a_disk_that_is_full_is_said(own, monkeypatch):
    pool, store, ana = own

    def full(*args, **more):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "answer", full)
    refused = ana.answer(pool.items[0].item)
    assert refused.status_code == 503 and "it was not saved" in refused.text


# -- rate.py ------------------------------------------------------------------------------------------------------------------


def test_adds_raters_and_exports(tmp_path, inside):
    pool = tiny_pool(tmp_path / "pool", n=3, repeats=0)
    options = (CONFIG, f"--pool={pool.folder}")
    said = inside("rate.py", *options, "--add_rater=Dr. Weiß", "--admin=1").stdout
    code = re.search(r"Access code of Dr. Weiß: (\S{14})", said)[1]
    with Store.of(pool) as store:
        assert store.rater_of(store.sign_in("dr. weiss", code)).admin
        for quality, replaces in ((1, 0), (2, 1)):
            store.answer("Dr. Weiß", pool.items[0].item, scores={**GOOD, "quality": quality}, token=new_token(), replaces=replaces)
        assert code not in inside("rate.py", *options, "--add_rater=Dr. Weiß", "--renew=1").stdout
        assert store.sign_in("dr. weiss", code) is None
    for more, rows in (((), 1), (("--history=1",), 2)):
        inside("rate.py", *options, f"--export={tmp_path / 'r.csv'}", *more)
        lines = (tmp_path / "r.csv").read_text(encoding="utf-8-sig").splitlines()
        assert (tmp_path / "r.csv").read_bytes().startswith(b"\xef\xbb\xbfrater,item,")  # Excel reads UTF-8 by this mark
        assert len(learning.answers_of_table(tmp_path / "r.csv", pool)) == rows
        assert len(lines) == 1 + rows and lines[-1].startswith(f"Dr. Weiß,{pool.items[0].item},2,2,")


@pytest.mark.parametrize("more, message", [
    (("--admin=1",), "belong to --add_rater"), (("--history=1",), "belongs to --export"),
    (("--add_rater=a", "--export=b"), "not both"),
    (("--add_rater=Ana",), "there is a rater 'Ana' already"), (("--add_rater= ",), "needs a name"),
    (("--pool=/nowhere",), "no pool of ratings"), (("--config.page.port=99999",), "a number from 1"),
    (("--config.page.host=no.such.name.invalid",), "is no address")])
def test_says_in_one_line_what_is_wrong(tmp_path, inside, monkeypatch, more, message):
    import uvicorn
    monkeypatch.delattr(uvicorn.Server, "run")  # it must not come so far
    pool = tiny_pool(tmp_path / "pool", n=3, repeats=0)
    with Store.of(pool) as store:
        store.add_rater("Ana")
    said = inside("rate.py", CONFIG, f"--pool={pool.folder}", *more, fails=True).stderr
    assert message in said and "Traceback" not in said and said.count("error:") == 1


def test_a_port_that_is_taken_and_ratings_of_another_pool(tmp_path, inside):
    pool, other = tiny_pool(tmp_path / "pool", n=3, repeats=0), tiny_pool(tmp_path / "other", n=3, repeats=0, seed=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = inside("rate.py", CONFIG, f"--pool={pool.folder}", f"--config.page.port={port}", fails=True).stderr
    assert f"cannot serve at 127.0.0.1:{port}" in said and f"--config.page.port={port + 1}" in said
    Store.of(pool).close()
    (pool.folder / "ratings.sqlite").rename(other.folder / "ratings.sqlite")
    assert "a pool of other images than the ratings" in inside("rate.py", CONFIG, f"--pool={other.folder}", fails=True).stderr


def test_an_open_door_is_warned_of(tmp_path, inside, monkeypatch):
    import uvicorn
    pool = tiny_pool(tmp_path / "pool", n=3, repeats=0)
    (pool.folder / pool.items[0].image).unlink()
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    done = inside("rate.py", CONFIG, f"--pool={pool.folder}", "--config.page.host=0.0.0.0", "--config.page.port=0")
    assert "unencrypted" in done.stderr and "ssh -L" in done.stderr and "nobody can sign in yet" in done.stdout
    assert str(pool.folder / pool.items[0].image) in done.stderr
    assert "unencrypted" not in inside("rate.py", CONFIG, f"--pool={pool.folder}", "--config.page.port=0").stderr


@pytest.mark.parametrize("linked", ["images", "masks", "images/{}.png", "masks/{}.png"])
def test_links_are_not_served(tmp_path, linked):
    """Neither to folders elsewhere, nor from a mask to the ratings themselves."""
    from libs.ratings import page
    pool = tiny_pool(tmp_path / "pool", n=3, repeats=0, masks=True)
    with Store.of(pool) as store:
        page.app(pool, store, allowed_hosts=("localhost",))
        place = pool.folder / linked.format(pool.items[1].item)
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(store.path if place.suffix else tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="is a link to another file"):
            page.app(pool, store, allowed_hosts=("localhost",))


def test_a_mask_is_what_the_pool_was_built_with(own):
    from libs.ratings import page
    pool, store, ana = own
    item = pool.items[0]
    (pool.folder / item.mask).write_bytes((pool.folder / "items.jsonl").read_bytes())
    assert ana.get(f"/mask/{item.item}").status_code == 404 and ana.get(f"/image/{item.item}").status_code == 200
    pool.items[0] = replace(item, mask_sha256="")
    with pytest.raises(ValueError, match="build the pool anew"):
        page.app(pool, store, allowed_hosts=("localhost",))


def test_kill_9_loses_no_acknowledged_answer(tmp_path):
    """The server is killed under load at 20 random moments and started again; what was answered with 303 is there, once."""
    pool = tiny_pool(tmp_path / "pool", n=250, repeats=0, side=8)
    with Store.of(pool) as store:
        clients = [Client("", f"r{i}") for i in range(4)]
        sessions = [store.sign_in(f"r{i}", store.add_rater(f"r{i}")) for i in range(4)]
    for client, session in zip(clients, sessions):
        client.cookies.set(f"ratings-{pool.fingerprint[:8]}", session)
    servers = multiprocessing.get_context("forkserver")  # has read the libraries once, so that the next server is there at once
    servers.set_forkserver_preload(["uvicorn", "tests.ratings_site"])
    rounds(pool, clients, random.Random(0), [started] + 19 * [lambda folder: forked(servers, folder)])


def started(folder):
    """The command as people give it: (kill, address)."""
    command = [sys.executable, str(ROOT / "rate.py"), CONFIG, f"--pool={folder}", "--config.page.port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def kill():
        server.kill()
        server.wait()
        server.stdout.close()

    return kill, re.search(r"http://\S+", server.stdout.readline())[0]


def forked(servers, folder):
    """The same page from a process that is there sooner: (kill, address)."""
    told, tell = servers.Pipe(duplex=False)
    server = servers.Process(target=serve, args=(folder, tell), daemon=True)
    server.start()
    tell.close()

    def kill():
        server.kill()
        server.join()
        assert server.exitcode == -signal.SIGKILL
        told.close()

    assert told.poll(30)
    return kill, told.recv()


def rounds(pool, clients, moments, starts):
    """A server of each of `starts`, killed under load; checks after each that the file holds what was acknowledged, once."""
    acknowledged, statuses, sent = set(), set(), {(i, item.item): new_token() for i in range(len(clients)) for item in pool.items}
    waiting = [[item.item for item in pool.items] for _ in clients]
    for start in starts:
        before = len(acknowledged)
        kill, url = start(pool.folder)

        def work(i):
            clients[i].url = url
            while waiting[i]:
                item = waiting[i][0]
                try:
                    statuses.add(clients[i].answer(item, token=sent[i, item]).status_code)
                except requests.RequestException:
                    return  # killed; the same form is sent again to the next server
                acknowledged.add((f"r{i}", item))
                waiting[i].pop(0)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(clients))]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while len(acknowledged) == before and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.08))  # some answers, and never all
        kill()
        for thread in threads:
            thread.join()
        with Store.of(Pool(pool.folder)) as store:
            rows = [(row.rater, row.item) for row in store.answers(history=True)]
        assert len(rows) == len(set(rows)), "an answer was doubled"
        assert acknowledged <= set(rows), "an acknowledged answer was lost"
        assert len(rows) - len(acknowledged) <= len(clients)  # at most one each was written and not yet acknowledged
        assert before < len(acknowledged) and any(waiting)  # it was killed at work
    assert statuses == {303}
