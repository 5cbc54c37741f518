"""The engine's values as the REST API gives them."""

from __future__ import annotations

from typing import Any

import msgspec

from drengine.console import answers as give
from drengine.failover.measure import measure
from drengine.failover.preview import Preview
from drengine.failover.registry.values import Party, StoredRunbook
from drengine.failover.report.make import masked
from drengine.failover.run import JournalEntry, Request, RunRecord
from drengine.failover.runbook.reader import Examined
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import Snapshot, Status
from drengine.model.points import RecoveryPoint
from drengine.store.branches import BranchInfo


def run_answer(run: RunRecord) -> give.RunAnswer:
    """A run as it is listed."""
    return give.RunAnswer(**_listed(run))


def run_detail(run: RunRecord, snapshot: Snapshot) -> give.RunDetail:
    """A run with its steps."""
    measures = measure(snapshot)
    return give.RunDetail(
        **_listed(run),
        waiting_for=[each.step.id for each in snapshot.steps if each.status is Status.WAITING],
        measured=give.Measured(
            declared_ns=measures.declared_ns,
            recovered_ns=measures.recovered_ns,
            rto_seconds=measures.rto_seconds,
            outage_seconds=measures.outage_seconds,
            rpo_seconds=measures.rpo_seconds,
            rpo_known_by=measures.rpo_known_by,
            fencing=dict(measures.fencing),
            unfenced=list(measures.unfenced),
            bytes_shipped_back=measures.bytes_shipped_back,
        ),
        steps=[
            give.StepAnswer(
                id=each.step.id,
                kind=each.step.kind.value,
                title=masked(each.step.title),
                wave=each.step.wave,
                source=each.step.source,
                status=each.status.value,
                critical=each.step.critical,
                attempt=each.attempt,
                began_ns=each.began_ns,
                ended_ns=each.ended_ns,
                code=each.code,
                message=masked(each.message),
                output=masked(each.output),
            )
            for each in snapshot.steps
        ],
    )


def _listed(run: RunRecord) -> dict[str, Any]:
    return {
        "id": run.id,
        "mode": run.mode.value,
        "runbook": run.runbook,
        "version": run.version,
        "sources": list(run.sources),
        "started_by": run.started_by,
        "created_ns": run.created_ns,
        "state": run.state.value,
        "outcome": run.outcome.value,
        "reason": run.reason,
        "finished_ns": run.finished_ns,
    }


def entry_answer(entry: JournalEntry) -> give.EntryAnswer:
    """A line of a journal; plans carry settings, which may hold secrets, so they are given without."""
    payload = dict(entry.payload)
    if isinstance(payload.get("steps"), list):
        payload["steps"] = [
            {key: value for key, value in step.items() if key != "settings"} for step in payload["steps"]
        ]
    texts = {key: masked(value) for key, value in payload.items() if isinstance(value, str)}
    return give.EntryAnswer(
        seq=entry.seq,
        step=entry.step,
        event=entry.event.value,
        attempt=entry.attempt,
        at_ns=entry.at_ns,
        payload=payload | texts,
    )


def request_answer(request: Request) -> give.RequestAnswer:
    """What somebody asked."""
    return give.RequestAnswer(
        run=request.run,
        kind=request.kind.value,
        step=request.step,
        by=request.by,
        note=masked(request.note),
        at_ns=request.at_ns,
        seq=request.seq,
    )


def runbook_answer(runbook: StoredRunbook) -> give.RunbookAnswer:
    """A version of a runbook."""
    return give.RunbookAnswer(name=runbook.name, version=runbook.version, at_ns=runbook.at_ns, text=runbook.text)


def validation(examined: Examined) -> list[give.FindingAnswer]:
    """What was found in a runbook."""
    return [
        give.FindingAnswer(
            id=each.id,
            line=each.place.line,
            column=each.place.column,
            path=each.path,
            message=each.message,
            hint=each.hint,
            warning=each.warning,
        )
        for each in examined.findings
    ]


def plan_answer(mode: Mode, runbook: str, found: Preview) -> give.PlanAnswer:
    """What a run would do."""
    return give.PlanAnswer(
        mode=mode.value,
        runbook=runbook,
        predicted_seconds=found.predicted_seconds,
        points={source: dict(point) for source, point in found.points.items()},
        steps=[
            give.PlannedAnswer(
                id=each.id,
                kind=each.kind.value,
                title=masked(each.title),
                needs=list(each.needs),
                source=each.source,
                wave=each.wave,
                seconds=found.seconds[each.id],
                measured=each.id in found.measured,
            )
            for each in found.steps
        ],
    )


def party_answer(party: Party) -> give.PartyAnswer:
    """A party as it was last heard of."""
    return give.PartyAnswer(
        kind=party.kind.value,
        name=party.name,
        online=party.online,
        since_ns=party.since_ns,
        release=party.release,
        reported_ns=party.reported_ns,
        report=msgspec.to_builtins(party.report) if party.report else None,
    )


def point_answer(point: RecoveryPoint) -> give.PointAnswer:
    """A recovery point."""
    return give.PointAnswer(
        id=point.id,
        branch=point.branch,
        sequence=point.sequence,
        time_ns=point.time_ns,
        received_ns=point.received_ns,
        kind=point.kind.value,
        label=point.label,
        verified_ns=point.verified_ns,
        damaged=point.damaged,
        pinned=point.pinned,
        volumes={volume.name: volume.size_bytes for volume in point.geometry},
    )


def branch_answer(branch: BranchInfo) -> give.BranchAnswer:
    """A branch."""
    return give.BranchAnswer(
        number=branch.number,
        parent=branch.parent,
        base_sequence=branch.base_sequence,
        generation=branch.generation,
        role=branch.role,
        label=branch.label,
        closed=branch.closed,
        active=branch.active,
    )
