"""Starting runs in a world, as the engine does, without a terminal."""

from __future__ import annotations

from typing import Any

from drengine.failover.approvals import subject_of
from drengine.failover.executor import Executor
from drengine.failover.plan import sources_of
from drengine.failover.run import RequestKind, RunRecord, new_run_id
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import Snapshot, observe
from drengine.failover.steps.workloads import instance_name
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.world import World


def create(keeper: MemoryKeeper, mode: Mode, book: Runbook, **options: Any) -> str:
    run = RunRecord(
        id=new_run_id(book.name, 1_700_000_000_000_000_000),
        mode=mode,
        runbook=book.name,
        version="v1",
        sources=sources_of(book),
        started_by="tester",
        created_ns=1,
        options=options,
    )
    keeper.create_run(run)
    return run.id


def executor(world: World, keeper: MemoryKeeper, book: Runbook, **more: Any) -> Executor:
    given: dict[str, Any] = {"owner": "one", "poll_seconds": 0.01, **more}
    return Executor(keeper, given.pop("site", None) or world.site(), book, **given)


async def carry_out(
    world: World, keeper: MemoryKeeper, mode: Mode, book: Runbook, **options: Any
) -> tuple[RunRecord, Snapshot]:
    run = create(keeper, mode, book, **options)
    record = await executor(world, keeper, book).execute(run)
    return record, seen(keeper, run)


def seen(keeper: MemoryKeeper, run: str) -> Snapshot:
    return observe(keeper.entries(run), keeper.requests(run), (), 0, subject=subject_of(keeper.run(run), ""))


def approve(keeper: MemoryKeeper, run: str, by: str, step: str = "all.before.1") -> None:
    """As the orders do, but whoever it is."""
    keeper.request(run, RequestKind.APPROVE, step, by, digest=seen(keeper, run).digest)


def way_home(world: World, failover: str) -> dict[str, Any]:
    """What the engine tells a run on the way home: what runs now on each source's promoted branch."""
    return {
        "launches": {
            source: {
                "run": failover,
                "instance": instance_name(failover, source),
                "branch": world.store.source(source).active_branch,
                "driver": "simulated",
                "host": "",
                "settings": {},
            }
            for source in world.sources
        }
    }
