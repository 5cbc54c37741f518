"""A proxy before an S3 server that fails as told: delays, breaks, applies and then fails, answers, truncates.

It keeps a log of all requests, with what the server answered and what the client was given. Signatures stay valid,
because the proxy forwards the Host header that was signed.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.s3.server import OWNER, Keys, S3Server, client

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_SERVER_SECONDS = 30.0


class Request(NamedTuple):
    """What a client asked.

    Attributes:
        number: counted from 1.
        operation: ``PutObject``, ``GetObject``, ``HeadObject``, ``ListObjects``, ``DeleteObject``, ``DeleteObjects``,
            ``CreateMultipartUpload``, ``UploadPart``, ``CompleteMultipartUpload``, ``AbortMultipartUpload``, or the
            method and query of any other.
        bucket, key: of the path.
        size: bytes of the body.
    """

    number: int
    operation: str
    bucket: str
    key: str
    size: int


class Way(Enum):
    """How a request fails."""

    BREAK = auto()
    """The connection is closed without an answer."""
    ANSWER = auto()
    """The client is given `status` and `code`."""
    TRUNCATE = auto()
    """Half of the answer's body comes, then the connection is closed."""
    SHORT = auto()
    """A PutObject or UploadPart whose second half the server never sees; it takes the first half for all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a request. `applied`: the server carries it out first; `then` is called after that."""

    way: Way | None = None
    applied: bool = False
    delay_seconds: float = 0.0
    status: int = 0
    code: str = ""
    then: Callable[[], None] | None = None


BROKEN = Fault(Way.BREAK)
LOST_REPLY = Fault(Way.BREAK, applied=True)
SLOW_DOWN = Fault(Way.ANSWER, status=503, code="SlowDown")
INTERNAL = Fault(Way.ANSWER, status=500, code="InternalError")
APPLIED_AND_FAILED = Fault(Way.ANSWER, applied=True, status=500, code="InternalError")
DENIED = Fault(Way.ANSWER, status=403, code="AccessDenied")
TRUNCATED = Fault(Way.TRUNCATE, applied=True)
SHORT = Fault(Way.SHORT)


class Entry(NamedTuple):
    """A line of the log. `answered`: the server's status; `given`: the client's. 0: none."""

    request: Request
    answered: int
    given: int


Plan = Callable[[Request], Fault | None]


class Proxy:
    """A running proxy; `plan` says which requests fail, and may be replaced at any time."""

    def __init__(self, server: S3Server, plan: Plan | None = None, keys: Keys = OWNER) -> None:
        self.plan = plan
        self.log: list[Entry] = []
        self._lock = threading.Lock()
        self._count = 0
        self._server = server
        self._keys = keys
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def close(self) -> None:
        """Take no more requests."""
        self._listener.shutdown()
        self._listener.server_close()

    def number(self) -> int:
        """Of a new request."""
        with self._lock:
            self._count += 1
            return self._count

    def note(self, entry: Entry) -> None:
        """Put a line into the log."""
        with self._lock:
            self.log.append(entry)

    def forward(self, handler: _Handler, request: Request, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Have the server carry it out: status, headers and body."""
        upstream = http.client.HTTPConnection(*self._server.address, timeout=_SERVER_SECONDS)
        try:
            upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            if body or "content-length" in handler.headers:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def store_half(self, handler: _Handler, request: Request, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Have the server take the first half of a body for all of it."""
        behind, half = client(self._server.endpoint, self._keys), body[: len(body) // 2]
        if request.operation == "UploadPart":
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(handler.path).query))
            where = {"UploadId": query["uploadId"], "PartNumber": int(query["partNumber"])}
            answer = behind.upload_part(Bucket=request.bucket, Key=request.key, Body=half, **where)
        else:
            answer = behind.put_object(Bucket=request.bucket, Key=request.key, Body=half)
        return 200, [("ETag", answer["ETag"])], b""

    def keys_written(self) -> Counter[str]:
        """How often the server wrote each key."""
        with self._lock:
            return Counter(
                entry.request.key
                for entry in self.log
                if entry.request.operation in ("PutObject", "CompleteMultipartUpload") and entry.answered == 200
            )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the proxy has a log of its own."""

    def do_GET(self) -> None:
        """Any method."""
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = _request(proxy.number(), self.command, self.path, len(body))
        fault = (proxy.plan(request) if proxy.plan else None) or Fault(applied=True)
        if fault.delay_seconds:
            time.sleep(fault.delay_seconds)
        answered, given = 0, 0
        status, answer = 503, b""
        headers: list[tuple[str, str]] = []
        try:
            if fault.way is Way.SHORT:
                status, headers, answer = proxy.store_half(self, request, body)
                answered = status
            elif fault.applied or fault.way is None:
                status, headers, answer = proxy.forward(self, request, body)
                answered = status
            if fault.then:
                fault.then()
            given = 0 if fault.way is Way.BREAK else fault.status or status
        except (OSError, http.client.HTTPException):  # the server is gone: so is the connection
            fault = replace(fault, way=Way.BREAK)
        proxy.note(Entry(request, answered, given))
        self._answer(fault, status, headers, answer)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _answer(self, fault: Fault, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if fault.way is Way.BREAK:
            self.close_connection = True
            return
        if fault.way is Way.ANSWER:
            status, headers = fault.status, [("Content-Type", "application/xml")]
            body = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>".encode()
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        length = int(lengths[0]) if self.command == "HEAD" and lengths else len(body)
        with suppress(OSError):
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault.way is Way.TRUNCATE:
                body = body[: len(body) // 2]
                self.close_connection = True
            self.wfile.write(body)


def _request(number: int, method: str, path: str, size: int) -> Request:
    parts = urllib.parse.urlsplit(path)
    bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    return Request(number, _operation(method, key, query), bucket, key, size)


def _operation(method: str, key: str, query: dict[str, str]) -> str:
    if "uploads" in query and method == "POST":
        return "CreateMultipartUpload"
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        return names.get(method, f"{method} uploadId")
    if method == "POST" and "delete" in query:
        return "DeleteObjects"
    if key:
        names = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
        return names.get(method, method)
    return "ListObjects" if method == "GET" else f"{method} bucket"


@contextmanager
def fault_proxy(server: S3Server, plan: Plan | None = None) -> Iterator[Proxy]:
    """A proxy, for as long as the block lasts."""
    proxy = Proxy(server, plan)
    try:
        yield proxy
    finally:
        proxy.close()


def nth(operation: str, *numbers: int, fault: Fault) -> Plan:
    """Fail the requests of an operation with these numbers, counted from 1 among its own; no numbers: all."""
    seen = Counter[str]()
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        if request.operation != operation:
            return None
        with lock:
            seen[operation] += 1
            return fault if not numbers or seen[operation] in numbers else None

    return plan
