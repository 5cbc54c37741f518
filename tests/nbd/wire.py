"""The client's side of NBD as bytes, written from the protocol's text and sharing no code with the server."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_TOO_BIG = (
    0x80000000 + code for code in (1, 2, 3, 5, 6, 9)
)
GREETING_BYTES = 18


def client_flags(flags: int = 3) -> bytes:
    return struct.pack(">I", flags)


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def named(name: str, infos: tuple[int, ...] = ()) -> bytes:
    encoded = name.encode()
    return struct.pack(">I", len(encoded)) + encoded + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def contexts(name: str, *queries: str) -> bytes:
    encoded = name.encode()
    body = struct.pack(">I", len(encoded)) + encoded + struct.pack(">I", len(queries))
    return body + b"".join(struct.pack(">I", len(q)) + q.encode() for q in queries)


def request(
    command: int, cookie: int = 0, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0
) -> bytes:
    length = length or len(data)
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data


@dataclass
class Option:
    number: int
    kind: int
    data: bytes


def option_replies(stream: bytes) -> list[Option]:
    replies = []
    while stream:
        magic, number, kind, length = struct.unpack(">QIII", stream[:20])
        assert magic == 0x3E889045565A9
        assert len(stream) >= 20 + length
        replies.append(Option(number, kind, stream[20 : 20 + length]))
        stream = stream[20 + length :]
    return replies


@dataclass
class Answer:
    """All that was said about one request."""

    error: int = 0
    message: str = ""
    data: dict[int, bytes] = field(default_factory=dict)
    holes: list[tuple[int, int]] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    chunks: int = 0
    done: bool = False

    def content(self, offset: int, length: int) -> bytes:
        """The READ's bytes put together; every byte must be there exactly once."""
        pieces = {**self.data, **{start: bytes(size) for start, size in self.holes}}
        joined = b""
        for start in sorted(pieces):
            assert start == offset + len(joined)
            joined += pieces[start]
        assert len(joined) == length
        return joined


class ReplyReader:
    """Reads replies as they come; `simple_reads` gives lengths of READs answered simply."""

    def __init__(self, simple_reads: dict[int, tuple[int, int]] | None = None) -> None:
        self.buffer = b""
        self.answers: dict[int, Answer] = {}
        self.simple_reads = simple_reads or {}

    def feed(self, data: bytes) -> None:
        self.buffer += data
        while self._one():
            pass

    def _one(self) -> bool:
        if len(self.buffer) < 16:
            return False
        (magic,) = struct.unpack(">I", self.buffer[:4])
        if magic == 0x67446698:
            error, cookie = struct.unpack(">IQ", self.buffer[4:16])
            offset, length = self.simple_reads.get(cookie, (0, 0))
            length = 0 if error else length
            if len(self.buffer) < 16 + length:
                return False
            answer = self._answer(cookie)
            answer.error, answer.done = error, True
            if length:
                answer.data[offset] = self.buffer[16 : 16 + length]
            self.buffer = self.buffer[16 + length :]
            return True
        assert magic == 0x668E33EF
        if len(self.buffer) < 20:
            return False
        flags, kind, cookie, length = struct.unpack(">HHQI", self.buffer[4:20])
        if len(self.buffer) < 20 + length:
            return False
        body, self.buffer = self.buffer[20 : 20 + length], self.buffer[20 + length :]
        answer = self._answer(cookie)
        answer.chunks += 1
        answer.done = bool(flags & 1)
        if kind == 1:
            answer.data[struct.unpack(">Q", body[:8])[0]] = body[8:]
        elif kind == 2:
            answer.holes.append(struct.unpack(">QI", body))
        elif kind == 5:
            assert struct.unpack(">I", body[:4])[0] == 1
            answer.extents += list(struct.iter_unpack(">II", body[4:]))
        elif kind == 0x8001:
            answer.error, size = struct.unpack(">IH", body[:6])
            answer.message = body[6:].decode()
            assert size == len(body) - 6
        else:
            assert kind == 0, f"unknown chunk {kind:#x}"
        return True

    def _answer(self, cookie: int) -> Answer:
        answer = self.answers.setdefault(cookie, Answer())
        assert not answer.done, f"cookie {cookie} is answered twice"
        return answer
