"""A small target for the agent's tests: it keeps everything in memory and believes nothing.

It checks order, tables and hashes of all it is sent, answers hash queries from what it holds, and keeps a copy of
every recovery point. A seeded fate decides how much of what it was sent becomes durable and when the link breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash

from drengine.config import Address
from drengine.model.extents import ExtentKind, check_table, iter_table
from drengine.model.points import Cut, Mark, VolumeGeometry
from drengine.wire.events import (
    Ack,
    BatchEvent,
    Credit,
    CutEvent,
    Event,
    Geometry,
    Goodbye,
    Hashes,
    HashQuery,
    Hello,
    Ping,
    Pong,
    Refuse,
    Resend,
    Welcome,
)
from drengine.wire.frames import batch_frame_bytes
from drengine.wire.payload import verify_batch

CREDIT_BYTES = 8 << 20


@dataclass
class Point:
    sequence: int
    cut: Cut
    images: dict[int, bytes]


@dataclass
class State:
    """What is durable, or (a second one) what was received."""

    sequence: int = 0
    mark: Mark = field(default_factory=Mark)
    geometry: tuple[VolumeGeometry, ...] = ()
    images: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> State:
        return State(self.sequence, self.mark, self.geometry, {n: bytearray(i) for n, i in self.images.items()})


class Replica:
    """The target's memory; outlives sessions."""

    def __init__(self, *, credit_bytes: int = CREDIT_BYTES) -> None:
        self.state = State()
        self.points: list[Point] = []
        self.credit_bytes = credit_bytes
        self.sessions = 0
        self.queries = 0
        self.received_plain_bytes = 0
        self.received_extents: list[tuple[int, int, int, int]] = []
        self.events_until_break: Callable[[], int | None] = lambda: None
        self.refuse: Refuse | None = None
        self.batches_are_not_acknowledged = False
        self.withhold_credit = False
        self.is_proved = True

    async def connect(self, _: Address | None = None) -> ReplicaStream:
        self.sessions += 1
        return ReplicaStream(self)

    def image(self, volume: int = 1) -> bytes:
        return bytes(self.state.images.get(volume, b""))


class ReplicaStream:
    """The agent's end of a session."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.received: asyncio.Queue[Event] = asyncio.Queue()
        self.left = replica.events_until_break()
        self.broken = False
        self.sent: list[Event] = []
        self.is_proved = replica.is_proved

    async def receive(self) -> Event:
        while True:
            if self.broken:
                raise EOFError("the link broke")
            event = await self.received.get()
            if event is not None:
                return event

    async def send(self, event: Event) -> None:
        await asyncio.sleep(0)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                await self.close()
        if self.broken:
            raise EOFError("the link broke")
        self.sent.append(event)
        for answer in self._take(event):
            self.received.put_nowait(answer)

    async def close(self) -> None:
        self.broken = True
        self.received.put_nowait(None)  # type: ignore[arg-type]

    def resend(self, volume: int, offset: int, length: int) -> None:
        self.received.put_nowait(Resend(volume, offset, length))

    def give_credit(self, count: int) -> None:
        self.received.put_nowait(Credit(count))

    def _take(self, event: Event) -> list[Event]:
        state, replica = self.replica.state, self.replica
        match event:
            case Hello():
                if replica.refuse:
                    return [replica.refuse]
                return [
                    Welcome(
                        1, event.abilities, bytes(16), event.generation or 1, state.sequence, state.mark,
                        replica.credit_bytes, 1 << 20, state.geometry,
                    )
                ]  # fmt: skip
            case Geometry():
                self._next(event.sequence, event.mark)
                for volume in event.volumes:
                    image = state.images.setdefault(volume.volume, bytearray())
                    del image[volume.size_bytes :]
                    image.extend(bytes(volume.size_bytes - len(image)))
                state.geometry = event.volumes
                return self._ack(at_once=True)
            case BatchEvent():
                self._next(event.sequence, event.mark)
                self._apply(event)
                cost = batch_frame_bytes(event.batch)
                return self._ack() if replica.withhold_credit else [*self._ack(), Credit(cost)]
            case CutEvent():
                self._next(event.sequence, event.mark)
                images = {number: bytes(image) for number, image in state.images.items()}
                replica.points.append(Point(event.sequence, event.cut, images))
                return self._ack(at_once=True)
            case HashQuery():
                replica.queries += 1
                return [Hashes(event.query, self._hashes(event))]
            case Ping(token=token):
                return [Pong(token)]
            case Goodbye():
                self.received.put_nowait(Goodbye())
        return []

    def _next(self, sequence: int, mark: Mark) -> None:
        assert sequence == self.replica.state.sequence + 1, "a position was skipped or repeated"
        self.replica.state.sequence = sequence
        self.replica.state.mark = mark

    def _ack(self, *, at_once: bool = False) -> list[Event]:
        if self.replica.batches_are_not_acknowledged and not at_once:
            return []
        return [Ack(self.replica.state.sequence, self.replica.state.mark)]

    def _apply(self, event: BatchEvent) -> None:
        batch, state = event.batch, self.replica.state
        check_table(batch.table, batch.frames, {v.volume: v.size_bytes for v in state.geometry})
        plain = verify_batch(batch)
        at = 0
        for volume, kind, offset, length, _ in iter_table(batch.table):
            self.replica.received_extents.append((volume, kind, offset, length))
            image = state.images[volume]
            if kind == ExtentKind.DATA:
                image[offset : offset + length] = plain[at : at + length]
                at += length
            else:
                image[offset : offset + length] = bytes(length)
        self.replica.received_plain_bytes += at

    def _hashes(self, query: HashQuery) -> bytes:
        image = self.replica.state.images[query.volume]
        chunks = range(query.offset, query.offset + query.count * query.chunk_bytes, query.chunk_bytes)
        return b"".join(xxhash.xxh3_128_digest(image[at : at + query.chunk_bytes]) for at in chunks)
