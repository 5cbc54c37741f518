"""From a server to its store: a real agent and a real target."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from drengine.store.store import Store
from drengine_agent.config import parse_config
from drengine_agent.daemon.service import Agent
from drengine_agent.inventory import telling
from tests.target.agent import running


async def test_what_a_server_is_made_of_is_in_the_store_when_the_server_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "FIRST_LOOK_SECONDS", 0.0)
    disk = tmp_path / "data.img"
    disk.write_bytes(os.urandom(1 << 20))
    async with running(tmp_path / "store") as site:
        config = parse_config(
            {
                "source": "shop",
                "target": f"127.0.0.1:{site.address[1]}",
                "state_directory": str(tmp_path / "state"),
                "tracker": "scan",
                "target_user": "root",
                "volume": [{"name": "data", "path": str(disk)}],
            }
        )
        agent = Agent(config, random=Random(1))
        task = asyncio.create_task(agent.run())
        async with asyncio.timeout(30):
            while not (site.store.sources() and site.store.inventory("shop")):  # noqa: ASYNC110 - only the store tells
                await asyncio.sleep(0.05)
        agent.stop()
        await asyncio.wait_for(task, 30)
    with Store.open(tmp_path / "store", read_only=True) as store:
        found = store.inventory("shop")
    assert found and found.kernel == os.uname().release and found.taken_ns
    assert [(each.volume, each.size_bytes) for each in found.disks if each.volume] == [("data", 1 << 20)]
