"""How one source reaches its targets: what every session of it shares, whatever the session is for."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from drengine.config import Address
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.wire.events import Hello, Purpose
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.ship.compression import CompressionController
from drengine_agent.ship.route import Route
from drengine_agent.ship.session import Session, SessionEnded, SessionMoved, Stream, hello_for

Connect = Callable[[Address], Awaitable[Stream]]
Failure = SessionEnded | DrengineError | OSError | EOFError


@dataclass(slots=True)
class Uplink:
    """See the module.

    Attributes:
        source: the source's name.
        connect: makes a connection with one of them.
        route: which one to try next.
        clock: the agent's.
        bandwidth: how fast may be sent, all sessions together.
        compression: how hard payloads are compressed.
        workers: threads that read, hash and compress.
        instance: names this run of the agent.
    """

    source: str
    connect: Connect
    route: Route
    clock: Clock
    bandwidth: TokenBucket
    compression: CompressionController
    workers: int
    instance: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def hello(
        self, generation: int, purpose: Purpose = Purpose.REPLICATE, branch: int = 0, *, sequence: int = 0
    ) -> Hello:
        """Our HELLO for a session of this purpose."""
        return hello_for(self.source, self.instance, generation, purpose, branch, sequence)

    async def open(self, hello: Hello) -> Session:
        """A session with whichever target has the source, or takes it: each of them is asked.

        Raises:
            SessionEnded: a target refused, and none took it; or one refused for good. DrengineError, OSError, EOFError:
                none was reached.
        """
        tour = self.route.tour()
        unreached: Failure | None = None
        refused: SessionEnded | None = None
        while (address := tour.next()) is not None:
            greeting = hello if tour.may_move else replace(hello, abilities=hello.abilities - {"moved"})
            try:
                session = await Session.open(partial(self.connect, address), greeting, self.clock)
            except SessionMoved as moved:
                refused = refused or moved
                tour.sent_on(moved.to)
            except SessionEnded as error:
                if not error.retryable:
                    raise
                self.route.failed(address)
                refused = error
            except (DrengineError, OSError, EOFError) as error:
                self.route.failed(address)
                unreached = unreached or error
            else:
                self.route.served(address)
                return session
        # Whoever answered knows more than silence tells.
        raise refused or unreached or EOFError("no target is known")
