"""Asking a web server once, within one deadline: slow bodies, endless ones and redirects to strangers included."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

BODY_BYTES_MAX = 1 << 20
REDIRECTS_MAX = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_READ_BYTES = 64 << 10


class Deadline:
    """When something has to be over. Whoever gives up calls `cut`, which ends what another thread waits for."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._cuts: list[Callable[[], object]] = []
        self._is_cut = False

    def left(self) -> float:
        """Seconds.

        Raises:
            TimeoutError: there are none.
        """
        left = self._until - time.monotonic()
        if left <= 0 or self._is_cut:
            raise TimeoutError("there was no whole answer in time")
        return left

    @contextlib.contextmanager
    def cutting(self, end: Callable[[], object]) -> Iterator[None]:
        """While inside, `end` is what `cut` calls, from another thread."""
        with self._lock:
            self.left()
            self._cuts.append(end)
        try:
            yield
        finally:
            with self._lock:
                self._cuts.remove(end)

    def cut(self) -> None:
        """End what is under way."""
        with self._lock:
            self._is_cut = True
            for end in self._cuts:
                with contextlib.suppress(Exception):
                    end()


class Answer(NamedTuple):
    """What a web server answered. `body` is its beginning, at most BODY_BYTES_MAX."""

    status: int
    body: bytes


def get(url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:
    """GET, following redirects. What `headers` says is for the server that `url` names, and told to no other.

    Raises:
        OSError, http.client.HTTPException, ValueError: there was no answer, or not in time.
    """
    origin = _origin(_split(url))
    for _ in range(REDIRECTS_MAX + 1):
        parts = _split(url)
        told = headers if _origin(parts) == origin else {}
        answer, location = _ask("GET", parts, told, None, deadline)
        if answer.status not in _REDIRECTS or not location:
            return answer
        url = urljoin(url, location)
    raise ValueError(f"it redirects more than {REDIRECTS_MAX} times")


def post(url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline) -> Answer:
    """POST. Redirects are not followed: what is told is for the server that was named.

    Raises:
        OSError, http.client.HTTPException, ValueError: there was no answer, or not in time.
    """
    return _ask("POST", _split(url), headers, body, deadline)[0]


def _ask(
    method: str, parts: SplitResult, headers: Mapping[str, str], body: bytes | None, deadline: Deadline
) -> tuple[Answer, str]:
    """An answer, and where it redirects to. Proxies of the environment are not used."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=deadline.left())
    with contextlib.closing(connection):
        connection.connect()
        stream = connection.sock
        with deadline.cutting(lambda: socket.socket.shutdown(stream, socket.SHUT_RDWR)):
            path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request(method, path, body, {"Connection": "close", **headers})
            with connection.getresponse() as response:
                return Answer(response.status, _read(response, deadline)), response.headers.get("Location", "")


def _read(response: http.client.HTTPResponse, deadline: Deadline) -> bytes:
    """The beginning of the body."""
    found = bytearray()
    while len(found) < BODY_BYTES_MAX and (part := response.read1(_READ_BYTES)):
        found += part
        deadline.left()
    return bytes(found[:BODY_BYTES_MAX])


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is neither http nor https")
    if parts.username is not None:
        raise ValueError("credentials in a web address are not sent; put them in `headers`")
    return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
