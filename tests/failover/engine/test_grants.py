"""What a run lets others do at the store: exactly while they need it, and kept secret where it is a secret."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from drengine.audit import FOLDER
from drengine.audit.verify import read_entries
from drengine.failover.drivers.driver import Instance, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.run import Outcome, RequestKind
from drengine.failover.runbook.values import Mode
from drengine.failover.steps import grants
from drengine.failover.steps.workloads import instance_name
from drengine.model.errors import DrengineError
from drengine.model.grants import Access
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.runs import carry_out, create, executor, way_home
from tests.failover.engine.world import World, runbook

pytestmark = pytest.mark.timeout(120)


def recorded(world: World) -> list[str]:
    return [line.entry.did for line in read_entries(world.path / FOLDER) if line.entry.did.startswith("grant.")]


async def test_a_workload_has_a_capability_while_it_lives_and_nothing_that_is_kept_tells_it(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    (request,) = world.driver.running.values()
    found = re.search(r"#(\d+)~([0-9a-f]{32})$", request.disks[0].uri)
    assert found
    branch, secret = int(found[1]), found[2]
    (grant,) = world.store.grants.living()
    assert (grant.branch, grant.access, grant.holder, grant.instance) == (branch, Access.WRITE, "", request.instance)
    assert grant.is_opened_by(secret)
    place = tmp_path / "instances" / f"{request.instance}.capability"
    assert place.stat().st_mode & 0o777 == 0o600
    told = b"".join(msgspec.json.encode(entry.payload) for entry in keeper.entries(record.id))
    assert f"shop/data#{branch}".encode() in told and secret.encode() not in told
    assert secret.encode() not in b"".join(file.read_bytes() for file in world.path.rglob("*") if file.is_file())
    home = await carry_out(world, keeper, Mode.FAILBACK, book, **way_home(world, record.id))
    assert home[0].outcome is Outcome.COMPLETED
    assert world.store.grants.living() == [] and not place.exists()
    assert recorded(world).count("grant.give") == 4, "the disks, preserve, reverse, and reverse once more"
    assert recorded(world).count("grant.take") == 2, "closing and promoting take the others along"


async def test_a_drill_leaves_no_grant_behind_and_each_run_has_a_secret_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    told: list[str] = []
    launch = world.driver.launch

    def noting(request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        told.append(request.disks[0].uri)
        return launch(request, progress)

    monkeypatch.setattr(world.driver, "launch", noting)
    for _ in range(2):
        record, _ = await carry_out(world, keeper, Mode.DRILL, book)
        assert record.outcome is Outcome.COMPLETED
        assert world.store.grants.living() == []
    secrets = {uri.rpartition("~")[2] for uri in told}
    assert len(secrets) == 2 and "" not in secrets
    assert list((tmp_path / "instances").glob("*.capability")) == []


async def test_a_recovery_host_is_named_and_gets_no_secret(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook(host="r1")
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    (request,) = world.driver.running.values()
    (grant,) = world.store.grants.living()
    assert grant.holder == "host/r1" and grant.instance == instance_name(record.id, "shop")
    assert request.disks[0].uri.endswith(f"#{grant.branch}~")
    assert list((tmp_path / "instances").glob("*.capability")) == []


async def test_what_an_orchestrator_of_another_host_has_launched_is_cut_off_before_it_is_launched_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "CUT_OFF_SECONDS", 0.0)
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    begun = world.driver.launch

    def launch(request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        begun(request, progress)
        raise DrengineError(LAUNCH_FAILED, "the host is gone; its workload may not be")

    monkeypatch.setattr(world.driver, "launch", launch)
    run = create(keeper, Mode.FAILOVER, book)
    await executor(world, keeper, book).execute(run)
    (theirs,) = world.store.grants.living()
    monkeypatch.setattr(world.driver, "launch", begun)
    world.driver.running.clear()  # nothing runs on the host that takes over
    elsewhere = dataclasses.replace(world.site(), directory=tmp_path / "elsewhere")
    keeper.request(run, RequestKind.RESUME, "", "ann")
    record = await executor(world, keeper, book, owner="two", site=elsewhere).execute(run)
    assert record.outcome is Outcome.COMPLETED
    (ours,) = world.store.grants.living()
    assert ours.instance == theirs.instance and ours.secret_digest != theirs.secret_digest
    assert ours.is_opened_by((tmp_path / "elsewhere" / f"{ours.instance}.capability").read_text())
