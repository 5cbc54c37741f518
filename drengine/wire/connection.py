"""One side of a session: bytes in, events out, and back. It owns no socket, clock, thread or logger.

Every move that is legal stands in MOVES; both sides hold the same table, and the diagram in docs/protocol.md is
drawn from it. What a legal move may say is in frames.py (its fields) and terms.py (what the session agreed upon).
"""

from __future__ import annotations

import enum
from collections import deque

from drengine.model.errors import DrengineError
from drengine.wire import events as ev
from drengine.wire.errors import VERSION_MISMATCH, LocalProtocolError, RemoteProtocolError
from drengine.wire.fields import FieldError
from drengine.wire.frames import (
    CHECKED_HEADER_BYTES,
    HEADER,
    LAYOUT_VERSION,
    LAYOUTS,
    MAGIC,
    TYPE_OF,
    Buffer,
    FrameType,
    body_fault,
    check_of,
    encode_frame,
)
from drengine.wire.terms import Terms

VERSION_MIN = 2
VERSION_MAX = 2
"""Versions of the protocol that this code speaks."""

READ_AHEAD_BYTES = 16384
"""Small frames are taken many at a time; a large body goes straight into a buffer of its own."""


class Role(enum.StrEnum):
    """Who a side is."""

    AGENT = "agent"
    TARGET = "target"

    @property
    def peer(self) -> Role:
        """The other side."""
        return Role.TARGET if self is Role.AGENT else Role.AGENT


class State(enum.StrEnum):
    """Where a session is."""

    OPENING = "opening"
    GREETED = "greeted"
    OPEN = "open"
    BROKEN = "broken"
    """The peer broke the protocol: what else it says is ignored, and all that is left is to tell it why."""
    CLOSED = "closed"
    """What still arrives is ignored: the peer may not know yet."""


_T = FrameType

MOVES: dict[tuple[State, Role], dict[FrameType, State]] = {
    (State.OPENING, Role.AGENT): {_T.HELLO: State.GREETED, _T.REFUSE: State.CLOSED},
    (State.OPENING, Role.TARGET): {_T.REFUSE: State.CLOSED},
    (State.GREETED, Role.AGENT): {_T.REFUSE: State.CLOSED, _T.GOODBYE: State.CLOSED},
    (State.GREETED, Role.TARGET): {_T.WELCOME: State.OPEN, _T.REFUSE: State.CLOSED, _T.MOVED: State.CLOSED},
    (State.OPEN, Role.AGENT): {
        _T.GEOMETRY: State.OPEN,
        _T.BATCH: State.OPEN,
        _T.CUT: State.OPEN,
        _T.HASH_QUERY: State.OPEN,
        _T.FETCH: State.OPEN,
        _T.CHANGE_QUERY: State.OPEN,
        _T.STATUS: State.OPEN,
        _T.METRICS: State.OPEN,
        _T.INVENTORY: State.OPEN,
        _T.PING: State.OPEN,
        _T.PONG: State.OPEN,
        _T.REFUSE: State.CLOSED,
        _T.GOODBYE: State.CLOSED,
    },
    (State.OPEN, Role.TARGET): {
        _T.ACK: State.OPEN,
        _T.CREDIT: State.OPEN,
        _T.HASHES: State.OPEN,
        _T.FETCHED: State.OPEN,
        _T.CHANGED: State.OPEN,
        _T.RESEND: State.OPEN,
        _T.PING: State.OPEN,
        _T.PONG: State.OPEN,
        _T.REFUSE: State.CLOSED,
        _T.GOODBYE: State.CLOSED,
        _T.MOVED: State.CLOSED,
    },
    (State.BROKEN, Role.AGENT): {_T.REFUSE: State.CLOSED},
    (State.BROKEN, Role.TARGET): {_T.REFUSE: State.CLOSED},
    (State.CLOSED, Role.AGENT): {},
    (State.CLOSED, Role.TARGET): {},
}
"""What a side may say in a state, and the state after it."""

DEAF = frozenset({State.BROKEN, State.CLOSED})
"""States in which whatever arrives is ignored."""


def negotiate_version(hello: ev.Hello) -> int:
    """The highest version that both sides speak.

    Raises:
        DrengineError: VERSION_MISMATCH.
    """
    version = min(hello.version_max, VERSION_MAX)
    if version < max(hello.version_min, VERSION_MIN):
        offered, spoken = f"{hello.version_min} to {hello.version_max}", f"{VERSION_MIN} to {VERSION_MAX}"
        raise DrengineError(VERSION_MISMATCH, f"the agent speaks versions {offered}, this target {spoken}")
    return version


class Connection:
    """The protocol of one session, seen from one side.

    Receiving: either `receive(data)`, or, without copying large bodies, fill `receive_buffer()`, say how much by
    `received(count)` and take what is in `events`. Sending: `send(event)` gives the buffers to write, in order.

    Attributes:
        role: which side this is.
        state: where the session is, as this side sees it.
        events: received and not yet taken. An error never takes away events that came before it.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.OPENING
        self.events: deque[ev.Event] = deque()
        self._terms = Terms()
        self._frames_sent = 0
        self._frames_received = 0
        self._ahead = memoryview(bytearray(READ_AHEAD_BYTES))
        self._header: memoryview = self._ahead[:0]
        self._body: memoryview | None = None
        self._filled = 0
        self._kind = FrameType.GOODBYE
        self._meta_length = 0

    @property
    def credit_available(self) -> int:
        """Agent: frame bytes of BATCH that may be sent. Target: that may still arrive."""
        return self._terms.credit_available

    def send(self, event: ev.Event) -> list[Buffer]:
        """The buffers that say `event`.

        Raises:
            LocalProtocolError: it is not legal now, a value is not allowed, or there is no credit; nothing changed.
        """
        kind = TYPE_OF[type(event)]
        after = MOVES[self.state, self.role].get(kind)
        if after is None:
            raise LocalProtocolError("bad-move", f"{self.role} may not send {kind.name} when {self.state}")
        if fault := self._terms.fault(event):
            raise LocalProtocolError(*fault)
        try:
            frame = encode_frame(event, self._frames_sent + 1)
        except FieldError as error:
            raise LocalProtocolError("bad-field", f"{kind.name}: {error}") from error
        self._frames_sent += 1
        self._terms.note(event)
        self.state = after
        return frame

    def receive(self, data: Buffer) -> list[ev.Event]:
        """Take bytes as they come and return the events they complete.

        Raises:
            RemoteProtocolError: the peer broke the protocol; events before that are left in `events`.
        """
        view = memoryview(data)
        while view:
            room = self.receive_buffer()
            taken = min(len(room), len(view))
            room[:taken] = view[:taken]
            view = view[taken:]
            self.received(taken)
        found = list(self.events)
        self.events.clear()
        return found

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return (self._ahead if self._body is None else self._body)[self._filled :]

    def received(self, count: int) -> None:
        """`count` bytes were put into `receive_buffer()`; the events they complete are added to `events`.

        Raises:
            RemoteProtocolError: the peer broke the protocol; all that is left is to say REFUSE.
        """
        if self.state in DEAF:
            return
        self._filled += count
        try:
            if self._body is None:
                self._take_ahead()
            elif self._filled == len(self._body):
                self._finish_frame(self._body)
                self._body, self._filled = None, 0
        except RemoteProtocolError:
            self._break()
            raise

    def receive_eof(self) -> None:
        """The peer closed its stream.

        Raises:
            RemoteProtocolError: `truncated`, unless the session was over.
        """
        if self.state not in DEAF:
            at, is_tls = self.state, self._is_tls(self._ahead[: self._filled])
            self._break()
            if is_tls:  # its alert is shorter than a header
                raise RemoteProtocolError("tls-unexpected", "it closed after a TLS alert")
            raise RemoteProtocolError("truncated", f"the peer closed the stream when {at}")

    def _break(self) -> None:
        self.state = State.BROKEN
        self._body, self._filled = None, 0

    def _take_ahead(self) -> None:
        """Finish each frame that is whole; begin a body for one that is not; keep a torn header."""
        at = 0
        while self._filled - at >= HEADER.size:
            self._header = self._ahead[at : at + HEADER.size]
            body = memoryview(bytearray(self._begin_frame()))
            at += HEADER.size
            have = min(self._filled - at, len(body))
            body[:have] = self._ahead[at : at + have]
            at += have
            if have < len(body):
                self._header = memoryview(bytes(self._header))
                self._body, self._filled = body, have
                return
            self._finish_frame(body)
            if self.state in DEAF:
                break
        rest = self._filled - at
        self._ahead[:rest] = bytes(self._ahead[at : self._filled])
        self._filled = rest

    def _is_tls(self, begin: Buffer) -> bool:
        """Whether the peer's first bytes are a TLS record: an alert or a handshake, of any version."""
        return self._frames_received == 0 and self._body is None and bytes(begin[:2]) in (b"\x15\x03", b"\x16\x03")

    def _begin_frame(self) -> int:
        """Judge a header before anything is allocated for it; returns the body's length."""
        magic, version, number, flags, body_length, meta_length, sequence, _ = HEADER.unpack(self._header)
        if self._is_tls(self._header):
            raise RemoteProtocolError("tls-unexpected", f"the header begins with {bytes(self._header[:4])!r}")
        if magic != MAGIC:
            raise RemoteProtocolError("bad-magic", f"the header begins with {bytes(self._header[:4])!r}")
        if version != LAYOUT_VERSION:
            raise RemoteProtocolError("bad-version", f"version {version}, not {LAYOUT_VERSION}")
        if flags:
            raise RemoteProtocolError("bad-flags", f"flags {flags:#x}")
        try:
            kind = FrameType(number)
        except ValueError as error:
            raise RemoteProtocolError("bad-type", f"type {number}") from error
        if kind not in MOVES[self.state, self.role.peer]:
            message = f"{self.role.peer} may not send {kind.name} when {self.state}"
            raise RemoteProtocolError("bad-move", message)
        if sequence != self._frames_received + 1:
            raise RemoteProtocolError("bad-sequence", f"frame {sequence} after frame {self._frames_received}")
        if fault := body_fault(kind, body_length, meta_length):
            raise RemoteProtocolError("bad-length", fault)
        if kind is FrameType.BATCH and HEADER.size + body_length > self.credit_available:
            raise RemoteProtocolError("no-credit", f"{body_length} body bytes, {self.credit_available} are left")
        if kind is FrameType.FETCHED and not self._terms.fetches_open:
            raise RemoteProtocolError("bad-query", f"{body_length} body bytes that nobody asked for")
        self._kind, self._meta_length = kind, meta_length
        return int(body_length)

    def _finish_frame(self, body: memoryview) -> None:
        kind, meta = self._kind, body[: self._meta_length]
        if check_of(self._header, meta) != int.from_bytes(self._header[CHECKED_HEADER_BYTES:], "little"):
            raise RemoteProtocolError("bad-check", f"frame {self._frames_received + 1}, {kind.name}")
        try:
            event = LAYOUTS[kind].decode(meta, body[self._meta_length :])
        except FieldError as error:
            raise RemoteProtocolError("bad-field", f"{kind.name}: {error}") from error
        if fault := self._terms.fault(event):
            raise RemoteProtocolError(*fault)
        self._frames_received += 1
        self._terms.note(event)
        self.state = MOVES[self.state, self.role.peer][kind]
        self.events.append(event)
