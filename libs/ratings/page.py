"""The page on which raters score a pool: sign in, an item at a time, an overview, and how far everybody is.

    uvicorn.run(page.app(pool, Store.of(pool), allowed_hosts=("127.0.0.1", "localhost")))

Everything works without JavaScript; static/page.js adds keys, zoom, light and the time of looking. No request names a path: items
have opaque names, and whatever is not the name of an item is not found. An answer is on the disk before the page moves on.
"""

import hashlib
import ipaddress
import logging
import math
import sqlite3
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import jinja2
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from .store import AGAIN, MARK, NAME, OUTDATED, REMARK, SESSION, TooManyTries, new_token, table

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
FORM = 64 * 1024  # most bytes of a form; the longest remark takes 24 KiB
DAY = 24 * 3600
TAG_KEYS = "asdfghjkl"  # of the first defects, as page.js knows them
STATIC = {name: ((HERE / "static" / name).read_bytes(), kind)
          for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"))}
VERSION = hashlib.sha256(b"".join(content for content, _ in STATIC.values())).hexdigest()[:10]
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
                               "frame-ancestors 'none'; base-uri 'none'",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin", "x-frame-options": "DENY",
    "x-content-type-options": "nosniff", "referrer-policy": "same-origin", "cache-control": "no-store",
    "permissions-policy": "camera=(), microphone=(), geolocation=()"}


def app(pool, store, *, allowed_hosts):
    """The site of one pool, an ASGI application.

    Args:
        pool: `Pool`. store: `Store.of(pool)`.
        allowed_hosts: names under which it may be asked for, without port. Others are refused, so that a foreign site whose name
            is made to point here reads nothing; addresses in digits cannot be made so, and are served.

    Raises:
        ValueError: an item's image or mask is a link to another file, or a mask has no hash.
    """
    desk = Desk(pool, store)
    cookie = f"ratings-{pool.fingerprint[:8]}"  # browsers send cookies to every port of a machine: each pool has its own
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    site.add_middleware(Guard, allowed_hosts=allowed_hosts)
    page = desk.render

    def signed_in(request: Request):
        rater = store.rater_of(request.cookies.get(cookie, ""))
        if rater is None:
            raise NotSignedIn
        return rater

    def admin(rater=Depends(signed_in)):
        if not rater.admin:
            raise HTTPException(403, "This page is for those who run the study.")
        return rater

    def known(item: str, rater=Depends(signed_in)):
        if item not in pool.by_name:
            raise HTTPException(404, "There is no such item in this pool.")
        return pool.by_name[item]

    # -- sign in and out ----------------------------------------------------------------------------------------------------

    @site.get("/")
    def start(request: Request):
        if store.rater_of(request.cookies.get(cookie, "")):
            return RedirectResponse("/next", 303)
        return page("sign_in")

    @site.post("/sign-in")
    def sign_in(request: Request, form=Depends(form_of)):
        name = form.get("name", [""])[0]
        try:
            token = store.sign_in(name, form.get("code", [""])[0])
        except TooManyTries as error:
            return page("sign_in", status=429, name=name[:NAME], message=f"{str(error).capitalize()}.")
        if token is None:
            return page("sign_in", status=401, name=name[:NAME], message="Name and access code do not belong together.")
        answer = RedirectResponse("/next", 303)
        # lax: who follows a link in a letter is signed in; only forms change anything, and the guard refuses those of other sites
        answer.set_cookie(cookie, token, max_age=SESSION, httponly=True, samesite="lax", secure=request.url.scheme == "https")
        return answer

    @site.post("/sign-out")
    def sign_out(request: Request):
        store.sign_out(request.cookies.get(cookie, ""))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(cookie, httponly=True, samesite="lax", secure=request.url.scheme == "https")
        return answer

    # -- rating -------------------------------------------------------------------------------------------------------------

    @site.get("/next")
    def go_on(rater=Depends(signed_in)):
        item = desk.following(rater)
        return RedirectResponse(f"/item/{item}" if item else "/finished", 303)

    @site.get("/item/{item}")
    def show(item=Depends(known), rater=Depends(signed_in)):
        return desk.item_page(rater, item)

    @site.post("/item/{item}")
    def save(item=Depends(known), rater=Depends(signed_in), form=Depends(form_of)):
        given = given_in(form)
        try:
            outcome = store.answer(rater.name, item.item, scores=given.scores, tags=given.tags, remark=given.remark,
                                   seconds=given.seconds, token=given.token, replaces=given.replaces)
        except ValueError as error:
            return desk.item_page(rater, item, given=given, status=400, message=f"Not saved: {error}.")
        if outcome.state == OUTDATED:
            return desk.item_page(rater, item, given=given, status=409, message=desk.outdated(outcome.answer))
        following = desk.following(rater, after=item.item)
        if following is None and (given.replaces or outcome.state == AGAIN):
            return RedirectResponse(f"/overview#{item.item}", 303)
        return RedirectResponse(f"/item/{following}" if following else "/finished", 303)

    @site.get("/image/{item}")
    def image(item=Depends(known), rater=Depends(signed_in)):
        return desk.picture(item, item.image, item.sha256)

    @site.get("/mask/{item}")
    def mask(item=Depends(known), rater=Depends(signed_in)):
        return desk.picture(item, item.mask, item.mask_sha256)

    @site.get("/overview")
    def overview(rater=Depends(signed_in)):
        answered, order = store.answered(rater.name), desk.order(rater.name)
        return page("overview", rater=rater, rows=[(pool.by_name[item], answered.get(item)) for item in order],
                    numbers={item: i + 1 for i, item in enumerate(order)}, done=len(answered), total=len(order), axes=pool.axes)

    @site.get("/finished")
    def finished(rater=Depends(signed_in)):
        answered = store.answered(rater.name)
        gone = sum(not desk.whole(item) for item in pool.items if item.item not in answered)
        return page("finished", rater=rater, done=len(answered), total=len(pool.items), gone=gone,
                    left=len(pool.items) - len(answered) - gone)

    # -- those who run the study ----------------------------------------------------------------------------------------------

    @site.get("/admin")
    def progress(rater=Depends(admin)):
        return page("admin", rater=rater, raters=store.raters(), total=len(pool.items), agreement=desk.agreement(),
                    missing=len(pool.missing()))

    @site.get("/admin/ratings.csv")
    def ratings(history: bool = False, rater=Depends(admin)):
        name = "ratings_history.csv" if history else "ratings.csv"
        return Response(MARK + table(pool, store.answers(history)), media_type="text/csv; charset=utf-8",
                        headers={"content-disposition": f'attachment; filename="{name}"'})

    # -- looks and faults -----------------------------------------------------------------------------------------------------

    @site.get("/static/{name}")
    def static(name: str):
        if name not in STATIC:
            raise HTTPException(404, "There is no such page.")
        content, kind = STATIC[name]
        return Response(content, media_type=f"{kind}; charset=utf-8",  # pages ask for it with its version
                        headers={"cache-control": "public, max-age=31536000, immutable"})

    @site.get("/favicon.ico")
    def icon():
        return Response(status_code=204)

    @site.exception_handler(NotSignedIn)
    def not_signed_in(request, _):
        if request.method == "GET":
            return RedirectResponse("/", 303)
        return page("sign_in", status=401, message="You are signed out, and nothing was saved. Sign in, then save it again.")

    @site.exception_handler(HTTPException)
    def refused(request, error):
        said = "There is no such page." if error.detail == "Not Found" else error.detail
        return page("error", status=error.status_code, message=said)

    @site.exception_handler(RequestValidationError)
    def malformed(request, _):
        return page("error", status=400, message="The address of this page is not complete.")

    @site.exception_handler(sqlite3.Error)
    def not_written(request, error):
        logger.error("the file of ratings %s: %s", store.path, error)
        return page("error", status=503, message="The answers cannot be read or written just now. If you were saving an answer, it "
                    "was not saved: go back and save it again. If this stays, tell those who run the study.")

    @site.exception_handler(Exception)
    def failed(request, error):
        answer = page("error", status=500, message="Something went wrong on the server. If you were saving an answer, go back and "
                      "save it again: it is never counted twice.")
        answer.headers.update(HEADERS)  # this one does not pass the guard
        return answer

    return site


class NotSignedIn(Exception):
    """No session, or one that has ended."""


class Desk:
    """What the pages of a pool have in common: each rater's order, whole images, templates."""

    def __init__(self, pool, store):
        self.pool, self.store = pool, store
        self.order = lru_cache(1000)(pool.order)
        self._seen, self._told, self._agreement = {}, set(), (None, None)
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True,
                                         lstrip_blocks=True, undefined=jinja2.StrictUndefined)
        environment.globals.update(version=VERSION, guide=pool.guide)
        self._template = lru_cache(lambda name: environment.get_template(f"{name}.html.j2"))
        root = pool.folder.resolve()
        for item in pool.items:
            if item.mask and not item.mask_sha256:
                raise ValueError(f"{pool.folder}: nothing says which mask item {item.item} was built with: build the pool anew")
            for file in filter(None, (item.image, item.mask)):
                if (pool.folder / file).resolve() != root / file:
                    raise ValueError(f"{pool.folder}: {file} of item {item.item} is a link to another file, which is not served")

    def render(self, template, /, *, status=200, **values):
        return HTMLResponse(self._template(template).render({"rater": None, "message": "", **values}), status)

    def following(self, rater, after=None):
        """The first item of the rater's order that is neither answered nor gone, first behind `after`; None for none."""
        order, answered = self.order(rater.name), self.store.answered(rater.name)
        start = order.index(after) + 1 if after else 0
        return next((item for item in order[start:] + order[:start]
                     if item not in answered and self.whole(self.pool.by_name[item])), None)

    def item_page(self, rater, item, *, given=None, status=200, message=""):
        """The form of an item, with the rater's newest answer in it, or with what was `given` but not saved."""
        order, answered = self.order(rater.name), self.store.answered(rater.name)
        at, newest = order.index(item.item), answered.get(item.item)
        filled = given or newest or SimpleNamespace(scores={}, tags=(), remark="")
        ahead = next((name for name in order[at + 1:] + order[:at] if name not in answered), "")
        return self.render(
            "item", status=status, message=message, rater=rater, item=item, whole=self.whole(item), number=at + 1,
            seconds=given.seconds if given else 0, total=len(order), done=len(answered), axes=self.pool.axes, filled=filled,
            newest=newest, token=new_token(),
            tags=[(tag, TAG_KEYS[i] if i < len(TAG_KEYS) else "") for i, tag in enumerate(self.pool.tags)], longest=REMARK,
            previous=order[at - 1] if at else "", next=order[at + 1] if at + 1 < len(order) else "", ahead=ahead)

    def outdated(self, newest):
        """Why an answer was not written, with the one that stands."""
        if newest is None:
            return "Not saved: this form is out of date. Look at your answer again, and save it."
        said = ", ".join(f"{axis.name} {newest.scores[axis.name]}" for axis in self.pool.axes)
        return (f"Not saved, because you have answered this item already, in another tab or before you went back: {said}. The form "
                "below holds what you chose just now. Save it if it is to replace that answer, or go on.")

    def picture(self, item, file, sha256):
        """An image of an item as a response; 404 where there is none, or its bytes are not those that the pool was built of."""
        try:
            content = (self.pool.folder / file).read_bytes() if file else b""
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HTTPException(404, "This image cannot be shown.")
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=600"})

    def whole(self, item):
        """Whether the image is there with the bytes that were put in the pool; read again only after it has changed."""
        file = self.pool.folder / item.image
        try:
            stat = file.stat()
            now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._seen.get(item.item, ("", False))[0] != now:
                self._seen[item.item] = (now, hashlib.sha256(file.read_bytes()).hexdigest() == item.sha256)
            there = self._seen[item.item][1]
        except OSError:
            there = False
        if not there and item.item not in self._told:
            self._told.add(item.item)
            logger.warning("item %s cannot be shown: %s is gone or was changed", item.item, file)
        return there

    def agreement(self):
        """How well the raters agree so far, as `blocks`: computed anew only when there are new answers."""
        newest = self.store.newest_number()
        if self._agreement[0] != newest:
            self._agreement = (newest, self._summary())
        return self._agreement[1]

    def _summary(self):
        try:
            from . import agreement
            return blocks(agreement.table(agreement.summary(self.pool, self.store.answers())))
        except Exception:  # whatever the numbers do, progress is to be seen
            logger.exception("the agreement could not be computed")
            return ["The agreement could not be computed; the log of the server says why."]


class Guard:
    """Middleware: the headers of every answer; nothing under a foreign name, and no form that another site has sent.

    SameSite cookies do not keep out other ports of this machine, which count as the same site; the browser's own word does.
    """

    def __init__(self, app, allowed_hosts):
        self.app, self.names = app, {name.lower() for name in allowed_hosts}

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message):
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in HEADERS.items()
                                                             if name.encode() not in there)]
            await send(message)

        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        if not served_as(headers.get(b"host", ""), self.names):
            refused = Response("The ratings are not served under this name; --config.page.names gives names to serve them under.",
                               400, media_type="text/plain")
        elif scope["method"] not in ("GET", "HEAD") and from_elsewhere(headers):
            refused = Response("This form was sent by another site.", 403, media_type="text/plain")
        else:
            refused = self.app
        await refused(scope, receive, with_headers)


def blocks(text):
    """Markdown of sentences and tables as a list: a str for each sentence, a list of rows for each table."""
    found = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.split("\n")
        if paragraph.startswith("|"):
            found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines if set(line) - set("|-: ")])
        else:
            found += [line.removeprefix("* ") for line in lines]
    return found


def served_as(host, names):
    """Whether a Host header names this server: one of its names, or an address in digits."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name not in names:
            ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def from_elsewhere(headers):
    """Whether a browser says that another site sent this; what says nothing is no browser, and carries nobody's cookies."""
    said, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if said:
        return said not in ("same-origin", "none")
    return bool(origin) and urlsplit(origin).netloc != headers.get(b"host")


async def form_of(request: Request):
    """{field: [values]} of a posted form; read here, because a parser of uploads is not needed and has no limit that suits.

    Raises:
        HTTPException: 413 for one that is too long, 400 for one that is no form.
    """
    body, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length <= FORM:  # the rest is read and dropped, so that the browser gets to see the answer
            body.append(part)
    if length > FORM:
        raise HTTPException(413, f"This is too long: a remark has at most {REMARK:,} characters. Nothing was saved; go back, and "
                                 "shorten it.")
    try:
        return parse_qs(b"".join(body).decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=200)
    except ValueError as error:
        raise HTTPException(400, "This form cannot be read. Nothing was saved.") from error


def given_in(form):
    """What a rater's form says, unchecked: scores (numbers where they are such), tags, remark, seconds, token, replaces."""
    first = {name: values[0] for name, values in form.items()}
    scores = {name.removeprefix("score."): _number(value) for name, value in first.items() if name.startswith("score.")}
    try:
        seconds = float(first.get("seconds", ""))
    except ValueError:  # without JavaScript
        seconds = 0.0
    return SimpleNamespace(scores=scores, tags=tuple(form.get("tag", ())), remark=first.get("remark", ""),
                           seconds=min(seconds, DAY) if math.isfinite(seconds) and seconds > 0 else 0.0,
                           token=first.get("token", ""), replaces=_number(first.get("replaces", "")))


def _number(text):
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else text
