"""Serve a pool of images to the people who rate it, on a page in their browser; every answer is on the disk before the next image.

    python rate.py --config=configs/rating.py --add_rater="Dr. Weiß"      # prints the access code, once
    python rate.py --config=configs/rating.py --add_rater=Ana --admin   # Ana also sees everybody's progress
    python rate.py --config=configs/rating.py                             # the page, at http://127.0.0.1:8000
    python rate.py --config=configs/rating.py --export=ratings.csv        # newest answers; --history: all

scripts/build_rating_pool.py makes the pool. Raters may be added, and answers exported, while the page is served. It is served to
this machine alone. From another one: `ssh -L 8000:127.0.0.1:8000 machine` there, or a reverse proxy with TLS on this machine
(with the name it answers to in --config.page.names). Ctrl-C ends it; the same command goes on.
"""

import logging
import socket
import sys

from libs import cli, ratings
from libs.engine.checkpoint import write_text
from libs.ratings.store import MARK, Store, table

LOCAL = ("127.0.0.1", "localhost", "::1")
NAMED = 5  # missing files that the log names


def rate(config, pool, add_rater, admin, renew, export, history):
    if (admin or renew) and not add_rater:
        raise ValueError("--admin and --renew belong to --add_rater=NAME")
    if history and not export:
        raise ValueError("--history belongs to --export=FILE.csv")
    if add_rater and export:
        raise ValueError("give --add_rater or --export, not both")
    pool = ratings.Pool(pool or config.pool.path)
    with Store.of(pool) as store:
        if add_rater:
            code = store.add_rater(add_rater, admin=bool(admin), renew=bool(renew))
            print(f"Access code of {add_rater}: {code}\nIt is not kept and not shown again; a lost one is replaced by --renew.")
        elif export:
            answers = store.answers(history=bool(history))
            write_text(export, MARK + table(pool, answers))
            print(f"{len(answers)} {'answers' if history else 'newest answers'} in {export}")
        else:
            serve(pool, store, config.page)


def serve(pool, store, options):
    """The page until Ctrl-C; options: host, port (0 for a free one), names that it may be asked for besides this machine's."""
    import uvicorn
    from libs.ratings import page
    missing = pool.missing()
    for item in missing[:NAMED]:
        logging.warning("item %s cannot be shown: %s is not there", item.item, pool.folder / item.image)
    if len(missing) > NAMED:
        logging.warning("and %d images more are not there", len(missing) - NAMED)
    if options.host not in LOCAL:
        logging.warning("--config.page.host=%s: everybody who reaches this machine over the network can open the page, and names, "
                        "access codes and answers travel unencrypted. Safer: leave 127.0.0.1, and use ssh -L or a reverse proxy "
                        "with TLS", options.host)
    with bound(options.host, options.port) as listening:
        port = listening.getsockname()[1]
        names = (*LOCAL, options.host, socket.gethostname(), *options.get("names", ()))
        site = page.app(pool, store, allowed_hosts=names)
        shown = f"[{options.host}]" if ":" in options.host else options.host
        people = len(store.raters())
        print(f"{len(pool.items)} images for {people} {'rater' if people == 1 else 'raters'} at http://{shown}:{port}" +
              ("" if people else "; nobody can sign in yet: --add_rater=NAME"))
        sys.stdout.flush()  # for whoever waits for this line
        server = uvicorn.Server(uvicorn.Config(site, access_log=False, server_header=False, log_config=None, log_level="warning",
                                               timeout_graceful_shutdown=5))
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            pass


def bound(host, port):
    """A socket that listens there; ValueError or OSError says what keeps it from doing so."""
    if not 0 <= port < 65536:
        raise ValueError(f"--config.page.port={port}: a port is a number from 1 to 65535, or 0 for a free one")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise ValueError(f"--config.page.host={host} is no address of this machine: {error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot serve at {host}:{port}: {error.strerror or error}. Is the page open already? Another port: "
                      f"--config.page.port={port + 1}") from error
    return listening


if __name__ == "__main__":
    cli.main(rate, pool=("", "folder of the pool; by default that of the config"),
             add_rater=("", "enter a rater of this name and print the access code"),
             admin=(False, "with --add_rater: also sees the progress of all, and may download the ratings"),
             renew=(False, "with --add_rater: a new access code for one who is there"),
             export=("", "write the newest answers to this CSV file"),
             history=(False, "with --export: all answers, also those that were changed later"))
