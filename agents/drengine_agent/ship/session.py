"""One session with the target: opening it, numbering what is sent, credit, acknowledgements, questions.

The session knows nothing of volumes or trackers. It numbers positions after the target's durable one, keeps what
was sent until it is acknowledged, and ends with an exception that says whether trying again helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.extents import Batch
from drengine.model.points import Cut, Mark, VolumeGeometry
from drengine.wire.events import (
    ABILITIES,
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
    Purpose,
    Refuse,
    Resend,
    Status,
    Welcome,
)
from drengine.wire.frames import batch_frame_bytes
from drengine_agent.capture.index import DIGEST_BYTES
from drengine_agent.capture.indexes import Note
from drengine_agent.errors import SESSION_REFUSED, adoption_hint

PING_SECONDS = 5.0
SILENCE_SECONDS = 15.0
UNACKNOWLEDGED_MAX = 4096


class Stream(Protocol):
    """What the session needs of the transport."""

    async def receive(self) -> Event:
        """The next event.

        Raises:
            DrengineError, OSError, EOFError: the stream ended or broke.
        """
        ...

    async def send(self, event: Event) -> None:
        """Send, waiting while the peer takes no more."""
        ...

    async def close(self) -> None:
        """Close at once."""
        ...


@dataclass(frozen=True, slots=True)
class Resume:
    """How to go on with this target, decided from its WELCOME.

    Attributes:
        since: hand this to the tracker; the null mark where nothing durable can be built on.
        empty: the target has nothing of this source yet.
        declare: the volumes have to be declared before anything else.
        geometry_changed: volumes that the target knows with another size or identity.
    """

    since: Mark
    empty: bool
    declare: bool
    geometry_changed: bool


def decide_resume(welcome: Welcome, volumes: tuple[VolumeGeometry, ...], acknowledged_sequence: int) -> Resume:
    """What may be built upon.

    A target that has never heard of the source is filled. One that knows a mark is continued from it: whether the mark
    still means something is the tracker's to say. A target whose durable position is *before* one that it had
    acknowledged lost data (it was restored, or replaced): nothing that is known locally about it holds.
    """
    known = {volume.volume: volume for volume in welcome.geometry}
    declared = {volume.volume: volume for volume in volumes}
    went_back = welcome.durable_sequence < acknowledged_sequence
    empty = not known
    return Resume(
        since=Mark() if went_back or empty else welcome.durable_mark,
        empty=empty,
        declare=known != declared,
        geometry_changed=bool(known) and known != declared,
    )


def check_declared(welcome: Welcome, volumes: tuple[VolumeGeometry, ...]) -> None:
    """Refuse to ship one volume into another's replica: number, name and identity belong together for ever.

    Raises:
        SessionEnded: volume-replaced, naming the volume.
    """
    known = {volume.volume: volume for volume in welcome.geometry}
    for ours in volumes:
        theirs = known.get(ours.volume)
        if theirs and (theirs.name, theirs.identity) != (ours.name, ours.identity):
            raise SessionEnded(
                "volume-replaced",
                f"volume {ours.volume} is {theirs.name} ({theirs.identity}) at the target, here {ours.name} "
                f"({ours.identity})" + (f". {adoption_hint(theirs)}" if theirs.name == ours.name else ""),
                retryable=False,
            )


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


class SessionEnded(Exception):
    """The session is over.

    Attributes:
        reason: a code of states.REASONS.
        retryable: whether to try again without anyone changing anything.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable


REFUSAL_REASONS = {
    "fenced": "fenced",
    "store-full": "target-full",
    "store-io": "target-failed",
    "store-read-only": "target-read-only",
    "store-away": "target-away",
    "resources-exhausted": "target-exhausted",
    "outside-data-network": "outside-data-network",
}


def refused(refuse: Refuse) -> SessionEnded:
    """What a REFUSE means for us."""
    reason = REFUSAL_REASONS.get(refuse.code, "target-refused")
    return SessionEnded(reason, f"{refuse.code}: {refuse.message}", retryable=refuse.retryable and reason != "fenced")


@dataclass(slots=True)
class Session:
    """An established session. All methods belong to its event loop except `ask`."""

    stream: Stream
    welcome: Welcome
    clock: Clock
    traffic: Traffic
    on_durable: Callable[[list[Sent], int], None]
    on_resend: Callable[[Resend], None]
    observe_ack: Callable[[float], None] = lambda _: None
    sequence: int = 0
    durable_sequence: int = 0
    _credit: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _unacknowledged: deque[Sent] = field(default_factory=deque)
    _queries: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)
    _query_numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _heard_at: float = 0.0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def __post_init__(self) -> None:
        self.sequence = self.durable_sequence = self.welcome.durable_sequence
        self._credit = self.welcome.credit_bytes
        self._heard_at = self.clock.monotonic()

    @property
    def in_flight(self) -> bool:
        """Whether something sent is not durable yet."""
        return bool(self._unacknowledged)

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
        await self.stream.send(status)

    async def query(self, volume: int, offset: int, chunk_bytes: int, count: int) -> bytes:
        """The target's digests of `count` chunks, as of everything sent before."""
        number = next(self._query_numbers)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._queries[number] = answer
        try:
            await self.stream.send(HashQuery(number, volume, offset, chunk_bytes, count))
            digests = await answer
        finally:
            self._queries.pop(number, None)
        if len(digests) != count * DIGEST_BYTES:
            raise SessionEnded("target-refused", f"{len(digests)} bytes of hashes for {count} chunks")
        return digests

    def ask(self, volume: int, offset: int, chunk_bytes: int, count: int) -> Future[bytes]:
        """`query`, from any thread."""
        return asyncio.run_coroutine_threadsafe(self.query(volume, offset, chunk_bytes, count), self._loop)

    async def wait_durable(self, sequence: int) -> None:
        """Return when the target has acknowledged `sequence`."""
        while self.durable_sequence < sequence:
            await self._wait_change()

    async def run(self) -> None:
        """Receive until the session ends; always raises SessionEnded or what the stream raised."""
        watchdog = asyncio.create_task(self._watch())
        receiver = asyncio.create_task(self._receive())
        try:
            done, _ = await asyncio.wait((watchdog, receiver), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (watchdog, receiver):
                task.cancel()
            await asyncio.gather(watchdog, receiver, return_exceptions=True)
            self._abandon()

    async def say_goodbye(self) -> None:
        """End in peace."""
        with contextlib.suppress(DrengineError, OSError, EOFError):
            await self.stream.send(Goodbye())

    async def _send(
        self,
        event: Callable[[int], Event],
        mark: Mark,
        *,
        notes: Sequence[Note] = (),
    ) -> int:
        while len(self._unacknowledged) >= UNACKNOWLEDGED_MAX:
            await self._wait_change()
        self.sequence += 1
        number = self.sequence
        self._unacknowledged.append(Sent(number, mark, self.clock.monotonic(), notes))
        await self.stream.send(event(number))
        return number

    async def _receive(self) -> None:
        while True:
            event = await self.stream.receive()
            self._heard_at = self.clock.monotonic()
            match event:
                case Ack(durable_sequence=sequence):
                    self._acknowledged(sequence)
                case Credit(bytes=more):
                    self._credit += more
                    self._notify()
                case Hashes(query=number, digests=digests):
                    if (answer := self._queries.get(number)) and not answer.done():
                        answer.set_result(digests)
                case Resend():
                    self.on_resend(event)
                case Ping(token=token):
                    await self.stream.send(Pong(token))
                case Refuse():
                    raise refused(event)
                case Goodbye():
                    raise SessionEnded("target-unreachable", "the target ended the session")

    async def _watch(self) -> None:
        """A target that is silent for too long is gone, whatever TCP believes (fault 34)."""
        for token in itertools.count():
            await self.clock.sleep(PING_SECONDS)
            silence = self.clock.monotonic() - self._heard_at
            if silence > SILENCE_SECONDS:
                raise SessionEnded("target-unreachable", f"nothing was heard for {silence:.0f} s")
            await self.stream.send(Ping(token))

    def _acknowledged(self, sequence: int) -> None:
        if not self.durable_sequence <= sequence <= self.sequence:
            raise SessionEnded("target-refused", f"position {sequence} was acknowledged, {self.sequence} were sent")
        durable = []
        while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
            durable.append(self._unacknowledged.popleft())
        self.durable_sequence = sequence
        if durable:
            self.traffic.ack_seconds_last = self.clock.monotonic() - durable[-1].sent_at
            self.observe_ack(self.traffic.ack_seconds_last)
            self.on_durable(durable, sequence)
        self._notify()

    def _abandon(self) -> None:
        for answer in self._queries.values():
            if not answer.done():
                answer.set_exception(SessionEnded("target-unreachable", "the session ended"))

    async def _wait_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()


async def open_session(
    connect: Callable[[], Awaitable[Stream]], hello: Hello, make: Callable[[Stream, Welcome], Session]
) -> Session:
    """Connect and shake hands.

    Raises:
        SessionEnded: refused. DrengineError, OSError, EOFError: not reached.
    """
    stream = await connect()
    try:
        await stream.send(hello)
        answer = await stream.receive()
        return make(stream, _welcomed(answer))
    except BaseException:
        await stream.close()
        raise


def _welcomed(answer: Event) -> Welcome:
    if isinstance(answer, Refuse):
        raise refused(answer)
    if not isinstance(answer, Welcome):
        raise DrengineError(SESSION_REFUSED, f"the target answered HELLO with {type(answer).__name__}")
    return answer


def hello_for(
    source: str,
    instance: bytes,
    generation: int,
    purpose: Purpose = Purpose.REPLICATE,
    branch: int = 0,
    sequence: int = 0,
) -> Hello:
    """Our HELLO."""
    return Hello(1, 1, ABILITIES, source, instance, generation, purpose, branch, sequence)
