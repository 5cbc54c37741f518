"""Turns pieces of volumes into batches: tables, digests, one payload, within the session's limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from drengine.model.extents import (
    BATCH_EXTENTS_MAX,
    Batch,
    Extent,
    ExtentKind,
    pack_table,
)
from drengine.wire.payload import FrameEncoder, cut_blocks, data_extent
from drengine_agent.capture.indexes import Note

Notes = list[Note]
"""For the index: what the target has once the batch is durable."""


@dataclass(slots=True)
class Outgoing:
    """A batch on its way, and what it will mean for the index."""

    batch: Batch
    captured_bytes: int
    notes: Notes = field(default_factory=list)


class BatchBuilder:
    """Collects pieces until a batch is full. Used by one thread at a time; pieces keep their order."""

    def __init__(self, plain_bytes_max: int, level: Callable[[], int | None], emit: Callable[[Outgoing], None]) -> None:
        """`level` is asked for each payload; `emit` takes each finished batch and may block (back-pressure)."""
        self._plain_bytes_max = plain_bytes_max
        self._level = level
        self._emit = emit
        self._begin()

    def add(
        self, volume: int, offset: int, data: bytes | bytearray | memoryview, *, known: bytes | None = None
    ) -> None:
        """Bytes of a volume, of any length; cut at block boundaries; zeros become ZERO extents.

        `known` is the digest of bytes that lie in one block, where it was made already.
        """
        for at, part, is_zero in cut_blocks(offset, data):
            if is_zero:
                self.zero(volume, at, len(part))
            else:
                self._make_room(len(part))
                self._captured += len(part)
                self._extents.append(data_extent(volume, at, part, known))
                self._frames.add(part)

    def zero(self, volume: int, offset: int, length: int, *, discard: bool = False) -> None:
        """A range that reads as zeros; neighbours become one extent."""
        kind = ExtentKind.DISCARD if discard else ExtentKind.ZERO
        self._captured += length
        if self._extents:
            last = self._extents[-1]
            if last.kind == kind and last.volume == volume and last.offset + last.length == offset:
                self._extents[-1] = last._replace(length=last.length + length)
                return
        self._make_room(0)
        self._extents.append(Extent(volume, kind, offset, length))

    def flush(self) -> None:
        """Emit what is there."""
        if self._extents:
            self._emit(self.take())

    def take(self) -> Outgoing:
        """What is there as a batch; the builder is empty after it."""
        batch = Batch(pack_table(self._extents), *self._frames.finish())
        outgoing = Outgoing(batch, self._captured, self.notes)
        self._begin()
        return outgoing

    def _begin(self) -> None:
        self._extents: list[Extent] = []
        self._frames = FrameEncoder(self._level())
        self._captured = 0
        self.notes: Notes = []

    def _make_room(self, length: int) -> None:
        if len(self._extents) >= BATCH_EXTENTS_MAX or self._frames.plain_length + length > self._plain_bytes_max:
            self.flush()
