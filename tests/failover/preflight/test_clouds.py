"""Before the day a cloud is asked, and what it says is on the list of checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.failover.readiness import Checked, Severity
from drengine.failover.runbook.values import Mode
from tests.failover.drivers.ec2.site import HOST, Network, driver, network
from tests.failover.drivers.ec2.standin import OTHER_OUTPOST, running
from tests.failover.engine.world import runbook
from tests.failover.preflight.test_list import Place


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    with running() as cloud:
        yield network(cloud)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.site = replace(made.site, drivers={**made.site.drivers, "ec2": driver()})
    yield made
    made.registry.close()
    made.world.store.close()


async def found(place: Place, settings: dict[str, Any], mode: Mode = Mode.FAILOVER) -> dict[str, Checked]:
    book = runbook(fence=["true"])
    source = book.sources["shop"]
    launch = msgspec.structs.replace(source.launch, driver="ec2", host=HOST, settings=settings)
    book = msgspec.structs.replace(book, sources={"shop": msgspec.structs.replace(source, launch=launch)})
    return {id: each for id, each in (await place.look(book, mode=mode)).items() if each.check.startswith("cloud-")}


async def test_each_launch_is_asked_once_and_nothing_is_made(built: Network, place: Place) -> None:
    site = built.afresh()
    for mode in (Mode.FAILOVER, Mode.DRILL):
        checks = await found(place, site.settings(), mode)
        assert list(checks) == [f"cloud-{each}:shop" for each in ("reachable", "permitted", "fits", "room")]
        assert all(each.ok for each in checks.values()), checks
    assert "with the region cut off" in checks["cloud-reachable:shop"].message
    assert site.left() == []


async def test_a_wrong_outpost_blocks_and_a_small_quota_warns(built: Network, place: Place) -> None:
    site = built.afresh()
    wrong = (await found(place, site.settings(outpost=OTHER_OUTPOST)))["cloud-fits:shop"]
    assert wrong.blocks
    assert f"not on {OTHER_OUTPOST}" in wrong.message
    site.cloud.quota = 1
    small = (await found(place, site.settings()))["cloud-room:shop"]
    assert not small.ok and small.severity is Severity.WARNS
    assert "L-1216C47A is 1 CPUs" in small.message


async def test_the_region_that_is_away_blocks_before_anything_is_fenced(built: Network, place: Place) -> None:
    away = (await found(place, built.afresh().settings(endpoint="http://127.0.0.1:9")))["cloud-reachable:shop"]
    assert away.blocks
    assert "driver standby" in away.hint
