"""One session with the target: HELLO to GOODBYE, signs of life, questions and their answers.

What else travels is for whoever opened it: `sender.Sender` ships over it, `failback.PointReader` reads over it. That a
silent target is gone is for the transport to say (fault 34); the session only gives it something to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from drengine.config import Address
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.wire.connection import VERSION_MAX, VERSION_MIN
from drengine.wire.events import (
    ABILITIES,
    Changed,
    Event,
    Fetched,
    Goodbye,
    Hashes,
    HashQuery,
    Hello,
    Moved,
    Ping,
    Pong,
    Purpose,
    Refuse,
    Welcome,
)
from drengine_agent.capture.index import DIGEST_BYTES
from drengine_agent.errors import SESSION_REFUSED

PING_SECONDS = 5.0
_E = TypeVar("_E", bound=Event)


class Stream(Protocol):
    """What a session needs of the transport.

    Attributes:
        is_proved: the peer is known to be a target, and not only to answer at its address.
    """

    is_proved: bool

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


Connect = Callable[[], Awaitable[Stream]]
"""Connects with the one target that a session is to be opened with."""


class SessionEnded(Exception):
    """The session is over.

    Attributes:
        reason: a code of states.REASONS.
        retryable: whether to try again without anyone changing anything.
        code: that the target gave; empty where it gave none.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = True, code: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.code = code


class SessionMoved(SessionEnded):
    """Another target has the source, or shall have it.

    Attributes:
        to: its addresses, best first.
    """

    def __init__(self, moved: Moved) -> None:
        super().__init__("source-elsewhere", f"{moved.owner}: {moved.message}")
        self.to = tuple(Address(host, port) for host, port in moved.addresses)


REFUSAL_REASONS = {
    "fenced": "fenced",
    "source-moved": "fenced",
    "store-full": "target-full",
    "store-io": "target-failed",
    "store-read-only": "target-read-only",
    "store-away": "target-away",
    "resources-exhausted": "target-exhausted",
    "outside-data-network": "outside-data-network",
    "source-elsewhere": "source-elsewhere",
}

TARGET_STATES = frozenset({"target-full", "target-failed", "target-read-only", "target-away", "target-exhausted"})
"""These end by themselves, so they are waited for, whatever an older target says of trying again."""


def refused(refuse: Refuse, *, is_proved: bool) -> SessionEnded:
    """What a REFUSE means for us. That we are fenced, nobody tells us who has not proved to be a target."""
    reason = REFUSAL_REASONS.get(refuse.code, "target-refused")
    if reason == "fenced" and not is_proved:
        return SessionEnded("fence-unproved", f"{refuse.code}: {refuse.message}")
    retryable = reason in TARGET_STATES or (refuse.retryable and reason != "fenced")
    return SessionEnded(reason, f"{refuse.code}: {refuse.message}", retryable=retryable, code=refuse.code)


def hello_for(
    source: str,
    instance: bytes,
    generation: int,
    purpose: Purpose = Purpose.REPLICATE,
    branch: int = 0,
    sequence: int = 0,
) -> Hello:
    """Our HELLO."""
    return Hello(VERSION_MIN, VERSION_MAX, ABILITIES, source, instance, generation, purpose, branch, sequence)


class Session:
    """An established session. Its methods belong to its event loop, except `ask_digests`.

    Attributes:
        stream: where more can be sent.
        welcome: what the target answered to HELLO.
        ended: what ended the session; None while it lasts.
    """

    def __init__(self, stream: Stream, welcome: Welcome, clock: Clock) -> None:
        self.stream = stream
        self.welcome = welcome
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._questions: dict[int, asyncio.Future[Event]] = {}
        self.ended: Exception | None = None
        self._leaving = self._heard_goodbye = False

    @classmethod
    async def open(cls, connect: Connect, hello: Hello, clock: Clock) -> Session:
        """Connect and shake hands.

        Raises:
            SessionEnded: refused. DrengineError, OSError, EOFError: not reached.
        """
        stream = await connect()
        try:
            await stream.send(hello)
            return cls(stream, _welcomed(await stream.receive(), stream), clock)
        except BaseException:
            await stream.close()
            raise

    async def run(self, take: Callable[[Event], None]) -> None:
        """Receive until the session ends; `take` is given what is neither an answer nor a sign of life.

        Returns once the target has answered our GOODBYE. Questions that are open when it ends fail as it did.

        Raises:
            SessionEnded, or what the stream raised.
        """
        tasks = [asyncio.create_task(self._receive(take)), asyncio.create_task(self._ping())]
        ended: Exception = SessionEnded("target-unreachable", "the session ended")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Exception as error:
            ended = error
            raise
        finally:
            self.ended = ended
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for answer in self._questions.values():
                if not answer.done():
                    answer.set_exception(ended)

    async def ask(self, question: Callable[[int], Event], kind: type[_E]) -> _E:
        """The answer to a question, which is made with its number.

        Raises:
            SessionEnded: another answer came. What ended the session, if it ends first.
        """
        if self.ended is not None:
            raise self.ended
        number = next(self._numbers)
        waiting: asyncio.Future[Event] = self._loop.create_future()
        self._questions[number] = waiting
        try:
            await self.stream.send(question(number))
            answer = await waiting
        finally:
            self._questions.pop(number, None)
        if not isinstance(answer, kind):
            raise SessionEnded("target-refused", f"{type(answer).__name__} came as {kind.__name__}")
        return answer

    async def digests(self, volume: int, offset: int, chunk_bytes: int, count: int) -> bytes:
        """The target's digests of `count` chunks, as of everything sent before.

        Raises:
            SessionEnded: it sent another number of them; see `ask`.
        """
        answer = await self.ask(lambda number: HashQuery(number, volume, offset, chunk_bytes, count), Hashes)
        if len(answer.digests) != count * DIGEST_BYTES:
            raise SessionEnded("target-refused", f"{len(answer.digests)} bytes of hashes for {count} chunks")
        return answer.digests

    def ask_digests(self, volume: int, offset: int, chunk_bytes: int, count: int) -> Future[bytes]:
        """`digests`, from any thread."""
        return asyncio.run_coroutine_threadsafe(self.digests(volume, offset, chunk_bytes, count), self._loop)

    async def say_goodbye(self) -> None:
        """End in peace."""
        self._leaving = True
        with contextlib.suppress(DrengineError, OSError, EOFError):
            await self.stream.send(Goodbye())

    async def wait_goodbye(self, seconds: float) -> None:
        """Wait until the target has answered our GOODBYE, or no longer. `run` must be over."""
        with contextlib.suppress(DrengineError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._heard_goodbye:
                    self._heard_goodbye = isinstance(await self.stream.receive(), Goodbye)

    async def close(self) -> None:
        """Close the connection at once."""
        await self.stream.close()

    async def _receive(self, take: Callable[[Event], None]) -> None:
        while not self._heard_goodbye:
            event = await self.stream.receive()
            match event:
                case Hashes() | Fetched() | Changed():
                    if (answer := self._questions.get(event.query)) and not answer.done():
                        answer.set_result(event)
                case Ping(token=token):
                    await self.stream.send(Pong(token))
                case Pong():
                    pass
                case Refuse():
                    raise refused(event, is_proved=self.stream.is_proved)
                case Moved():
                    raise SessionMoved(event)
                case Goodbye():
                    self._heard_goodbye = True
                    if not self._leaving:
                        raise SessionEnded("target-unreachable", "the target ended the session")
                case _:
                    take(event)

    async def _ping(self) -> None:
        """More often than the transport's patience with a peer that says nothing."""
        for token in itertools.count():
            await self._clock.sleep(PING_SECONDS)
            await self.stream.send(Ping(token))


def _welcomed(answer: Event, stream: Stream) -> Welcome:
    if isinstance(answer, Refuse):
        raise refused(answer, is_proved=stream.is_proved)
    if isinstance(answer, Moved):
        raise SessionMoved(answer)
    if not isinstance(answer, Welcome):
        raise DrengineError(SESSION_REFUSED, f"the target answered HELLO with {type(answer).__name__}")
    return answer
