"""A client of the embedded broker: who it is, and what is on its way to it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from drengine.control.packets import Connect, Publish, Reason, Wanted, disconnect
from drengine.identity.names import Identity, Role, identity_among
from drengine.linux.loopback import local_user_ids, user_of
from drengine.model.errors import DrengineError
from drengine.transport.x509 import parse_certificate

log = logging.getLogger("drengine.control.broker")

QUEUED_BYTES_MAX = 32 << 20
"""More than all parties' reports at once."""
RATE, BURST = 2000.0, 4000.0
"""Messages a second that one client is read at, and how many it may say at once."""
_PARTIES = (Role.AGENT, Role.HOST)


class NotLetInError(Exception):
    """A client that is not let in; the text says who it is and why."""


@dataclass(eq=False)
class Client:
    """One that is let in.

    Attributes:
        who: its identity.
        hello: how it began.
        writer: its connection.
        certificate: in DER; None without TLS.
        filters: what it has subscribed to.
        will: what is said in its name when it is gone.
    """

    who: Identity
    hello: Connect
    writer: asyncio.StreamWriter
    certificate: bytes | None
    filters: dict[str, Wanted] = field(default_factory=dict)
    will: Publish | None = None
    _waiting: deque[tuple[Publish, bool]] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _under_way: set[int] = field(default_factory=set)
    _number: int = 0
    _allowance: float = BURST
    _counted_at: float = 0.0

    def deliver(self, message: Publish, *, qos: int, retain: bool) -> None:
        """Send a message; or keep it, where as many are under way as the client takes."""
        if qos and (self._waiting or len(self._under_way) >= self.hello.receive_max):
            self._waiting.append((message, retain))
            self._waiting_bytes += len(message.topic) + len(message.payload)
            self.send(b"")
        else:
            self._deliver(message, qos, retain)

    def acknowledged(self, number: int) -> None:
        """One has arrived, so there is room for another."""
        self._under_way.discard(number)
        while self._waiting and len(self._under_way) < self.hello.receive_max:
            message, retain = self._waiting.popleft()
            self._waiting_bytes -= len(message.topic) + len(message.payload)
            self._deliver(message, 1, retain)

    def send(self, data: bytes) -> None:
        """Hand something to the transport; a client that takes nothing is cut off."""
        transport = self.writer.transport
        if transport.is_closing():
            return
        if data:
            self.writer.write(data)
        if transport.get_write_buffer_size() + self._waiting_bytes > QUEUED_BYTES_MAX:
            log.warning("%s takes none of its messages and is cut off", self.who)
            self._waiting.clear()
            transport.abort()

    def end(self, reason: Reason) -> None:
        """Tell it why, and close."""
        self.send(disconnect(reason))
        self.writer.close()

    def pause_seconds(self, now: float) -> float:
        """How long to read nothing of it, so that it says no more than its share."""
        self._allowance = min(BURST, self._allowance + (now - self._counted_at) * RATE) - 1
        self._counted_at = now
        return max(0.0, -self._allowance / RATE)

    def _deliver(self, message: Publish, qos: int, retain: bool) -> None:
        number = 0
        if qos:
            while (number := self._next_number()) in self._under_way:
                pass
            self._under_way.add(number)
        data = message.encoded(qos=qos, retain=retain, number=number)
        if self.hello.packet_max and len(data) > self.hello.packet_max:
            self._under_way.discard(number)
            return
        self.send(data)

    def _next_number(self) -> int:
        self._number = self._number % 0xFFFF + 1
        return self._number


def identified(
    hello: Connect, certificate: bytes | None, raw: socket.socket, site: str, users: Sequence[str]
) -> Identity:
    """Who a client is: by its certificate, or else, on loopback, by its process's user and its own word.

    Args:
        hello: what it says; drengine's clients begin their id with their role, parties then with their name.
        certificate: in DER; None without TLS.
        raw: its connection.
        site: ours.
        users: whose processes are believed besides root's and our own user's.

    Raises:
        NotLetInError: it is nobody who may be here.
    """
    if certificate is None:
        return _by_user(hello, raw, site, users)
    shown = parse_certificate(certificate)
    try:
        who = identity_among(shown.uris)
    except DrengineError as error:
        raise NotLetInError(error.message) from error
    if who is None:
        raise NotLetInError(f"the certificate of {shown.subject[:80]!r} has no drengine:// name")
    if who.site != site or who.role not in (*_PARTIES, Role.ORCHESTRATOR):
        raise NotLetInError(f"{who} has nothing to say at a broker of site {site}")
    return who


def _by_user(hello: Connect, raw: socket.socket, site: str, users: Sequence[str]) -> Identity:
    user = user_of(raw.getpeername()[:2], raw.getsockname()[:2])
    if user not in local_user_ids(users):
        raise NotLetInError(f"a process of user {user} of this machine, which is none of {', '.join(users)}")
    role, _, rest = hello.client_id.partition("-")
    name = rest.rpartition("-")[0] if role in _PARTIES else role
    try:
        return Identity(site, Role(role), name)
    except (ValueError, DrengineError) as error:
        raise NotLetInError(f"the client id {hello.client_id[:80]!r} names no party") from error
