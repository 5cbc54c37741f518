"""What the store does by itself, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.store.errors import STORE_IO
from drengine.target import metrics as m
from drengine.target.config import load_target_config
from tests.target.agent import running

pytestmark = pytest.mark.timeout(60)


async def test_a_failing_task_is_counted_and_the_daemon_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store") as site:
        maintenance = site.daemon.maintenance

        def broken() -> None:
            raise DrengineError(STORE_IO, "the disk is gone")

        def defect() -> None:
            raise ZeroDivisionError

        assert not await maintenance.run_once("retention", broken)
        assert not await maintenance.run_once("scrub", defect)
        agent = await site.join()
        await agent.declare()
        await agent.acknowledged(await agent.cut())
        text = site.daemon.metrics.metrics.render()
        assert b'maintenance_failures_total{task="retention"} 1.0' in text
        assert b'maintenance_failures_total{task="scrub"} 1.0' in text


async def test_two_maintainers_of_one_store_take_turns(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        maintenance = site.daemon.maintenance
        for task in maintenance._tasks:  # so that none is in the way
            task.cancel()
        await asyncio.gather(*maintenance._tasks, return_exceptions=True)
        async with asyncio.timeout(20):
            while not await maintenance.run_once("compaction", maintenance.compact):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # a thread of the first turn may be at work still
        with site.store.context.locks.maintenance():
            assert not await maintenance.run_once("compaction", maintenance.compact)
        assert await maintenance.run_once("compaction", maintenance.compact)
        assert b"maintenance_failures_total{" not in site.daemon.metrics.metrics.render()


async def test_a_scrub_that_finds_damage_asks_the_connected_source_for_it(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(65536, b"rot!" * 1024)
        await agent.acknowledged(await agent.cut())
        segment = next((tmp_path / "store").rglob("*.seg"))
        data = bytearray(segment.read_bytes())
        data[data.index(b"\x28\xb5\x2f\xfd") + 8] ^= 1
        segment.write_bytes(data)
        maintenance = site.daemon.maintenance
        assert await maintenance.run_once("scrub", maintenance.scrub)
        await maintenance.on_scrubbed()
        assert (await agent.resend()).offset == 65536
        maintenance.gather()
        assert b'drengine_target_damaged_ranges{source="shop"} 1.0' in site.daemon.metrics.metrics.render()
        assert b"scrub_damaged_records_total 1.0" in site.daemon.metrics.metrics.render()
        await agent.write(65536, b"good" * 1024)
        await agent.acknowledged(await agent.cut())
        assert site.store.damaged_ranges("shop") == []
        maintenance.gather()  # and not at the next scrub, which is in a week
        assert b'drengine_target_damaged_ranges{source="shop"} 0.0' in site.daemon.metrics.metrics.render()


async def test_a_scrub_that_never_succeeded_grows_old_as_well(tmp_path: Path) -> None:
    """Otherwise nobody would be told that a store is never scrubbed."""
    async with running(tmp_path / "store") as site:
        started = site.daemon.metrics.last_success["scrub"]

        def defect() -> None:
            raise ZeroDivisionError

        assert not await site.daemon.maintenance.run_once("scrub", defect)
        assert site.daemon.metrics.last_success["scrub"] == started
        assert b'maintenance_success_age_seconds{task="scrub"}' in site.daemon.metrics.metrics.render()


async def test_maintenance_gives_way_to_ingest_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store") as site:
        maintenance, asked = site.daemon.maintenance, 0

        def always_busy() -> bool:
            nonlocal asked
            asked += 1
            return True

        maintenance.is_ingest_busy = always_busy
        monkeypatch.setattr("drengine.target.maintenance.YIELD_SECONDS", 0.0)
        await asyncio.to_thread(maintenance._yield)
        assert asked == 50


def test_every_metric_has_a_base_unit_and_a_bounded_set_of_labels() -> None:
    assert len(m.FAMILIES) == len({family.name for family in m.FAMILIES})
    for family in m.FAMILIES:
        assert family.name.startswith("target_")
        assert set(family.labels) <= {
            "source",
            "volume",
            "state",
            "reason",
            "network",
            "task",
            "role",
            "file",
            "access",
            "sink",
            "folder",
            "target",
            "version",
        }
        assert family.name.endswith("_total") == (family.kind is m.COUNTER), family.name


@pytest.mark.parametrize("task", ["retention", "compaction", "scrub"])
def test_a_task_that_would_never_rest_is_refused(task: str, tmp_path: Path) -> None:
    values = {"store": str(tmp_path), "maintenance": {f"{task}_interval": "0s"}}
    with pytest.raises(DrengineError, match="never rest"):
        load_target_config(None, values)
