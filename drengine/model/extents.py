"""Extents and batches: the unit that is captured, sent, verified and stored.

A batch is a packed table of extents, a packed table of frames, and a payload. The payload's plain form is the
concatenation of the DATA extents' bytes in table order. It is encoded as a run of frames, each on its own, so that
reading a little costs a little. The same tables travel on the wire and rest in a segment, so the target appends what
it received without re-encoding it.

Extent table row, 40 bytes, little endian (``EXTENT``)::

    u32 volume | u8 kind | 3 zero bytes | u64 offset | u64 length | 16 bytes xxh3-128 (canonical) of the plain bytes

Rules (see :func:`check_table`; every table that comes in is checked): length > 0; offset + length inside the volume
and below 2**63;
a DATA extent never crosses a BLOCK_BYTES boundary (so it is at most BLOCK_BYTES long);
ZERO and DISCARD extents have an all-zero digest and no payload; later rows win over earlier ones.

Frame table row, 24 bytes, little endian (``FRAME``)::

    u32 plain length | u32 length | u8 codec | u8 cipher | 2 zero bytes | u32 key | u64 xxh3-64 of the frame's bytes

Rules (see :func:`frames_fault`): 1 <= plain length <= FRAME_PLAIN_BYTES_MAX; a raw frame is as long as its plain form,
a compressed one is shorter; no DATA extent crosses the end of a frame; key is 0. On the wire cipher is 0: frames are
encrypted only at rest (`AES_256_GCM`), where each has FRAME_TAG_BYTES more.
"""

from __future__ import annotations

import enum
import itertools
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
FRAME_PLAIN_BYTES_MAX = BLOCK_BYTES
"""A frame decodes to at most this much."""
BATCH_FRAMES_MAX = 4096
FRAME = struct.Struct("<IIBBHIQ")
AES_256_GCM = 1
"""Cipher of frames at rest (docs/format.md, "Encryption")."""
FRAME_TAG_BYTES = 16
NO_DIGEST = bytes(16)
OFFSET_MAX = (1 << 63) - 1
_CODEC_AT = 8
"""Where a FRAME row has its codec."""


class ExtentKind(enum.IntEnum):
    """What an extent says about its range."""

    DATA = 1
    ZERO = 2
    DISCARD = 3
    DROPPED = 4
    """Only in a compacted segment: these bytes are dead, no kept point or branch can see them."""


class Codec(enum.IntEnum):
    """How a frame is encoded."""

    RAW = 0
    ZSTD = 1


_CODECS = frozenset(Codec)


class Extent(NamedTuple):
    """One row of a table. `digest` is xxh3-128 of the plain bytes for DATA, NO_DIGEST otherwise."""

    volume: int
    kind: int
    offset: int
    length: int
    digest: bytes = NO_DIGEST


class Frame(NamedTuple):
    """One row of a frame table: what `length` stored bytes decode to. `cipher` 0: not encrypted. `key` is always 0."""

    plain_length: int
    length: int
    codec: int
    cipher: int
    reserved: int
    key: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Tables of extents and frames, and the payload as it travels.

    Attributes:
        table: packed rows (EXTENT), in capture order.
        frames: packed rows (FRAME), in the payload's order.
        payload: the frames' bytes, one after another; empty when there is no DATA extent.
    """

    table: bytes
    frames: bytes = b""
    payload: bytes | bytearray | memoryview = b""

    @property
    def plain_length(self) -> int:
        """Length of the decoded payload in bytes; the sum of the DATA lengths."""
        return sum(row[0] for row in FRAME.iter_unpack(self.frames))

    @property
    def is_compressed(self) -> bool:
        """Whether any frame is compressed."""
        return any(self.frames[_CODEC_AT :: FRAME.size])


def pack_table(extents: Iterable[Extent]) -> bytes:
    """Pack rows in order."""
    return b"".join(EXTENT.pack(*extent) for extent in extents)


def iter_table(table: bytes | memoryview) -> Iterator[Extent]:
    """Unpack rows in order; the length of `table` must be a multiple of EXTENT.size."""
    return map(Extent._make, EXTENT.iter_unpack(table))


def iter_frames(frames: bytes | memoryview) -> Iterator[Frame]:
    """Unpack frame rows in order; the length of `frames` must be a multiple of FRAME.size."""
    return map(Frame._make, FRAME.iter_unpack(frames))


def block_ranges(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a range (offset, length) cut at block boundaries, as DATA extents must be."""
    end = offset + length
    while offset < end:
        part = min(end - offset, BLOCK_BYTES - offset % BLOCK_BYTES)
        yield offset, part
        offset += part


def check_table(table: bytes | memoryview, frames: bytes | memoryview, volume_sizes: Mapping[int, int]) -> None:
    """Check every rule of the module's docstring against the declared volumes.

    Args:
        table: packed rows.
        frames: packed frame rows, which `frames_fault` has passed.
        volume_sizes: size in bytes of each declared volume by its number.

    Raises:
        DrengineError: BAD_EXTENTS, naming the row and the rule.
    """
    if len(table) % EXTENT.size or len(table) > BATCH_EXTENTS_MAX * EXTENT.size:
        raise DrengineError(BAD_EXTENTS, f"a table of {len(table)} bytes is torn or too long")
    frame_ends = list(itertools.accumulate(row[0] for row in FRAME.iter_unpack(frames)))
    total = frame = 0
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
            if frame < len(frame_ends) and total > frame_ends[frame]:
                raise DrengineError(BAD_EXTENTS, f"row {row}: {offset}+{length} crosses the end of frame {frame}")
            frame += frame < len(frame_ends) and total == frame_ends[frame]
        elif kind not in (ExtentKind.ZERO, ExtentKind.DISCARD) or digest != NO_DIGEST:
            raise DrengineError(BAD_EXTENTS, f"row {row}: kind {kind} or its digest is not allowed")
        if any(pad):
            raise DrengineError(BAD_EXTENTS, f"row {row}: its padding is not zero")
    if total != (frame_ends[-1] if frame_ends else 0):
        raise DrengineError(BAD_EXTENTS, f"data extents add up to {total} bytes, the frames to {sum(frame_ends[-1:])}")


def frames_fault(frames: bytes | memoryview, payload_length: int, *, cipher: int = 0) -> str | None:
    """Which rule of the module's docstring a frame table breaks, or that its payload has another length; None if none.

    That the extents fit the frames is for `check_table` to say. `cipher` is what all frames must have.
    """
    tag_bytes = FRAME_TAG_BYTES if cipher else 0
    if len(frames) % FRAME.size or len(frames) > BATCH_FRAMES_MAX * FRAME.size:
        return f"a frame table of {len(frames)} bytes is torn or too long"
    plain_total = total = 0
    for number, frame in enumerate(iter_frames(frames)):
        if not 1 <= frame.plain_length <= FRAME_PLAIN_BYTES_MAX:
            return (
                f"frame {number} claims {frame.plain_length} plain bytes, at most {FRAME_PLAIN_BYTES_MAX} are allowed"
            )
        length = frame.length - tag_bytes
        fits = length == frame.plain_length if frame.codec == Codec.RAW else 1 <= length < frame.plain_length
        if frame.codec not in _CODECS or not fits:
            return f"frame {number}: {frame.length} bytes with codec {frame.codec} for {frame.plain_length} plain bytes"
        if frame.cipher != cipher or frame.key or frame.reserved:
            return f"frame {number} has cipher {frame.cipher}, not {cipher}, or its reserved bytes are not zero"
        plain_total += frame.plain_length
        total += frame.length
    if plain_total > BATCH_PLAIN_BYTES_MAX:
        return f"frames of {plain_total} plain bytes, at most {BATCH_PLAIN_BYTES_MAX} are allowed"
    return None if total == payload_length else f"frames of {total} bytes for a payload of {payload_length}"
