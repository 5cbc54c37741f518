"""The target is told with each session and after each change; a look that fails or hangs costs nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import msgspec

from drengine.model.inventory import Inventory
from drengine.wire.events import InventoryReport
from drengine_agent.inventory.telling import FIRST_LOOK_SECONDS, LOOK_SECONDS, RETELL_SECONDS, InventoryTeller
from tests.clock import ManualClock
from tests.inventories import SERVER


class Told:
    """In a sender's place."""

    def __init__(self, *, tells_inventory: bool = True) -> None:
        self.tells_inventory = tells_inventory
        self.hostnames: list[str] = []
        self.error: OSError | None = None

    async def send_inventory(self, report: InventoryReport) -> None:
        self.hostnames.append(report.inventory.hostname)
        if self.error:
            raise self.error


class Server:
    """Looked at: its name and how full it is may change."""

    def __init__(self) -> None:
        self.name, self.free_bytes, self.looks = "one", 1, 0
        self.error: Exception | None = None
        self.waits = threading.Event()
        self.waits.set()

    def __call__(self) -> Inventory:
        self.looks += 1
        assert self.waits.wait(20)
        if self.error:
            raise self.error
        fuller = tuple(msgspec.structs.replace(each, free_bytes=self.free_bytes) for each in SERVER.file_systems)
        return msgspec.structs.replace(SERVER, hostname=self.name, taken_ns=self.looks, file_systems=fuller)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - only they tell
            await asyncio.sleep(0.001)


async def test_it_is_told_with_each_session_and_when_it_changes_and_else_once_an_hour() -> None:
    clock, server = ManualClock(), Server()
    teller = InventoryTeller(server, clock)
    running = asyncio.create_task(teller.run())

    async def look(seconds: float) -> None:
        """The next look, which comes after so long."""
        await until(lambda: clock._sleepers)
        clock.advance(seconds)
        await until(lambda: clock._sleepers)

    first, old, second = Told(), Told(tells_inventory=False), Told()
    await teller.tell(first)  # type: ignore[arg-type]
    await look(FIRST_LOOK_SECONDS)
    for each in (None, old, first, first, second, second):
        await teller.tell(each)  # type: ignore[arg-type]
    assert (first.hostnames, old.hostnames, second.hostnames) == (["one"], [], ["one"])
    server.free_bytes = 2
    await look(LOOK_SECONDS)
    await teller.tell(second)  # type: ignore[arg-type]
    assert (server.looks, second.hostnames) == (2, ["one"]), "that it is fuller is no news"
    server.name = "two"
    await look(LOOK_SECONDS)
    await teller.tell(second)  # type: ignore[arg-type]
    assert second.hostnames == ["one", "two"]
    for _ in range(int(RETELL_SECONDS / LOOK_SECONDS)):
        await look(LOOK_SECONDS)
        await teller.tell(second)  # type: ignore[arg-type]
    assert second.hostnames == ["one", "two", "two"], "once an hour it is told how full it is"
    running.cancel()


async def test_a_look_that_fails_is_taken_again_and_a_session_that_breaks_is_told_no_twice() -> None:
    clock, server, sender = ManualClock(), Server(), Told()
    server.error = ValueError("a kernel that nobody knows")
    teller = InventoryTeller(server, clock)
    running = asyncio.create_task(teller.run())
    for _ in range(2):
        await until(lambda: clock._sleepers)
        clock.advance(LOOK_SECONDS)
        await until(lambda: clock._sleepers)
        await teller.tell(sender)  # type: ignore[arg-type]
        sender.error = ConnectionResetError()
        assert sender.hostnames == ([] if server.error else ["one"])
        server.error = None
    await teller.tell(sender)  # type: ignore[arg-type]
    assert sender.hostnames == ["one"] and not running.done()
    running.cancel()


async def test_a_disk_that_hangs_holds_up_neither_what_is_known_nor_the_end() -> None:
    clock, server, sender = ManualClock(), Server(), Told()
    server.waits.clear()
    teller = InventoryTeller(server, clock)
    running = asyncio.create_task(teller.run())
    await until(lambda: clock._sleepers)
    clock.advance(FIRST_LOOK_SECONDS)
    await until(lambda: server.looks)
    await teller.tell(sender)  # type: ignore[arg-type]
    assert not sender.hostnames
    running.cancel()
    assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], asyncio.CancelledError)
    server.waits.set()
