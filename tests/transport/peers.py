"""An agent and a target on loopback, through the real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.transport.endpoints import Listener, connect, serve
from drengine.transport.errors import reason_of
from drengine.transport.framed import FramedStream, StreamLimits
from drengine.transport.networks import DataNetworks
from drengine.wire import events as ev
from drengine.wire.frames import batch_frame_bytes
from tests.wire.samples import HELLO, WELCOME

SECONDS = 20.0
"""Nothing here takes so long unless it hangs."""
LOOPBACK = DataNetworks()


@dataclass
class Counts:
    """A traffic observer."""

    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def bytes_received(self, network: str, count: int) -> None:
        self.received[network] += count

    def bytes_sent(self, network: str, count: int) -> None:
        self.sent[network] += count


@dataclass
class Target:
    """A listening target and what happened to it."""

    listener: Listener
    heard: list[ev.Event]
    failures: list[str]
    streams: list[FramedStream]
    counts: Counts

    @property
    def port(self) -> int:
        return self.listener.port

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when it holds."""
        async with asyncio.timeout(SECONDS):
            while not holds():  # noqa: ASYNC110 (things of many kinds are waited for)
                await asyncio.sleep(0.002)


async def obedient(stream: FramedStream, heard: list[ev.Event]) -> None:
    """Welcomes, acknowledges and gives credit back until the agent says goodbye."""
    hello = await stream.receive()
    assert isinstance(hello, ev.Hello)
    await stream.send(WELCOME)
    while True:
        event = await stream.receive()
        heard.append(event)
        match event:
            case ev.BatchEvent():
                await stream.send(ev.Ack(event.sequence, event.mark))
                await stream.send(ev.Credit(batch_frame_bytes(event.batch)))
            case ev.Ping(token=token):
                await stream.send(ev.Pong(token))
            case ev.Goodbye() | ev.Refuse():
                return


Behaviour = Callable[[FramedStream, list[ev.Event]], Awaitable[None]]


@contextlib.asynccontextmanager
async def target(
    behaviour: Behaviour = obedient,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    limits: StreamLimits | None = None,
    clock: Clock | None = None,
    connections_max: int = 16,
) -> AsyncIterator[Target]:
    """A target that behaves so in each session."""
    heard: list[ev.Event] = []
    failures: list[str] = []
    streams: list[FramedStream] = []
    counts = Counts()

    async def handle(stream: FramedStream) -> None:
        streams.append(stream)
        await behaviour(stream, heard)

    def failed(error: DrengineError) -> None:
        failures.append(reason_of(error))

    listener = await serve(
        host,
        0,
        handle,
        networks=LOOPBACK,
        tls=(lambda: tls) if isinstance(tls, ssl.SSLContext) else tls,
        observer=counts,
        failed=failed,
        limits=limits,
        clock=clock,
        connections_max=connections_max,
    )
    try:
        yield Target(listener, heard, failures, streams, counts)
    finally:
        listener.close()
        for stream in streams:
            stream.abort()
        async with asyncio.timeout(SECONDS):
            await listener.wait_closed()


async def agent(
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    limits: StreamLimits | None = None,
    clock: Clock | None = None,
    observer: Counts | None = None,
    greet: bool = True,
) -> FramedStream:
    """A connected agent, greeted unless told otherwise."""
    stream = await connect("127.0.0.1", port, networks=LOOPBACK, tls=tls, limits=limits, clock=clock, observer=observer)
    if greet:
        await stream.send(HELLO)
        assert await stream.receive() == WELCOME
    return stream
