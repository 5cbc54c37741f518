"""How much the chosen point loses, and how that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.control.messages import AgentReport, PartyKind
from drengine.failover.steps.choose_point import SIGN_SECONDS, ChoosePointStep
from drengine.failover.steps.declare import last_sign
from drengine.failover.steps.kinds import step_kinds
from drengine.model.clock import Clock, SystemClock
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint, VolumeGeometry
from drengine.store.store import Store
from tests.failover.steps.context import context, planned

KINDS = step_kinds()

S = 1_000_000_000
CUT_S = 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Points at 1000 s and 1001 s."""
    return filled(tmp_path / "store")


def filled(directory: Path, *, ahead_s: int = 0, clock: Clock | None = None) -> Store:
    """Points at 1000 s and 1001 s by the clock of a source that is so far ahead."""
    made = Store.create(directory, clock=clock)
    made.ensure_source("shop")
    writer = made.writer("shop", generation=1)
    writer.append_geometry(1, Mark(), (VolumeGeometry(1, "data", "x", 1 << 20),), generation=1)
    for number in (2, 3):
        cut = Cut((CUT_S + number - 2 + ahead_s) * S, PointKind.WRITE_ORDER)
        writer.append_cut(number, Mark(), cut, generation=1)
    writer.commit(generation=1)
    writer.close()
    return made


async def chosen(store: Store, facts: dict[str, Any], *, evidence: str = "", point: str = "latest") -> dict[str, Any]:
    step = planned(KINDS["choose-point"], {"point": point}, source="shop")
    given = context(
        results={
            "declare": {"declared_ns": 1040 * S, "sources": {"shop": {"sign_ns": 0, "represented_ns": 0, **facts}}},
            "fence:shop": {"evidence": evidence},
        }
    )
    given = replace(given, site=replace(given.site, store=store))
    made: dict[str, Any] = msgspec.to_builtins((await ChoosePointStep().act(step, given)).data)
    return made


async def test_a_dead_source_may_have_worked_until_its_next_sign_of_life_was_due(store: Store) -> None:
    data = await chosen(store, {"sign_ns": 1003 * S}, evidence="command")
    assert data["rpo_seconds"] == 2.0 + SIGN_SECONDS


async def test_a_source_that_answered_its_fencing_may_have_worked_until_then(store: Store) -> None:
    assert (await chosen(store, {"sign_ns": 1003 * S}, evidence="agent"))["rpo_seconds"] == 39.0


async def test_a_source_that_wrote_nothing_since_its_newest_point_lost_nothing_by_that(store: Store) -> None:
    facts = {"sign_ns": 1039 * S, "represented_ns": 1039 * S}
    assert (await chosen(store, facts, evidence="agent"))["rpo_seconds"] == 1.0


async def test_that_says_nothing_of_an_older_point(store: Store) -> None:
    facts = {"sign_ns": 1039 * S, "represented_ns": 1039 * S}
    assert (await chosen(store, facts, evidence="agent", point="1-2"))["rpo_seconds"] == 40.0


async def test_an_agent_whose_clock_is_ahead_promises_nothing_beyond_the_declaration(store: Store) -> None:
    facts = {"sign_ns": 1039 * S, "represented_ns": 2000 * S}
    assert (await chosen(store, facts, evidence="agent"))["rpo_seconds"] == 0.0


class StoppedClock(SystemClock):
    """The target's: it shows the second of the newest cut."""

    def now_ns(self) -> int:
        return (CUT_S + 1) * S


@pytest.mark.fault(73)
async def test_a_clock_that_is_ahead_hides_no_loss(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", ahead_s=3600, clock=StoppedClock())
    data = await chosen(store, {"sign_ns": 0}, evidence="agent")
    assert data["rpo_seconds"] == 39.0, "from when the target had it to the declaration"


def reported(at_s: int, lag_s: float) -> AgentReport:
    return AgentReport(
        name="shop", kind=PartyKind.AGENT, state="CONTINUOUS", reason="none", generation=1, fenced=False,
        serving=True, lag_seconds=lag_s, backlog_bytes=0, at_ns=at_s * S, sequence=1,
    )  # fmt: skip


def received(told_s: int) -> list[RecoveryPoint]:
    return [RecoveryPoint("shop", 1, 2, told_s * S, PointKind.QUIET, 1000 * S, ())]


@pytest.mark.fault(73)
@pytest.mark.parametrize("ahead_s", [0, 10, 3600])
def test_an_agents_report_is_read_by_the_clock_of_the_target(ahead_s: int) -> None:
    """It reported 30 s after the point, and had been behind for 20 s."""
    sign = last_sign(received(1000 + ahead_s), reported(1030 + ahead_s, 20.0), 1040 * S)
    assert sign.represented_ns == 1010 * S
    assert sign.at_ns >= 1030 * S, "no life is denied that there may have been"


@pytest.mark.fault(73)
def test_a_clock_that_is_behind_denies_no_life() -> None:
    assert last_sign(received(400), reported(430, 0.0), 1040 * S).at_ns == 1030 * S


@pytest.mark.fault(73)
def test_a_clock_that_leapt_ahead_after_the_newest_point_proves_nothing() -> None:
    assert last_sign(received(1000), reported(5000, 0.0), 1040 * S).represented_ns == 0
