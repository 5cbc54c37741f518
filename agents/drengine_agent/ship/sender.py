"""Shipping over a session: positions, credit, and what is not acknowledged yet.

Positions are numbered after the target's durable one. What was sent is kept until it is acknowledged. The sender knows
nothing of volumes or trackers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from drengine.model.clock import Clock
from drengine.model.extents import Batch
from drengine.model.points import Cut, Mark, VolumeGeometry
from drengine.wire.events import (
    Ack,
    BatchEvent,
    Credit,
    CutEvent,
    Event,
    Geometry,
    InventoryReport,
    MetricsReport,
    Resend,
    Status,
)
from drengine.wire.frames import batch_frame_bytes
from drengine_agent.capture.indexes import Note
from drengine_agent.ship.session import Session, SessionEnded

UNACKNOWLEDGED_MAX = 4096


@dataclass(slots=True)
class Sent:
    """A position that was sent and is not acknowledged yet."""

    sequence: int
    mark: Mark
    sent_at: float
    notes: Sequence[Note]


@dataclass(slots=True)
class Traffic:
    """Counters of one agent, over all its sessions."""

    plain_bytes: int = 0
    payload_bytes: int = 0
    captured_bytes: int = 0
    batches: int = 0
    cuts: int = 0
    ack_seconds_last: float = 0.0


class Shipper(Protocol):
    """Whoever ships over a sender, and hears what the target says of it."""

    def durable(self, sent: list[Sent], sequence: int) -> None:
        """All of these, up to position `sequence`, are on stable storage at the target."""
        ...

    def resend(self, event: Resend) -> None:
        """The target wants a range again."""
        ...


class Sender:
    """Ships over one session. Its methods belong to the session's event loop.

    Attributes:
        sequence: the newest position that was sent.
        durable_sequence: the newest that is durable at the target.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        traffic: Traffic,
        on_ack: Callable[[int, float], None] = lambda _sequence, _seconds: None,
    ) -> None:
        """`on_ack` is told each acknowledged position, and how long after its sending that was."""
        self.session = session
        self.traffic = traffic
        self.sequence = self.durable_sequence = session.welcome.durable_sequence
        self._clock = clock
        self._on_ack = on_ack
        self._credit = session.welcome.credit_bytes
        self._changed = asyncio.Event()
        self._unacknowledged: deque[Sent] = deque()

    @property
    def in_flight(self) -> bool:
        """Whether something sent is not durable yet."""
        return bool(self._unacknowledged)

    async def run(self, shipper: Shipper) -> None:
        """Receive until the session ends, as Session.run; waiting for credit or an acknowledgement ends with it."""
        try:
            await self.session.run(lambda event: self._take(event, shipper))
        finally:
            self._changed.set()

    async def send_geometry(self, volumes: tuple[VolumeGeometry, ...], mark: Mark) -> int:
        """Declare the volumes; returns the position."""
        return await self._send(lambda number: Geometry(number, mark, volumes), mark)

    async def send_batch(self, batch: Batch, mark: Mark, *, captured_bytes: int = 0, notes: Sequence[Note] = ()) -> int:
        """Send a batch when there is credit for it; returns its position."""
        cost = batch_frame_bytes(batch)
        while self._credit < cost:
            await self._wait_change()
        self._credit -= cost
        number = await self._send(lambda number: BatchEvent(number, mark, batch), mark, notes=notes)
        self.traffic.batches += 1
        self.traffic.plain_bytes += batch.plain_length
        self.traffic.payload_bytes += len(batch.payload)
        self.traffic.captured_bytes += captured_bytes
        return number

    async def send_cut(self, cut: Cut, mark: Mark) -> int:
        """Declare a recovery point; returns its position."""
        number = await self._send(lambda number: CutEvent(number, mark, cut), mark)
        self.traffic.cuts += 1
        return number

    async def send_status(self, status: Status) -> None:
        """Tell our state."""
        await self.session.stream.send(status)

    @property
    def tells_metrics(self) -> bool:
        """Whether the target shows our metrics on our behalf."""
        return "metrics" in self.session.welcome.abilities

    async def send_metrics(self, report: MetricsReport) -> None:
        """Tell our metrics."""
        await self.session.stream.send(report)

    @property
    def tells_inventory(self) -> bool:
        """Whether the target keeps what our server is made of."""
        return "inventory" in self.session.welcome.abilities

    async def send_inventory(self, report: InventoryReport) -> None:
        """Tell what our server is made of."""
        await self.session.stream.send(report)

    async def wait_durable(self, sequence: int) -> None:
        """Return when the target has acknowledged `sequence`.

        Raises:
            SessionEnded, or what else ended the session: it will not.
        """
        while self.durable_sequence < sequence:
            await self._wait_change()

    async def _send(self, event: Callable[[int], Event], mark: Mark, *, notes: Sequence[Note] = ()) -> int:
        while len(self._unacknowledged) >= UNACKNOWLEDGED_MAX:
            await self._wait_change()
        self.sequence += 1
        number = self.sequence
        self._unacknowledged.append(Sent(number, mark, self._clock.monotonic(), notes))
        await self.session.stream.send(event(number))
        return number

    def _take(self, event: Event, shipper: Shipper) -> None:
        match event:
            case Ack(durable_sequence=sequence):
                self._acknowledged(sequence, shipper)
            case Credit(bytes=more):
                self._credit += more
                self._changed.set()
            case Resend():
                shipper.resend(event)

    def _acknowledged(self, sequence: int, shipper: Shipper) -> None:
        if not self.durable_sequence <= sequence <= self.sequence:
            raise SessionEnded("target-refused", f"position {sequence} was acknowledged, {self.sequence} were sent")
        durable = []
        while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
            durable.append(self._unacknowledged.popleft())
        self.durable_sequence = sequence
        if durable:
            self.traffic.ack_seconds_last = self._clock.monotonic() - durable[-1].sent_at
            self._on_ack(sequence, self.traffic.ack_seconds_last)
            shipper.durable(durable, sequence)
        self._changed.set()

    async def _wait_change(self) -> None:
        if self.session.ended is not None:
            raise self.session.ended
        self._changed.clear()
        await self._changed.wait()
