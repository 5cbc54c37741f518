"""One agent at the other end of a connection: greeting, liveness, what is no work, and an end with a reason.

What the agent wants (to ship, or to read a point) is for subclasses: they ask for the next event that is work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from drengine.model.errors import DrengineError
from drengine.model.extents import BATCH_PLAIN_BYTES_MAX
from drengine.model.points import Mark, VolumeGeometry
from drengine.transport.framed import FramedStream
from drengine.wire.connection import negotiate_version
from drengine.wire.events import ABILITIES, Event, Goodbye, Hello, Ping, Pong, Refuse, Welcome

log = logging.getLogger("drengine.target")


class AdmittedAgent:
    """From WELCOME to the end of the session. Belongs to one event loop."""

    def __init__(self, stream: FramedStream, hello: Hello, *, probe_seconds: float) -> None:
        self.source = hello.source
        self.instance = hello.instance
        self.grant = ""
        """Id of the store's grant that it rests on; empty where it needs none."""
        self.ended = asyncio.Event()
        """Set once the session is over, by the task that runs it."""
        self._stream = stream
        self._hello = hello
        self._probe_seconds = probe_seconds
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[None] = self._loop.create_future()
        self._heard = asyncio.Event()

    @property
    def peer_certificate(self) -> bytes | None:
        """What the agent has proved to be (DER); None without TLS."""
        return self._stream.peer_certificate

    def end(self, cause: DrengineError | None) -> None:
        """End the session for this reason (None: in peace)."""
        if not self._ending.done():
            if cause is None:
                self._ending.set_result(None)
            else:
                self._ending.set_exception(cause)
                self._ending.exception()  # who has failed already does not look at it

    async def has_ended(self, seconds: float) -> bool:
        """Whether the session is over; waits so long for that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        return self.ended.is_set()

    def require_held(self) -> None:
        """Return while nobody else may have what the session writes.

        Raises:
            DrengineError: LOCK_LOST.
        """

    async def is_alive(self) -> bool:
        """Whether the agent still answers, in time."""
        self._heard.clear()
        try:
            async with asyncio.timeout(self._probe_seconds):
                await self._send_event(Ping(secrets.randbits(63)))
                await self._heard.wait()
        except (TimeoutError, DrengineError):
            return False
        return not self.ended.is_set()

    async def _welcome(
        self, *, generation: int, sequence: int, mark: Mark, geometry: tuple[VolumeGeometry, ...], credit_bytes: int
    ) -> None:
        """Greet the agent: its own position, or that of the point which it reads."""
        await self._stream.send(
            Welcome(
                version=negotiate_version(self._hello),
                abilities=self._hello.abilities & ABILITIES,
                session=secrets.token_bytes(16),
                generation=generation,
                durable_sequence=sequence,
                durable_mark=mark,
                credit_bytes=credit_bytes,
                batch_plain_bytes_max=BATCH_PLAIN_BYTES_MAX,
                geometry=geometry,
            )
        )

    async def _next_work(self) -> Event | None:
        """The next event that is work; None when the agent has ended the session."""
        while True:
            event = await self._stream.receive()
            self._heard.set()
            match event:
                case Ping(token=token):
                    await self._send_event(Pong(token))
                case Refuse(code=code, message=message):
                    why = {"source": self.source, "code": code, "detail": message}
                    log.warning("the agent ended the session", extra=why)
                    return None
                case Goodbye():
                    return None
                case _:
                    return event

    async def _send_event(self, event: Event) -> None:
        await self._stream.send(event)
