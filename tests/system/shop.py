"""A shop on PostgreSQL, as a program: its database and its web service on one file system.

    python -m tests.system.shop create MOUNT        a new database cluster
    python -m tests.system.shop start MOUNT PORT    PostgreSQL, then the web service; returns when both answer
    python -m tests.system.shop stop MOUNT PORT
    python -m tests.system.shop kill MOUNT PORT     as a power cut
    python -m tests.system.shop boot MOUNT PORT DEVICE   mount it, then start
    python -m tests.system.shop serve MOUNT PORT    (the web service's own process)
    python -m tests.system.shop wait URL FILE       note the moment at which it first answers

GET /orders counts and checks; POST /orders takes one, and answers when it is committed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zlib import crc32

from drengine.process import end_marked, find_marked, marked, start_marked
from tests.system.postgres import SETTINGS, USER, as_postgres, skip_unless_installed

MARK = "DR_TEST_SHOP"
READY_SECONDS = 30.0
INTACT = "select count(*), coalesce(max(number), 0), coalesce(bool_and(chain = md5(number::text)), true) from orders"


def sockets(mount: Path, port: int) -> Path:
    """PostgreSQL's socket lies outside the disk, in a place of its own."""
    return Path(tempfile.gettempdir()) / f"dr-shop-{crc32(str(mount).encode()):08x}-{port}"


def psql(mount: Path, port: int, statement: str) -> str:
    """One statement's answer."""
    argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(sockets(mount, port)), "-U", USER, "-d", "postgres"]
    done = subprocess.run([*argv, "-c", statement], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


def create(mount: Path) -> None:
    """A cluster with checksums, owned by PostgreSQL's user."""
    home = mount / "pg"
    home.mkdir()
    shutil.chown(home, USER, USER)
    argv = [skip_unless_installed() / "initdb", "-D", home, "--data-checksums", "--auth=trust", "--locale=C", "-N"]
    subprocess.run([*map(str, argv), "--encoding=UTF8"], check=True, capture_output=True, **as_postgres())
    os.sync()  # initdb was told not to: what is only in memory would not survive a crash, so it is in no point either


def start(mount: Path, port: int) -> None:
    """Both servers; what runs already is left alone."""
    mark = f"{mount}:{port}"
    place = sockets(mount, port)
    if not find_marked(MARK, mark, place):
        shutil.rmtree(place, ignore_errors=True)  # with the locks of one that was killed
        place.mkdir()
        shutil.chown(place, USER, USER)
        (mount / "pg/postmaster.pid").unlink(missing_ok=True)
        settings = " ".join(f"-c {each}" for each in (*SETTINGS, f"unix_socket_directories={place}"))
        subprocess.run(
            [*_pg_ctl(mount, "start"), "-l", str(place / "postgres.log"), "-o", settings],
            check=True,
            env={**os.environ, **marked(MARK, mark, place)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_postgres(),
        )
        psql(mount, port, "create table if not exists orders (number bigint primary key, chain text not null)")
        start_marked(
            [sys.executable, "-m", "tests.system.shop", "serve", str(mount), str(port)],
            MARK,
            mark,
            output=place / "web.log",
            directory=place,
        )
    deadline = time.monotonic() + READY_SECONDS
    while audit(f"http://127.0.0.1:{port}") is None:
        if time.monotonic() > deadline:
            raise SystemExit((place / "web.log").read_text())
        time.sleep(0.02)


def _pg_ctl(mount: Path, order: str) -> list[str]:
    return [str(skip_unless_installed() / "pg_ctl"), "-D", str(mount / "pg"), "-s", "-w", order]


def stop(mount: Path, port: int) -> None:
    """PostgreSQL checkpoints and ends; then the web service; nothing is left outside the disk."""
    if (mount / "pg/postmaster.pid").exists():
        subprocess.run(
            [*_pg_ctl(mount, "stop"), "-m", "fast"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_postgres(),
        )
    end_marked(MARK, f"{mount}:{port}", sockets(mount, port), grace_seconds=10)
    shutil.rmtree(sockets(mount, port), ignore_errors=True)


def kill(mount: Path, port: int) -> None:
    """Everything at once."""
    end_marked(MARK, f"{mount}:{port}", sockets(mount, port), grace_seconds=0.0)


def audit(url: str) -> dict[str, Any] | None:
    """What the shop says of its orders; None when nobody answers."""
    try:
        with urllib.request.urlopen(f"{url}/orders", timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except (OSError, ValueError):
        return None
    return found


def order_forever(url: str, file: Path) -> None:
    """A customer: orders until nobody answers; notes the number and moment of each that was confirmed."""
    with file.open("a", buffering=1) as confirmed:
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{url}/orders", data=b"{}"), timeout=10) as answer:
                    number = json.loads(answer.read())["number"]
            except (OSError, ValueError):
                return
            confirmed.write(f"{number} {time.time()}\n")


def wait_until_open(url: str, file: Path) -> None:
    """Somebody at the door: the moment at which it opens, by the wall clock."""
    while audit(url) is None:
        time.sleep(0.05)
    file.write_text(str(time.time()))


class Handler(BaseHTTPRequestHandler):
    """One request; the database is asked through psql, so a commit that is confirmed is one that psql saw."""

    mount: Path
    port: int
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        count, last, intact = psql(self.mount, self.port, INTACT).split("|")
        self._answer({"orders": int(count), "intact": count == last and intact == "t"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        taken = "insert into orders select n, md5(n::text) from (select coalesce(max(number), 0) + 1 n from orders) t"
        self._answer({"number": int(psql(self.mount, self.port, f"{taken} returning number"))})

    def log_message(self, *_: object) -> None: ...

    def _answer(self, body: dict[str, Any]) -> None:
        said = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


def serve(mount: Path, port: int) -> None:
    """The web service."""
    Handler.mount, Handler.port = mount, port
    HTTPServer(("0.0.0.0", port), Handler).serve_forever()


if __name__ == "__main__":
    order, where = sys.argv[1], Path(sys.argv[2])
    if order == "create":
        create(where)
    elif order == "boot":
        if not os.path.ismount(where):
            subprocess.run(["mount", sys.argv[4], str(where)], check=True)
        start(where, int(sys.argv[3]))
    elif order == "customer":
        order_forever(sys.argv[2], Path(sys.argv[3]))
    elif order == "wait":
        wait_until_open(sys.argv[2], Path(sys.argv[3]))
    else:
        {"start": start, "stop": stop, "kill": kill, "serve": serve}[order](where, int(sys.argv[3]))
