"""Bytes of each event: there and back, in any pieces; every cap and every field's rule."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings

from drengine.model.extents import FRAME, Batch, Frame
from drengine.model.inventory import pack_inventory
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.wire import events as ev
from drengine.wire.connection import MOVES, READ_AHEAD_BYTES, Connection, Role, State
from drengine.wire.errors import LocalProtocolError, RemoteProtocolError
from drengine.wire.fields import FieldError
from drengine.wire.frames import (
    BATCH_FRAME_BYTES_MAX,
    CREDIT_BYTES_MAX,
    HEADER,
    LAYOUT_VERSION,
    LAYOUTS,
    MAGIC,
    META_BYTES_MAX,
    TYPE_OF,
    FrameType,
    batch_frame_bytes,
    check_of,
    encode_frame,
)
from tests.inventories import SERVER
from tests.wire.samples import (
    BATCH,
    CONVERSATION,
    CUT,
    GEOMETRY,
    HELLO,
    INVENTORY,
    METRICS,
    MOVED,
    QUERY,
    REVERSAL,
    REVERSE,
    SENT_ON,
    STATUS,
    TELLING,
    VOLUMES,
    WELCOME,
    anything,
    batch_of,
    joined,
    mark,
    opened,
    record,
)


def frame(type_: int, meta: bytes, payload: bytes = b"", *, sequence: int = 1, **changed: int) -> bytes:
    """A frame by hand, with a check that fits whatever its header says."""
    values = {
        "magic": MAGIC,
        "version": LAYOUT_VERSION,
        "kind": type_,
        "flags": 0,
        "body_length": len(meta) + len(payload),
        "meta_length": len(meta),
        "sequence": sequence,
    } | changed
    head = struct.pack("<IBBHIIQ", *values.values())
    return head + struct.pack("<Q", check_of(head, meta)) + meta + payload


@settings(max_examples=300, deadline=None)
@given(anything)
def test_whatever_is_said_is_heard_as_it_was_said(event: ev.Event) -> None:
    data = joined(encode_frame(event, 1))
    meta_length = HEADER.unpack_from(data)[5]
    body = memoryview(data)[HEADER.size :]
    assert LAYOUTS[TYPE_OF[type(event)]].decode(body[:meta_length], body[meta_length:]) == event
    assert meta_length <= META_BYTES_MAX[TYPE_OF[type(event)]]
    if isinstance(event, ev.BatchEvent):
        assert len(data) == batch_frame_bytes(event.batch)


def test_the_conversation_says_everything_there_is() -> None:
    said = {TYPE_OF[type(event)] for _, event in CONVERSATION + REVERSAL + SENT_ON + TELLING}
    assert said == set(FrameType) - {FrameType.REFUSE}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("piece_bytes", [1, 31, 33, 100, 4097, 1 << 20])
@pytest.mark.parametrize("conversation", [CONVERSATION, REVERSAL], ids=["shipping", "reversing"])
def test_a_conversation_is_heard_the_same_in_whatever_pieces(
    role: Role, piece_bytes: int, conversation: tuple[tuple[Role, ev.Event], ...]
) -> None:
    recorded = record(conversation)
    side = Connection(role)
    incoming = [(event, data) for who, event, data in recorded if who is not role]
    said = [event for who, event, _ in recorded if who is role]
    if role is Role.AGENT:  # it has said all but the last word when the target's answers come in one stream
        side.send(said[0])
        heard = side.receive(incoming[0][1])
        for event in said[1:-1]:
            side.send(event)
        stream = joined([data for _, data in incoming[1:]])
    else:
        heard = side.receive(incoming[0][1])
        side.send(said[0])
        stream = joined([data for _, data in incoming[1:]]) + b"bytes behind the goodbye are ignored"
    for at in range(0, len(stream), piece_bytes):
        heard += side.receive(stream[at : at + piece_bytes])
    assert heard == [event for event, _ in incoming]


def test_a_large_payload_is_neither_copied_when_sent_nor_when_heard() -> None:
    agent, target = opened()
    plain = bytes(range(256)) * 4096
    event = ev.BatchEvent(
        11, mark(1), batch_of([(at, plain[at : at + 65536]) for at in range(0, 1 << 20, 65536)], level=None)
    )
    payload = event.batch.payload
    head, sent = agent.send(event)
    assert sent is payload
    target.receive(head)
    room = target.receive_buffer()
    assert len(room) == len(plain)
    room[:] = sent
    target.received(len(room))
    (heard,) = target.events
    assert isinstance(heard, ev.BatchEvent)
    view = heard.batch.payload
    assert isinstance(view, memoryview)
    assert view.readonly
    assert view.obj is room.obj
    assert view == plain


HELL = [(0, 2**32 - 1), (2**32 - 1, 0), (2**32 - 1, 2**32 - 1), (0, 1), (1, 0)]


@pytest.mark.fault(36)
@pytest.mark.parametrize(("body_length", "meta_length"), HELL)
@pytest.mark.parametrize("kind", sorted(set(FrameType) - {FrameType.HELLO, FrameType.WELCOME}))
def test_lengths_from_hell_are_refused_before_memory_is_taken(
    kind: FrameType, body_length: int, meta_length: int
) -> None:
    agent, target = opened(replace(WELCOME, credit_bytes=CREDIT_BYTES_MAX))
    hearer = target if kind in MOVES[State.OPEN, Role.AGENT] else agent
    data = frame(kind, b"", sequence=2, body_length=body_length, meta_length=meta_length)
    if kind is FrameType.BATCH and body_length - meta_length == 1:
        hearer.receive(data)  # a payload of one byte is no crime yet
        return
    with pytest.raises(RemoteProtocolError) as caught:
        hearer.receive(data)
    unasked = kind is FrameType.FETCHED and body_length - meta_length == 1
    assert caught.value.reason == ("bad-query" if unasked else "bad-length")
    assert len(hearer.receive_buffer()) <= READ_AHEAD_BYTES


@pytest.mark.fault(36)
@pytest.mark.parametrize(("body_length", "meta_length"), HELL)
def test_a_stranger_can_not_make_a_target_take_memory(body_length: int, meta_length: int) -> None:
    target = Connection(Role.TARGET)
    with pytest.raises(RemoteProtocolError) as caught:
        target.receive(frame(FrameType.HELLO, b"", body_length=body_length, meta_length=meta_length))
    assert caught.value.reason == "bad-length"
    assert META_BYTES_MAX[FrameType.HELLO] < 4096


@pytest.mark.fault(36)
def test_a_batch_of_zero_or_few_bytes_is_refused() -> None:
    for meta, payload in ((b"", b""), (b"", b"x"), (b"m" * 43, b""), (b"m" * 44, b"")):
        _, target = opened()
        with pytest.raises(RemoteProtocolError) as caught:
            target.receive(frame(FrameType.BATCH, meta, payload, sequence=2))
        assert caught.value.reason == "bad-field"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"magic": 0x50545448}, "bad-magic"),
        ({"version": 2}, "bad-version"),
        ({"version": 0}, "bad-version"),
        ({"flags": 1}, "bad-flags"),
        ({"flags": 0x8000}, "bad-flags"),
        ({"kind": 0}, "bad-type"),
        ({"kind": max(FrameType) + 1}, "bad-type"),
        ({"kind": 255}, "bad-type"),
        ({"sequence": 0}, "bad-sequence"),
        ({"sequence": 1}, "bad-sequence"),
        ({"sequence": 3}, "bad-sequence"),
        ({"sequence": 2**64 - 1}, "bad-sequence"),
    ],
)
def test_a_header_that_means_nothing_is_refused_with_its_reason(changed: dict[str, int], reason: str) -> None:
    _, target = opened()
    with pytest.raises(RemoteProtocolError) as caught:
        target.receive(frame(FrameType.PING, bytes(8), **({"sequence": 2} | changed)))  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_bytes_left_over_in_a_body_are_refused() -> None:
    _, target = opened()
    meta = LAYOUTS[FrameType.CUT].encode(ev.CutEvent(11, mark(1), Cut(1, PointKind.QUIET)))
    with pytest.raises(RemoteProtocolError, match="left over") as caught:
        target.receive(frame(FrameType.CUT, meta + b"x", sequence=2))
    assert caught.value.reason == "bad-field"


ROW = BATCH.batch.frames


def changed_row(**changed: int) -> bytes:
    return FRAME.pack(*(Frame._make(FRAME.unpack(ROW))._replace(**changed)))


def spoiled(event: ev.Event, old: bytes, new: bytes) -> bytes:
    meta = LAYOUTS[TYPE_OF[type(event)]].encode(event)
    assert meta.count(old) == 1, (event, old)
    return meta.replace(old, new)


@pytest.mark.parametrize(
    ("kind", "meta"),
    [
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\x08\0server/1")),
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\x08\0../../et")),
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\x08\0serv\0r-1")),
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\x00\0")),
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\x40\0" + b"s" * 64)),
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\xff\xffserver-1")),
        (FrameType.HELLO, spoiled(HELLO, b"\x08\0server-1", b"\x08\0serv\xff\xfe-1")),
        (FrameType.HELLO, spoiled(HELLO, b"\x01\0\x03\0", b"\x03\0\x01\0")),
        (FrameType.HELLO, spoiled(HELLO, b"\x01\0\x03\0", b"\x00\0\x03\0")),
        (FrameType.HELLO, spoiled(HELLO, b"from-the-future", b"from-the-fUture")),
        (FrameType.HELLO, spoiled(HELLO, b"\x06\0resend", b"\x04\0zstd")),
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(HELLO) + b"\0" * 13),  # to replicate goes without saying
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(HELLO) + struct.pack("<BIQ", 3, 1, 1)),
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(REVERSE)[:-1]),
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(replace(REVERSE, branch=0))),
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(replace(REVERSE, sequence=0))),
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(replace(REVERSE, purpose=ev.Purpose.PRESERVE))),
        (FrameType.HELLO, LAYOUTS[FrameType.HELLO].encode(replace(REVERSE, abilities=frozenset({"zstd"})))),
    ],
)
def test_a_hello_with_an_unsafe_or_torn_field_is_refused(kind: FrameType, meta: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Connection(Role.TARGET).receive(frame(kind, meta))
    assert caught.value.reason == "bad-field"


@pytest.mark.parametrize(
    ("event", "old", "new"),
    [
        (GEOMETRY, b"\x02\0\x01\0\0\0", b"\x02\0\x07\0\0\0"),  # a number twice
        (GEOMETRY, b"\x02\0\x01\0\0\0", b"\x02\0\0\0\0\0"),  # number 0
        (GEOMETRY, b"\x04\0root", b"\x04\0data"),  # a name twice
        (GEOMETRY, b"\x04\0root", b"\x04\0Root"),
        (GEOMETRY, b"ext4:7f", b"ext4\n7f"),
        (GEOMETRY, struct.pack("<Q", 12345), bytes(8)),
        (GEOMETRY, struct.pack("<Q", 12345), b"\xff" * 8),
        (GEOMETRY, b"\x02\0\x01\0\0\0", b"\xff\xff\x01\0\0\0"),  # more volumes than may be
        (CUT, struct.pack("<QB", CUT.cut.time_ns, 2), struct.pack("<QB", CUT.cut.time_ns, 9)),
        (CUT, struct.pack("<QB", CUT.cut.time_ns, 2), struct.pack("<QB", 2**63, 2)),
        (CUT, "\u00fc".encode(), b"\xc3\x28"),
        (CUT, "\u00fc".encode(), b"\x7f\x07"),
        (QUERY, struct.pack("<II", 65536, 2), struct.pack("<II", 512, 2)),
        (QUERY, struct.pack("<II", 65536, 2), struct.pack("<II", 65536, 0)),
        (QUERY, struct.pack("<II", 65536, 2), struct.pack("<II", 65536, 4097)),
        (QUERY, struct.pack("<IQ", 1, 65536), struct.pack("<IQ", 1, 65537)),
        (QUERY, struct.pack("<IQ", 1, 65536), struct.pack("<IQ", 1, 2**63 - 65536)),
        (STATUS, b"CONTINUOUS", b"CONTINUING"),
        (STATUS, b"\x04\0none", b"\x04\0nine"),
        (METRICS, b"drengine_agent_state", b"drengine-agent-state"),
        (METRICS, b"drengine_agent_state", b"_rengine_agent_state"),
        (METRICS, b"\5\0state", b"\5\0__ame"),
        (METRICS, b"\4\0kind", b"\4\0tind"),  # not in order
        (METRICS, b"CONTINUOUS", b"CONTINU\nUS"),
        (METRICS, b"\2\0\x1c\0", b"\xff\xff\x1c\0"),
        (INVENTORY, b'"hostname"', b'"hostnam\n"'),
        (INVENTORY, b'"web1"', b'"we\\n"'),
        (INVENTORY, b'"root":"dm-0"', b'"root":"/m-0"'),
        (INVENTORY, b"10.0.0.5/24", b"10.0.0.5/94"),
        (INVENTORY, b'"cpus":4', b'"cpus":"'),
        (INVENTORY, b'"cpus":4', b'"cpus":-'),
        (INVENTORY, struct.pack("<I", len(pack_inventory(SERVER))), b"\xff\xff\1\0"),
        (BATCH, ROW, changed_row(codec=2)),
        (BATCH, ROW, changed_row(codec=0)),  # raw, but shorter than its plain form
        (BATCH, ROW, changed_row(cipher=1)),
        (BATCH, ROW, changed_row(reserved=1)),
        (BATCH, ROW, changed_row(key=1)),
        (BATCH, ROW, changed_row(plain_length=2**32 - 1)),
        (BATCH, ROW, changed_row(plain_length=0)),
        (BATCH, ROW, changed_row(length=0)),
        (BATCH, ROW, changed_row(length=1)),  # not the payload's length
        (BATCH, b"\1\0" + ROW, b"\0\0"),  # a payload without frames
        (BATCH, b"\1\0" + ROW, b"\2\0" + ROW + ROW),  # the same bytes claimed twice
        (BATCH, b"\1\0" + ROW, b"\xff\xff" + ROW),
        (BATCH, ROW + struct.pack("<I", 2), ROW + struct.pack("<I", 0)),
        (BATCH, ROW + struct.pack("<I", 2), ROW + struct.pack("<I", 3)),
        (BATCH, ROW + struct.pack("<I", 2), ROW + struct.pack("<I", 2**32 - 1)),
    ],
)
def test_a_field_out_of_its_range_is_refused(event: ev.Event, old: bytes, new: bytes) -> None:
    _, target = opened()
    payload = bytes(event.batch.payload) if isinstance(event, ev.BatchEvent) else b""
    with pytest.raises(RemoteProtocolError) as caught:
        target.receive(frame(TYPE_OF[type(event)], spoiled(event, old, new), payload, sequence=2))
    assert caught.value.reason == "bad-field"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x02\x11\0outpost-b.", b"\0\x11\0outpost-b."),  # nowhere, and bytes are left over
        (b"\x02\x11\0outpost-b.", b"\x09\x11\0outpost-b."),  # more than may be
        (b"outpost-b.example", b"outpost-b/example"),
        (b"outpost-b.example", b"-utpost-b.example"),
        (b"outpost-b.example", b"outpost b.example"),
        (b"outpost-b.example" + struct.pack("<H", 7440), b"outpost-b.example\0\0"),  # port 0
        (b"2001:db8::7", b"2001:db8::z"),
        (b"\x09\0outpost-b", b"\x09\0Outpost-b"),
        (b"it drains", b"it\ndrains"),
    ],
)
@pytest.mark.parametrize("is_open", [False, True])
def test_an_agent_is_sent_on_only_to_an_address(old: bytes, new: bytes, is_open: bool) -> None:
    agent = opened()[0] if is_open else Connection(Role.AGENT)
    if not is_open:
        agent.send(HELLO)
    with pytest.raises(RemoteProtocolError) as caught:
        agent.receive(frame(FrameType.MOVED, spoiled(MOVED, old, new), sequence=2 if is_open else 1))
    assert caught.value.reason == "bad-field"


@pytest.mark.parametrize(
    "welcome",
    [
        replace(WELCOME, credit_bytes=BATCH_FRAME_BYTES_MAX - 1),
        replace(WELCOME, credit_bytes=CREDIT_BYTES_MAX + 1),
        replace(WELCOME, batch_plain_bytes_max=65535),
        replace(WELCOME, batch_plain_bytes_max=(4 << 20) + 1),
        replace(WELCOME, session=b"short"),
        replace(WELCOME, geometry=(VOLUMES[0], VOLUMES[0])),
        replace(WELCOME, durable_sequence=-1),
        replace(WELCOME, durable_sequence=2**64),
        replace(WELCOME, geometry=tuple(VolumeGeometry(n + 1, f"v{n}", "", 1) for n in range(1025))),
    ],
)
def test_a_side_does_not_say_what_the_other_would_refuse(welcome: ev.Welcome) -> None:
    target = Connection(Role.TARGET)
    target.receive(joined(Connection(Role.AGENT).send(HELLO)))
    with pytest.raises(LocalProtocolError) as caught:
        target.send(welcome)
    assert caught.value.reason == "bad-field"
    target.send(WELCOME)  # nothing had changed


def frame_row(**changed: int) -> bytes:
    """A row of a frame table: one raw byte, unless something is changed."""
    return FRAME.pack(*Frame(1, 1, 0, 0, 0, 0, 0)._replace(**changed))


@pytest.mark.parametrize(
    "batch",
    [
        Batch(b""),
        Batch(b"x" * 41),
        Batch(b"x" * 40, frame_row()),
        Batch(b"x" * 40, b"", b"p"),
        Batch(b"x" * 40, frame_row()[:-1], b"p"),
        Batch(b"x" * 40, frame_row() * 2, b"p"),
        Batch(b"x" * 40, frame_row(), b"pp"),
        Batch(b"x" * 40, frame_row(plain_length=0), b"p"),
        Batch(b"x" * 40, frame_row(plain_length=65537), b"p"),
        Batch(b"x" * 40, frame_row(length=0), b""),
        Batch(b"x" * 40, frame_row(plain_length=2), b"p"),
        Batch(b"x" * 40, frame_row(codec=1), b"p"),
        Batch(b"x" * 40, frame_row(codec=2), b"p"),
        Batch(b"x" * 40, frame_row(cipher=1), b"p"),
        Batch(b"x" * 40, frame_row(reserved=1), b"p"),
        Batch(b"x" * 40, frame_row(key=1), b"p"),
        Batch(b"x" * 40, frame_row(plain_length=65536, codec=1) * 65, b"p" * 65),
        Batch(b"x" * 40, frame_row() * 4097, b"p" * 4097),
        Batch(b"x" * 40 * 16385),
    ],
)
def test_a_batch_that_breaks_a_cap_is_not_sent(batch: Batch) -> None:
    with pytest.raises(FieldError):
        encode_frame(ev.BatchEvent(1, mark(0), batch), 1)


def test_a_refusal_is_never_lost_for_its_prose() -> None:
    message = "bad\x00\n\ud800 news: " + "\U0001f600" * 500
    agent, target = opened()
    (heard,) = agent.receive(joined(target.send(ev.Refuse("store-full", message, True))))
    assert isinstance(heard, ev.Refuse)
    assert heard.code == "store-full"
    assert heard.message.startswith("bad    news: \U0001f600")
    assert len(heard.message.encode()) <= 1024


def test_the_mark_of_nothing_travels() -> None:
    agent, target = opened()
    (heard,) = target.receive(joined(agent.send(ev.Geometry(11, Mark(), VOLUMES))))
    assert heard == ev.Geometry(11, Mark(), VOLUMES)
