"""What was asked of runs and what they did is in the audit log, or it is not done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.audit import AuditLog, Entry
from drengine.audit import Outcome as Recorded
from drengine.audit.errors import AUDIT_UNUSABLE
from drengine.audit.verify import read_entries, verify
from drengine.control.agents import NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.engine import Engine
from drengine.failover.orders import Orders
from drengine.failover.registry import Registry
from drengine.failover.run import Outcome
from drengine.failover.runbook.values import Mode
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.door import Door
from tests.failover.engine.test_engine import write_book
from tests.failover.engine.world import World
from tests.persons import ANN, BOB, VIC


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.fixture
def engine(world: World, tmp_path: Path) -> Iterator[Engine]:
    audit = AuditLog.open(tmp_path / "audit")
    registry = Registry.open(f"sqlite:///{tmp_path}/registry.sqlite", clock=SystemClock(), audit=audit)
    config = OrchestratorConfig(store=world.path, state=tmp_path / "state")
    yield Engine(config, registry, world.site(), NoAgents(), "here", Door.of(config.state, SystemClock()))
    registry.close()


def entries(tmp_path: Path) -> list[Entry]:
    assert verify(tmp_path / "audit").broken == ""
    return [line.entry for line in read_entries(tmp_path / "audit")]


async def test_a_failover_is_recorded_from_its_beginning_to_its_end(engine: Engine, tmp_path: Path) -> None:
    orders = Orders(engine, BOB)
    run = orders.begin(Mode.FAILOVER, Path(write_book(tmp_path, ask=True)))
    await engine.execute(run, wait=False)
    Orders(engine, ANN).approve(run.id, note="password=hunter2")
    assert (await engine.execute(run)).outcome is Outcome.COMPLETED
    orders.commit(run.id)
    told = entries(tmp_path)
    assert {each.on for each in told} == {run.id}
    assert [(each.who, each.did) for each in told] == [
        ("person:bob", "run.begin"),
        ("drengine", "report.keep"),
        ("person:ann", "run.approve"),
        ("drengine", "step.fence"),
        ("drengine", "step.promote"),
        ("drengine", "step.launch"),
        ("drengine", "step.command"),
        ("drengine", "run.end"),
        ("drengine", "report.keep"),
        ("person:bob", "run.commit"),
    ]
    assert told[0].details["mode"] == "failover" and told[0].details["sources"] == ["shop"]
    assert told[2].details["note"] == "password=***"
    assert (told[2].proved, len(told[2].details["digest"])) == ("login:ann", 64)
    kept = (tmp_path / f"state/reports/{run.id}.html").read_bytes()
    assert told[-2].details["sha256"][f"{run.id}.html"] == hashlib.sha256(kept).hexdigest()
    assert told[-3].details["outcome"] == "completed"


async def test_what_can_not_be_recorded_is_not_asked(engine: Engine, tmp_path: Path) -> None:
    orders = Orders(engine, BOB)
    run = orders.begin(Mode.FAILOVER, Path(write_book(tmp_path, ask=True)))
    await engine.execute(run, wait=False)
    head = tmp_path / "audit/head"
    head.rename(tmp_path / "head")
    head.mkdir()
    for refused in (
        lambda: Orders(engine, ANN).approve(run.id),
        lambda: orders.abort(run.id),
    ):
        with pytest.raises(DrengineError) as caught:
            refused()
        assert caught.value.kind is AUDIT_UNUSABLE
    assert engine.registry.requests(run.id) == [] and [each.id for each in engine.registry.runs()] == [run.id]
    head.rmdir()
    (tmp_path / "head").rename(head)
    Orders(engine, ANN).approve(run.id)
    assert entries(tmp_path)[-1].did == "run.approve"


def test_a_run_that_can_not_be_recorded_is_not_begun(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "audit/head").unlink()
    (tmp_path / "audit/head").mkdir()
    with pytest.raises(DrengineError) as caught:
        Orders(engine, BOB).begin(Mode.DRILL, Path(write_book(tmp_path)))
    assert caught.value.kind is AUDIT_UNUSABLE
    assert engine.registry.runs() == []


async def test_a_run_under_way_goes_on_when_nothing_can_be_recorded(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Orders(engine, BOB).begin(Mode.FAILOVER, Path(write_book(tmp_path)))
    (tmp_path / "audit/head").unlink()
    (tmp_path / "audit/head").mkdir()
    assert (await engine.execute(run)).outcome is Outcome.COMPLETED
    assert "step.promote" in caplog.text and "run.end" in caplog.text


def refused(tmp_path: Path) -> list[tuple[str, str, str, str, str]]:
    return [
        (each.who, each.proved, each.did, each.on, each.error)
        for each in entries(tmp_path)
        if each.outcome is Recorded.REFUSED
    ]


async def test_orders_that_are_refused_are_recorded_with_who_gave_them(engine: Engine, tmp_path: Path) -> None:
    run = Orders(engine, BOB).begin(Mode.DRILL, Path(write_book(tmp_path, ask=True)))
    for order in (
        lambda: Orders(engine, VIC).approve(run.id),
        lambda: Orders(engine).abort(run.id),
        lambda: Orders(engine, BOB).commit(run.id),
        lambda: Orders(engine, BOB).rollback(run.id),
    ):
        with pytest.raises(DrengineError):
            order()
    engine.registry.witness.close()
    assert refused(tmp_path) == [
        ("person:vic", VIC.proof, "run.approve", run.id, "not-permitted"),
        ("nobody", "", "run.abort", run.id, "not-signed-in"),
        ("person:bob", BOB.proof, "run.commit", run.id, "run-state"),
        ("person:bob", BOB.proof, "run.rollback", run.id, "run-state"),
    ]
