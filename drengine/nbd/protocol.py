"""One NBD connection seen by the server, sans-I/O: bytes in, events out; replies in, bytes out.

It owns no socket, clock or task. The shell asks `get_buffer` where to receive, says `received`, serves the events,
and sends `data_to_send`. While `blocked` is true it must not receive: either a question is open (an export is being
opened, TLS started) or as many requests are in flight as the limits allow; after answering, `parse` goes on with
what is buffered already.

Payloads are not copied when the export is inline: a request's data lies in the receive buffer, or in memory that was
allocated for it when it is long, and the buffer is not touched before the next `get_buffer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.nbd.errors import NBD_LIMIT, NBD_PROTOCOL
from drengine.nbd.export import (
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    Buffer,
    Command,
    ExportInfo,
    NbdError,
    Reply,
    Request,
)
from drengine.nbd.handshake import (
    ExportWanted,
    Handshake,
    NamesWanted,
    State,
    TlsPolicy,
    TlsWanted,
)
from drengine.nbd.limits import NbdLimits
from drengine.nbd.numbers import REQUEST, REQUEST_MAGIC, OptionReply
from drengine.nbd.replies import encode_replies, encode_status

OWN_MEMORY_BYTES = 32 << 10
"""An incomplete payload longer than this is received into memory of its own; a shorter one waits in the buffer."""


@dataclass(frozen=True, slots=True)
class Requests:
    """To be served by the export; never empty."""

    requests: list[Request]


@dataclass(frozen=True, slots=True)
class StatusWanted:
    """BLOCK_STATUS: the shell asks the export and calls `reply_status`, or `reply` with an error."""

    request: Request


@dataclass(frozen=True, slots=True)
class Ended:
    """The client said goodbye (or never got an export): close once nothing is in flight."""


def _unbounded(held_bytes: int) -> int:
    """Room where no budget is shared."""
    return sys.maxsize


Event = NamesWanted | ExportWanted | TlsWanted | Requests | StatusWanted | Ended

_READ, _WRITE, _DISC, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.DISC), int(Command.FLUSH)
_BLOCK_STATUS = int(Command.BLOCK_STATUS)
_WRITERS = frozenset((Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))
_FLAGS: dict[int, int] = {
    Command.READ: FLAG_FUA | FLAG_DF,
    Command.WRITE: FLAG_FUA,
    Command.FLUSH: FLAG_FUA,
    Command.TRIM: FLAG_FUA,
    Command.CACHE: FLAG_FUA,
    Command.WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    Command.BLOCK_STATUS: FLAG_FUA | FLAG_REQ_ONE,
}
_HEADER_BYTES = REQUEST.size
_MESSAGES: dict[int, str] = {
    NbdError.EPERM: "the export is read-only",
    NbdError.EINVAL: "not a request that this export takes: command, flags, length, alignment or range",
    NbdError.ENOSPC: "past the end of the export",
    NbdError.EOVERFLOW: "longer than one request may be",
    NbdError.ESHUTDOWN: "the server is shutting down",
}


class ServerConnection:
    """The server's side of one connection.

    Attributes:
        requests_in_flight, bytes_in_flight: handed out and not yet answered.
        wanted_bytes: of the request that waits for room in the memory that connections share; 0: none does.
        ended: no more requests will be parsed.
    """

    def __init__(
        self, limits: NbdLimits, tls: TlsPolicy = TlsPolicy.OFF, room: Callable[[int], int] = _unbounded
    ) -> None:
        """`room` says how many more bytes requests may take, when so many are in flight."""
        self._limits = limits
        self._room = room
        self._handshake = Handshake(limits, tls)
        self._buffer = bytearray(limits.receive_buffer_bytes)
        self._view = memoryview(self._buffer)
        self._start = self._stop = 0
        self._output: list[Buffer] = []
        self._payload: memoryview | None = None
        self._payload_filled = 0
        self._payload_request: Request | None = None
        self._skip = 0
        self._info: ExportInfo | None = None
        self._own_payloads = False
        self._writable_bytes = 0
        self._misaligned = 0
        self._draining = False
        self.requests_in_flight = 0
        self.bytes_in_flight = 0
        self.wanted_bytes = 0
        self.ended = False

    @property
    def transmitting(self) -> bool:
        """The handshake is over."""
        return self._info is not None

    @property
    def blocked(self) -> bool:
        """The shell must not receive now."""
        if self._info is None:
            return self._handshake.state in (State.ASKING, State.SECURING)
        return (
            self.requests_in_flight >= self._limits.requests_in_flight_max
            or self.bytes_in_flight >= self._limits.bytes_in_flight_max
            or self.wanted_bytes > 0
        )

    @property
    def receiving_payload(self) -> bool:
        """A long WRITE's payload has only partly come."""
        return self._payload is not None

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; what earlier requests' `data` pointed at may change from here on."""
        if self._payload is not None:
            return self._payload[self._payload_filled :]
        if self._start:
            rest = self._stop - self._start
            self._view[:rest] = self._view[self._start : self._stop]
            self._start, self._stop = 0, rest
        return self._view[self._stop :]

    def received(self, length: int) -> list[Event]:
        """So many bytes were put into the buffer last got.

        Raises:
            DrengineError: NBD_PROTOCOL or NBD_LIMIT; send what there is and close.
        """
        if self._payload is None:
            self._stop += length
            return self.parse()
        self._payload_filled += length
        request = self._payload_request
        if request is None or self._payload_filled < len(self._payload):
            return []
        request.data, request.owns_data = self._payload, True
        self._payload = self._payload_request = None
        return [Requests([request])]

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take bytes that lie elsewhere; `blocked` must be false, and not become true before all are taken."""
        events: list[Event] = []
        view = memoryview(data)
        while view:
            room = self.get_buffer()
            taken = min(len(room), len(view))
            room[:taken] = view[:taken]
            view = view[taken:]
            events += self.received(taken)
        return events

    def parse(self) -> list[Event]:
        """Go on with what is buffered; call it again after answering when the connection was blocked."""
        events: list[Event] = []
        while self._info is None and not self.ended:
            used, event = self._handshake.feed(self._view[self._start : self._stop])
            self._start += used
            if event is not None:
                events.append(event)
            if self._handshake.state is State.ENDED:
                self.ended = True
                events.append(Ended())
            if not used or event is not None:
                return events
        if not self.ended:
            self._parse_requests(events)
        return events

    def data_to_send(self) -> list[Buffer]:
        """What the connection itself has to say since last asked: handshake, and errors that reach no export."""
        output: list[Buffer] = [*self._handshake.output, *self._output]
        self._handshake.output.clear()
        self._output.clear()
        return output

    def send_names(self, names: Iterable[str]) -> None:
        """Answer NamesWanted."""
        self._handshake.send_names(names)

    def export_found(self, info: ExportInfo, *, inline: bool) -> bool:
        """Answer ExportWanted; true when transmission has begun with it. Go on with `parse`."""
        self._handshake.export_found(info)
        if self._handshake.state is not State.DONE:
            return False
        self._info = info
        self._own_payloads = not inline
        self._writable_bytes = 0 if info.read_only else info.size_bytes
        self._misaligned = info.block_bytes_min - 1
        return True

    def export_refused(self, code: OptionReply, message: str) -> None:
        """Answer ExportWanted with an error. Go on with `parse`."""
        self._handshake.export_refused(code, message)

    def tls_started(self) -> None:
        """Answer TlsWanted."""
        self._handshake.tls_started()

    def eof(self) -> None:
        """The client is gone: a payload that has only partly come is forgotten."""
        if self._payload_request is not None:
            self.requests_in_flight -= 1
            self.bytes_in_flight -= self._payload_request.length
            self._payload = self._payload_request = None
        self.ended = True

    def drain(self) -> None:
        """Refuse what comes from now on with ESHUTDOWN; what is in flight goes on."""
        self._draining = True
        self._writable_bytes = 0

    def reply(self, replies: Sequence[Reply]) -> list[Buffer]:
        """Bytes that answer requests, for immediate sending; small ones are joined.

        Raises:
            ValueError: a request is answered twice or a READ with the wrong length (an export's defect).
        """
        self.requests_in_flight -= len(replies)
        for reply in replies:
            request = reply.request
            if request.answered:
                raise ValueError(f"request {request.cookie:#x} is answered twice")
            request.answered = True
            if request.command <= _WRITE:
                self.bytes_in_flight -= request.length
        return encode_replies(replies, structured=self._handshake.structured)

    def reply_status(self, request: Request, extents: Sequence[tuple[int, int]]) -> list[Buffer]:
        """Bytes that answer StatusWanted with what the export knows."""
        self.requests_in_flight -= 1
        request.answered = True
        return [encode_status(request, extents, self._limits.extents_max)]

    def _parse_requests(self, events: list[Event]) -> None:
        """Take whole requests from the buffer. A whole, legal WRITE takes the first branch.

        Long because most of the server's own time goes here, and calls for each request are what it would be spent on.
        """
        buffer, view, start, stop = self._buffer, self._view, self._start, self._stop
        unpack, writable, misaligned = REQUEST.unpack_from, self._writable_bytes, self._misaligned
        longest, own_payloads = self._limits.request_bytes_max, self._own_payloads
        room = self._limits.requests_in_flight_max - self.requests_in_flight
        bytes_room = bytes_room_before = self._limits.bytes_in_flight_max - self.bytes_in_flight
        shared_room = self._room(self.bytes_in_flight)
        self.wanted_bytes = 0
        own_memory = min(OWN_MEMORY_BYTES, len(buffer) // 2)
        requests: list[Request] = []
        status_wanted = 0
        long_write: Request | None = None
        if self._skip:
            skipped = min(self._skip, stop - start)
            self._skip -= skipped
            start += skipped
        while stop - start >= _HEADER_BYTES and room > 0 and bytes_room > 0:
            magic, flags, command, cookie, offset, length = unpack(buffer, start)
            if magic != REQUEST_MAGIC:
                raise DrengineError(NBD_PROTOCOL, "a request does not begin with its magic")
            body = start + _HEADER_BYTES
            if (
                command == _WRITE
                and 0 < length <= longest
                and offset + length <= writable
                and not (offset | length) & misaligned
                and (not flags or not self._check(command, flags, offset, length))
            ):
                if length > shared_room:
                    self.wanted_bytes = length
                    break
                end = body + length
                if end > stop:
                    if length <= own_memory:
                        break
                    long_write = Request(_WRITE, flags, cookie, offset, length)
                    start = body
                else:
                    data = memoryview(bytes(view[body:end])) if own_payloads else view[body:end]
                    requests.append(Request(_WRITE, flags, cookie, offset, length, data, own_payloads))
                    start = end
                room -= 1
                bytes_room -= length
                shared_room -= length
                if long_write is not None:
                    break
                continue
            error = self._check(command, flags, offset, length)
            if command == _READ and not error and length > shared_room:
                self.wanted_bytes = length
                break
            start = body
            if command == _WRITE:
                if length > longest:
                    raise DrengineError(NBD_LIMIT, f"a write announces {length} bytes")
                start += min(length, stop - body)
                self._skip = length - (start - body)
            request = Request(command, flags, cookie, offset, length)
            if command == _DISC:
                self.ended = True
                break
            if error:
                self._refuse(request, error)
                continue
            room -= 1
            if command == _BLOCK_STATUS:
                status_wanted += 1
                events.append(StatusWanted(request))
                continue
            if command == _READ:
                bytes_room -= length
                shared_room -= length
            requests.append(request)
        self.requests_in_flight += len(requests) + status_wanted + (long_write is not None)
        self.bytes_in_flight += bytes_room_before - bytes_room
        if requests:
            events.append(Requests(requests))
        if long_write is not None:
            self._payload_request = long_write
            self._payload = memoryview(bytearray(long_write.length))
            self._payload_filled = stop - start
            self._payload[: stop - start] = view[start:stop]
            start = stop
        self._start = start
        if self.ended:
            events.append(Ended())

    def _check(self, command: int, flags: int, offset: int, length: int) -> int:
        """The error that a request earns before any export sees it, or 0."""
        info = self._info
        assert info is not None
        allowed = _FLAGS.get(command)
        if command == _DISC:
            return 0
        if self._draining:
            return NbdError.ESHUTDOWN
        if allowed is None or not self._offered(command, flags, info):
            return NbdError.EINVAL
        if flags & ~allowed:
            return NbdError.EINVAL
        if command == _FLUSH:
            return NbdError.EINVAL if offset or length else 0
        if info.read_only and command in _WRITERS:
            return NbdError.EPERM
        if not length or (offset | length) & self._misaligned:
            return NbdError.EINVAL
        if offset + length > info.size_bytes:
            return NbdError.ENOSPC if command in _WRITERS else NbdError.EINVAL
        if command == _READ and length > self._limits.request_bytes_max:
            return NbdError.EOVERFLOW
        return 0

    def _offered(self, command: int, flags: int, info: ExportInfo) -> bool:
        """Whether the client was told that it may send this."""
        if flags & FLAG_FUA and not info.can_fua:
            return False
        if flags & FLAG_FAST_ZERO and not info.can_fast_zero:
            return False
        if command == _READ:
            return not flags & FLAG_DF or self._handshake.structured
        return {
            Command.FLUSH: info.can_flush,
            Command.TRIM: info.can_trim,
            Command.WRITE_ZEROES: info.can_zero,
            Command.CACHE: info.can_cache,
            Command.BLOCK_STATUS: self._handshake.context_export is not None,
        }.get(Command(command), True)

    def _refuse(self, request: Request, error: int) -> None:
        reply = Reply(request, error, message=_MESSAGES.get(error, ""))
        self._output += encode_replies([reply], structured=self._handshake.structured)
