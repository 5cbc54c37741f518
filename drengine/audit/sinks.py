"""Where anchors are sent: a syslog, and a web server."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from drengine.audit.config import AuditOptions
from drengine.config import Address

NOTICE_OF_LOG_AUDIT = 13 * 8 + 5
"""Facility 13 of RFC 5424, severity 5."""
READ_SECONDS, ANSWER_SECONDS = 10.0, 20.0
_TOKEN_BYTES_MAX = 8192


@dataclass(frozen=True, slots=True)
class Message:
    """An anchor that is sent: the hash of an entry, which vouches for all before it.

    Attributes:
        log: id of the log.
        number, hash: of its newest entry.
        at_ns: when that was read, nanoseconds since 1970.
    """

    log: str
    number: int
    hash: str
    at_ns: int

    @property
    def at(self) -> str:
        """When, in the form of RFC 3339."""
        return f"{datetime.fromtimestamp(self.at_ns / 1e9, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


class Sink(Protocol):
    """Takes anchors. `name` is for people and metrics."""

    name: str

    def send(self, message: Message) -> None:
        """Send one; it may take `ANSWER_SECONDS`.

        Raises:
            OSError: it was not taken, as far as can be known.
        """
        ...


class Syslog:
    """A syslog on this host, or at HOST:PORT."""

    name = "syslog"

    def __init__(self, address: Address, over: str) -> None:
        self._address = address
        self._is_datagram = over == "udp"

    def send(self, message: Message) -> None:
        """See `Sink`. By datagrams nobody knows whether it arrived."""
        host = socket.gethostname().encode("ascii", "replace").decode()[:255] or "-"
        said = f"audit log={message.log} number={message.number} hash={message.hash}"
        line = f"<{NOTICE_OF_LOG_AUDIT}>1 {message.at} {host} drengine {os.getpid()} audit - {said}".encode()
        if self._address.path:
            self._send_local(line)
        elif self._is_datagram:
            family, kind, number, _, place = socket.getaddrinfo(
                self._address.host, self._address.port, type=socket.SOCK_DGRAM
            )[0]
            with socket.socket(family, kind, number) as sender:
                sender.sendto(line, place)
        else:
            with socket.create_connection((self._address.host, self._address.port), READ_SECONDS) as sender:
                sender.sendall(f"{len(line)} ".encode() + line)  # RFC 6587, octet counting

    def _send_local(self, line: bytes) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(READ_SECONDS)
                sender.connect(self._address.path)
                sender.send(line)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sender:
                sender.settimeout(READ_SECONDS)
                sender.connect(self._address.path)
                sender.sendall(line + b"\n")


class Webhook:
    """A web server to which anchors are posted as JSON. Redirects are not followed: a token would go along."""

    name = "webhook"

    def __init__(self, url: str, ca: Path | None, token: Path | None) -> None:
        self._url = urlsplit(url)
        self._ca = ca
        self._token = token

    def send(self, message: Message) -> None:
        """See `Sink`; any answer of 200 to 299 says that it was taken."""
        host = socket.gethostname()
        told = {"log": message.log, "number": message.number, "hash": message.hash, "at": message.at, "host": host}
        headers = {"Content-Type": "application/json", **self._authorization()}
        connection = self._connection()
        late = threading.Event()
        limit = threading.Timer(ANSWER_SECONDS, _break_off, (connection, late))
        limit.start()
        try:
            connection.connect()
            _check_time(late)  # without a connection there was nothing to break off
            target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
            connection.request("POST", target, json.dumps(told), headers)
            status = connection.getresponse().status
            _check_time(late)
        except http.client.HTTPException as error:
            raise OSError(f"it does not answer as a web server does: {error!r}") from error
        finally:
            limit.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise OSError(f"it answers {status}")

    def _connection(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, self._url.port, timeout=READ_SECONDS)
        context = ssl.create_default_context(cafile=str(self._ca) if self._ca else None)
        return http.client.HTTPSConnection(host, self._url.port, timeout=READ_SECONDS, context=context)

    def _authorization(self) -> dict[str, str]:
        if self._token is None:
            return {}
        with self._token.open("rb") as file:
            token = file.read(_TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
        if not token.isprintable() or not token:
            raise OSError(f"{self._token} holds no token")
        return {"Authorization": f"Bearer {token}"}


def sinks_of(options: AuditOptions) -> list[Sink]:
    """Those that are configured."""
    found: list[Sink] = []
    if options.syslog is not None:
        found.append(Syslog(options.syslog, options.syslog_over))
    if options.webhook:
        found.append(Webhook(options.webhook, options.webhook_ca, options.webhook_token))
    return found


def _break_off(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()  # first: an answer that is cut off in its headers looks whole
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            connection.sock.shutdown(socket.SHUT_RDWR)


def _check_time(late: threading.Event) -> None:
    if late.is_set():
        raise OSError("it takes too long to answer")
