"""What a run would do, and what a rollback would lose: looked up, touching nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from drengine.failover.answers import AddressChange, ExpectedPoint, Plan, planned_answer
from drengine.failover.engine import Engine
from drengine.failover.errors import RUN_STATE
from drengine.failover.labels import RunLabel
from drengine.failover.options import RunOptions
from drengine.failover.plan import plan, predicted_seconds
from drengine.failover.run import RunRecord, Status
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import Snapshot
from drengine.failover.steps.choose_point import CHOOSE_POINT, ChoosePointSettings, expected_point
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.workloads import inventories_of, servers_of
from drengine.model.errors import DrengineError

EARLIER_RUNS = 10


def preview(engine: Engine, mode: Mode, book: Runbook, options: RunOptions) -> Plan:
    """What a run of this runbook would do now.

    Raises:
        DrengineError: RUN_STATE where there is no way home because nothing was failed over; UNKNOWN_SOURCE.
    """
    steps = plan(mode, book, engine.with_standing(options, mode, book).kept())
    known = durations(earlier_snapshots(engine, mode, book.name))
    seconds = {step.id: known.get(step.id, step.kind.estimate_seconds) for step in steps}
    return Plan(
        mode=mode,
        runbook=book.name,
        predicted_seconds=predicted_seconds(steps, seconds),
        points={step.source: _point(engine, step) for step in steps if step.kind is CHOOSE_POINT},
        steps=[planned_answer(step, seconds[step.id], measured=step.id in known) for step in steps],
        addresses=list(_addresses(engine, mode, book)) if any(step.kind is LAUNCH for step in steps) else [],
    )


def earlier_snapshots(engine: Engine, mode: Mode, runbook: str) -> list[Snapshot]:
    """Of the newest runs of a runbook in a mode; drills tell about failovers too, where nothing better is known."""
    for modes in ((mode,), (Mode.FAILOVER, Mode.DRILL)):
        runs = [run for each in modes for run in engine.registry.runs(mode=each, runbook=runbook, limit=EARLIER_RUNS)]
        if runs:
            return [engine.snapshot(run.id) for run in runs]
    return []


def durations(snapshots: Sequence[Snapshot]) -> dict[str, float]:
    """Median seconds of each step that was done, by id."""
    found: dict[str, list[float]] = {}
    for snapshot in snapshots:
        for state in snapshot.steps:
            if state.status is Status.DONE and not state.step.kind.asks_people:
                found.setdefault(state.step.id, []).append(max(0.0, (state.ended_ns - state.began_ns) / 1e9))
    return {id: median(each) for id, each in found.items()}


@dataclass(frozen=True, slots=True)
class Loss:
    """What a rollback gives up on the recovered side of one source.

    Attributes:
        branch: it stays until its retention ends.
        records: changes that it holds beyond the point that was promoted.
        newest_ns: time of its newest point, 0 if it has none.
    """

    source: str
    branch: int
    records: int
    newest_ns: int


def losses(engine: Engine, run: RunRecord) -> list[Loss]:
    """What a rollback of a failover would lose; branches on which nothing was written are left out.

    Raises:
        DrengineError: RUN_STATE when a source was promoted or handed back after the run.
    """
    store, found = engine.site.store, []
    for source in run.sources:
        branch = RunLabel(run.id).branch(store, source)
        if branch is None or branch.role != "promoted":
            continue
        if not branch.active:
            raise DrengineError(RUN_STATE, f"{source!r} has changed hands since {run.id}: its branch is not active")
        records = branch.durable_sequence - branch.base_sequence
        points = store.points(source, branch=branch.number)
        if records:
            found.append(Loss(source, branch.number, records, points[-1].time_ns if points else 0))
    return found


def _addresses(engine: Engine, mode: Mode, book: Runbook) -> Iterator[AddressChange]:
    inventories = inventories_of(engine.site.store, book)
    for source, server in servers_of(book, inventories, "", isolated=mode is Mode.DRILL).items():
        inventory = inventories[source]
        old = {each.name: each.addresses for each in inventory.interfaces} if inventory else {}
        for card in server.cards:
            yield AddressChange(
                source=source,
                interface=card.name,
                old=list(old.get(card.name, ())),
                new=list(card.addresses),
                dhcp=card.dhcp,
                mac=card.mac,
                gateway=card.gateway,
                name_servers=list(card.name_servers),
                search=list(card.search),
            )


def _point(engine: Engine, step: PlannedStep[ChoosePointSettings]) -> ExpectedPoint:
    """The point that would be chosen, or why there is none."""
    if step.settings.after:
        return ExpectedPoint(point="the one that is cut when the source has stopped")
    now_ns = engine.site.clock.now_ns()
    try:
        report = engine.site.agents.reports().get(engine.site.store.home(step.source).agent)
        chosen = expected_point(engine.site.store, report, step.source, step.settings.point, now_ns)
    except DrengineError as error:
        return ExpectedPoint(error=error.message)
    return ExpectedPoint(**msgspec.structs.asdict(chosen))
