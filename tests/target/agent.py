"""A small agent for the target's tests: it speaks through the real transport and checks nothing it is not told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drengine.config import Address
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, Batch, Extent, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.store.blobs import Storage
from drengine.store.store import Store
from drengine.target.config import MaintenanceOptions, TargetConfig
from drengine.target.daemon import TargetDaemon
from drengine.target.ingest import IngestLimits
from drengine.transport.endpoints import connect
from drengine.transport.framed import FramedStream
from drengine.transport.networks import DataNetworks
from drengine.wire.events import (
    ABILITIES,
    Ack,
    BatchEvent,
    CutEvent,
    Event,
    Geometry,
    Hashes,
    HashQuery,
    Hello,
    Ping,
    Pong,
    Refuse,
    Resend,
    Welcome,
)
from drengine.wire.payload import digest, make_batch

EPOCH = b"e" * 16
SIZE = 8 << 20
SECONDS = 20.0
VOLUMES = (VolumeGeometry(1, "data", "file:1", SIZE),)


def mark(position: int) -> Mark:
    return Mark(EPOCH, position)


def data_batch(writes: Sequence[tuple[int, bytes]], *, volume: int = 1, level: int | None = 1) -> Batch:
    """Writes of whole blocks or less, none crossing a block."""
    extents, plain = [], bytearray()
    for offset, data in writes:
        for at in range(0, len(data), BLOCK_BYTES):
            part = data[at : at + BLOCK_BYTES]
            extents.append(Extent(volume, ExtentKind.DATA, offset + at, len(part), digest(part)))
            plain += part
    return make_batch(extents, bytes(plain), level)


def lying_batch(offset: int, data: bytes) -> Batch:
    """Its hash is another block's."""
    return make_batch([Extent(1, ExtentKind.DATA, offset, len(data), digest(b"another"))], data, None)


@dataclass
class Agent:
    """An open session. `acks` are what was acknowledged, `events` everything else that came."""

    stream: FramedStream
    welcome: Welcome
    sequence: int
    acks: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    failure: Exception | None = None
    answers_pings: bool = True
    _reader: asyncio.Task[None] | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def start(self) -> Agent:
        self._reader = asyncio.ensure_future(self._read())
        return self

    async def _read(self) -> None:
        try:
            while True:
                event = await self.stream.receive()
                if isinstance(event, Ping) and self.answers_pings:
                    await self.stream.send(Pong(event.token))
                async with self._changed:
                    if isinstance(event, Ack):
                        self.acks.append(event.durable_sequence)
                    else:
                        self.events.append(event)
                    self._changed.notify_all()
        except (DrengineError, OSError) as error:
            async with self._changed:
                self.failure = error
                self._changed.notify_all()

    async def until(self, condition: object) -> None:
        """Wait until `condition()` holds or the session has failed."""
        assert callable(condition)
        async with self._changed, asyncio.timeout(SECONDS):
            await self._changed.wait_for(lambda: condition() or self.failure is not None)

    async def acknowledged(self, sequence: int) -> None:
        await self.until(lambda: self.acks and self.acks[-1] >= sequence)
        assert self.acks and self.acks[-1] >= sequence, (self.acks, self.events, self.failure)

    async def refused(self) -> Refuse:
        await self.until(lambda: any(isinstance(event, Refuse) for event in self.events))
        return next(event for event in self.events if isinstance(event, Refuse))

    async def resend(self) -> Resend:
        await self.until(lambda: any(isinstance(event, Resend) for event in self.events))
        return next(event for event in self.events if isinstance(event, Resend))

    async def ended(self) -> None:
        await self.until(lambda: False)

    async def declare(self, volumes: tuple[VolumeGeometry, ...] = VOLUMES) -> int:
        self.sequence += 1
        await self.stream.send(Geometry(self.sequence, mark(self.sequence), volumes))
        return self.sequence

    async def ship(self, batch: Batch, sequence: int | None = None) -> int:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        await self.stream.send(BatchEvent(sequence, mark(sequence), batch))
        return sequence

    async def write(self, offset: int, data: bytes) -> int:
        return await self.ship(data_batch([(offset, data)]))

    async def cut(self, time_ns: int = 1_700_000_000_000_000_000, label: str = "") -> int:
        self.sequence += 1
        cut = Cut(time_ns, PointKind.WRITE_ORDER, label)
        await self.stream.send(CutEvent(self.sequence, mark(self.sequence), cut))
        return self.sequence

    async def hashes(self, offset: int, chunk_bytes: int, count: int, *, query: int = 1) -> bytes:
        await self.stream.send(HashQuery(query, 1, offset, chunk_bytes, count))
        await self.until(lambda: any(isinstance(e, Hashes) and e.query == query for e in self.events))
        return next(e.digests for e in self.events if isinstance(e, Hashes) and e.query == query)

    async def close(self) -> None:
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self.stream.abort()


class Refused(Exception):
    """The target said no to HELLO."""

    def __init__(self, refuse: Refuse) -> None:
        super().__init__(f"{refuse.code}: {refuse.message}")
        self.code = refuse.code
        self.retryable = refuse.retryable


async def join(
    address: tuple[str, int],
    source: str = "shop",
    *,
    instance: bytes = b"i" * 16,
    generation: int = 1,
    abilities: frozenset[str] = ABILITIES,
) -> Agent:
    """Open a session as an agent.

    Raises:
        Refused: the target refused it.
    """
    stream = await connect(*address, networks=DataNetworks(), tls=None)
    await stream.send(Hello(2, 2, abilities, source, instance, generation))
    answer = await stream.receive()
    if isinstance(answer, Refuse):
        stream.abort()
        raise Refused(answer)
    assert isinstance(answer, Welcome)
    return Agent(stream, answer, answer.durable_sequence).start()


@dataclass
class Site:
    """A running target."""

    daemon: TargetDaemon
    address: tuple[str, int]
    store: Store
    config: TargetConfig
    nbd: tuple[str, int] | None = None
    agents: list[Agent] = field(default_factory=list)

    async def join(self, source: str = "shop", **options: object) -> Agent:
        agent = await join(self.address, source, **options)  # type: ignore[arg-type]
        self.agents.append(agent)
        return agent

    async def left(self, source: str) -> None:
        """Wait until the source's session has ended."""
        if session := self.daemon.reception.sessions.get(source):
            async with asyncio.timeout(SECONDS):
                await session.ended.wait()


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    *,
    storage: Storage | None = None,
    clock: Clock | None = None,
    limits: IngestLimits | None = None,
    **options: object,
) -> AsyncIterator[Site]:
    """A target on loopback over a store in `directory`; everything is closed afterwards."""
    if not directory.exists():  # noqa: ASYNC240 (a test may wait for it)
        Store.create(directory, clock=clock).close()
    store = Store.open(directory, storage=storage, clock=clock)
    quiet = MaintenanceOptions(retention_interval=1e6, compaction_interval=1e6)
    given: dict[str, object] = {"maintenance": quiet, "free_space_min": 0, **options}
    config = TargetConfig(store=directory, listen=Address("127.0.0.1", 0), **given)  # type: ignore[arg-type]
    daemon = TargetDaemon(config, store=store, clock=clock, ingest_limits=limits)
    where = await daemon.start()
    site = Site(daemon, where.replication, store, config, where.nbd)
    try:
        yield site
    finally:
        for agent in site.agents:
            await agent.close()
        await daemon.stop()
        store.close()
