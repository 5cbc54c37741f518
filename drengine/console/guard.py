"""Who asks: the kernel's word about a connection on this host, or a token.

On loopback without TLS a page from elsewhere in a local browser must not be able to use the API: the Host header has to
name loopback (a name that was rebound to 127.0.0.1 does not), a foreign Origin is refused, and whatever changes
something has to be JSON or to show a token, which such a page can't send without being asked first.
"""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drengine.console.errors import BAD_REQUEST
from drengine.console.pools import PROOFS, off
from drengine.console.sockets import PEER
from drengine.linux.loopback import user_of
from drengine.model.errors import DrengineError, ErrorKind
from drengine.people.door import Door
from drengine.people.errors import NOT_SIGNED_IN
from drengine.people.roles import NOBODY, Person
from drengine.terminal.frame import INTERNAL

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

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = _refusal(scope, headers)
        if refusal is not None:
            await answer(send, *refusal)
            return
        try:
            scope["person"] = await off(lambda: self._person(scope, headers.get("authorization", "")), PROOFS)
        except DrengineError as error:
            await answer(send, 401 if error.kind is NOT_SIGNED_IN else 503, error.message, error=error)
            return
        answering = _Answering(send)
        try:
            await self._app(scope, _Limited(receive), answering)
        except Exception:
            log.exception("a request failed unexpectedly", extra={"path": scope["path"][:200]})
            if not answering.begun:
                await answer(send, 500, "something unexpected happened; see the log", kind=INTERNAL)

    def _person(self, scope: Scope, authorization: str) -> Person:
        """Whose token is shown; without one, who holds the other end of a connection on this host.

        Raises:
            DrengineError: NOT_SIGNED_IN, ACCOUNTS_UNUSABLE.
        """
        if authorization:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise DrengineError(NOT_SIGNED_IN, "a token is shown as `Authorization: Bearer TOKEN`")
            return self._door.by_bearer(token.strip(), str((scope.get("client") or ("this host",))[0]))
        client, server = scope.get("client"), scope.get("server")
        if scope["scheme"] != "http" or not client or not server:
            return NOBODY
        if client[0].startswith(PEER):
            return self._door.by_user(int(client[0].removeprefix(PEER)))
        user = user_of(client, server)
        return NOBODY if user is None else self._door.by_user(user)


def problem(kind: ErrorKind, message: str, hint: str = "") -> bytes:
    """The body of a refusal. It tells all that a client has to know of the kind, which may be newer than the client."""
    return json.dumps(
        {"id": kind.id, "message": message, "hint": hint or kind.hint, "exit_code": kind.exit_code}
    ).encode()


async def answer(
    send: Send, status: int, message: str, *, kind: ErrorKind = BAD_REQUEST, error: DrengineError | None = None
) -> None:
    """Send a refusal."""
    body = problem(error.kind, message, error.hint) if error else problem(kind, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *SECURITY_HEADERS]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _refusal(scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if scope["scheme"] == "http" and not _is_local(f"//{host}"):
        return 403, "the Host header does not name this host's loopback address"
    if origin is not None and not (_is_local(origin) if scope["scheme"] == "http" else origin == f"https://{host}"):
        return 403, "requests from pages of other hosts are refused"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "requests from pages of other hosts are refused"
    json_sent = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    if scope["method"] not in SAFE_METHODS and not json_sent and "authorization" not in headers:
        return 403, "whatever changes something is sent with Content-Type: application/json"
    if int(headers["content-length"]) > BODY_BYTES_MAX if headers.get("content-length", "").isdecimal() else False:
        return 413, f"the body has more than {BODY_BYTES_MAX} bytes"
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
