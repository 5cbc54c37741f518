"""What an agent tells of its server is in the store soon, seldom, under its own name, and never in the stream's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.store.errors import STORE_FULL
from drengine.store.store import Store
from drengine.target.inventories import PAUSE_SECONDS, InventoryKeeper
from drengine.wire.events import ABILITIES, InventoryReport
from tests.clock import ManualClock
from tests.inventories import SERVER
from tests.target.agent import running


async def until_kept(store: Store, wanted: Inventory, source: str = "shop") -> None:
    async with asyncio.timeout(20):
        while store.inventory(source) != wanted:  # noqa: ASYNC110 - only the store tells
            await asyncio.sleep(0.01)


async def test_it_is_kept_for_the_source_of_the_session_alone_and_outlives_it(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        shop, till = await site.join(), await site.join("till")
        for agent in (shop, till):
            await agent.declare()
            await agent.acknowledged(await agent.write(0, b"x" * 4096))
        await shop.stream.send(InventoryReport(SERVER))
        await until_kept(site.store, SERVER)
        await shop.close()
        assert site.store.inventory("till") is None
    with Store.open(tmp_path / "store", read_only=True) as store:
        assert store.inventory("shop") == SERVER


async def test_an_agent_that_knows_no_inventories_is_served_as_before(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join(abilities=ABILITIES - {"inventory"})
        assert "inventory" not in agent.welcome.abilities
        await agent.declare()
        await agent.acknowledged(await agent.write(0, b"x" * 4096))
        assert site.store.inventory("shop") is None


class Kept:
    """In a store's place, and in a writer's: notes what was to be kept, and fails when told so."""

    source, generation = "shop", 3

    def __init__(self) -> None:
        self.hostnames: list[str] = []
        self.error: DrengineError | None = None

    def keep_inventory(self, source: str, inventory: Inventory, *, generation: int) -> None:
        assert (source, generation) == ("shop", 3)
        self.hostnames.append(inventory.hostname)
        if self.error:
            raise self.error


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - only they tell
            await asyncio.sleep(0.001)


async def test_however_often_it_is_told_one_in_a_while_is_kept_and_the_newest_in_the_end() -> None:
    clock, kept = ManualClock(), Kept()
    with ThreadPoolExecutor(1) as pool:
        keeper = InventoryKeeper(kept, kept, pool, clock)  # type: ignore[arg-type]
        running = asyncio.create_task(keeper.run())
        for number in range(500):
            keeper.put(msgspec.structs.replace(SERVER, hostname=f"web{number}"))
            if number in (0, 100):
                await until(lambda: clock._sleepers)
        assert kept.hostnames == ["web0"]
        for _ in range(3):
            clock.advance(PAUSE_SECONDS)
            if len(kept.hostnames) == 1:
                await until(lambda: clock._sleepers)
        assert kept.hostnames == ["web0", "web499"], "the newest, once"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_what_can_not_be_kept_ends_nothing() -> None:
    clock, kept = ManualClock(), Kept()
    kept.error = DrengineError(STORE_FULL, "no space")
    with ThreadPoolExecutor(1) as pool:
        keeper = InventoryKeeper(kept, kept, pool, clock)  # type: ignore[arg-type]
        running = asyncio.create_task(keeper.run())
        keeper.put(SERVER)
        await until(lambda: clock._sleepers)
        kept.error = None
        keeper.put(SERVER)
        clock.advance(PAUSE_SECONDS)
        await until(lambda: clock._sleepers)
        assert kept.hostnames == ["web1", "web1"] and not running.done()
        running.cancel()
