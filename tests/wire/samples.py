"""One of everything that can be said, strategies for more, and a short recorded conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from drengine.model.extents import BLOCK_BYTES, Batch, Extent, ExtentKind, pack_table
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.model.states import REASONS, ReplicationState
from drengine.wire import events as ev
from drengine.wire.connection import Connection, Role
from drengine.wire.frames import BATCH_FRAME_BYTES_MAX, CREDIT_BYTES_MAX
from drengine.wire.payload import digest, make_batch
from tests.inventories import SERVER, inventories

EPOCH = bytes(range(16))
VOLUMES = (VolumeGeometry(1, "root", "ext4:7f", 1 << 30), VolumeGeometry(7, "data", "", 12345))


def mark(position: int) -> Mark:
    return Mark(EPOCH, position)


def batch_of(writes: Sequence[tuple[int, bytes]], *, level: int | None = 1, volume: int = 1) -> Batch:
    """Writes, none crossing a block; None-like empty bytes are not allowed."""
    extents = [Extent(volume, ExtentKind.DATA, at, len(data), digest(data)) for at, data in writes]
    plain = b"".join(data for _, data in writes)
    return make_batch(extents, plain, level)


def zeros(offset: int, length: int, *, volume: int = 1) -> Batch:
    return Batch(pack_table([Extent(volume, ExtentKind.ZERO, offset, length)]))


HELLO = ev.Hello(1, 3, ev.ABILITIES | {"from-the-future"}, "server-1", bytes(range(16)), 4)
WELCOME = ev.Welcome(2, ev.ABILITIES, b"s" * 16, 4, 10, mark(900), BATCH_FRAME_BYTES_MAX, 1 << 20, VOLUMES)
GEOMETRY = ev.Geometry(11, mark(901), VOLUMES)
BATCH = ev.BatchEvent(12, mark(902), batch_of([(0, b"a" * 4096), (BLOCK_BYTES, bytes(range(256)) * 2)]))
ZEROS = ev.BatchEvent(13, mark(903), zeros(65536, 1 << 20))
CUT = ev.CutEvent(14, mark(904), Cut(1_700_000_000_000_000_000, PointKind.QUIET, "before the update \u2013 \u00fc"))
QUERY = ev.HashQuery(5, 1, 65536, 65536, 2)
METRICS = ev.MetricsReport(
    (
        ev.MetricSample("drengine_agent_backlog_bytes", (), 4096.0),
        ev.MetricSample("drengine_agent_state", (("kind", 'a \\ " b'), ("state", "CONTINUOUS")), 1.0),
    )
)
INVENTORY = ev.InventoryReport(SERVER)
STATUS = ev.Status("CONTINUOUS", "none", 4096, 1_700_000_000_000_000_000)

MOVED = ev.Moved("outpost-b", (ev.Endpoint("outpost-b.example", 7440), ev.Endpoint("2001:db8::7", 7441)), "it drains")

CONVERSATION: tuple[tuple[Role, ev.Event], ...] = (
    (Role.AGENT, HELLO),
    (Role.TARGET, WELCOME),
    (Role.AGENT, GEOMETRY),
    (Role.AGENT, BATCH),
    (Role.AGENT, ZEROS),
    (Role.TARGET, ev.Ack(12, mark(902))),
    (Role.AGENT, CUT),
    (Role.TARGET, ev.Credit(1000)),
    (Role.AGENT, QUERY),
    (Role.TARGET, ev.Hashes(5, b"h" * 32)),
    (Role.TARGET, ev.Resend(7, 0, 12345)),
    (Role.AGENT, STATUS),
    (Role.AGENT, METRICS),
    (Role.AGENT, ev.Ping(2**64 - 1)),
    (Role.TARGET, ev.Pong(2**64 - 1)),
    (Role.TARGET, ev.Ping(0)),
    (Role.AGENT, ev.Pong(0)),
    (Role.TARGET, ev.Ack(14, mark(904))),
    (Role.AGENT, ev.Goodbye()),
)
REVERSE = ev.Hello(2, 2, ev.ABILITIES, "server-1", bytes(range(16)), 5, ev.Purpose.REVERSE, 2, 10)
FETCH = ev.Fetch(5, (ev.Span(1, 0, 4096), ev.Span(1, BLOCK_BYTES, 512)))
FETCHED = ev.Fetched(5, batch_of([(0, b"a" * 4096), (BLOCK_BYTES, bytes(range(256)) * 2)]))
LOOK = ev.ChangeQuery(6, 7, 3, 0)

REVERSAL: tuple[tuple[Role, ev.Event], ...] = (
    (Role.AGENT, REVERSE),
    (Role.TARGET, WELCOME),
    (Role.AGENT, FETCH),
    (Role.AGENT, LOOK),
    (Role.TARGET, FETCHED),
    (Role.TARGET, ev.Changed(6, 12345, (ev.Span(7, 0, 512), ev.Span(7, 4096, 8249)))),
    (Role.AGENT, replace(QUERY, query=7)),
    (Role.TARGET, ev.Hashes(7, b"h" * 32)),
    (Role.AGENT, ev.Goodbye()),
)
SENT_ON: tuple[tuple[Role, ev.Event], ...] = ((Role.AGENT, HELLO), (Role.TARGET, MOVED))
TELLING: tuple[tuple[Role, ev.Event], ...] = ((Role.AGENT, HELLO), (Role.TARGET, WELCOME), (Role.AGENT, INVENTORY))
"""With CONVERSATION, REVERSAL and SENT_ON, says everything but REFUSE."""


def joined(buffers: Sequence[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(buffers)


def record(
    conversation: Sequence[tuple[Role, ev.Event]] = CONVERSATION,
) -> list[tuple[Role, ev.Event, bytes]]:
    """Each event with its bytes, said by connections that hear each other."""
    sides = {role: Connection(role) for role in Role}
    recorded = []
    for role, event in conversation:
        data = joined(sides[role].send(event))
        assert sides[role.peer].receive(data) == [event]
        recorded.append((role, event, data))
    return recorded


def listener(role: Role, upto: int | None = None) -> tuple[Connection, list[bytes]]:
    """A side that has said its part (all of it, so that answers fit), and what it is about to hear."""
    side = Connection(role)
    other = Connection(role.peer)
    heard = []
    for who, event in CONVERSATION[:upto]:
        if who is role:
            other.receive(joined(side.send(event)))
        else:
            data = joined(other.send(event))
            side.receive(data)
            heard.append(data)
    return side, heard


def opened(welcome: ev.Welcome = WELCOME, hello: ev.Hello = HELLO) -> tuple[Connection, Connection]:
    """An agent and a target that have greeted each other."""
    agent, target = Connection(Role.AGENT), Connection(Role.TARGET)
    target.receive(joined(agent.send(hello)))
    agent.receive(joined(target.send(welcome)))
    return agent, target


u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
u63 = st.integers(0, 2**63 - 1)
names = st.from_regex(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,40}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("C", "Z")), max_size=60)
marks = st.builds(Mark, st.binary(min_size=16, max_size=16), u64)
volumes = st.lists(
    st.builds(VolumeGeometry, st.integers(1, 2**32 - 1), names, texts, st.integers(1, 2**63 - 1)),
    max_size=5,
    unique_by=(lambda each: each.volume, lambda each: each.name),
).map(tuple)
abilities = st.frozensets(names, max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    writes = []
    for _ in range(draw(st.integers(0, 4))):
        length = draw(st.integers(1, 3000))
        at = draw(st.integers(0, 1 << 20)) * BLOCK_BYTES + draw(st.integers(0, BLOCK_BYTES - length))
        writes.append((at, draw(st.sampled_from([b"x" * length, bytes(range(256)) * 12]))[:length]))
    if not writes:
        return zeros(draw(u32), draw(st.integers(1, 2**40)), volume=draw(u32))
    return batch_of(writes, level=draw(st.sampled_from([None, -1, 3])), volume=draw(u32))


@st.composite
def hellos(draw: st.DrawFn) -> ev.Hello:
    low = draw(st.integers(1, 2**16 - 1))
    high = draw(st.integers(low, 2**16 - 1))
    greeting = low, high, draw(abilities), draw(names), draw(st.binary(min_size=16, max_size=16)), draw(u64)
    match draw(st.sampled_from(ev.Purpose)):
        case ev.Purpose.REPLICATE:
            return ev.Hello(*greeting)
        case purpose:
            branch = draw(st.integers(1, 2**32 - 1))
            sequence = draw(st.integers(1, 2**64 - 1)) if purpose is ev.Purpose.REVERSE else 0
            hello = ev.Hello(*greeting, purpose, branch, sequence)
            return replace(hello, abilities=hello.abilities | {"reverse"})


endpoints = st.builds(
    ev.Endpoint,
    st.one_of(st.ip_addresses().map(str), st.from_regex(r"[a-z0-9][a-z0-9.-]{0,60}", fullmatch=True)),
    st.integers(1, 2**16 - 1),
)
metric_names = st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True)


@st.composite
def metric_samples(draw: st.DrawFn) -> ev.MetricSample:
    values = st.text(st.characters(codec="ascii", categories=["L", "P"]), max_size=60)
    labels = draw(st.dictionaries(metric_names, values, max_size=8))
    value = draw(st.floats(allow_nan=False))
    return ev.MetricSample(draw(metric_names), tuple(sorted(labels.items())), value)


def spans(length_max: int) -> st.SearchStrategy[ev.Span]:
    return st.builds(ev.Span, u32, st.integers(0, 2**61), st.integers(1, length_max))


@st.composite
def queries(draw: st.DrawFn) -> ev.HashQuery:
    chunk = draw(st.sampled_from([4096, 65536]))
    return ev.HashQuery(draw(u32), draw(u32), draw(st.integers(0, 2**40)) * chunk, chunk, draw(st.integers(1, 4096)))


anything: st.SearchStrategy[ev.Event] = st.one_of(
    hellos(),
    st.builds(
        ev.Welcome,
        u16,
        abilities,
        st.binary(min_size=16, max_size=16),
        u64,
        u64,
        marks,
        st.integers(BATCH_FRAME_BYTES_MAX, CREDIT_BYTES_MAX),
        st.integers(65536, 4 << 20),
        volumes,
    ),
    st.builds(ev.Geometry, u64, marks, volumes.filter(bool)),
    st.builds(ev.BatchEvent, u64, marks, batches()),
    st.builds(ev.CutEvent, u64, marks, st.builds(Cut, u63, st.sampled_from(PointKind), texts)),
    st.builds(ev.Ack, u64, marks),
    st.builds(ev.Credit, st.integers(1, CREDIT_BYTES_MAX)),
    queries(),
    st.builds(ev.Hashes, u32, st.integers(0, 40).map(lambda count: b"0123456789abcdef" * count)),
    st.builds(ev.Resend, u32, st.integers(0, 2**61), st.integers(1, 2**62)),
    st.builds(ev.Fetch, u32, st.lists(spans(1 << 20), min_size=1, max_size=4).map(tuple)),
    st.builds(ev.Fetched, u32, batches()),
    st.builds(ev.ChangeQuery, u32, u32, u64, u63),
    st.builds(ev.Changed, u32, u63, st.lists(spans(2**62), max_size=4).map(tuple)),
    st.builds(ev.Status, st.sampled_from([*ReplicationState]).map(str), st.sampled_from(sorted(REASONS)), u64, u64),
    st.builds(ev.MetricsReport, st.lists(metric_samples(), max_size=4).map(tuple)),
    st.builds(ev.InventoryReport, inventories()),
    st.builds(ev.Ping, u64),
    st.builds(ev.Pong, u64),
    st.builds(ev.Refuse, names, texts, st.booleans()),
    st.builds(ev.Moved, names, st.lists(endpoints, min_size=1, max_size=8).map(tuple), texts),
    st.just(ev.Goodbye()),
)
