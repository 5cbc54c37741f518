"""How much the chosen point loses, and how that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.failover.steps.choose_point import SIGN_SECONDS, ChoosePointStep
from drengine.failover.steps.kinds import step_kinds
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.store.store import Store
from tests.failover.steps.context import context, planned

KINDS = step_kinds()

S = 1_000_000_000
CUT_S = 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Points at 1000 s and 1001 s."""
    made = Store.create(tmp_path / "store")
    made.ensure_source("shop")
    writer = made.writer("shop", generation=1)
    writer.append_geometry(1, Mark(), (VolumeGeometry(1, "data", "x", 1 << 20),), generation=1)
    for number in (2, 3):
        cut = Cut((CUT_S + number - 2) * S, PointKind.WRITE_ORDER)
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
