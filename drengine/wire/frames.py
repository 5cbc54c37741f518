"""Frames: the bytes of each event, and the caps on each length. docs/protocol.md shows these tables.

Frame header, 32 bytes, little endian (``HEADER``)::

    u32 magic "DREN" | u8 version | u8 type | u16 flags (0) | u32 body length | u32 meta length
    u64 frame sequence (per direction, from 1, +1 each) | u64 check

The check is xxh3-64 over the header's first 24 bytes and the meta bytes, which are the body's beginning. For BATCH
the rest of the body is the payload, covered by the blocks' hashes instead, so that bulk data is hashed once, as plain
bytes; for every other type the meta is the whole body.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from drengine.model.errors import DrengineError
from drengine.model.extents import (
    BATCH_EXTENTS_MAX,
    BATCH_PLAIN_BYTES_MAX,
    BLOCK_BYTES,
    EXTENT,
    GRAIN_BYTES,
    OFFSET_MAX,
    Batch,
    Codec,
)
from drengine.model.names import check_name
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.model.states import REASONS, ReplicationState
from drengine.wire import events as ev
from drengine.wire.payload import PAYLOAD_BYTES_MAX

Buffer = bytes | bytearray | memoryview

MAGIC = 0x4E455244  # "DREN"
VERSION = 1
HEADER = struct.Struct("<IBBHIIQQ")
CHECKED_HEADER_BYTES = 24

VOLUMES_MAX = 4096
HASHES_MAX = 4096
TEXT_BYTES_MAX = 1024
IDENTITY_BYTES_MAX = 255
ABILITIES_MAX = 32


class FrameType(enum.IntEnum):
    """The type byte of each event."""

    HELLO = 1
    WELCOME = 2
    GEOMETRY = 3
    BATCH = 4
    CUT = 5
    ACK = 6
    CREDIT = 7
    HASH_QUERY = 8
    HASHES = 9
    RESEND = 10
    STATUS = 11
    PING = 12
    PONG = 13
    REFUSE = 14
    GOODBYE = 15


class FieldError(ValueError):
    """A field does not decode, or its value is not allowed."""


_MARK = struct.Struct("<16sQ")
_HELLO = struct.Struct("<HH16sQ")
_WELCOME = struct.Struct("<H16sQQ16sQQI")
_POSITION = struct.Struct("<Q16sQ")
_BATCH = struct.Struct("<Q16sQBBHII")
_CUT = struct.Struct("<qB")
_CREDIT = struct.Struct("<Q")
_QUERY = struct.Struct("<IIQII")
_HASHES = struct.Struct("<II")
_RESEND = struct.Struct("<IQQ")
_STATUS = struct.Struct("<QQ")
_TOKEN = struct.Struct("<Q")
_VOLUME = struct.Struct("<IQ")
_COUNT = struct.Struct("<H")

_POINT_KINDS = {kind: number for number, kind in enumerate(PointKind, start=1)}
_POINT_KIND_BY_NUMBER = {number: kind for kind, number in _POINT_KINDS.items()}

BATCH_FIXED_BYTES = _BATCH.size
_VOLUMES_BYTES_MAX = 2 + VOLUMES_MAX * (_VOLUME.size + 2 + 63 + 2 + IDENTITY_BYTES_MAX)
_ABILITIES_BYTES_MAX = 2 + ABILITIES_MAX * 65

META_BYTES_MAX: dict[FrameType, int] = {
    FrameType.HELLO: _HELLO.size + 2 + 63 + _ABILITIES_BYTES_MAX,
    FrameType.WELCOME: _WELCOME.size + _ABILITIES_BYTES_MAX + _VOLUMES_BYTES_MAX,
    FrameType.GEOMETRY: _POSITION.size + _VOLUMES_BYTES_MAX,
    FrameType.BATCH: _BATCH.size + BATCH_EXTENTS_MAX * EXTENT.size,
    FrameType.CUT: _POSITION.size + _CUT.size + 2 + TEXT_BYTES_MAX,
    FrameType.ACK: _POSITION.size,
    FrameType.CREDIT: _CREDIT.size,
    FrameType.HASH_QUERY: _QUERY.size,
    FrameType.HASHES: _HASHES.size + 16 * HASHES_MAX,
    FrameType.RESEND: _RESEND.size,
    FrameType.STATUS: _STATUS.size + 2 * (2 + 63),
    FrameType.PING: _TOKEN.size,
    FrameType.PONG: _TOKEN.size,
    FrameType.REFUSE: 1 + 2 + 63 + 2 + TEXT_BYTES_MAX,
    FrameType.GOODBYE: 0,
}
"""Largest meta of each type, in bytes; only BATCH may have more body than that, by PAYLOAD_BYTES_MAX."""


BATCH_FRAME_BYTES_MAX = HEADER.size + META_BYTES_MAX[FrameType.BATCH] + PAYLOAD_BYTES_MAX
"""The largest frame there is; no credit below it, or the stream could not move."""


def batch_frame_bytes(batch: Batch) -> int:
    """What a BATCH frame of this batch costs in credit."""
    return HEADER.size + BATCH_FIXED_BYTES + len(batch.table) + len(batch.payload)


def check_of(header: Buffer, meta: Buffer) -> int:
    """The check of a frame: over the header's first 24 bytes and the meta bytes."""
    return xxh3_64_intdigest(bytes(header[:CHECKED_HEADER_BYTES]) + bytes(meta))


def body_fault(kind: FrameType, body_length: int, meta_length: int) -> str | None:
    """What is wrong with a header's lengths, before anything is allocated; None if nothing."""
    if meta_length > META_BYTES_MAX[kind]:
        return f"{kind.name} has {meta_length} meta bytes, at most {META_BYTES_MAX[kind]} are allowed"
    if kind is FrameType.BATCH:
        if not 0 <= body_length - meta_length <= PAYLOAD_BYTES_MAX:
            return f"BATCH has a payload of {body_length - meta_length} bytes, at most {PAYLOAD_BYTES_MAX} are allowed"
    elif body_length != meta_length:
        return f"{kind.name} has {body_length} body bytes but {meta_length} meta bytes"
    return None


class _Reader:
    """Takes fields off the front of a body."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        if self._at + layout.size > len(self._data):
            raise FieldError("the body is too short")
        fields = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return fields

    def take_bytes(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise FieldError("the body is too short")
        self._at += length
        return bytes(self._data[self._at - length : self._at])

    def text(self, bytes_max: int) -> str:
        (length,) = self.take(_COUNT)
        if length > bytes_max:
            raise FieldError(f"a text of {length} bytes is over {bytes_max}")
        try:
            text = self.take_bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FieldError("a text is not UTF-8") from error
        if not text.isprintable():
            raise FieldError("a text has control characters")
        return text

    def name(self, what: str) -> str:
        try:
            return check_name(self.text(63), what=what)
        except DrengineError as error:
            raise FieldError(error.message) from error

    def mark(self) -> Mark:
        return Mark(*self.take(_MARK))

    def abilities(self) -> frozenset[str]:
        (count,) = self.take(_COUNT)
        if count > ABILITIES_MAX:
            raise FieldError(f"{count} abilities are over {ABILITIES_MAX}")
        names = [self.name("ability") for _ in range(count)]
        if len(set(names)) != count:
            raise FieldError("an ability is named twice")
        return frozenset(names)

    def volumes(self) -> tuple[VolumeGeometry, ...]:
        (count,) = self.take(_COUNT)
        if count > VOLUMES_MAX:
            raise FieldError(f"{count} volumes are over {VOLUMES_MAX}")
        volumes: list[VolumeGeometry] = []
        for _ in range(count):
            number, size = self.take(_VOLUME)
            volumes.append(VolumeGeometry(number, self.name("volume"), self.text(IDENTITY_BYTES_MAX), size))
        check_volumes(volumes)
        return tuple(volumes)

    def end(self) -> None:
        if self._at != len(self._data):
            raise FieldError(f"{len(self._data) - self._at} bytes are left over")


def check_volumes(volumes: list[VolumeGeometry] | tuple[VolumeGeometry, ...]) -> None:
    """Numbers are positive and unique, names are unique, sizes are below 2**63.

    Raises:
        FieldError: naming the rule.
    """
    numbers = {volume.volume for volume in volumes}
    if len(numbers) != len(volumes) or len({volume.name for volume in volumes}) != len(volumes):
        raise FieldError("a volume is declared twice")
    if 0 in numbers or any(not 0 < volume.size_bytes <= OFFSET_MAX for volume in volumes):
        raise FieldError("a volume has number 0, or a size of 0 or over 2**63-1 bytes")


def _text(value: str, bytes_max: int) -> bytes:
    raw = value.encode("utf-8")
    if len(raw) > bytes_max or not value.isprintable():
        raise FieldError(f"a text of {len(raw)} bytes is over {bytes_max} or not printable")
    return _COUNT.pack(len(raw)) + raw


def _abilities(names: frozenset[str]) -> bytes:
    if len(names) > ABILITIES_MAX:
        raise FieldError(f"{len(names)} abilities are over {ABILITIES_MAX}")
    return _COUNT.pack(len(names)) + b"".join(_text(name, 63) for name in sorted(names))


def _volumes(volumes: tuple[VolumeGeometry, ...]) -> bytes:
    if len(volumes) > VOLUMES_MAX:
        raise FieldError(f"{len(volumes)} volumes are over {VOLUMES_MAX}")
    check_volumes(volumes)
    return _COUNT.pack(len(volumes)) + b"".join(
        _VOLUME.pack(each.volume, each.size_bytes) + _text(each.name, 63) + _text(each.identity, IDENTITY_BYTES_MAX)
        for each in volumes
    )


def _position(sequence: int, mark: Mark) -> bytes:
    return _POSITION.pack(sequence, mark.epoch, mark.position)


def _encode_hello(event: ev.Hello) -> bytes:
    fixed = _HELLO.pack(event.version_min, event.version_max, event.instance, event.generation)
    return fixed + _text(event.source, 63) + _abilities(event.abilities)


def _decode_hello(body: _Reader, _: Buffer) -> ev.Hello:
    version_min, version_max, instance, generation = body.take(_HELLO)
    if not 1 <= version_min <= version_max:
        raise FieldError(f"versions {version_min} to {version_max} are no range")
    source = body.name("source")
    return ev.Hello(version_min, version_max, body.abilities(), source, instance, generation)


def _encode_welcome(event: ev.Welcome) -> bytes:
    fixed = _WELCOME.pack(
        event.version,
        event.session,
        event.generation,
        event.durable_sequence,
        event.durable_mark.epoch,
        event.durable_mark.position,
        event.credit_bytes,
        event.batch_plain_bytes_max,
    )
    return fixed + _abilities(event.abilities) + _volumes(event.geometry)


def _decode_welcome(body: _Reader, _: Buffer) -> ev.Welcome:
    version, session, generation, sequence, epoch, position, credit, plain_max = body.take(_WELCOME)
    if not BLOCK_BYTES <= plain_max <= BATCH_PLAIN_BYTES_MAX:
        raise FieldError(f"a batch limit of {plain_max} bytes is out of range")
    if credit < BATCH_FRAME_BYTES_MAX:
        raise FieldError(f"a credit of {credit} bytes is less than one frame")
    abilities = body.abilities()
    mark = Mark(epoch, position)
    return ev.Welcome(version, abilities, session, generation, sequence, mark, credit, plain_max, body.volumes())


def _encode_geometry(event: ev.Geometry) -> bytes:
    return _position(event.sequence, event.mark) + _volumes(event.volumes)


def _decode_geometry(body: _Reader, _: Buffer) -> ev.Geometry:
    sequence, epoch, position = body.take(_POSITION)
    return ev.Geometry(sequence, Mark(epoch, position), body.volumes())


def _encode_batch(event: ev.BatchEvent) -> bytes:
    batch = event.batch
    if len(batch.payload) > PAYLOAD_BYTES_MAX or batch.plain_length > BATCH_PLAIN_BYTES_MAX:
        raise FieldError(f"a payload of {len(batch.payload)} bytes for {batch.plain_length} is too long")
    if len(batch.table) % EXTENT.size or not 0 < len(batch.table) <= BATCH_EXTENTS_MAX * EXTENT.size:
        raise FieldError(f"a table of {len(batch.table)} bytes is torn, empty or too long")
    mark = event.mark
    rows = len(batch.table) // EXTENT.size
    return (
        _BATCH.pack(event.sequence, mark.epoch, mark.position, batch.codec, 0, 0, batch.plain_length, rows)
        + batch.table
    )


def _decode_batch(body: _Reader, payload: Buffer) -> ev.BatchEvent:
    sequence, epoch, position, codec, reserved, reserved2, plain_length, rows = body.take(_BATCH)
    if codec not in (Codec.RAW, Codec.ZSTD) or reserved or reserved2:
        raise FieldError(f"codec {codec} is unknown or a reserved field is set")
    if plain_length > BATCH_PLAIN_BYTES_MAX or not 0 < rows <= BATCH_EXTENTS_MAX:
        raise FieldError(f"{rows} extents of {plain_length} plain bytes are out of range")
    table = body.take_bytes(rows * EXTENT.size)
    batch = Batch(table, Codec(codec), plain_length, memoryview(payload))
    return ev.BatchEvent(sequence, Mark(epoch, position), batch)


def _encode_cut(event: ev.CutEvent) -> bytes:
    cut = event.cut
    fixed = _position(event.sequence, event.mark) + _CUT.pack(cut.time_ns, _POINT_KINDS[cut.kind])
    return fixed + _text(cut.label, TEXT_BYTES_MAX)


def _decode_cut(body: _Reader, _: Buffer) -> ev.CutEvent:
    sequence, epoch, position = body.take(_POSITION)
    time_ns, kind = body.take(_CUT)
    if kind not in _POINT_KIND_BY_NUMBER or time_ns < 0:
        raise FieldError(f"point kind {kind} or time {time_ns} is not allowed")
    cut = Cut(time_ns, _POINT_KIND_BY_NUMBER[kind], body.text(TEXT_BYTES_MAX))
    return ev.CutEvent(sequence, Mark(epoch, position), cut)


def _decode_ack(body: _Reader, _: Buffer) -> ev.Ack:
    sequence, epoch, position = body.take(_POSITION)
    return ev.Ack(sequence, Mark(epoch, position))


def _decode_query(body: _Reader, _: Buffer) -> ev.HashQuery:
    query = ev.HashQuery(*body.take(_QUERY))
    if query.chunk_bytes not in (GRAIN_BYTES, BLOCK_BYTES) or not 1 <= query.count <= HASHES_MAX:
        raise FieldError(f"{query.count} chunks of {query.chunk_bytes} bytes are not allowed")
    if query.offset % query.chunk_bytes or query.offset + query.count * query.chunk_bytes > OFFSET_MAX:
        raise FieldError(f"offset {query.offset} is not aligned or too large")
    return query


def _encode_hashes(event: ev.Hashes) -> bytes:
    if len(event.digests) % 16 or len(event.digests) > 16 * HASHES_MAX:
        raise FieldError(f"{len(event.digests)} bytes of digests are torn or too long")
    return _HASHES.pack(event.query, len(event.digests) // 16) + event.digests


def _decode_hashes(body: _Reader, _: Buffer) -> ev.Hashes:
    query, count = body.take(_HASHES)
    if count > HASHES_MAX:
        raise FieldError(f"{count} digests are over {HASHES_MAX}")
    return ev.Hashes(query, body.take_bytes(16 * count))


def _decode_resend(body: _Reader, _: Buffer) -> ev.Resend:
    resend = ev.Resend(*body.take(_RESEND))
    if not resend.length or resend.offset + resend.length > OFFSET_MAX:
        raise FieldError("a range to resend is empty or too large")
    return resend


def _encode_status(event: ev.Status) -> bytes:
    return _STATUS.pack(event.backlog_bytes, event.behind_since_ns) + _text(event.state, 63) + _text(event.reason, 63)


def _decode_status(body: _Reader, _: Buffer) -> ev.Status:
    backlog, since = body.take(_STATUS)
    state, reason = body.text(63), body.text(63)
    if state not in ReplicationState.__members__ or reason not in REASONS:
        raise FieldError("a state or reason is unknown")
    return ev.Status(state, reason, backlog, since)


def _encode_refuse(event: ev.Refuse) -> bytes:
    message = "".join(char if char.isprintable() else " " for char in event.message)
    cut = message.encode("utf-8")[:TEXT_BYTES_MAX].decode("utf-8", "ignore")
    return bytes([event.retryable]) + _text(event.code, 63) + _text(cut, TEXT_BYTES_MAX)


def _decode_refuse(body: _Reader, _: Buffer) -> ev.Refuse:
    retryable = body.take_bytes(1)[0]
    if retryable > 1:
        raise FieldError("a flag is neither 0 nor 1")
    return ev.Refuse(body.name("code"), body.text(TEXT_BYTES_MAX), bool(retryable))


class _Form(NamedTuple):
    """How a type is written and read."""

    event: type
    encode: Callable[[Any], bytes]
    decode: Callable[[_Reader, Buffer], ev.Event]


_FORMS: dict[FrameType, _Form] = {
    FrameType.HELLO: _Form(ev.Hello, _encode_hello, _decode_hello),
    FrameType.WELCOME: _Form(ev.Welcome, _encode_welcome, _decode_welcome),
    FrameType.GEOMETRY: _Form(ev.Geometry, _encode_geometry, _decode_geometry),
    FrameType.BATCH: _Form(ev.BatchEvent, _encode_batch, _decode_batch),
    FrameType.CUT: _Form(ev.CutEvent, _encode_cut, _decode_cut),
    FrameType.ACK: _Form(ev.Ack, lambda event: _position(event.durable_sequence, event.durable_mark), _decode_ack),
    FrameType.CREDIT: _Form(
        ev.Credit, lambda event: _CREDIT.pack(event.bytes), lambda body, _: ev.Credit(*body.take(_CREDIT))
    ),
    FrameType.HASH_QUERY: _Form(
        ev.HashQuery,
        lambda event: _QUERY.pack(event.query, event.volume, event.offset, event.chunk_bytes, event.count),
        _decode_query,
    ),
    FrameType.HASHES: _Form(ev.Hashes, _encode_hashes, _decode_hashes),
    FrameType.RESEND: _Form(
        ev.Resend, lambda event: _RESEND.pack(event.volume, event.offset, event.length), _decode_resend
    ),
    FrameType.STATUS: _Form(ev.Status, _encode_status, _decode_status),
    FrameType.PING: _Form(ev.Ping, lambda event: _TOKEN.pack(event.token), lambda body, _: ev.Ping(*body.take(_TOKEN))),
    FrameType.PONG: _Form(ev.Pong, lambda event: _TOKEN.pack(event.token), lambda body, _: ev.Pong(*body.take(_TOKEN))),
    FrameType.REFUSE: _Form(ev.Refuse, _encode_refuse, _decode_refuse),
    FrameType.GOODBYE: _Form(ev.Goodbye, lambda _: b"", lambda *_: ev.Goodbye()),
}

TYPE_OF: dict[type, FrameType] = {form.event: kind for kind, form in _FORMS.items()}


def encode_frame(event: ev.Event, frame_sequence: int) -> list[Buffer]:
    """The buffers of a frame: header and meta as one, then the payload, which is not copied.

    Raises:
        FieldError: a value is not allowed on the wire.
    """
    kind = TYPE_OF[type(event)]
    try:
        meta = _FORMS[kind].encode(event)
    except struct.error as error:
        raise FieldError(f"{kind.name}: {error}") from error
    payload: Buffer = event.batch.payload if isinstance(event, ev.BatchEvent) else b""
    head = struct.pack("<IBBHIIQ", MAGIC, VERSION, kind, 0, len(meta) + len(payload), len(meta), frame_sequence)
    frame: list[Buffer] = [head + check_of(head, meta).to_bytes(8, "little") + meta]
    if len(payload):
        frame.append(payload)
    return frame


def decode_body(kind: FrameType, body: memoryview, meta_length: int) -> ev.Event:
    """The event of a checked body. A BATCH's payload stays a view of `body`.

    Raises:
        FieldError: a field does not decode or is not allowed.
    """
    reader = _Reader(body[:meta_length])
    event = _FORMS[kind].decode(reader, body[meta_length:])
    reader.end()
    return event
