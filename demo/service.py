"""A small web service that sells things: orders go into SQLite on a disk that it reaches over NBD.

    python -m demo.service DISK_URI PORT

POST /orders stores one order and answers its number once it is on stable storage; GET /orders says what is there,
checked; GET /health says that the database opens. Each order carries a hash over all before it, so that a missing or
altered one shows. When its disk goes away, the service ends, as a machine without its disk would.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import apsw
import xxhash

from demo.database import open_database
from drengine.model.errors import DrengineError

BODY_BYTES_MAX = 4096
BOOT_SECONDS = 20.0
FIRST_LINK = "0" * 32


def link(before: str, number: int, item: str, amount: int) -> str:
    """The chain's next link."""
    return xxhash.xxh3_128_hexdigest(f"{before}|{number}|{item}|{amount}".encode())


class Orders:
    """The orders in the database."""

    def __init__(self, database: apsw.Connection) -> None:
        self._database = database
        last = database.execute("select number, chain from orders order by number desc limit 1").fetchone()
        self._number: int = last[0] if last else 0
        self._chain: str = last[1] if last else FIRST_LINK

    def add(self, item: str, amount: int) -> int:
        """Store one; returns its number when it is durable."""
        number = self._number + 1
        chain = link(self._chain, number, item, amount)
        with self._database:
            self._database.execute("insert into orders values (?, ?, ?, ?)", (number, item, amount, chain))
        self._number, self._chain = number, chain
        return number

    def audit(self) -> dict[str, Any]:
        """How many there are, and whether each follows from the one before."""
        before, count = FIRST_LINK, 0
        for number, item, amount, chain in self._database.execute("select * from orders order by number"):
            before, count = link(before, number, item, amount), count + 1
            if number != count or chain != before:
                return {"orders": count, "intact": False}
        sound = self._database.execute("pragma integrity_check").fetchone() == ("ok",)
        return {"orders": count, "intact": sound}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    orders: Orders
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Health and audit."""
        if self.path == "/orders":
            self._serve(self.orders.audit)
        elif self.path == "/health":
            self._answer(200, {"ok": True, "pid": os.getpid()})
        else:
            self._answer(404, {"error": "no such page"})

    def do_POST(self) -> None:
        """A new order."""
        try:
            order = json.loads(self.rfile.read(min(int(self.headers.get("Content-Length", 0)), BODY_BYTES_MAX)))
            item, amount = str(order["item"]), int(order["amount"])
        except (ValueError, KeyError, TypeError):
            self._answer(400, {"error": "an order has an item and an amount"})
            return
        self._serve(lambda: {"number": self.orders.add(item, amount)})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self, work: Any) -> None:
        try:
            self._answer(200, work())
        except (apsw.Error, OSError, DrengineError) as error:
            print(f"the disk failed: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


def _open_patiently(uri: str) -> apsw.Connection:
    """At boot the disk may not be there yet."""
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            return open_database(uri)
        except (OSError, DrengineError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"the disk is not there: {error}")
            time.sleep(0.05)


def main() -> None:
    """Serve until killed."""
    uri, port = sys.argv[1] or os.environ["DRENGINE_DISK_ORDERS"], int(sys.argv[2])
    Handler.orders = Orders(_open_patiently(uri))
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
