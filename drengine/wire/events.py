"""What two connections say to each other, as frozen values. docs/protocol.md gives their bytes and legal order.

Stream positions (`sequence`) number BATCH, CUT and GEOMETRY of one source's trunk: each is one more than
the one before, across sessions. A position at or below the durable one is a duplicate and is ignored; a gap is refused.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from drengine.model.extents import Batch
from drengine.model.inventory import Inventory
from drengine.model.points import Cut, Mark, VolumeGeometry


class Purpose(enum.IntEnum):
    """What a session is for."""

    REPLICATE = 0
    """Ship the source's stream to the branch that its generation writes."""
    PRESERVE = 1
    """Ship what a fenced source's disks hold beyond the replica to a divergent branch."""
    REVERSE = 2
    """Read a point, to make a fenced source's disks equal to it."""


class Span(NamedTuple):
    """Bytes of a volume."""

    volume: int
    offset: int
    length: int


class Endpoint(NamedTuple):
    """Where a target is reached: a host's name or address, and its port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Agent opens a session (first event). `abilities` are names both sides may share, see ABILITIES.

    `branch` is the divergent branch to write, or the branch of the point to read, whose position is `sequence`;
    both are 0 where the purpose does not need them.
    """

    version_min: int
    version_max: int
    abilities: frozenset[str]
    source: str
    instance: bytes
    """16 random bytes made at each start of the agent."""
    generation: int
    purpose: Purpose = Purpose.REPLICATE
    branch: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """Target accepts: what is durable (to reverse: the point), and the limits of this session."""

    version: int
    abilities: frozenset[str]
    session: bytes
    generation: int
    durable_sequence: int
    durable_mark: Mark
    """The mark of the newest durable position; the agent resumes there if its epoch still holds."""
    credit_bytes: int
    """Frame bytes of BATCH that may be in flight before CREDIT raises it."""
    batch_plain_bytes_max: int
    geometry: tuple[VolumeGeometry, ...]
    """Volumes as the target last knew them; empty for a new source."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Agent declares all its volumes; needed before the first BATCH of a new source and after any change."""

    sequence: int
    mark: Mark
    volumes: tuple[VolumeGeometry, ...]


@dataclass(frozen=True, slots=True)
class BatchEvent:
    """Agent ships extents."""

    sequence: int
    mark: Mark
    batch: Batch


@dataclass(frozen=True, slots=True)
class CutEvent:
    """Agent declares that everything up to here is a consistent cut over all volumes."""

    sequence: int
    mark: Mark
    cut: Cut


@dataclass(frozen=True, slots=True)
class Ack:
    """Target: everything up to here is on stable storage and every hash was recomputed (rule 2)."""

    durable_sequence: int
    durable_mark: Mark


@dataclass(frozen=True, slots=True)
class Credit:
    """Target: so many more BATCH frame bytes may be sent."""

    bytes: int


@dataclass(frozen=True, slots=True)
class HashQuery:
    """Agent asks for hashes of the session's branch as of everything sent before, or of the point that it
    reads: `count` chunks of `chunk_bytes`
    (GRAIN_BYTES or BLOCK_BYTES) from `offset` (a multiple of it). A chunk never written, or past the end, hashes as
    zeros of its length inside the volume."""

    query: int
    volume: int
    offset: int
    chunk_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Hashes:
    """Target answers: `count` xxh3-128 digests of 16 bytes, concatenated."""

    query: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Agent asks for bytes of the point that it reads: ranges of its volumes, together at most a batch's plain
    bytes."""

    query: int
    ranges: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Target answers: extents that are exactly the ranges asked for, in order, each with its hash."""

    query: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class ChangeQuery:
    """Agent asks where a volume may differ between position `since` of the point's branch and the point, looking from
    `offset` on."""

    query: int
    volume: int
    since: int
    offset: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Target answers: ranges in ascending order, all that there are between the offset asked for and `end`.

    `end` is the volume's size when nothing is left.
    """

    query: int
    end: int
    ranges: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Resend:
    """Target asks for a range again: a scrub found it unreadable. The agent treats it as changed."""

    volume: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Status:
    """Agent tells its state, for the target's metrics. `behind_since_ns` is 0 when nothing is outstanding."""

    state: str
    reason: str
    backlog_bytes: int
    behind_since_ns: int


@dataclass(frozen=True, slots=True)
class MetricSample:
    """A metric's value: labels in ascending order of their names, each once."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """Agent tells its metrics, which the target shows on its behalf; what was told before counts no more."""

    samples: tuple[MetricSample, ...]


@dataclass(frozen=True, slots=True)
class InventoryReport:
    """Agent tells what its server is made of; the target keeps it with the store, in place of what was told before."""

    inventory: Inventory


@dataclass(frozen=True, slots=True)
class Ping:
    """Either side; answered by Pong with the same token."""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to Ping."""

    token: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Either side ends the session for a reason (last event).

    `code` is an error id or protocol reason. `retryable` says whether the peer should back off and come back by itself;
    otherwise it gives up until somebody acts at its side (`ErrorKind.final`).
    """

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """Target ends the session, or does not begin it, because another one has the source, or shall have it (last event).

    `owner` is that target's name, `addresses` are where agents reach it, best first. An agent goes only where its own
    data networks allow, and proves that target as any other.
    """

    owner: str
    addresses: tuple[Endpoint, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Either side ends the session in peace (last event)."""


Event = (
    Hello
    | Welcome
    | Geometry
    | BatchEvent
    | CutEvent
    | Ack
    | Credit
    | HashQuery
    | Hashes
    | Fetch
    | Fetched
    | ChangeQuery
    | Changed
    | Resend
    | Status
    | MetricsReport
    | InventoryReport
    | Ping
    | Pong
    | Refuse
    | Goodbye
    | Moved
)

ABILITIES = frozenset({"zstd", "hash-query", "resend", "reverse", "metrics", "moved", "homes", "inventory"})
