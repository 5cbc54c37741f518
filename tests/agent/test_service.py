"""The agent as a whole: real volumes, tap, journal and pipeline; only the socket to the target is replaced."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine.nbd.client import NbdClient
from drengine.wire.events import Refuse
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.control import ControlServer
from drengine_agent.control_client import ask
from drengine_agent.service import Agent
from tests.agent.replica import Replica

MIB = 1 << 20


def configured(folder: Path, *, tracker: str = "nbd", volumes: int = 1, **more: Any) -> AgentConfig:
    tables = []
    for number in range(1, volumes + 1):
        path = folder / f"disk{number}.img"
        if not path.exists():
            path.write_bytes(os.urandom(MIB) + bytes(MIB) + b"tail" * 128)
        tables.append({"name": f"disk{number}", "path": str(path)})
    return parse_config(
        {
            "source": "server",
            "target": "127.0.0.1:1",
            "state_directory": str(folder / "state"),
            "tracker": tracker,
            "nbd": {"listen": f"unix:{folder}/n.sock", "journal": "4MiB"},
            "volume": tables,
            **more,
        }
    )


async def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    while not (answer := what()):
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.005)
    return answer


@asynccontextmanager
async def running(config: AgentConfig, replica: Replica) -> AsyncIterator[Agent]:
    agent = Agent(config, connector=replica.connect, random=Random(1))
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop()
        await asyncio.wait_for(task, 30)


async def write(config: AgentConfig, offset: int, data: bytes, name: str = "disk1") -> None:
    def work() -> None:
        with NbdClient.connect_unix(Path(config.nbd.listen.path), name) as client:
            client.write(offset, data)

    await asyncio.to_thread(work)


async def test_a_write_through_the_tap_becomes_a_point_in_write_order(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        assert agent.status()["state"] == "CONTINUOUS"
        await write(config, MIB + 100, b"hello")
        await until(lambda: replica.image()[MIB + 100 : MIB + 105] == b"hello")
        await until(lambda: replica.points[-1].images[1] == replica.image())
    assert replica.points[-1].cut.kind is PointKind.WRITE_ORDER
    assert replica.image() == (tmp_path / "disk1.img").read_bytes()
