"""A source that is not in charge: nobody is served, nothing is shipped, whatever is restarted; and the ways back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.nbd.client import NbdClient
from drengine.terminal import main
from drengine.wire.events import Refuse
from drengine_agent.cli.main import commands
from drengine_agent.daemon.client import ask
from drengine_agent.daemon.operator import OperatorSocket
from drengine_agent.fencing.account import how_it_ends, why_it_stands
from drengine_agent.fencing.fence import Fence, FenceRecord, Standing, fenced_record
from tests.agent.daemon.test_service import configured, running, write
from tests.agent.failback.home import at_home, until
from tests.agent.replica import Replica

pytestmark = pytest.mark.timeout(120)


def is_refused(config: Any) -> bool:
    """Whether nobody gets at a disk through the tap."""
    try:
        NbdClient(config.nbd.listen.path, "disk1", timeout_seconds=2.0).close()
    except (DrengineError, OSError):
        return True
    return False


async def test_the_status_tells_which_run_fenced_a_source_and_how_it_is_released(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    first, second = "20261130T000001-shop-aaaa", "20261130T000002-shop-bbbb"
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        assert (agent.status()["why"], agent.status()["release"]) == ("", "")
        await agent.fence(1, "command", run=first, by="ann")
    async with running(config, replica) as agent:
        status = agent.status()
        assert f"run {first}, begun by ann, fenced it" in status["why"]
        assert f"`drengine rollback {first}`" in status["release"]
        assert status["hint"] == status["release"], "not that a newer generation exists: none does"
        assert "`drengine-agent release`" in status["release"]
        await agent.fence(1, "command", run=second, by="bob")
        assert (agent.status()["fence_run"], agent.status()["fence_by"]) == (second, "bob")
        await agent.release(1)
        assert (agent.status()["why"], agent.status()["fence_run"]) == ("", "")


@pytest.mark.parametrize(
    ("reason", "why", "release"),
    [
        ("operator", "somebody fenced it on this host", "drengine-agent release"),
        ("stale", "it was failed over", "drengine failback RUNBOOK"),
        ("lease", "the broker was silent", "drengine-agent release"),
        ("replaced", "a disk was replaced", "drengine failback RUNBOOK"),
    ],
)
def test_every_reason_to_stand_fenced_is_told_in_words(reason: str, why: str, release: str) -> None:
    record = fenced_record(3, reason, SystemClock())
    assert why in why_it_stands(record)
    assert release in how_it_ends(record)


@pytest.mark.fault(45)
async def test_a_fenced_source_cuts_its_clients_off_and_serves_and_ships_nothing_even_after_restarts(
    tmp_path: Path,
) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        client = await asyncio.to_thread(NbdClient, config.nbd.listen.path, "disk1")
        await asyncio.to_thread(client.write, 0, b"before")
        await until(lambda: replica.image().startswith(b"before"))
        await agent.fence(1, "a test")
        with pytest.raises((DrengineError, OSError)):
            await asyncio.to_thread(client.write, 0, b"after!")
        client.close()
        assert is_refused(config)
        assert (agent.is_fenced, agent.is_serving) == (True, False)
        assert (agent.status()["state"], agent.status()["reason"]) == ("STOPPED", "fenced")
        assert agent.status()["fence_reason"] == "a test"
        sessions = replica.sessions
        for order in (agent.sync, agent.resume):
            with pytest.raises(DrengineError) as refused:
                order()
            assert refused.value.kind.id == "source-fenced"
        await asyncio.sleep(0.1)
        assert replica.sessions == sessions
        assert (tmp_path / "disk1.img").read_bytes().startswith(b"before")
        await agent.fence(1, "again")
        assert agent.status()["fence_reason"] == "a test"
    for _ in range(2):
        async with running(config, replica) as agent:
            assert agent.is_fenced and is_refused(config)
            assert agent.capture.server is None, "a server that only holds its clients back"
            await asyncio.sleep(0.05)
            assert replica.sessions == sessions
    async with running(config, replica) as agent:
        await agent.release(agent.generation)
        await write(config, 0, b"and on")
        await until(lambda: replica.image().startswith(b"and on"))
    async with running(config, replica) as agent:
        assert not agent.is_fenced
        await write(config, 0, b"served")


async def test_a_write_that_waits_for_the_target_is_never_called_done_by_a_fence(tmp_path: Path) -> None:
    nbd = {"listen": f"unix:{tmp_path}/n.sock", "journal": "4MiB", "protocol": "sync", "sync_fallback": "1h"}
    config = configured(tmp_path, nbd=nbd, point_interval="1h")
    replica = Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        await until(lambda: agent.status()["nbd_protocol"] == "sync")
        replica.batches_are_not_acknowledged = True
        client = await asyncio.to_thread(NbdClient, config.nbd.listen.path, "disk1", timeout_seconds=20.0)
        writing = asyncio.create_task(asyncio.to_thread(client.write, 0, b"nobody has it"))
        await until(lambda: replica.image().startswith(b"nobody has it"))
        assert not writing.done()
        await agent.fence(1)
        with pytest.raises((DrengineError, OSError)):
            await writing
        client.close()


@pytest.mark.fault(45)
async def test_a_stale_source_that_comes_back_is_fenced_before_anyone_is_served(tmp_path: Path) -> None:
    """Production tries to reach its disk from the first moment, as fast as it can."""
    async with at_home(tmp_path) as home:
        await home.caught_up()
        await home.stop()
        home.promote()
        served = 0
        stop = asyncio.Event()

        def connect() -> bool:
            try:
                NbdClient(str(tmp_path / "n.sock"), "disk1", timeout_seconds=10.0).close()
            except (DrengineError, OSError):
                return False
            return True

        async def production() -> None:
            nonlocal served
            while not stop.is_set():
                served += await asyncio.to_thread(connect)

        trying = asyncio.create_task(production())
        agent = home.start()
        await until(lambda: agent.is_fenced)
        await until((tmp_path / "state" / "fence.json").is_file)
        stop.set()
        await trying
        assert served == 0
        assert home.active.durable_sequence == home.active.base_sequence, "nothing of it is in the history"
        again = await home.restart()
        assert again.is_fenced


async def test_a_cut_network_stops_production_only_as_long_as_its_owner_chose(tmp_path: Path) -> None:
    nbd = {"listen": f"unix:{tmp_path}/n.sock", "journal": "4MiB", "await_target": "300ms"}
    config, replica = configured(tmp_path, nbd=nbd), Replica()
    replica.refuse = Refuse("busy", "nobody knows", retryable=True)
    async with running(config, replica) as agent:
        begun = asyncio.get_running_loop().time()
        assert not agent.is_serving
        await write(config, 0, b"without the target's word")
        assert asyncio.get_running_loop().time() - begun >= 0.25
        assert agent.is_serving and not agent.is_fenced
    config = configured(tmp_path, nbd={**nbd, "await_target": "0s"})
    async with running(config, replica) as agent:
        assert agent.is_serving


@pytest.mark.fault(48)
@pytest.mark.parametrize("code", ["store-behind", "source-busy", "store-full", "unknown-source", "protocol-remote"])
async def test_no_other_refusal_is_taken_for_a_fence(tmp_path: Path, code: str) -> None:
    config, replica = configured(tmp_path), Replica()
    replica.refuse = Refuse(code, "it is something else", retryable=False)
    async with running(config, replica) as agent:
        await until(lambda: agent.status()["detail"])
        assert not agent.is_fenced
    assert Fence(config.state_directory).record.standing is Standing.IN_CHARGE


@pytest.mark.fault(48)
async def test_a_target_restored_from_an_older_copy_fences_nobody(tmp_path: Path) -> None:
    nbd = {"listen": f"unix:{tmp_path}/n.sock", "await_target": "100ms"}
    async with at_home(tmp_path, nbd=nbd) as home:
        await home.caught_up()
        await home.stop()
        agent = home.start()
        agent.replication.take_generation(3, 1)
        await home.restart()
        assert home.agent is not None
        detail = home.agent
        await until(lambda: "store-behind" in str(detail.status()["detail"]))
        assert not detail.is_fenced
        await home.write(0, b"production goes on")


@pytest.mark.parametrize("lost", ["removed", "damaged"])
@pytest.mark.parametrize("rightful", [True, False])
async def test_a_lost_state_fences_nobody_who_is_in_charge_and_brings_nobody_back(
    tmp_path: Path, rightful: bool, lost: str
) -> None:
    async with at_home(tmp_path) as home:
        await home.caught_up()
        await home.stop()
        point = home.store.find_point("shop", PointSelector())
        home.store.promote(point, expected_generation=1, label="run:r1:back" if rightful else "run:r1")
        for name in ("state.json", "fence.json"):
            (tmp_path / "state" / name).unlink(missing_ok=True)
        if lost == "damaged":
            (tmp_path / "state" / "state.json").write_bytes(b"{")
        agent = home.start()
        if rightful:
            await until(lambda: agent.generation == 2 and agent.pipeline is not None)
            await home.write(0, b"it goes on")
            await home.caught_up()
            assert not agent.is_fenced
        else:
            await until(lambda: agent.is_fenced)
            assert is_refused(home.config)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"standing":"on-holiday"}', b"\xff" * 100])
async def test_a_record_that_cannot_be_read_counts_as_fenced(tmp_path: Path, content: bytes) -> None:
    config, replica = configured(tmp_path), Replica()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "fence.json").write_bytes(content)
    async with running(config, replica) as agent:
        assert agent.is_fenced and is_refused(config)
        with pytest.raises(DrengineError, match="neither"):
            await agent.release(1)
        await agent.release(1, force=True)
        await until(lambda: replica.points)


async def test_an_old_order_fences_nobody_and_an_old_generation_is_not_taken_back(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        agent.replication.take_generation(4, 2)
        with pytest.raises(DrengineError, match="over"):
            await agent.fence(3)
        assert not agent.is_fenced
        await agent.fence(4)
        with pytest.raises(DrengineError, match="over"):
            await agent.release(3)
        assert agent.is_fenced
        await agent.release(5, 3)
        assert (agent.generation, agent.branch) == (5, 3)
        await agent.release(5, 3)
    async with running(config, replica) as agent:
        assert (agent.generation, agent.branch, agent.is_fenced) == (5, 3, False)


async def test_errands_are_for_fenced_sources_only(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        for work in (agent.preserve(2, 1), agent.reverse("2-5"), agent.reverse("2-5", force=True)):
            with pytest.raises(DrengineError, match="in charge") as refused:
                await work
            assert refused.value.kind.id == "source-fenced"
        await agent.fence(1)
        for text in ("latest", "before:2026-01-01", "2-", "../../x", "2-5\n"):
            with pytest.raises(DrengineError):
                await agent.reverse(text, force=True)
        with pytest.raises(DrengineError, match="last point"):
            await agent.quiesce()


async def test_a_quiesced_source_has_given_all_that_it_wrote_and_stays_quiet_over_a_restart(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.caught_up()
        agent = home.agent
        assert agent is not None
        await home.write(777, b"the last write" * 500)
        given = await agent.quiesce("run:1")
        point = next(p for p in home.store.points("shop") if p.id == given["point"])
        assert (home.shown(point), point.label) == (home.disks(), "run:1")
        assert is_refused(home.config) and not agent.is_fenced
        agent = await home.restart()
        assert is_refused(home.config) and agent.status()["standing"] == "quiesced"
        await until(lambda: agent.pipeline is not None)
        again = await agent.quiesce("run:1")
        assert home.shown(next(p for p in home.store.points("shop") if p.id == again["point"])) == home.disks()
        await agent.release(agent.generation)
        await home.write(0, b"nothing came of it")
        await home.caught_up()


async def test_a_switch_that_cannot_be_had_leaves_production_where_it_was(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        agent.pause()
        await until(lambda: agent.pipeline is None)
        with pytest.raises(DrengineError, match="no session"):
            await agent.quiesce("x")
        assert agent.is_serving
        await write(config, 0, b"as before")
        assert agent.status()["standing"] == "in-charge"


async def test_a_person_fences_and_releases_over_the_control_socket(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        control = OperatorSocket(agent, config.control_socket)
        await control.start()
        await until(lambda: replica.points)
        status = await asyncio.to_thread(ask, config.control_socket, "fence")
        assert status["standing"] == "fenced" and status["state"] == "STOPPED"
        with pytest.raises(DrengineError, match="read"):
            await asyncio.to_thread(ask, config.control_socket, "release", generation=-1)
        status = await asyncio.to_thread(ask, config.control_socket, "release", generation=2, branch=4)
        assert (status["standing"], status["generation"], status["branch"]) == ("in-charge", 2, 4)
        await control.close()


def test_a_person_fences_a_source_whose_agent_is_not_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    file = tmp_path / "agent.toml"
    file.write_text(
        f'source = "server"\ntarget = "127.0.0.1:1"\nstate_directory = "{config.state_directory}"\n'
        f'[[volume]]\nname = "disk1"\npath = "{tmp_path}/disk1.img"\n'
    )
    assert main(commands, ["fence", "--config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["standing"] == "fenced"
    assert Fence(config.state_directory).record.standing is Standing.FENCED
    assert main(commands, ["release", "--config", str(file)]) == 83


async def test_what_cannot_be_remembered_is_not_called_done_and_still_serves_nobody(tmp_path: Path) -> None:
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        await until(lambda: replica.points)
        (tmp_path / "state" / "fence.json.new").mkdir()
        with pytest.raises(DrengineError) as failed:
            await agent.fence(1)
        assert failed.value.kind.id == "agent-state-damaged"
        assert is_refused(config)
        assert agent.status()["state"] == "STOPPED"
        (tmp_path / "state" / "fence.json.new").rmdir()
        await agent.fence(1)
        assert agent.is_fenced


def test_the_record_is_old_or_new_whatever_is_left_beside_it(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    fence.replace(FenceRecord(Standing.FENCED, 3, "x", equals="2-7", stamps={"a": "b"}))
    (tmp_path / "fence.json.new").write_bytes(b"torn")
    assert Fence(tmp_path).record == fence.record


@pytest.mark.parametrize("seed", range(3))
async def test_fences_and_releases_in_any_order_leave_one_answer(tmp_path: Path, seed: int) -> None:
    """Whatever happens at once, in the end the disks are served exactly when the record says so."""
    random = Random(seed)
    config, replica = configured(tmp_path), Replica()
    async with running(config, replica) as agent:
        for _ in range(5):
            verbs = [random.choice((agent.fence, agent.release)) for _ in range(4)]
            work = [verb(1) for verb in verbs]
            for each in await asyncio.gather(*work, return_exceptions=True):
                assert each is None or isinstance(each, DrengineError), each
            serving = agent.capture.server is not None
            assert serving != agent.is_fenced
            assert is_refused(config) == agent.is_fenced
            assert agent.status()["state"] != "STOPPED" or agent.is_fenced
