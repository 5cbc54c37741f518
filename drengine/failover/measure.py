"""What a run achieved, from its journal: recovery time, data loss, evidence of fencing. Purely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drengine.failover.snapshot import Snapshot, Status, StepState
from drengine.failover.steps.step import StepKind

RECOVERING = (StepKind.LAUNCH, StepKind.HTTP, StepKind.TCP, StepKind.SQL, StepKind.COMMAND, StepKind.DNS)
"""Steps after which users may work: the last critical one of them ends the outage."""

SWITCHING = (StepKind.QUIESCE_SOURCE, StepKind.QUIESCE_RECOVERED)
"""Steps with which a planned outage begins."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured.

    Attributes:
        declared_ns: when the run was declared: the RTO counts from here.
        recovered_ns: when the last critical launch or check had passed; 0 if they have not all.
        rto_seconds: from the one to the other; None if not recovered.
        outage_seconds: in a planned switch, from the first stop to then; None in others.
        rpo_seconds: the worst of all sources; None if no point was chosen.
        rpo_known_by: how that is known.
        points: data of the chosen points, by source.
        fencing: evidence by source: ``agent``, ``command``, ``lease``, ``none``.
        unfenced: sources that went on without evidence because somebody forced it.
        bytes_shipped_back: by failback, all sources.
    """

    declared_ns: int = 0
    recovered_ns: int = 0
    rto_seconds: float | None = None
    outage_seconds: float | None = None
    rpo_seconds: float | None = None
    rpo_known_by: str = ""
    points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fencing: Mapping[str, str] = field(default_factory=dict)
    unfenced: tuple[str, ...] = ()
    bytes_shipped_back: int = 0


def measure(snapshot: Snapshot) -> Measures:
    """From the state of a run at any moment."""
    main = [each for each in snapshot.steps if not each.step.id.startswith("undo.")]
    declared_ns = next((each.began_ns for each in main if each.step.kind is StepKind.DECLARE), 0)
    recovered_ns = _recovered_ns(main)
    points = {each.step.source: each.data for each in _done(main, StepKind.CHOOSE_POINT)}
    worst = max(points.values(), key=lambda data: data["rpo_seconds"], default=None)
    fencing = {each.step.source: str(each.data.get("evidence", "")) for each in _done(main, StepKind.FENCE)}
    return Measures(
        declared_ns=declared_ns,
        recovered_ns=recovered_ns,
        rto_seconds=_seconds(declared_ns, recovered_ns),
        outage_seconds=_seconds(
            min((each.began_ns for each in main if each.step.kind in SWITCHING and each.begun), default=0),
            recovered_ns or _released_ns(main),
        ),
        rpo_seconds=worst["rpo_seconds"] if worst else None,
        rpo_known_by=worst["rpo_known_by"] if worst else "",
        points=points,
        fencing=fencing,
        unfenced=tuple(source for source, evidence in fencing.items() if evidence == "none"),
        bytes_shipped_back=sum(
            int(each.data.get("bytes_shipped", 0))
            for kind in (StepKind.REVERSE, StepKind.REVERSE_LAST)
            for each in _done(main, kind)
        ),
    )


def _recovered_ns(steps: Iterable[StepState]) -> int:
    needed = [each for each in steps if each.step.kind in RECOVERING and each.step.critical]
    if not needed or any(each.status is not Status.DONE for each in needed):
        return 0
    return max(each.ended_ns for each in needed)


def _released_ns(steps: Iterable[StepState]) -> int:
    return max((each.ended_ns for each in _done(steps, StepKind.RELEASE)), default=0)


def _done(steps: Iterable[StepState], kind: StepKind) -> list[StepState]:
    return [each for each in steps if each.step.kind is kind and each.status is Status.DONE]


def _seconds(begin_ns: int, end_ns: int) -> float | None:
    return round((end_ns - begin_ns) / 1e9, 6) if 0 < begin_ns <= end_ns else None
