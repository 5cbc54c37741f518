"""The agent as a whole: real volumes, tap, journal and pipeline; only the socket to the target is replaced."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import xxhash

from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine.nbd.client import NbdClient
from drengine.wire.events import Refuse
from drengine_agent.capture import backing
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.daemon import replication
from drengine_agent.daemon.client import ask
from drengine_agent.daemon.operator import OperatorSocket
from drengine_agent.daemon.service import Agent
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
        client = NbdClient(config.nbd.listen.path, name)
        try:
            client.write(offset, data)
        finally:
            client.close()

    await asyncio.to_thread(work)


async def test_a_write_through_the_tap_becomes_a_point_in_write_order(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        await until(lambda: agent.status()["state"] == "CONTINUOUS")  # once the acknowledgement has been heard
        await write(config, MIB + 100, b"hello")
        await until(lambda: replica.image()[MIB + 100 : MIB + 105] == b"hello")
        await until(lambda: replica.points[-1].images[1] == replica.image())
    assert replica.points[-1].cut.kind is PointKind.WRITE_ORDER
    assert replica.image() == (tmp_path / "disk1.img").read_bytes()


async def test_several_volumes_share_every_cut(tmp_path: Path) -> None:
    config, replica = configured(tmp_path, volumes=3), Replica()
    async with running(config, replica):
        await until(lambda: replica.points)
        for number in (1, 2, 3):
            await write(config, 4096 * number, bytes([number]) * 4096, f"disk{number}")
        await until(lambda: replica.image(3)[3 * 4096 : 4 * 4096] == bytes([3]) * 4096)
        await until(lambda: replica.points[-1].images == {n: replica.image(n) for n in (1, 2, 3)})
    for point in replica.points:
        seen = [point.images[n][4096 * n] == n for n in (1, 2, 3)]
        assert seen == sorted(seen, reverse=True), "a point shows a later write without an earlier one"


@pytest.mark.fault(35)
@pytest.mark.parametrize("seed", range(4))
async def test_links_that_break_anywhere_skip_nothing(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    config, replica = configured(tmp_path, point_interval="10ms"), Replica()
    replica.events_until_break = lambda: random.randrange(1, 20)
    async with running(config, replica):
        history = [xxhash.xxh3_128_digest((tmp_path / "disk1.img").read_bytes())]
        while replica.sessions < 10:
            await write(config, random.randrange(2 * MIB - 20_000), random.randbytes(random.randrange(1, 20_000)))
            history.append(xxhash.xxh3_128_digest((tmp_path / "disk1.img").read_bytes()))
        replica.events_until_break = lambda: None
        expected = (tmp_path / "disk1.img").read_bytes()
        await until(lambda: replica.image() == expected and replica.points and replica.points[-1].images[1] == expected)
    shown = [history.index(xxhash.xxh3_128_digest(point.images[1])) for point in replica.points]
    assert shown == sorted(shown), "a later point shows an earlier moment"


async def test_a_restarted_agent_goes_on_from_the_durable_mark_without_a_rescan(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica):
        await until(lambda: replica.points)
    before = replica.received_plain_bytes
    async with running(config, replica) as agent:
        await write(config, 12345, b"x" * 1000)
        await until(lambda: replica.image()[12345:13345] == b"x" * 1000)
        assert agent.status()["rescans"] == {}
    assert replica.received_plain_bytes - before == 1000


async def test_a_fenced_source_stops_and_does_not_try_again(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    replica.refuse = Refuse("fenced", "generation 2 is in charge", retryable=True)
    async with running(config, replica) as agent:
        await until(lambda: agent.status()["state"] == "STOPPED")
        assert agent.status()["reason"] == "fenced"
        await asyncio.sleep(0.3)
    assert replica.sessions == 1


@pytest.mark.fault(18)
async def test_a_full_target_is_shown_and_tried_again(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    replica.refuse = Refuse("store-full", "no space", retryable=True)
    async with running(config, replica) as agent:
        await until(lambda: agent.status()["reason"] == "target-full")
        assert agent.status()["state"] == "DISCONNECTED"
        replica.refuse = None
        await until(lambda: replica.points)


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("store-full", "target-full"),
        ("store-io", "target-failed"),
        ("store-read-only", "target-read-only"),
        ("store-away", "target-away"),
        ("resources-exhausted", "target-exhausted"),
    ],
)
async def test_a_target_whose_store_is_in_trouble_is_tried_again_whatever_its_flag_says(
    tmp_path: Path, code: str, reason: str
) -> None:
    config, replica = configured(tmp_path), Replica()
    replica.refuse = Refuse(code, "no", retryable=False)
    async with running(config, replica) as agent:
        await until(lambda: agent.status()["reason"] == reason)
        assert agent.status()["state"] == "DISCONNECTED"
        assert agent.not_ready() == f"DISCONNECTED ({reason}): {code}: no"
        replica.refuse = None
        await until(lambda: replica.points)
        assert agent.not_ready() == ""


@pytest.mark.fault(65)
async def test_resume_makes_a_source_that_stopped_try_again_and_sync_says_that_nothing_would_happen(
    tmp_path: Path,
) -> None:
    config, replica = configured(tmp_path), Replica()
    replica.refuse = Refuse("unknown-branch", "there is none", retryable=False)
    async with running(config, replica) as agent:
        await until(lambda: agent.status()["state"] == "STOPPED")
        assert agent.not_ready() == "STOPPED (target-refused): unknown-branch: there is none"
        with pytest.raises(DrengineError, match="stopped") as refused:
            agent.sync()
        assert "drengine-agent resume" in refused.value.hint
        sessions = replica.sessions
        agent.resume()
        await until(lambda: replica.sessions > sessions and agent.status()["state"] == "STOPPED")
        replica.refuse = None
        agent.resume()
        await until(lambda: replica.points)
        assert agent.status()["detail"] == ""
        agent.sync()
        await until(lambda: agent.status()["rescans"] == {"operator": 1})


async def test_sync_says_that_a_paused_source_compares_nothing(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        agent.pause()
        with pytest.raises(DrengineError, match="paused") as refused:
            agent.sync()
        assert refused.value.hint == "`drengine-agent resume`."
        assert agent.not_ready().startswith("PAUSED")


@pytest.mark.parametrize("order", ["resume", "sync"])
async def test_an_order_ends_the_wait_before_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(replication, "backoff_seconds", lambda _attempts, _random, **_: 3600.0)
    config, replica = configured(tmp_path), Replica()
    replica.refuse = Refuse("store-away", "moved", retryable=True)
    async with running(config, replica) as agent:
        await until(lambda: agent.status()["state"] == "DISCONNECTED")
        replica.refuse = None
        getattr(agent, order)()
        await until(lambda: replica.points)


async def test_pause_outlives_a_restart_and_resume_ships_what_was_written(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        agent.pause()
        await until(lambda: agent.pipeline is None)
        await write(config, 0, b"while paused")
    async with running(config, replica) as agent:
        assert agent.status()["state"] == "PAUSED"
        await asyncio.sleep(0.05)
        assert not replica.image().startswith(b"while paused")
        agent.resume()
        await until(lambda: replica.image().startswith(b"while paused"))


@pytest.mark.fault(27)
async def test_another_disk_under_the_old_name_is_never_shipped(tmp_path: Path) -> None:
    config, replica = configured(tmp_path, tracker="scan"), Replica()
    async with running(config, replica):
        await until(lambda: replica.points)
    image = replica.image()
    (tmp_path / "disk1.img").rename(tmp_path / "old.img")
    (tmp_path / "disk1.img").write_bytes(b"another" * 100_000)
    with pytest.raises(DrengineError) as refused:
        Agent(config, connector=replica.connect)
    assert refused.value.kind.id == "volume-replaced"
    assert replica.image() == image


@pytest.mark.fault(76)
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_disk_that_nothing_tells_from_another_is_warned_of_unless_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, accepted: bool
) -> None:
    monkeypatch.setattr(backing, "evidence_of", lambda _: {"number": "254:16"})
    config = configured(tmp_path, tracker="scan")
    config = replace(config, volume=tuple(replace(volume, anonymous=accepted) for volume in config.volume))
    async with running(config, Replica()) as agent:
        (volume,) = agent.status()["volumes"]  # type: ignore[misc]
        assert (volume["identity"], volume["anonymous"]) == ("block:number=254:16", True)  # type: ignore[index]
    warned = [record.message for record in caplog.records if "nothing tells" in record.message]
    assert len(warned) == (not accepted)


@pytest.mark.fault(27)
async def test_a_disk_that_changes_under_a_running_agent_stops_it(tmp_path: Path) -> None:
    config, replica = configured(tmp_path, tracker="scan"), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        (tmp_path / "disk1.img").rename(tmp_path / "old.img")
        (tmp_path / "disk1.img").write_bytes(b"another" * 100_000)
        agent.sync()
        await until(lambda: agent.status()["state"] == "STOPPED")
        assert agent.status()["reason"] == "volume-replaced"


@pytest.mark.fault(25)
@pytest.mark.parametrize("size", [3 * MIB + 77, MIB - 1000])
async def test_a_resized_volume_gets_new_geometry_and_old_points_keep_theirs(tmp_path: Path, size: int) -> None:
    config, replica = configured(tmp_path, tracker="scan"), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        old = replica.points[-1].images[1]
        os.truncate(tmp_path / "disk1.img", size)
        agent.sync()
        await until(lambda: replica.points and len(replica.points[-1].images[1]) == size)
        assert agent.status()["rescans"].keys() <= {"geometry-changed"}
    assert replica.points[-1].images[1] == (tmp_path / "disk1.img").read_bytes()
    assert replica.points[0].images[1] == old


async def test_an_operator_cuts_a_labelled_point_over_the_control_socket(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        control = OperatorSocket(agent, config.control_socket)
        await control.start()
        await until(lambda: replica.points)
        answer = await asyncio.to_thread(ask, config.control_socket, "cut", label="before the upgrade")
        assert [p.sequence for p in replica.points if p.cut.label == "before the upgrade"] == [answer["sequence"]]
        with pytest.raises(DrengineError, match="no command"):
            await asyncio.to_thread(ask, config.control_socket, "format-everything")
        status = await asyncio.to_thread(ask, config.control_socket, "status")
        assert status["state"] == "CONTINUOUS"
        await control.close()


async def test_lag_grows_while_the_target_is_gone_and_falls_when_it_is_back(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        await until(lambda: agent.status()["lag_seconds"] < 0.2)
        replica.refuse = Refuse("busy", "later", retryable=True)
        agent.pause()
        await until(lambda: agent.pipeline is None)
        agent.resume()
        first = agent.status()["lag_seconds"]
        await asyncio.sleep(0.2)
        assert agent.status()["lag_seconds"] >= first + 0.15
        replica.refuse = None
        await until(lambda: agent.status()["lag_seconds"] < 0.15)
