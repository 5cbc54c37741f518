"""Frames: the bytes of each event, and the caps on each length. The tables in docs/protocol.md are made from here.

The check in the header is xxh3-64 over the header's first 24 bytes and the meta bytes, which are the body's beginning.
For BATCH and FETCHED the rest of the body is the payload, covered by the blocks' hashes instead, so that bulk data is
hashed once, as plain bytes; for every other type the meta is the whole body.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_64_intdigest

from drengine.model.extents import BATCH_PLAIN_BYTES_MAX, BLOCK_BYTES, GRAIN_BYTES, OFFSET_MAX, Batch, frames_fault
from drengine.model.points import Cut, PointKind
from drengine.model.states import REASONS, ReplicationState
from drengine.wire import events as ev
from drengine.wire import fields as f
from drengine.wire.fields import FieldError, FieldReader, FieldType
from drengine.wire.payload import PAYLOAD_BYTES_MAX

Buffer = bytes | bytearray | memoryview

MAGIC = 0x4E455244  # "DREN"
LAYOUT_VERSION = 1
"""Of the header and the frames' fields as they stand here."""

HEADER = struct.Struct("<IBBHIIQQ")
CHECKED_HEADER_BYTES = 24
HEADER_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("magic", "u32", '"DREN"'),
    (
        "version",
        "u8",
        f"{LAYOUT_VERSION}, of this layout; what the session speaks is agreed by HELLO and WELCOME",
    ),
    ("type", "u8", "see Frames"),
    ("flags", "u16", "0; a set flag is refused"),
    ("body length", "u32", "bytes that follow the header"),
    ("meta length", "u32", "how many of them the check covers: all, or all before a payload"),
    ("sequence", "u64", "from 1, one more for each frame of a direction"),
    ("check", "u64", "xxh3-64 of the 24 bytes before it and the meta bytes"),
)

CREDIT_BYTES_MAX = 1 << 30
"""No target promises more than this at once."""


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
    FETCH = 16
    FETCHED = 17
    CHANGE_QUERY = 18
    CHANGED = 19
    METRICS = 20
    MOVED = 21
    INVENTORY = 22


CARRIERS = frozenset({FrameType.BATCH, FrameType.FETCHED})
"""Types whose body ends with a payload."""


@dataclass(frozen=True)
class Field:
    """A field of a frame: its name, its type, and what it says beyond its name."""

    name: str
    type: FieldType
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """What must hold between fields, as text for people and as code."""

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Layout:
    """How a type's meta bytes are laid out. Unless said otherwise the fields are the event's attributes.

    Attributes:
        event: the event's class.
        fields: in order.
        rules: between fields.
        parts: from the event to the fields' values.
        build: from the fields' values, and the payload, to the event.
    """

    event: type
    fields: tuple[Field, ...] = ()
    rules: tuple[Rule, ...] = ()
    parts: Callable[[Any], tuple[Any, ...]] | None = None
    build: Callable[[list[Any], memoryview], Any] | None = None

    @property
    def meta_bytes_max(self) -> int:
        """The largest meta of this type."""
        return sum(field.type.bytes_max for field in self.fields)

    def encode(self, event: Any) -> bytes:
        """The meta bytes."""
        values = self.parts(event) if self.parts else tuple(getattr(event, field.name) for field in self.fields)
        return b"".join(field.type.write(value) for field, value in zip(self.fields, values, strict=True))

    def decode(self, meta: memoryview, payload: memoryview) -> ev.Event:
        """The event.

        Raises:
            FieldError: a field does not decode, or a rule is broken.
        """
        reader = FieldReader(meta)
        values = []
        for field in self.fields:
            try:
                values.append(field.type.read(reader))
            except FieldError as error:
                raise FieldError(f"{field.name}: {error}") from error
        reader.end()
        event: ev.Event = self.build(values, payload) if self.build else self.event(*values)
        for rule in self.rules:
            if not rule.holds(event):
                raise FieldError(rule.text)
        return event


def _batch_parts(event: ev.BatchEvent) -> tuple[Any, ...]:
    batch = event.batch
    return event.sequence, event.mark, batch.frames, batch.table


def _build_batch(values: list[Any], payload: memoryview) -> ev.BatchEvent:
    sequence, mark, frames, table = values
    return ev.BatchEvent(sequence, mark, Batch(table, frames, payload.toreadonly()))


def _fetched_parts(event: ev.Fetched) -> tuple[Any, ...]:
    batch = event.batch
    return event.query, batch.frames, batch.table


def _build_fetched(values: list[Any], payload: memoryview) -> ev.Fetched:
    query, frames, table = values
    return ev.Fetched(query, Batch(table, frames, payload.toreadonly()))


def _hello_parts(event: ev.Hello) -> tuple[Any, ...]:
    errand = event.purpose, event.branch, event.sequence
    return event.version_min, event.version_max, event.abilities, event.source, event.instance, event.generation, errand


def _build_hello(values: list[Any], _: memoryview) -> ev.Hello:
    *greeting, errand = values
    return ev.Hello(*greeting, *errand)


def _errand_fits(hello: ev.Hello) -> bool:
    match hello.purpose:
        case ev.Purpose.REPLICATE:
            return not (hello.branch or hello.sequence)
        case ev.Purpose.PRESERVE:
            return hello.branch > 0 and not hello.sequence
    return hello.branch > 0 and hello.sequence > 0


def _cut_parts(event: ev.CutEvent) -> tuple[Any, ...]:
    return event.sequence, event.mark, event.cut.time_ns, event.cut.kind, event.cut.label


def _build_cut(values: list[Any], _: memoryview) -> ev.CutEvent:
    sequence, mark, time_ns, kind, label = values
    return ev.CutEvent(sequence, mark, Cut(time_ns, kind, label))


def _refuse_parts(event: ev.Refuse) -> tuple[Any, ...]:
    """A message is prose from anywhere: what can't be sent of it is dropped rather than the session's reason."""
    return event.code, _sendable(event.message), event.retryable


def _moved_parts(event: ev.Moved) -> tuple[Any, ...]:
    return event.owner, event.addresses, _sendable(event.message)


def _sendable(message: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in message)
    return printable.encode("utf-8")[: f.TEXT_BYTES_MAX].decode("utf-8", "ignore")


_POSITION = (
    Field("sequence", f.U64, "stream position"),
    Field("mark", f.MARK, "capture position that it stands for"),
)
_FRAMES_FIT = Rule(
    "each frame keeps the rules of Frame rows, and together they have the payload's length",
    lambda e: frames_fault(e.batch.frames, len(e.batch.payload)) is None,
)
_KINDS = {kind: number for number, kind in enumerate(PointKind, start=1)}
_CHUNKS = {GRAIN_BYTES: GRAIN_BYTES, BLOCK_BYTES: BLOCK_BYTES}


def _named(numbers: dict[Any, int]) -> str:
    return ", ".join(f"{number} {getattr(value, 'name', value).lower()}" for value, number in numbers.items())


LAYOUTS: dict[FrameType, Layout] = {
    FrameType.HELLO: Layout(
        ev.Hello,
        (
            Field("version_min", f.U16, "lowest version that the agent speaks"),
            Field("version_max", f.U16, "highest"),
            Field("abilities", f.ABILITIES, "what the agent can do; unknown ones are passed over"),
            Field("source", f.NAME, "name of the source server"),
            Field("instance", f.raw(16), "random, made at each start of the agent"),
            Field(
                "generation",
                f.U64,
                "that the agent believes to be current, 0: not known; of the branch, to preserve",
            ),
            Field("errand", f.ERRAND, "what the session is for, unless to replicate"),
        ),
        (
            Rule("1 <= version_min <= version_max", lambda e: 1 <= e.version_min <= e.version_max),
            Rule("to preserve names a branch only, to reverse names a point: branch and sequence", _errand_fits),
            Rule(
                "an errand needs the ability reverse",
                lambda e: e.purpose is ev.Purpose.REPLICATE or "reverse" in e.abilities,
            ),
        ),
        _hello_parts,
        _build_hello,
    ),
    FrameType.WELCOME: Layout(
        ev.Welcome,
        (
            Field("version", f.U16, "that the session speaks"),
            Field("abilities", f.ABILITIES, "that both have"),
            Field("session", f.raw(16), "random, for logs"),
            Field("generation", f.U64, "current at the target"),
            Field(
                "durable_sequence",
                f.U64,
                "everything up to here is on stable storage; the agent goes on with the next",
            ),
            Field("durable_mark", f.MARK, "the mark of that position"),
            Field("credit_bytes", f.U64, "BATCH frame bytes that may be in flight"),
            Field("batch_plain_bytes_max", f.U32, "largest plain length of a batch"),
            Field("geometry", f.VOLUMES, "as last known here; none for a new source"),
        ),
        (
            Rule(
                f"{BLOCK_BYTES} <= batch_plain_bytes_max <= {BATCH_PLAIN_BYTES_MAX}",
                lambda e: BLOCK_BYTES <= e.batch_plain_bytes_max <= BATCH_PLAIN_BYTES_MAX,
            ),
            Rule(
                "credit_bytes holds at least one largest frame and is at most 2^30",
                lambda e: BATCH_FRAME_BYTES_MAX <= e.credit_bytes <= CREDIT_BYTES_MAX,
            ),
        ),
    ),
    FrameType.GEOMETRY: Layout(
        ev.Geometry,
        (*_POSITION, Field("volumes", f.VOLUMES, "all volumes of the source")),
        (Rule("there is at least one volume", lambda e: len(e.volumes) > 0),),
    ),
    FrameType.BATCH: Layout(
        ev.BatchEvent,
        (
            *_POSITION,
            Field("frames", f.FRAMES, "how the payload is encoded"),
            Field("table", f.TABLE, "the extents, in capture order; the payload follows"),
        ),
        (_FRAMES_FIT,),
        _batch_parts,
        _build_batch,
    ),
    FrameType.CUT: Layout(
        ev.CutEvent,
        (
            *_POSITION,
            Field("time_ns", f.U63, "source's wall clock at the moment that the point shows, ns since 1970"),
            Field("kind", f.one_of("B", _KINDS, f"u8: {_named(_KINDS)}"), "how consistency is known"),
            Field("label", f.text(f.TEXT_BYTES_MAX), "what a person called it, or empty"),
        ),
        (),
        _cut_parts,
        _build_cut,
    ),
    FrameType.ACK: Layout(
        ev.Ack,
        (
            Field("durable_sequence", f.U64, "everything up to here is on stable storage, every hash recomputed"),
            Field("durable_mark", f.MARK, "the mark of that position"),
        ),
    ),
    FrameType.CREDIT: Layout(
        ev.Credit,
        (
            Field(
                "bytes",
                f.integer("Q", 1, CREDIT_BYTES_MAX, "u64, 1 to 2^30"),
                "so many more BATCH frame bytes may be sent",
            ),
        ),
    ),
    FrameType.HASH_QUERY: Layout(
        ev.HashQuery,
        (
            Field("query", f.U32, "number of the question, chosen by the agent; not one that is still open"),
            Field("volume", f.U32),
            Field("offset", f.U63, "a multiple of chunk_bytes"),
            Field("chunk_bytes", f.one_of("I", _CHUNKS, f"u32: {GRAIN_BYTES} or {BLOCK_BYTES}")),
            Field("count", f.integer("I", 1, f.DIGESTS_MAX, f"u32, 1 to {f.DIGESTS_MAX}"), "chunks"),
        ),
        (
            Rule("offset is a multiple of chunk_bytes", lambda e: e.offset % e.chunk_bytes == 0),
            Rule("the range ends below 2^63", lambda e: e.offset + e.count * e.chunk_bytes <= OFFSET_MAX),
        ),
    ),
    FrameType.HASHES: Layout(
        ev.Hashes,
        (
            Field("query", f.U32, "the question that is answered"),
            Field("digests", f.DIGESTS, "xxh3-128 of each chunk asked for"),
        ),
    ),
    FrameType.RESEND: Layout(
        ev.Resend,
        (Field("volume", f.U32), Field("offset", f.U63), Field("length", f.U63)),
        (
            Rule("length is not 0", lambda e: e.length > 0),
            Rule("the range ends below 2^63", lambda e: e.offset + e.length <= OFFSET_MAX),
        ),
    ),
    FrameType.STATUS: Layout(
        ev.Status,
        (
            Field("state", f.word(ReplicationState.__members__, "the nine replication states")),
            Field("reason", f.word(REASONS, "the reason codes of states")),
            Field("backlog_bytes", f.U64, "captured or dirty, not yet durable at the target"),
            Field(
                "behind_since_ns",
                f.U64,
                "wall clock of the oldest change outstanding, ns since 1970; 0 for none",
            ),
        ),
    ),
    FrameType.PING: Layout(ev.Ping, (Field("token", f.U64),)),
    FrameType.PONG: Layout(ev.Pong, (Field("token", f.U64, "of the PING that it answers"),)),
    FrameType.REFUSE: Layout(
        ev.Refuse,
        (
            Field("code", f.NAME, "an error id, or a reason of Reasons"),
            Field("message", f.text(f.TEXT_BYTES_MAX), "for people"),
            Field("retryable", f.FLAG, "1: come back later; 0: give up until somebody acts at your side"),
        ),
        (),
        _refuse_parts,
    ),
    FrameType.GOODBYE: Layout(ev.Goodbye),
    FrameType.FETCH: Layout(
        ev.Fetch,
        (
            Field("query", f.U32, "number of the question; not one that is still open"),
            Field("ranges", f.SPANS, "what is wanted"),
        ),
        (
            Rule("at least one range is wanted", lambda e: len(e.ranges) > 0),
            Rule(
                f"together the ranges have at most {BATCH_PLAIN_BYTES_MAX} bytes",
                lambda e: sum(span.length for span in e.ranges) <= BATCH_PLAIN_BYTES_MAX,
            ),
        ),
    ),
    FrameType.FETCHED: Layout(
        ev.Fetched,
        (
            Field("query", f.U32, "the question that is answered"),
            Field("frames", f.FRAMES, "how the payload is encoded"),
            Field("table", f.TABLE, "extents: the ranges asked for, in order; the payload follows"),
        ),
        (_FRAMES_FIT,),
        _fetched_parts,
        _build_fetched,
    ),
    FrameType.CHANGE_QUERY: Layout(
        ev.ChangeQuery,
        (
            Field("query", f.U32, "number of the question; not one that is still open"),
            Field("volume", f.U32),
            Field("since", f.U64, "a position of the point's branch, not after the point"),
            Field("offset", f.U63, "where to begin looking"),
        ),
    ),
    FrameType.CHANGED: Layout(
        ev.Changed,
        (
            Field("query", f.U32, "the question that is answered"),
            Field("end", f.U63, "the ranges are all there are up to here; the volume's size when nothing is left"),
            Field("ranges", f.SPANS, "where the volume may differ, ascending"),
        ),
    ),
    FrameType.METRICS: Layout(
        ev.MetricsReport,
        (Field("samples", f.SAMPLES, "the agent's metrics without `source`, which is the target's to say"),),
    ),
    FrameType.INVENTORY: Layout(
        ev.InventoryReport,
        (Field("inventory", f.INVENTORY, "what the server is made of; names that are not known are passed over"),),
    ),
    FrameType.MOVED: Layout(
        ev.Moved,
        (
            Field("owner", f.NAME, "the target that has the source, or shall have it"),
            Field("addresses", f.ENDPOINTS, "where agents reach it, best first"),
            Field("message", f.text(f.TEXT_BYTES_MAX), "for people"),
        ),
        (Rule("at least one address is named", lambda e: len(e.addresses) > 0),),
        _moved_parts,
    ),
}

TYPE_OF: dict[type, FrameType] = {layout.event: kind for kind, layout in LAYOUTS.items()}

META_BYTES_MAX: dict[FrameType, int] = {kind: layout.meta_bytes_max for kind, layout in LAYOUTS.items()}
"""Largest meta of each type, in bytes; only CARRIERS may have more body than that, by PAYLOAD_BYTES_MAX."""

BATCH_FIXED_BYTES = sum(field.type.bytes_min for field in LAYOUTS[FrameType.BATCH].fields)

BATCH_FRAME_BYTES_MAX: int = HEADER.size + META_BYTES_MAX[FrameType.BATCH] + PAYLOAD_BYTES_MAX
"""The largest frame there is; no first credit below it, or the stream could not move."""


def batch_frame_bytes(batch: Batch) -> int:
    """What a BATCH frame of this batch costs in credit."""
    return HEADER.size + BATCH_FIXED_BYTES + len(batch.table) + len(batch.frames) + len(batch.payload)


def check_of(header: Buffer, meta: Buffer) -> int:
    """The check of a frame: over the header's first 24 bytes and the meta bytes."""
    return xxh3_64_intdigest(bytes(header[:CHECKED_HEADER_BYTES]) + bytes(meta))


def body_fault(kind: FrameType, body_length: int, meta_length: int) -> str | None:
    """What is wrong with a header's lengths, before anything is allocated; None if nothing."""
    if meta_length > META_BYTES_MAX[kind]:
        return f"{kind.name} has {meta_length} meta bytes, at most {META_BYTES_MAX[kind]} are allowed"
    if kind in CARRIERS:
        payload_length = body_length - meta_length
        if not 0 <= payload_length <= PAYLOAD_BYTES_MAX:
            return f"{kind.name} has a payload of {payload_length} bytes, at most {PAYLOAD_BYTES_MAX} are allowed"
    elif body_length != meta_length:
        return f"{kind.name} has {body_length} body bytes but {meta_length} meta bytes"
    return None


def encode_frame(event: ev.Event, frame_sequence: int) -> list[Buffer]:
    """The buffers of a frame: header and meta as one, then the payload, which is not copied.

    What was written is read back, so that nothing leaves which the peer would refuse.

    Raises:
        FieldError: a value is not allowed on the wire.
    """
    kind = TYPE_OF[type(event)]
    payload: Buffer = event.batch.payload if isinstance(event, ev.BatchEvent | ev.Fetched) else b""
    try:
        meta = LAYOUTS[kind].encode(event)
    except (struct.error, KeyError) as error:
        raise FieldError(f"{kind.name}: {error}") from error
    if fault := body_fault(kind, len(meta) + len(payload), len(meta)):
        raise FieldError(fault)
    LAYOUTS[kind].decode(memoryview(meta), memoryview(payload))
    lengths = len(meta) + len(payload), len(meta)
    head = struct.pack("<IBBHIIQ", MAGIC, LAYOUT_VERSION, kind, 0, *lengths, frame_sequence)
    frame: list[Buffer] = [head + check_of(head, meta).to_bytes(8, "little") + meta]
    if len(payload):
        frame.append(payload)
    return frame
