"""What the NBD server serves: the interface between it and the tap, the store's exports and files.

The server parses, bounds-checks and limits; an export only ever sees requests that are valid for the
`ExportInfo` it gave. Requests come in one of two ways:

- ``inline``: everything parsed from one read of the socket arrives as one list at `submit`, on the loop's
  thread, so the work per request stays small. It returns the replies that are ready, in any order; the
  others are handed to `complete` later (a FLUSH waiting for fsync in an executor, say). A session hands over
  so many requests in one turn of the loop (`NbdLimits.requests_in_turn_max`), so that it keeps no other waiting.
- otherwise each request gets its own `handle` task, with bounded concurrency.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

REQUEST_BYTES_MAX = 32 << 20
"""Largest READ or WRITE, as most NBD clients assume."""


class Command(enum.IntEnum):
    """What a request asks for. The server answers DISC and BLOCK_STATUS; an export gets the others."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


FLAG_FUA = 1
"""Reply only when what this request writes is durable."""
FLAG_NO_HOLE = 2
"""WRITE_ZEROES must not deallocate."""
FLAG_DF = 4
"""READ must be answered in one piece; the server sees to it."""
FLAG_REQ_ONE = 8
"""BLOCK_STATUS wants one extent; the server sees to it."""
FLAG_FAST_ZERO = 16
"""WRITE_ZEROES must fail with ENOTSUP unless it is faster than writing."""

STATUS_HOLE = 1
STATUS_ZERO = 2


class NbdError(enum.IntEnum):
    """Error numbers on the wire (the only ones the protocol allows)."""

    NONE = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class Request(msgspec.Struct, gc=False, eq=False):
    """One request, already checked against the export's size, abilities and limits.

    Attributes:
        command: a Command, as a plain int.
        flags: FLAG_ bits.
        cookie: the client's name for it.
        offset, length: its range in bytes; zero for FLUSH.
        data: WRITE's payload. At `submit` it is valid only until `submit` returns: copy what must live
            longer, unless `owns_data`. At `handle` it belongs to the request.
        owns_data: `data` is memory that nobody else uses.
        answered: set by the server when the reply has been taken.
    """

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: memoryview | None = None
    owns_data: bool = False
    answered: bool = False


Buffer = bytes | bytearray | memoryview
Piece = tuple[int, Buffer | None]
"""Part of a READ's answer: its length in bytes, and its bytes or None where it is a hole (reads as zeros)."""


class Reply(msgspec.Struct, gc=False, eq=False):
    """The answer to one request.

    Attributes:
        request: what it answers.
        error: 0 or an NbdError.
        data: a READ's bytes, exactly `request.length`; not changed until sent. Empty for other commands.
        pieces: instead of `data`, a READ's answer in order where holes are known; lengths sum to the
            request's.
        message: for people, when there is an error.
    """

    request: Request
    error: int = 0
    data: Buffer = b""
    pieces: Sequence[Piece] | None = None
    message: str = ""


Complete = Callable[[Sequence[Reply]], None]
"""Hands over replies that `submit` kept back. Call it on the loop's thread (from others through
`loop.call_soon_threadsafe`); replies for a connection that has gone are ignored."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What an export is and can do, fixed while it is open.

    Attributes:
        name: as clients ask for it.
        size_bytes: any number of bytes.
        read_only: writes, trims and zeroes are refused with EPERM before they reach the export.
        description: for people.
        block_bytes_min, block_bytes_preferred, block_bytes_max: told to clients; powers of two (the last: a
            multiple). Requests not aligned to the minimum are refused; 1 means that any are served.
        sector_bytes: told to clients as the minimum, if that is less: what the disk should look like. Smaller requests
            are served all the same.
        can_multi_conn: a FLUSH on one connection covers writes answered on any other, and reads see them.
        can_flush, can_fua, can_trim, can_zero, can_fast_zero, can_cache: commands and flags it takes.
        can_block_status: `block_status` knows holes and zeros (base:allocation is offered).
    """

    name: str
    size_bytes: int
    read_only: bool = False
    description: str = ""
    block_bytes_min: int = 1
    sector_bytes: int = 1
    block_bytes_preferred: int = 4096
    block_bytes_max: int = REQUEST_BYTES_MAX
    can_multi_conn: bool = True
    can_flush: bool = True
    can_fua: bool = True
    can_trim: bool = True
    can_zero: bool = True
    can_fast_zero: bool = False
    can_cache: bool = False
    can_block_status: bool = True


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is connected.

    Attributes:
        address: IP address, or ``unix``.
        port: TCP port, or 0.
        subject: common name of the certificate that TLS verified, or empty.
        certificate: that certificate (DER), or empty.
        uid: user at the other end of a unix socket, as the kernel knows it; None over TCP.
    """

    address: str
    port: int = 0
    subject: str = ""
    certificate: bytes = field(default=b"", repr=False, compare=False)
    uid: int | None = None


class Export(Protocol):
    """One disk as one connection sees it. Several connections may be given the same object."""

    @property
    def info(self) -> ExportInfo:
        """What it is."""
        ...

    @property
    def inline(self) -> bool:
        """True: `submit` is used; False: `handle` is."""
        ...

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        """Serve requests in order, quickly, on the loop's thread; each answered once, now or by `complete`.

        Completed writes need not be durable; a FLUSH (or FUA write) is answered only when it and everything
        answered before it is. An exception answers what is unanswered with EIO and ends the connection.
        """
        ...

    async def handle(self, request: Request) -> Reply:
        """Serve one request, concurrently with others. An OSError or DrengineError becomes an error reply."""
        ...

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Extents from `offset` as (length, STATUS_ bits), non-empty; may stop early; clipped when longer.

        What takes long goes to a thread.
        """
        ...

    def close(self) -> None:
        """A connection that was given this object is gone, no request is in flight (once per `open`)."""
        ...


class ExportProvider(Protocol):
    """Finds exports by name."""

    async def names(self, peer: Peer) -> list[str]:
        """What LIST shows to this peer; may be fewer than it can open."""
        ...

    async def open(self, name: str, peer: Peer) -> Export:
        """Give a connection its export; the empty name means the default one.

        Raises:
            KeyError: unknown. DrengineError: refused; its message is told to the client.
        """
        ...
