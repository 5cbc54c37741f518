"""The real daemon as a process: readiness, draining, being killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.store import Store
from tests.target.agent import SIZE, join

pytestmark = pytest.mark.timeout(90)


@dataclass
class Process:
    process: asyncio.subprocess.Process
    address: tuple[str, int]
    metrics_port: int
    lines: list[dict[str, Any]]
    """What it has logged since it was ready."""

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(20):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def target(
    store: Path, *arguments: str, environment: dict[str, str] | None = None, descriptors: int = 0
) -> AsyncIterator[Process]:
    with contextlib.suppress(DrengineError):  # it is there already
        Store.create(store).close()
    limited = ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh") if descriptors else ()
    process = await asyncio.create_subprocess_exec(
        *limited,
        sys.executable,
        "-m",
        "drengine.cli.main",
        "target",
        "run",
        "--store",
        str(store),
        "--listen",
        "127.0.0.1:0",
        *arguments,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stderr
        async with asyncio.timeout(20):
            async for line in process.stderr:
                said = json.loads(line)
                if said["message"] == "target is ready":
                    host, _, port = said["replication"].partition(":")
                    break
            else:
                pytest.fail("the target ended before it was ready")
        lines: list[dict[str, Any]] = []
        drain = asyncio.ensure_future(_collect(process.stderr, lines))
        yield Process(process, (host, int(port)), said["metrics_port"], lines)
        drain.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _collect(stream: asyncio.StreamReader, lines: list[dict[str, Any]]) -> None:
    async for line in stream:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))


async def test_sigterm_drains_acknowledges_and_exits_cleanly(tmp_path: Path) -> None:
    async with target(tmp_path / "store") as running:
        agent = await join(running.address)
        await agent.declare()
        for block in range(100):
            await agent.write(block * 65536, os.urandom(65536))
        last = await agent.cut()
        await agent.until(lambda: agent.acks)
        assert await running.end(signal.SIGTERM) == 0
        await agent.ended()
        await agent.close()
    with Store.open(tmp_path / "store") as store:
        assert store.branches("shop")[0].durable_sequence == agent.acks[-1]
        assert agent.acks[-1] <= last


async def test_readiness_is_told_only_when_agents_can_connect(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        async with target(tmp_path / "store", environment={"NOTIFY_SOCKET": path}) as running:
            assert manager.recv(100) == b"READY=1"
            agent = await join(running.address)
            await agent.close()
            assert await running.end(signal.SIGTERM) == 0
            assert manager.recv(100) == b"STOPPING=1"


async def test_a_second_target_on_the_port_says_so_and_exits(tmp_path: Path) -> None:
    async with target(tmp_path / "store") as running:
        port = running.address[1]
        Store.create(tmp_path / "other").close()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "drengine.cli.main", "target", "run", "--store", str(tmp_path / "other")),
            *("--listen", f"127.0.0.1:{port}"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert process.returncode == 23
        assert re.search(rb"error: .*can't be listened on.* \[peer-unreachable\]", said)


@pytest.mark.fault(4)
@pytest.mark.fault(35)
async def test_killed_under_load_again_and_again_it_never_loses_what_it_acknowledged(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: dict[int, bytes] = {0: bytes(SIZE)}  # content at each position
    position, current = 0, bytearray(SIZE)
    for kill in range(4):
        async with target(tmp_path / "store") as running:
            agent = await join(running.address)
            durable = agent.welcome.durable_sequence
            assert durable >= position, f"kill {kill}: {position} was acknowledged, {durable} is there"
            current = bytearray(model[durable])
            model = {durable: model[durable]}
            if durable == 0:
                model[await agent.declare()] = bytes(current)
            limit = rng.randrange(20, 200)
            with contextlib.suppress(DrengineError, OSError):
                while agent.failure is None:
                    offset = rng.randrange(SIZE // 4096) * 4096
                    data = rng.randbytes(4096)
                    number = await agent.write(offset, data)
                    current[offset : offset + 4096] = data
                    model[number] = bytes(current)
                    if rng.random() < 0.2:
                        number = await agent.cut()
                        model[number] = bytes(current)
                    if len(model) > limit:
                        await agent.acknowledged(durable + 1)
                        running.process.kill()
                        break
            await running.process.wait()
            await agent.ended()
            await agent.close()
            position = max([durable, *agent.acks])
            with Store.open(tmp_path / "store") as store:
                head = store.branches("shop")[0].durable_sequence
                assert head >= position
                with store.head_view("shop") as view:
                    assert view.read(1, 0, SIZE) == model[head]
                for point in store.points("shop"):
                    if point.sequence in model:
                        with store.view(point) as view:
                            assert view.read(1, 0, SIZE) == model[point.sequence]
    with Store.open(tmp_path / "store") as store:
        assert store.scrub().records_damaged == []
        assert store.find_point("shop", PointSelector())
