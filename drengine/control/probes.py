"""Asking a workload whether it works: from where the orchestrator is, or, as ordered, from inside its own network."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import msgspec

from drengine.transport.web import Deadline, get

OUTPUT_CHARACTERS_MAX = 2000
SHOWN_BYTES_MAX = 200


class Mismatch(Exception):
    """It answered, but not what was expected."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found; `output`: what the workload said, bounded, for the report."""

    text: str
    output: str = ""


class HttpProbe(msgspec.Struct, frozen=True, kw_only=True):
    """A web page, and what is expected of it."""

    url: str
    status: int = 200
    contains: str = ""
    headers: dict[str, str] = {}


class TcpProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What should accept connections."""

    host: str
    port: int


class ProbeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of CHECK: of which instance, exactly one way to ask, and how long it may take."""

    instance: str
    command: list[str] = []
    http: HttpProbe | None = None
    tcp: TcpProbe | None = None
    seconds: float = 10.0


def ask_http(probe: HttpProbe, deadline: Deadline) -> Seen:
    """Ask once.

    Raises:
        Mismatch, OSError, http.client.HTTPException, ValueError: it did not pass.
    """
    status, body = get(probe.url, probe.headers, deadline)
    said = body[:OUTPUT_CHARACTERS_MAX].decode(errors="replace")
    if status != probe.status:
        raise Mismatch(f"{probe.url} answered {status}, not {probe.status}: {said[:SHOWN_BYTES_MAX]!r}")
    if probe.contains.encode() not in body:
        raise Mismatch(f"{probe.url} answered {status} without {probe.contains!r}: {said[:SHOWN_BYTES_MAX]!r}")
    return Seen(f"{probe.url} answered {status}", said)


def ask_tcp(probe: TcpProbe, deadline: Deadline) -> Seen:
    """Ask once.

    Raises:
        OSError: nothing accepts.
    """
    with socket.create_connection((probe.host, probe.port), timeout=deadline.left()):
        return Seen(f"{probe.host}:{probe.port} accepts connections")
