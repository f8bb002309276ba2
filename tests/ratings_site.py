"""The page of raters, served from a thread of the test, and a client that signs in and answers as a browser without JavaScript."""

import contextlib
import re
import socket
import threading

import requests
import uvicorn

from libs.ratings.page import app
from libs.ratings.pool import Pool
from libs.ratings.store import Store, new_token

GOOD = {"quality": 3, "congruence": 2}


@contextlib.contextmanager
def serving(pool, store, names=("127.0.0.1", "localhost")):
    """The address of the pool's page."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(app(pool, store, allowed_hosts=names), access_log=False, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def serve(folder, tell):
    """The page of the pool in `folder`, until the process is killed; its address is sent through `tell`."""
    pool = Pool(folder)
    with Store.of(pool) as store, serving(pool, store) as url:
        tell.send(url)
        threading.Event().wait()


class Client(requests.Session):
    """A rater's browser: `get` and `post` take paths, redirects are not followed."""

    def __init__(self, url, name="", code=""):
        super().__init__()
        self.trust_env = False  # no proxy of this machine
        self.url = url
        if code:
            assert self.post("/sign-in", data={"name": name, "code": code}).headers["location"] == "/next"

    def request(self, method, path, **more):
        return super().request(method, self.url + path, **{**more, "timeout": 30, "allow_redirects": False})

    def form(self, item):
        """The fields of the page of an item, without an answer."""
        page = self.get(f"/item/{item}").text
        return {name: re.search(rf'name="{name}" value="([^"]*)"', page)[1] for name in ("token", "replaces")}

    def answer(self, item, scores=GOOD, **fields):
        data = {**{f"score.{axis}": level for axis, level in scores.items()}, "token": new_token(), "replaces": 0, **fields}
        return self.post(f"/item/{item}", data={key: value for key, value in data.items() if value is not None})
