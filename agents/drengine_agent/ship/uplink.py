"""How one source reaches its target: what every session of it shares, whatever the session is for."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from drengine.model.clock import Clock
from drengine.wire.events import Hello, Purpose
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.ship.compression import CompressionController
from drengine_agent.ship.session import Connect, Session, hello_for


@dataclass(slots=True)
class Uplink:
    """See the module.

    Attributes:
        source: the source's name.
        connect: makes a connection.
        clock: the agent's.
        bandwidth: how fast may be sent, all sessions together.
        compression: how hard payloads are compressed.
        workers: threads that read, hash and compress.
        instance: names this run of the agent.
    """

    source: str
    connect: Connect
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
        """A session; raises as Session.open does."""
        return await Session.open(self.connect, hello, self.clock)
