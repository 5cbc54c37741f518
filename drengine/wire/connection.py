"""One side of a session: bytes in, events out, and back. It owns no socket, clock, thread or logger.

Every move that is legal stands in MOVES; both sides hold the same table. The diagram in docs/protocol.md is
drawn from it.
"""

from __future__ import annotations

import enum

from drengine.wire import events as ev
from drengine.wire.errors import LocalProtocolError, RemoteProtocolError
from drengine.wire.frames import (
    HEADER,
    MAGIC,
    TYPE_OF,
    VERSION,
    Buffer,
    FieldError,
    FrameType,
    batch_frame_bytes,
    body_fault,
    check_of,
    decode_body,
    encode_frame,
)


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
    CLOSED = "closed"


MOVES: dict[tuple[State, Role], dict[FrameType, State]] = {
    (State.OPENING, Role.AGENT): {FrameType.HELLO: State.GREETED, FrameType.REFUSE: State.CLOSED},
    (State.OPENING, Role.TARGET): {FrameType.REFUSE: State.CLOSED},
    (State.GREETED, Role.AGENT): {FrameType.REFUSE: State.CLOSED, FrameType.GOODBYE: State.CLOSED},
    (State.GREETED, Role.TARGET): {FrameType.WELCOME: State.OPEN, FrameType.REFUSE: State.CLOSED},
    (State.OPEN, Role.AGENT): {
        FrameType.GEOMETRY: State.OPEN,
        FrameType.BATCH: State.OPEN,
        FrameType.CUT: State.OPEN,
        FrameType.HASH_QUERY: State.OPEN,
        FrameType.STATUS: State.OPEN,
        FrameType.PING: State.OPEN,
        FrameType.PONG: State.OPEN,
        FrameType.REFUSE: State.CLOSED,
        FrameType.GOODBYE: State.CLOSED,
    },
    (State.OPEN, Role.TARGET): {
        FrameType.ACK: State.OPEN,
        FrameType.CREDIT: State.OPEN,
        FrameType.HASHES: State.OPEN,
        FrameType.RESEND: State.OPEN,
        FrameType.PING: State.OPEN,
        FrameType.PONG: State.OPEN,
        FrameType.REFUSE: State.CLOSED,
        FrameType.GOODBYE: State.CLOSED,
    },
    (State.CLOSED, Role.AGENT): {},
    (State.CLOSED, Role.TARGET): {},
}
"""What a side may say in a state, and the state after it."""

VERSION_MIN = VERSION
VERSION_MAX = VERSION


def negotiate_version(hello: ev.Hello) -> int | None:
    """The highest version that both sides speak, or None."""
    version = min(hello.version_max, VERSION_MAX)
    return version if version >= max(hello.version_min, VERSION_MIN) else None


class Connection:
    """The protocol of one session, seen from one side.

    Receiving: either `receive(data)`, or, without a copy, fill `receive_buffer()` and say how much by `received(n)`.
    Sending: `send(event)` gives the buffers to write, in order. An error of either kind ends the session.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.OPENING
        self.credit_available = 0
        """Agent: frame bytes of BATCH that may be sent. Target: that may still arrive."""
        self._sent = 0
        self._received = 0
        self._header = bytearray(HEADER.size)
        self._body: bytearray | None = None
        self._filled = 0
        self._kind = FrameType.GOODBYE
        self._meta_length = 0

    def send(self, event: ev.Event) -> list[Buffer]:
        """The buffers that say `event`.

        Raises:
            LocalProtocolError: it is not legal now, a value is not allowed, or there is no credit; nothing changed.
        """
        kind = TYPE_OF[type(event)]
        after = MOVES[self.state, self.role].get(kind)
        if after is None:
            raise LocalProtocolError("bad-move", f"{self.role} may not send {kind.name} when {self.state}")
        if isinstance(event, ev.BatchEvent) and batch_frame_bytes(event.batch) > self.credit_available:
            raise LocalProtocolError("no-credit", f"{self.credit_available} bytes are left")
        try:
            frame = encode_frame(event, self._sent + 1)
        except FieldError as error:
            raise LocalProtocolError("bad-field", str(error)) from error
        self._sent += 1
        self._move(event, after)
        return frame

    def receive(self, data: Buffer) -> list[ev.Event]:
        """Take bytes as they come and return the events they complete.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the connection is closed.
        """
        found: list[ev.Event] = []
        view = memoryview(data)
        while view and self.state is not State.CLOSED:
            room = self.receive_buffer()
            taken = min(len(room), len(view))
            room[:taken] = view[:taken]
            view = view[taken:]
            event = self.received(taken)
            if event is not None:
                found.append(event)
        return found

    def receive_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty, and never longer than what the current frame still lacks."""
        return memoryview(self._header if self._body is None else self._body)[self._filled :]

    def received(self, count: int) -> ev.Event | None:
        """`count` bytes were put into `receive_buffer()`; returns the event if they completed one.

        Bytes that arrive after the session was closed are ignored: the peer may not know yet.

        Raises:
            RemoteProtocolError: as `receive`.
        """
        if self.state is State.CLOSED:
            return None
        self._filled += count
        try:
            if self._body is None:
                if self._filled < HEADER.size:
                    return None
                self._begin_body()
            assert self._body is not None
            if self._filled < len(self._body):
                return None
            return self._finish_frame()
        except RemoteProtocolError:
            self.state = State.CLOSED
            raise

    def receive_eof(self) -> None:
        """The peer closed its stream.

        Raises:
            RemoteProtocolError: `truncated`, unless the session was over.
        """
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            raise RemoteProtocolError("truncated", "the peer closed the stream without a goodbye")

    def _begin_body(self) -> None:
        magic, version, type_number, flags, body_length, meta_length, sequence, _ = HEADER.unpack(self._header)
        if magic != MAGIC:
            raise RemoteProtocolError("bad-magic", f"the header begins with {bytes(self._header[:4])!r}")
        if version != VERSION:
            raise RemoteProtocolError("bad-version", f"version {version}, not {VERSION}")
        if flags:
            raise RemoteProtocolError("bad-flags", f"flags {flags:#x}")
        try:
            self._kind = FrameType(type_number)
        except ValueError as error:
            raise RemoteProtocolError("bad-type", f"type {type_number}") from error
        if self._kind not in MOVES[self.state, self.role.peer]:
            message = f"{self.role.peer} may not send {self._kind.name} when {self.state}"
            raise RemoteProtocolError("bad-move", message)
        if sequence != self._received + 1:
            raise RemoteProtocolError("bad-sequence", f"frame {sequence} after frame {self._received}")
        if fault := body_fault(self._kind, body_length, meta_length):
            raise RemoteProtocolError("bad-length", fault)
        if self._kind is FrameType.BATCH and HEADER.size + body_length > self.credit_available:
            raise RemoteProtocolError("no-credit", f"a frame of {body_length} bytes, {self.credit_available} are left")
        self._meta_length = meta_length
        self._body = bytearray(body_length)
        self._filled = 0

    def _finish_frame(self) -> ev.Event:
        assert self._body is not None
        body = memoryview(self._body)
        self._body, self._filled = None, 0
        if check_of(self._header, body[: self._meta_length]) != int.from_bytes(self._header[-8:], "little"):
            raise RemoteProtocolError("bad-check", f"frame {self._received + 1}, {self._kind.name}")
        self._received += 1
        try:
            event = decode_body(self._kind, body, self._meta_length)
        except FieldError as error:
            raise RemoteProtocolError("bad-field", f"{self._kind.name}: {error}") from error
        self._move(event, MOVES[self.state, self.role.peer][self._kind])
        return event

    def _move(self, event: ev.Event, after: State) -> None:
        self.state = after
        if isinstance(event, ev.Welcome):
            self.credit_available = event.credit_bytes
        elif isinstance(event, ev.Credit):
            self.credit_available += event.bytes
        elif isinstance(event, ev.BatchEvent):
            self.credit_available -= batch_frame_bytes(event.batch)
