"""What a session agreed upon and how far it is. Both sides feed every event, sent or received, to one of these, so
both enforce the same rules: the sender before it sends, the receiver again."""

from __future__ import annotations

from typing import Final

from drengine.wire import events as ev
from drengine.wire.frames import CREDIT_BYTES_MAX, batch_frame_bytes

QUERIES_OPEN_MAX = 256
FETCHES_OPEN_MAX = 16
"""Of them, questions for bytes: what they ask for is all that may be under way."""

NEEDS: dict[type, str] = {
    ev.HashQuery: "hash-query",
    ev.Hashes: "hash-query",
    ev.Resend: "resend",
    ev.Fetch: "reverse",
    ev.Fetched: "reverse",
    ev.ChangeQuery: "reverse",
    ev.Changed: "reverse",
    ev.MetricsReport: "metrics",
    ev.InventoryReport: "inventory",
    ev.Moved: "moved",
}
"""Which ability an event needs; a BATCH whose payload is zstd needs `zstd`."""

UNWELCOMED: Final = frozenset({"moved"})
"""Abilities that need no more than the agent's offer until WELCOME says what both have."""

SHIPPING: Final = frozenset(
    {ev.Geometry, ev.BatchEvent, ev.CutEvent, ev.Ack, ev.Credit, ev.Resend, ev.MetricsReport, ev.InventoryReport}
)
"""Not to reverse."""
READING: Final = frozenset({ev.Fetch, ev.Fetched, ev.ChangeQuery, ev.Changed})
"""Only to reverse."""

Fault = tuple[str, str]
"""A key of errors.REASONS, and what happened."""


class Terms:
    """The terms of one session, and its counters.

    Attributes:
        credit_available: BATCH frame bytes that the agent may send; 0 before WELCOME.
        position: highest stream position sent or, at first, durable.
        durable: highest stream position acknowledged.
    """

    def __init__(self) -> None:
        self.credit_available = 0
        self.position = 0
        self.durable = 0
        self._offer: ev.Hello | None = None
        self._abilities: frozenset[str] = frozenset()
        self._batch_plain_bytes_max = 0
        self._declared = False
        self._queries: dict[int, ev.HashQuery | ev.Fetch | ev.ChangeQuery] = {}

    @property
    def fetches_open(self) -> int:
        """Questions for bytes that are not answered yet."""
        return sum(isinstance(query, ev.Fetch) for query in self._queries.values())

    def fault(self, event: ev.Event) -> Fault | None:
        """Which rule `event` breaks now, or None."""
        need = NEEDS.get(type(event))
        if need and need not in self._abilities:
            return "no-ability", need
        if self._offer and type(event) in (SHIPPING if self._offer.purpose is ev.Purpose.REVERSE else READING):
            return "bad-purpose", f"{type(event).__name__} in a session to {self._offer.purpose.name.lower()}"
        match event:
            case ev.Welcome():
                return self._welcome_fault(event)
            case ev.Geometry():
                return self._position_fault(event.sequence)
            case ev.CutEvent():
                return self._undeclared_fault() or self._position_fault(event.sequence)
            case ev.BatchEvent():
                return self._undeclared_fault() or self._batch_fault(event) or self._position_fault(event.sequence)
            case ev.Ack():
                if not self.durable <= event.durable_sequence <= self.position:
                    message = f"{event.durable_sequence} acknowledged, {self.durable} was before, {self.position} sent"
                    return "bad-position", message
            case ev.Credit():
                if self.credit_available + event.bytes > CREDIT_BYTES_MAX:
                    return (
                        "no-credit",
                        f"{event.bytes} more than {self.credit_available} are over {CREDIT_BYTES_MAX}",
                    )
            case ev.HashQuery() | ev.Fetch() | ev.ChangeQuery():
                return self._query_fault(event)
            case ev.Hashes() | ev.Fetched() | ev.Changed():
                return self._answer_fault(event)
        return None

    def note(self, event: ev.Event) -> None:
        """`event` was sent or received."""
        match event:
            case ev.Hello():
                self._offer = event
                self._abilities = event.abilities & UNWELCOMED
            case ev.Welcome():
                self._abilities = event.abilities
                self._batch_plain_bytes_max = event.batch_plain_bytes_max
                self._declared = bool(event.geometry)
                self.credit_available = event.credit_bytes
                self.position = self.durable = event.durable_sequence
            case ev.Geometry() | ev.CutEvent():
                self._declared = True
                self.position = max(self.position, event.sequence)
            case ev.BatchEvent():
                self.position = max(self.position, event.sequence)
                self.credit_available -= batch_frame_bytes(event.batch)
            case ev.Ack():
                self.durable = event.durable_sequence
            case ev.Credit():
                self.credit_available += event.bytes
            case ev.HashQuery() | ev.Fetch() | ev.ChangeQuery():
                self._queries[event.query] = event
            case ev.Hashes() | ev.Fetched() | ev.Changed():
                del self._queries[event.query]

    def _welcome_fault(self, welcome: ev.Welcome) -> Fault | None:
        offer = self._offer
        if offer is None or not offer.version_min <= welcome.version <= offer.version_max:
            return "bad-terms", f"version {welcome.version}"
        if surplus := welcome.abilities - offer.abilities:
            return "bad-terms", f"abilities {', '.join(sorted(surplus))}"
        return None

    def _query_fault(self, event: ev.HashQuery | ev.Fetch | ev.ChangeQuery) -> Fault | None:
        full = len(self._queries) >= QUERIES_OPEN_MAX
        full |= isinstance(event, ev.Fetch) and self.fetches_open >= FETCHES_OPEN_MAX
        if event.query in self._queries or full:
            return "bad-query", f"number {event.query}, {len(self._queries)} are open"
        return None

    def _answer_fault(self, event: ev.Hashes | ev.Fetched | ev.Changed) -> Fault | None:
        """Whether it can be the answer; that a batch holds exactly what was asked for is for the agent to check."""
        match self._queries.get(event.query), event:
            case ev.HashQuery(count=count), ev.Hashes(digests=digests) if len(digests) == 16 * count:
                return None
            case ev.Fetch(ranges=ranges), ev.Fetched(batch=batch):
                if batch.is_compressed and "zstd" not in self._abilities:
                    return "no-ability", "zstd"
                if batch.plain_length <= sum(span.length for span in ranges):
                    return None
            case ev.ChangeQuery(), ev.Changed():
                return None
        return "bad-query", f"{type(event).__name__} does not answer number {event.query}"

    def _undeclared_fault(self) -> Fault | None:
        return None if self._declared else ("undeclared", "GEOMETRY comes first")

    def _position_fault(self, sequence: int) -> Fault | None:
        if 1 <= sequence <= self.position + 1:
            return None
        return "bad-position", f"{sequence} after {self.position}"

    def _batch_fault(self, event: ev.BatchEvent) -> Fault | None:
        batch = event.batch
        if batch.is_compressed and "zstd" not in self._abilities:
            return "no-ability", "zstd"
        if batch.plain_length > self._batch_plain_bytes_max:
            return "over-limit", f"{batch.plain_length} plain bytes, at most {self._batch_plain_bytes_max}"
        if batch_frame_bytes(batch) > self.credit_available:
            return "no-credit", f"{batch_frame_bytes(batch)} bytes, {self.credit_available} are left"
        return None
