"""Going on with a stopped run by a changed runbook: which steps it has from then on. Purely.

Invariants:
- What is done stays done, and stays what it was: a step that is done is in the new plan, with the same settings.
- Nothing that is done needs something that is not: no new step comes before one that is done already.
- What was launched by other settings and did not become healthy is stopped by those, before it is launched again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from drengine.failover.errors import RUNBOOK_UNFIT
from drengine.failover.plan import plan, sources_of
from drengine.failover.run import RunRecord, Status
from drengine.failover.runbook.values import Runbook
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.steps.kinds import step_json
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.stop_workload import STOP_WORKLOAD
from drengine.model.errors import DrengineError

CLEAR = "again"
"""Begins the ids of steps that stop what earlier settings launched; a number follows."""
COMPLAINTS_MAX = 5


def replan(run: RunRecord, book: Runbook, snapshot: Snapshot) -> tuple[PlannedStep[Any], ...]:
    """The steps of a run that goes on by this runbook.

    Raises:
        DrengineError: RUNBOOK_UNFIT, naming what does not fit.
    """
    complaints = list(_of_whole(run, book, snapshot))
    steps = plan(run.mode, book, run.options) if not complaints else ()
    if not complaints:
        complaints = list(_of_steps(steps, snapshot))
    if complaints:
        more = f"; and {len(complaints) - COMPLAINTS_MAX} more" if len(complaints) > COMPLAINTS_MAX else ""
        raise DrengineError(RUNBOOK_UNFIT, "; ".join(complaints[:COMPLAINTS_MAX]) + more)
    return tuple(_cleared(steps, snapshot))


def _of_whole(run: RunRecord, book: Runbook, snapshot: Snapshot) -> Iterator[str]:
    if snapshot.rolling_back:
        yield "the run is being rolled back, by the runbook that it has"
    if book.name != run.runbook:
        yield f"the run is of runbook {run.runbook!r}, this one is {book.name!r}"
    held, named = set(run.sources), set(sources_of(book))
    if held != named:
        changed = ", ".join(sorted(held ^ named))
        yield f"the run holds {', '.join(sorted(held))}; added or left out: {changed}"


def _of_steps(steps: Sequence[PlannedStep[Any]], snapshot: Snapshot) -> Iterator[str]:
    planned = {step.id: step for step in steps}
    done = {each.step.id for each in snapshot.steps if _is_done(each)}
    for state in snapshot.steps:
        id = state.step.id
        if id not in done or id.startswith(CLEAR):
            continue
        if id not in planned:
            if state.step.kind.acts:
                yield f"step {id} ({state.step.title}) is done, and the runbook has it no more"
            continue
        changed = _changed(state.step, planned[id])
        if changed:
            yield f"step {id} is done, and would have another {changed}"
        for need in planned[id].needs:
            if need not in done and not _is_tolerated(need, snapshot):
                yield f"step {need} would come before {id}, which is done"


def _cleared(steps: Sequence[PlannedStep[Any]], snapshot: Snapshot) -> Iterator[PlannedStep[Any]]:
    """The steps, and before each launch that is not done what stops what its earlier settings may have left running."""
    before = {each.step.id: each for each in snapshot.steps}
    left = [each.step for each in snapshot.steps if each.step.id.startswith(CLEAR) and not _is_done(each)]
    for step in steps:
        clearing = [each for each in left if each.source == step.source]
        known = before.get(step.id)
        if step.kind is LAUNCH and known is not None and known.begun and not _is_done(known):
            if _changed(known.step, step):
                clearing.append(_clearing(known, step))
            yield from clearing
            yield replace(step, needs=(*step.needs, *(each.id for each in clearing)))
        else:
            yield step


def _clearing(known: StepState, step: PlannedStep[Any]) -> PlannedStep[Any]:
    return PlannedStep(
        id=f"{CLEAR}{known.attempt}.{STOP_WORKLOAD.step_id(step.source)}",
        kind=STOP_WORKLOAD,
        title=f"stop what the earlier runbook launched of {step.source}",
        settings=known.step.settings,
        needs=step.needs,
        source=step.source,
        wave=step.wave,
        timeout_seconds=max(STOP_WORKLOAD.timeout_seconds, step.timeout_seconds),
        retries=STOP_WORKLOAD.retries,
    )


def _changed(old: PlannedStep[Any], new: PlannedStep[Any]) -> str:
    """What differs of what a step does; its limits and its place may."""
    was, now = _done_by(old), _done_by(new)
    return next((name for name in was if was[name] != now[name]), "")


def _done_by(step: PlannedStep[Any]) -> Mapping[str, Any]:
    kept = step_json(step)
    return {name: kept[name] for name in ("kind", "source", "settings")}


def _is_done(state: StepState) -> bool:
    return state.status in (Status.DONE, Status.SKIPPED)


def _is_tolerated(id: str, snapshot: Snapshot) -> bool:
    return any(each.step.id == id and each.through for each in snapshot.steps)
