"""The honest ones: a source that ships stamped writes, somebody who reads an export, somebody who asks by REST.

Each runs in a process of its own and notes when it asked for something and how long that took.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

from demo.files import SOURCE
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.nbd.client import NbdClient
from drengine.transport.endpoints import connect
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import client_context
from drengine.wire.events import ABILITIES, Hello, Welcome
from tests.fuzz.place import READER, USER, Place
from tests.target.agent import Agent

SIZE_BYTES = 64 << 20
SLOT_BYTES = 4096
SLOTS = SIZE_BYTES // SLOT_BYTES
STEP = 40_503
PAUSE_SECONDS = 0.02
CUT_SECONDS = 1.0
GONE_SECONDS = 0.1
REST_SECONDS = 30.0
READ_BYTES = 64 << 10
READS = 10
VOLUMES = (VolumeGeometry(1, "data", "file:1", SIZE_BYTES),)
QUESTIONS = ("me", "runs", "sources", "parties")


@dataclass
class Notes:
    """What one of them saw.

    Attributes:
        taken: for each thing that it asked for: when it began (time.monotonic), and how many seconds it took.
        failures: what failed, by name; it tries again, and the time goes on.
        done: how many writes are acknowledged.
    """

    taken: list[tuple[float, float]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    done: int = 0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Note how long what is inside takes, also where it fails."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.taken.append((begun, time.monotonic() - begun))

    def failed(self, what: object) -> None:
        """Count a failure."""
        self.failures[str(what)] = self.failures.get(str(what), 0) + 1


def stamped(number: int) -> tuple[int, bytes]:
    """Place and content of a write; numbers from 1."""
    return number * STEP % SLOTS * SLOT_BYTES, number.to_bytes(8, "little") * (SLOT_BYTES // 8)


def image(writes: int) -> bytes:
    """What the volume holds after so many."""
    content = bytearray(SIZE_BYTES)
    for number in range(1, writes + 1):
        at, data = stamped(number)
        content[at : at + SLOT_BYTES] = data
    return bytes(content)


def ship(place: Place, notes: Notes, stop: Event) -> None:
    """The victim: one write after another, each acknowledged before the next."""
    asyncio.run(_ship(place, notes, stop))


async def _ship(place: Place, notes: Notes, stop: Event) -> None:
    agent: Agent | None = None
    instance = os.urandom(16)
    while not (stop.is_set() and notes.done):
        with notes.timed():
            agent = await _acknowledged(agent, place, notes, instance)
        await asyncio.sleep(PAUSE_SECONDS)
    while not await _ended(agent):
        agent = await _joined(place, notes, instance)


async def _acknowledged(agent: Agent | None, place: Place, notes: Notes, instance: bytes) -> Agent:
    """Write the next one, over as many sessions as that takes, and wait until it is acknowledged."""
    while True:
        agent = agent or await _joined(place, notes, instance)
        try:
            last = await agent.write(*stamped(notes.done + 1))
            if notes.done % int(CUT_SECONDS / PAUSE_SECONDS) == 0:
                last = await agent.cut()
            await agent.acknowledged(last)
        except (DrengineError, OSError, AssertionError, TimeoutError) as error:
            notes.failed(f"session: {agent.failure or error!r}")
            await agent.close()
            agent = None
        else:
            notes.done += 1
            return agent


async def _joined(place: Place, notes: Notes, instance: bytes) -> Agent:
    while True:
        try:
            context = client_context(place.files[SOURCE])
            stream = await connect("127.0.0.1", place.ports.target, networks=DataNetworks(), tls=context)
            await stream.send(Hello(2, 2, ABILITIES, SOURCE, instance, 1))
            answer = await stream.receive()
            if not isinstance(answer, Welcome):
                notes.failed(f"joining: {answer}")
                stream.abort()
                continue
            agent = Agent(stream, answer, answer.durable_sequence).start()
            if not answer.geometry:
                await agent.acknowledged(await agent.declare(VOLUMES))
        except (DrengineError, OSError, AssertionError, TimeoutError) as error:
            notes.failed(f"joining: {error}")
            await asyncio.sleep(GONE_SECONDS)
        else:
            return agent


async def _ended(agent: Agent | None) -> bool:
    """Whether a last cut is acknowledged, so that a point shows all writes."""
    if agent is None:
        return False
    try:
        await agent.acknowledged(await agent.cut())
    except (DrengineError, OSError, AssertionError, TimeoutError):
        return False
    finally:
        await agent.close()
    return True


def read(place: Place, notes: Notes, stop: Event) -> None:
    """Who was granted a point: opens it over TLS, reads somewhere, and comes again."""
    context = client_context(place.files[READER])
    while not stop.is_set():
        disk = None
        try:
            with notes.timed():
                disk = NbdClient(("127.0.0.1", place.nbd), place.export, tls=context)
            for _ in range(READS):
                at = random.randrange(SIZE_BYTES // READ_BYTES) * READ_BYTES
                with notes.timed():
                    disk.read(at, READ_BYTES)
                time.sleep(PAUSE_SECONDS)
        except (DrengineError, OSError) as error:
            notes.failed(error)
            time.sleep(GONE_SECONDS)
        finally:
            if disk is not None:
                disk.close()


def ask(place: Place, notes: Notes, stop: Event) -> None:
    """Who may look by REST: one question after another, each over a connection of its own."""
    context = ssl.create_default_context(cafile=str(place.ca))
    said = {"Authorization": f"Bearer {place.token}"}
    while not stop.is_set():
        for question in QUESTIONS:
            talk = http.client.HTTPSConnection("127.0.0.1", place.ports.rest, context=context, timeout=REST_SECONDS)
            try:
                with notes.timed():
                    talk.request("GET", f"/api/v1/{question}", headers=said)
                    answer = talk.getresponse()
                    body = answer.read()
                if answer.status != http.client.OK or (question == "me" and USER not in body.decode()):
                    notes.failed(f"{question}: {answer.status} {body[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                notes.failed(f"{question}: {error!r}")
            finally:
                talk.close()
            time.sleep(PAUSE_SECONDS)


HONEST: dict[str, Callable[[Place, Notes, Event], None]] = {"source": ship, "reader": read, "user": ask}
