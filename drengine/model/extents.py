"""Extents and batches: the unit that is captured, sent, verified and stored.

A batch is a packed table of extents and one payload. The payload's plain form is the concatenation
of the DATA extents' bytes in table order. The same table travels on the wire and rests in a segment,
so the target appends what it received without re-encoding it.

Extent table row, 40 bytes, little endian (``EXTENT``)::

    u32 volume | u8 kind | 3 zero bytes | u64 offset | u64 length | 16 bytes xxh3-128 (canonical) of the plain bytes

Rules (see :func:`check_table`; every table that comes in is checked): length > 0; offset + length inside the volume
and below 2**63;
a DATA extent never crosses a BLOCK_BYTES boundary (so it is at most BLOCK_BYTES long);
ZERO and DISCARD extents have an all-zero digest and no payload; later rows win over earlier ones.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from drengine.model.errors import BAD_EXTENTS, DrengineError

BLOCK_BYTES = 65536
"""Alignment and largest length of a DATA extent: one hash covers at most this much."""

GRAIN_BYTES = 4096
"""The smallest difference that trackers look for. Extents may still have any byte offset and length."""

BATCH_PLAIN_BYTES_MAX = 4 << 20
BATCH_EXTENTS_MAX = 16384
EXTENT = struct.Struct("<IB3xQQ16s")
_PADDED = struct.Struct("<IB3sQQ16s")
NO_DIGEST = bytes(16)
OFFSET_MAX = (1 << 63) - 1


class ExtentKind(enum.IntEnum):
    """What an extent says about its range."""

    DATA = 1
    ZERO = 2
    DISCARD = 3
    DROPPED = 4
    """Only in a compacted segment: these bytes are dead, no kept point or branch can see them."""


class Codec(enum.IntEnum):
    """How a payload is encoded."""

    RAW = 0
    ZSTD = 1


class Extent(NamedTuple):
    """One row of a table. `digest` is xxh3-128 of the plain bytes for DATA, NO_DIGEST otherwise."""

    volume: int
    kind: int
    offset: int
    length: int
    digest: bytes = NO_DIGEST


@dataclass(frozen=True, slots=True)
class Batch:
    """A table of extents and their payload as it travels.

    Attributes:
        table: packed rows (EXTENT), in capture order.
        codec: encoding of `payload`.
        plain_length: length of the decoded payload in bytes; equals the sum of the DATA lengths.
        payload: encoded bytes; empty when there is no DATA extent.
    """

    table: bytes
    codec: Codec
    plain_length: int
    payload: bytes | memoryview


def pack_table(extents: Iterable[Extent]) -> bytes:
    """Pack rows in order."""
    return b"".join(EXTENT.pack(*extent) for extent in extents)


def iter_table(table: bytes | memoryview) -> Iterator[Extent]:
    """Unpack rows in order; the length of `table` must be a multiple of EXTENT.size."""
    return map(Extent._make, EXTENT.iter_unpack(table))


def block_ranges(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a range (offset, length) cut at block boundaries, as DATA extents must be."""
    end = offset + length
    while offset < end:
        part = min(end - offset, BLOCK_BYTES - offset % BLOCK_BYTES)
        yield offset, part
        offset += part


def check_table(table: bytes | memoryview, plain_length: int, volume_sizes: Mapping[int, int]) -> None:
    """Check every rule of the module's docstring against the declared volumes.

    Args:
        table: packed rows.
        plain_length: what the batch claims its payload decodes to, in bytes.
        volume_sizes: size in bytes of each declared volume by its number.

    Raises:
        DrengineError: BAD_EXTENTS, naming the row and the rule.
    """
    if len(table) % EXTENT.size or len(table) > BATCH_EXTENTS_MAX * EXTENT.size:
        raise DrengineError(BAD_EXTENTS, f"a table of {len(table)} bytes is torn or too long")
    if not 0 <= plain_length <= BATCH_PLAIN_BYTES_MAX:
        raise DrengineError(BAD_EXTENTS, f"a plain length of {plain_length} bytes is out of range")
    total = 0
    for row, (volume, kind, pad, offset, length, digest) in enumerate(_PADDED.iter_unpack(table)):
        size = volume_sizes.get(volume)
        if size is None:
            raise DrengineError(BAD_EXTENTS, f"row {row}: volume {volume} was not declared")
        if length == 0 or offset + length > size or offset + length > OFFSET_MAX:
            raise DrengineError(BAD_EXTENTS, f"row {row}: {offset}+{length} is outside the volume's {size} bytes")
        if kind == ExtentKind.DATA:
            if offset // BLOCK_BYTES != (offset + length - 1) // BLOCK_BYTES:
                raise DrengineError(BAD_EXTENTS, f"row {row}: {offset}+{length} crosses a block boundary")
            total += length
        elif kind not in (ExtentKind.ZERO, ExtentKind.DISCARD) or digest != NO_DIGEST:
            raise DrengineError(BAD_EXTENTS, f"row {row}: kind {kind} or its digest is not allowed")
        if any(pad):
            raise DrengineError(BAD_EXTENTS, f"row {row}: its padding is not zero")
    if total != plain_length:
        raise DrengineError(BAD_EXTENTS, f"data extents add up to {total} bytes, the batch says {plain_length}")
