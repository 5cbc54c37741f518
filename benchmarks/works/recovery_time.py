"""Recovery time: failovers of 1, 10 and 50 servers in one runbook, and where the time of the largest goes, by step."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.results import Contestant, Figure, Measured, Table, contest
from benchmarks.site import environment
from drengine.failover.config import load_orchestrator_config
from drengine.failover.engine import Engine, open_engine
from drengine.failover.measure import measure as measured
from drengine.failover.options import RunOptions
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import Snapshot
from drengine.failover.steps.choose_point import CHOOSE_POINT
from drengine.failover.steps.command import COMMAND
from drengine.failover.steps.declare import DECLARE
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.promote import PROMOTE
from drengine.failover.steps.step import StepKind
from drengine.model.extents import Extent, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.people.roles import Person
from drengine.process import end_marked
from drengine.store.store import Store
from drengine.wire.payload import digest, make_batch

SERVERS = (1, 10, 50)
POINTS = 20
BLOCK = bytes(range(256)) * 256
BLOCKS = 4
MARK = "DRENGINE_BENCHMARK"
READER = """
import pathlib, sys, time, urllib.parse
from drengine.nbd.client import NbdClient
uri = urllib.parse.urlsplit(sys.argv[1])
with NbdClient(urllib.parse.parse_qs(uri.query)["socket"][0], urllib.parse.unquote(uri.path[1:])) as disk:
    assert disk.read(0, 5 << 20) == bytes(range(256)) * (20 << 10)
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)
"""
"""A server: it has started when it has read all 5 MiB of its disk from the target; it keeps the disk open."""

STEPS: tuple[StepKind[Any, Any], ...] = (DECLARE, FENCE, CHOOSE_POINT, PROMOTE, LAUNCH, COMMAND)


def measure(bench: Bench) -> list[Table]:
    """From the declaration to the last check that passed; and each step of the largest."""
    counts = SERVERS[:2] if bench.quick else SERVERS
    newest: dict[int, Snapshot] = {}
    figures = contest(
        [Contestant(_name(n), partial(_failover, bench, n, newest), ours=True) for n in counts], bench.rounds
    )
    tables = [
        Table(
            "recovery_time",
            "Recovery time by the number of servers in a runbook",
            "s",
            figures,
            baseline=_name(1),
            remark="Each server: a fence command, the newest of its points, promotion, a Python process that "
            "reads its disk from the target's daemon over NBD, found healthy by a command, one check.",
        ),
    ]
    if counts[-1] in newest:
        steps = tuple(_step(newest[counts[-1]], kind) for kind in STEPS)
        title = f"One step of a failover of {counts[-1]} servers, side by side with the others"
        remark = "Median of all servers, from the intent in the journal to the result."
        tables.append(Table("recovery_steps", title, "s", steps, remark=remark))
    return tables


def _name(servers: int) -> str:
    return f"{servers} server{'s' if servers > 1 else ''}"


def _failover(bench: Bench, servers: int, newest: dict[int, Snapshot]) -> Measured:
    folder = bench.fresh("recovery")
    names = [f"server-{number}" for number in range(servers)]
    _replicate(folder / "store", names)
    (folder / "runbook.yaml").write_text(json.dumps(_runbook(names, folder)))

    async def run(export: Path) -> Snapshot:
        given = {"store": str(folder / "store"), "state": str(folder / "state"), "export": f"unix:{export}"}
        async with open_engine(load_orchestrator_config(None, given)) as engine:
            return await _carry_out(engine, folder)

    with bench.site(folder) as here:
        target = here.start_target()
        try:
            snapshot = asyncio.run(run(target.nbd))
        finally:
            end_marked(MARK, str(folder), grace_seconds=0.5)
    newest[servers] = snapshot
    seconds = measured(snapshot).rto_seconds
    if seconds is None:
        raise RuntimeError("the failover was not completed")
    return Measured(seconds)


async def _carry_out(engine: Engine, folder: Path) -> Snapshot:
    book, version = engine.load_runbook(folder / "runbook.yaml")
    run = engine.create_run(Mode.FAILOVER, book, version, Person("benchmark"), RunOptions())
    await engine.execute(run)
    return engine.snapshot(run.id)


def _runbook(names: list[str], folder: Path) -> dict[str, object]:
    """JSON is YAML."""
    return {
        "version": 1,
        "name": "benchmark",
        "sources": {name: {"launch": _launch(folder, name), "fence": {"command": ["true"]}} for name in names},
        "waves": [{"name": "all", "sources": names, "then": [{"command": ["true"]}]}],
    }


def _launch(folder: Path, name: str) -> dict[str, object]:
    """The disk's address is in the environment: a shell hands it on."""
    ready = str(folder / f"{name}.ready")
    settings = {
        "run": ["sh", "-c", 'exec "$0" -c "$1" "$DRENGINE_DISK_DISK" "$2"', sys.executable, READER, ready],
        "health": ["test", "-f", ready],
        "environment": {MARK: str(folder), "PYTHONPATH": environment()["PYTHONPATH"]},
    }
    return {"driver": "command", "settings": settings}


def _replicate(path: Path, names: list[str]) -> None:
    """A store with 5 MiB of each server, in 20 points."""
    with Store.create(path) as store:
        for name in names:
            store.ensure_source(name)
            writer = store.writer(name, generation=1)
            writer.append_geometry(1, Mark(), (VolumeGeometry(1, "disk", "file:1", 1 << 30),), generation=1)
            for number in range(POINTS):
                at = range(number * BLOCKS * len(BLOCK), (number + 1) * BLOCKS * len(BLOCK), len(BLOCK))
                rows = [Extent(1, ExtentKind.DATA, offset, len(BLOCK), digest(BLOCK)) for offset in at]
                batch = make_batch(rows, BLOCK * BLOCKS, None)
                writer.append_batch(2 * number + 2, Mark(), batch, generation=1)
                cut = Cut(1_700_000_000_000_000_000 + number, PointKind.WRITE_ORDER)
                writer.append_cut(2 * number + 3, Mark(), cut, generation=1)
            writer.commit(generation=1)
            writer.close()


def _step(snapshot: Snapshot, kind: StepKind[Any, Any]) -> Figure:
    seconds = [(each.ended_ns - each.began_ns) / 1e9 for each in snapshot.steps if each.step.kind is kind]
    return Figure(kind.name, statistics.median(seconds), tuple(seconds), ours=True)
