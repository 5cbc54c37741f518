"""Who may ask: only programs and people of this host, and only on purpose.

As there are no identities yet, the API listens on loopback, and a page from elsewhere in a local browser must not be
able to use it: the Host header has to name loopback (a name that was rebound to 127.0.0.1 does not), a foreign Origin
is refused, and whatever changes something needs a header that such a page can't send without being asked first. Other
users of the host are refused too: a runbook's commands run as the orchestrator's user.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import unicodedata
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drengine.console.errors import BAD_REQUEST
from drengine.linux.loopback import user_of
from drengine.model.errors import DrengineError
from drengine.terminal.frame import INTERNAL

OPERATOR_HEADER = "X-Drengine-Operator"
BODY_BYTES_MAX = 8 << 20
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)
log = logging.getLogger("drengine.console")


class Guard:
    """Stands before the application. Whatever goes wrong inside becomes an answer in JSON, never a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = _refusal(scope["method"], headers) or await asyncio.to_thread(_stranger, scope)
        if refusal is not None:
            await answer(send, *refusal)
            return
        answering = _Answering(send)
        try:
            await self._app(scope, _Limited(receive), answering)
        except Exception:
            log.exception("a request failed unexpectedly", extra={"path": scope["path"][:200]})
            if not answering.begun:
                await answer(send, 500, "something unexpected happened; see the log", id=INTERNAL.id)


def operator_of(header: str) -> str:
    """Who asks, from the header's value.

    Raises:
        DrengineError: BAD_REQUEST.
    """
    try:
        name = header.encode("latin-1").decode().strip()
    except UnicodeError:
        name = ""
    if not name or len(name) > 200 or any(unicodedata.category(each)[0] == "C" for each in name):
        raise DrengineError(BAD_REQUEST, f"{OPERATOR_HEADER} names nobody", hint="Send who asks, in UTF-8.")
    return name


def problem(id: str, message: str, hint: str) -> bytes:
    """The body of a refusal."""
    return json.dumps({"id": id, "message": message, "hint": hint}).encode()


async def answer(send: Send, status: int, message: str, *, id: str = BAD_REQUEST.id) -> None:
    """Send a refusal."""
    body = problem(id, message, BAD_REQUEST.hint)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *SECURITY_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _refusal(method: str, headers: dict[str, str]) -> tuple[int, str] | None:
    if not _is_local(f"//{headers.get('host', '')}"):
        return 403, "the Host header does not name this host's loopback address"
    if "origin" in headers and not _is_local(headers["origin"]):
        return 403, "requests from pages of other hosts are refused"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "requests from pages of other hosts are refused"
    if method not in SAFE_METHODS and not headers.get(OPERATOR_HEADER.lower()):
        return 403, f"whatever changes something needs the header {OPERATOR_HEADER}: who asks"
    if int(headers["content-length"]) > BODY_BYTES_MAX if headers.get("content-length", "").isdecimal() else False:
        return 413, f"the body has more than {BODY_BYTES_MAX} bytes"
    return None


def _stranger(scope: Scope) -> tuple[int, str] | None:
    """A refusal unless the other end belongs to the orchestrator's user or to root."""
    if not scope.get("client") or not scope.get("server"):
        return 403, "the connection has no other end"
    user = user_of(scope["client"], scope["server"])
    if user is None or user not in (0, os.geteuid()):
        return 403, "only the orchestrator's own user and root are heard"
    return None


def _is_local(address: str) -> bool:
    try:
        return urlsplit(address).hostname in LOCAL_NAMES
    except ValueError:
        return False


class _TooLarge(HTTPException):
    """A body beyond the limit, whatever its headers said. The application lets this kind pass."""

    def __init__(self) -> None:
        super().__init__(413, f"the body has more than {BODY_BYTES_MAX} bytes")


class _Limited:
    """Counts what a body really has."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > BODY_BYTES_MAX:
            raise _TooLarge
        return message


class _Answering:
    """Adds headers to every answer, and knows whether one has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            given = {key.lower() for key, _ in message["headers"]}
            more: list[Any] = [each for each in SECURITY_HEADERS if each[0] not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)
