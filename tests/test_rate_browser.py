"""The page of raters in a real browser: a pool rated with keys, mouse and fingers; what the file holds is what was done."""

import re
import shutil
import time

import pytest

from libs.ratings.store import Store
from tests.ratings_pools import tiny_pool
from tests.ratings_site import serving

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
         "--disable-sync").split()
PHONE = dict(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not BROWSER:
        pytest.skip("no Chromium or Chrome on this machine; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def study(tmp_path, chromium):
    """study(**context) -> (page, pool, store): signed in as Dr. Weiß, at the first image. What the browser complains of fails."""
    pool = tiny_pool(tmp_path / "pool", n=5, repeats=1, masks=True, side=32)
    said, contexts = [], []
    with Store.of(pool) as store, serving(pool, store) as url:
        code = store.add_rater("Dr. Weiß")

        def start(**how):
            context = chromium.new_context(**{"viewport": {"width": 1440, "height": 900}, **how})
            context.set_default_timeout(10_000)
            contexts.append(context)
            page = context.new_page()
            page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: None if request.url.startswith(url) else said.append(f"asked for {request.url}"))
            page.goto(url)
            page.fill("#name", "dr. weiss")
            page.fill("#code", code)
            page.click("text=Sign in >> nth=-1")
            page.wait_for_url("**/item/*")
            return page, pool, store

        start.said = said
        yield start
        for context in contexts:
            context.close()
    assert not said


def at(page, number):
    """Wait for the page of the image of this number."""
    from playwright.sync_api import expect
    expect(page).to_have_title(f"Image {number} of 6")
    page.wait_for_load_state("load")  # the title is there before the script that listens for keys


def keys(page, *names):
    for name in names:
        page.keyboard.press(name)


def rows(store):
    return [(each.item, *each.scores.values(), each.tags, each.remark) for each in store.answers(history=True)]


def test_a_pool_rated_with_keys_and_mouse(study):
    """Sign in, rate with both, reload, go back, change one's mind, resume, finish."""
    started = time.time()
    page, pool, store = study()
    order, done = pool.order("Dr. Weiß"), []
    keys(page, "2", "3", "Enter")
    at(page, 2)
    done.append((order[0], 2, 3, (), ""))

    page.click(".axis >> nth=0 >> .level >> nth=2")
    page.click(".axis >> nth=1 >> .level >> nth=0")
    page.click("[value='cut off']")
    page.click("text=Save and next")
    at(page, 3)
    done.append((order[1], 3, 1, ("cut off",), ""))

    keys(page, "1")
    page.reload()  # nothing is saved, and what was chosen is still there
    assert page.is_checked(".axis >> nth=0 >> [value='1']") and page.is_visible("#draft")
    keys(page, "Enter")
    assert page.inner_text("#hint") == "Still to be answered: congruence." and len(rows(store)) == 2
    keys(page, "2", "a", "e")
    page.keyboard.type("a hair 3 <b>")  # typed letters do nothing else
    keys(page, "Control+Enter")
    at(page, 4)
    done.append((order[2], 1, 2, ("blurred",), "a hair 3 <b>"))

    keys(page, "ArrowLeft")
    at(page, 3)
    keys(page, "ArrowUp", "ArrowUp", "3", "ArrowRight")  # looked at, changed, and not saved
    at(page, 4)
    keys(page, "ArrowLeft")
    at(page, 3)
    keys(page, "ArrowUp", "3", "Enter")
    at(page, 4)  # back to the first that is open
    done.append((order[2], 3, 2, ("blurred",), "a hair 3 <b>"))

    page.goto(page.url.split("/item")[0])  # resume
    for number in (4, 5, 6):
        at(page, number)
        keys(page, "3", "3", "ArrowUp", "2", "Enter")
        done.append((order[number - 1], 2, 3, (), ""))
    page.wait_for_url("**/finished")
    assert "Finished" in page.inner_text("h1") and "6 of 6" in page.inner_text("main")
    assert rows(store) == done
    times = [each.seconds for each in store.answers(history=True)]
    assert all(0 < each for each in times) and sum(times) < time.time() - started
    page.click("main a")
    page.wait_for_url("**/overview")
    assert page.locator(".items li").count() == 6 and page.locator(".open a").count() == 0


def test_a_phone_and_fingers(study):
    page, pool, store = study(**PHONE)
    for place in ("#stage", "#save", ".prompt"):
        box = page.locator(place).bounding_box()
        assert 0 <= box["y"] < 844 - 30 and box["x"] >= 0 and box["x"] + box["width"] <= 390, place
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for place in (".level", "#save", ".step >> visible=true", ".tag span", ".tools button >> visible=true"):
        assert all(each.bounding_box()["height"] >= 40 for each in page.locator(place).all()), place
    page.tap(".axis >> nth=0 >> .level >> nth=1")
    page.tap(".axis >> nth=1 >> .level >> nth=2")
    assert page.locator("#stage").bounding_box()["y"] >= 0  # still in sight
    page.tap("[value='artefact']")
    page.tap("#save")
    at(page, 2)
    assert rows(store) == [(pool.order("Dr. Weiß")[0], 2, 3, ("artefact",), "")]
    for path in ("/overview", "/finished"):
        page.goto(page.url.split("/item")[0].split("/over")[0] + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_javascript(study):
    page, pool, store = study(java_script_enabled=False)
    page.click(".axis >> nth=0 >> .level >> nth=1")
    page.click(".axis >> nth=1 >> .level >> nth=2")
    page.fill("#remark", "two\nlines")
    page.click("text=Save and next")
    at(page, 2)
    assert not page.is_visible(".tools")
    assert rows(store) == [(pool.order("Dr. Weiß")[0], 2, 3, (), "two\nlines")]


def test_zoom_light_and_their_keys(study):
    page, _, _ = study()
    look = "getComputedStyle(document.getElementById('picture'))"

    def view():  # scale and shift of image and mask, which move together
        image, mask = [page.evaluate(f"document.querySelectorAll('.pane img')[{i}].style.transform") for i in (0, 1)]
        assert image == mask
        return [float(each) for each in re.findall(r"-?[\d.]+", image)]

    assert view() == [0, 0, 1]
    keys(page, "+", "+")
    assert view() == [0, 0, 1.5625] and page.inner_text("#zoom").endswith("%")
    keys(page, "Shift+ArrowRight", "Shift+ArrowDown")
    assert view()[:2] == [-60, -60]
    page.mouse.move(300, 400)
    page.mouse.down()
    page.mouse.move(330, 410)
    page.mouse.up()
    assert view()[:2] == [-30, -50]
    keys(page, "0")
    assert view() == [0, 0, 1]
    box = page.locator(".pane >> nth=0").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 100, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    x, y, scale = view()
    assert scale > 1.5 and [x, y] == pytest.approx([100 - 100 * scale, 0], abs=1)  # what is under the pointer stays there
    page.dblclick("#picture")
    assert view() == [0, 0, 1]
    keys(page, "b", "b", "Shift+C")
    assert page.evaluate(f"{look}.filter") == "brightness(1.2) contrast(0.9)"
    keys(page, "i", "m")
    assert page.evaluate(f"{look}.imageRendering") == "pixelated" and not page.is_visible(".mask")
    keys(page, "x", "m")
    assert page.evaluate(f"{look}.filter") == "none" and page.is_visible(".mask")
    page.reload()
    assert page.evaluate(f"{look}.imageRendering") == "pixelated"  # a preference; light is of the image alone
    keys(page, "?")
    assert page.is_visible("#help")
    keys(page, "3")  # does nothing behind the list
    keys(page, "Escape")
    assert not page.is_visible("#help") and not page.locator(":checked[type=radio]").count()


def test_two_tabs_and_the_back_button(study):
    page, pool, store = study()
    other = page.context.new_page()
    other.goto(page.url)
    keys(page, "1", "1", "Enter")
    at(page, 2)
    keys(other, "3", "2", "Enter")
    other.wait_for_selector(".message")
    assert "quality 1, congruence 1" in other.inner_text(".message") and len(rows(store)) == 1
    assert other.is_checked(".axis >> nth=0 >> [value='3']")
    study.said.clear()  # the browser notes that the answer was refused
    other.click("text=Save and next")
    at(other, 2)
    page.go_back()
    page.wait_for_selector(".saved >> text=quality 3")
    keys(page, "Enter")  # the same once more is no change of mind
    at(page, 2)
    assert [row[1:3] for row in rows(store)] == [(1, 1), (3, 2)]


def test_a_session_that_ends_keeps_what_was_chosen(study):
    """The page says that it was not saved and may be after signing in: it is still there, with its time; not for others."""
    page, pool, store = study()
    order = pool.order("Dr. Weiß")
    page.wait_for_timeout(400)
    keys(page, "1", "3")
    code, other = store.add_rater("Dr. Weiß", renew=True), store.add_rater("Ana")
    keys(page, "Enter")
    page.wait_for_selector(".message >> text=Sign in, then save it again")
    study.said.clear()
    page.fill("#name", "Dr. Weiß")
    page.fill("#code", code)
    page.click("text=Sign in >> nth=-1")
    at(page, 1)
    assert page.is_visible("#draft") and page.locator(":checked[type=radio]").count() == 2
    page.reload()
    keys(page, "Enter")
    at(page, 2)
    assert rows(store) == [(order[0], 1, 3, (), "")] and store.answers()[0].seconds > 0.4
    keys(page, "2")
    page.click("text=Sign out")
    page.fill("#name", "Ana")
    page.fill("#code", other)
    page.click("text=Sign in >> nth=-1")
    page.wait_for_url("**/item/*")
    assert not page.evaluate("Object.keys(sessionStorage).filter((key) => key.startsWith('draft'))")
    page.goto(re.sub("item/.*", f"item/{order[1]}", page.url))
    assert not page.is_visible("#draft") and not page.locator(":checked[type=radio]").count()


def test_a_key_that_is_held_answers_once(study):
    page, _, store = study()
    for _ in range(5):
        page.keyboard.down("3")
    page.keyboard.up("3")
    assert page.locator(":checked[type=radio]").count() == 1
    keys(page, "3")
    for _ in range(5):  # the next images are not answered by what is left of this press
        page.keyboard.down("Enter")
    at(page, 2)
    for _ in range(3):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    assert len(rows(store)) == 1 and not page.is_visible("#hint")
    for _ in range(3):
        page.keyboard.down("+")
    assert "scale(1.95" in page.evaluate("document.getElementById('picture').style.transform")


def test_a_link_from_another_site_finds_one_signed_in(study):
    page, _, _ = study()
    here = page.url
    page.goto(re.sub(r"//127\.0\.0\.1(:\d+)/.*", r"//localhost\1/", here))
    page.wait_for_selector("#code")
    page.evaluate("(place) => { location.href = place; }", here)
    at(page, 1)
    study.said.clear()  # the other site's own files


def test_an_image_that_goes_while_it_is_looked_at(study):
    page, pool, store = study()
    order = pool.order("Dr. Weiß")
    keys(page, "3", "3", "Enter")
    at(page, 2)
    (pool.folder / pool.by_name[order[2]].image).unlink()
    keys(page, "ArrowRight")
    page.wait_for_selector("text=This image cannot be shown")
    assert not page.locator("#answer").count()
    page.click("#gone a")
    at(page, 4)
    page.route("**/image/*", lambda route: route.fulfill(status=404))  # gone between the page and its image
    keys(page, "ArrowRight")
    page.wait_for_selector("text=This image cannot be shown")
    assert not page.is_visible("#answer") and not page.is_visible("#save")
    study.said.clear()


def test_time_is_counted_while_the_page_is_seen(study):
    page, _, store = study()
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); " \
           "document.dispatchEvent(new Event('visibilitychange')); }"
    page.wait_for_timeout(200)
    page.evaluate(hide, True)
    page.wait_for_timeout(1200)
    page.evaluate(hide, False)
    keys(page, "1", "1", "Enter")
    at(page, 2)
    assert 0.2 <= store.answers()[0].seconds < 1.2
