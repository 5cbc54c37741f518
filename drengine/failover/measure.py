"""What a run achieved, from its journal: recovery time, data loss, evidence of fencing. Purely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drengine.failover.run import Status
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.standing import left_fenced, not_started
from drengine.failover.steps.choose_point import CHOOSE_POINT, ChosenPoint
from drengine.failover.steps.declare import DECLARE
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.release import RELEASE
from drengine.failover.steps.reverse import REVERSE
from drengine.failover.steps.reverse_last import REVERSE_LAST
from drengine.failover.steps.step import R, StepKind


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured.

    Attributes:
        declared_ns: when the run was declared: the RTO counts from here.
        recovered_ns: when the last critical launch or check had passed; 0 if they have not all.
        rto_seconds: from the one to the other; None if not recovered.
        outage_seconds: in a planned switch, from the first stop to then; None in others, and while nothing serves.
        rpo_seconds: the worst of all sources; None if no point was chosen.
        rpo_known_by: how that is known.
        points: the chosen points, by source.
        fencing: evidence by source: ``agent``, ``command``, ``lease``, ``none``.
        unfenced: sources that went on without evidence because somebody forced it.
        left_fenced: sources whose agents this run stopped, although nobody else is in charge, and has not released.
        not_started: sources that are in charge again, and of which nothing shows that their workloads serve.
        bytes_shipped_back: by failback, all sources.
    """

    declared_ns: int = 0
    recovered_ns: int = 0
    rto_seconds: float | None = None
    outage_seconds: float | None = None
    rpo_seconds: float | None = None
    rpo_known_by: str = ""
    points: Mapping[str, ChosenPoint] = field(default_factory=dict)
    fencing: Mapping[str, str] = field(default_factory=dict)
    unfenced: tuple[str, ...] = ()
    left_fenced: tuple[str, ...] = ()
    not_started: tuple[str, ...] = ()
    bytes_shipped_back: int = 0


def measure(snapshot: Snapshot) -> Measures:
    """From the state of a run at any moment."""
    main = [each for each in snapshot.steps if not each.step.id.startswith("undo.")]
    declared_ns = next((each.began_ns for each in main if each.step.kind is DECLARE), 0)
    recovered_ns = _recovered_ns(main)
    points = dict(_results(main, CHOOSE_POINT))
    worst = max(points.values(), key=lambda point: point.rpo_seconds, default=None)
    fencing = {source: fenced.evidence for source, fenced in _results(main, FENCE)}
    idle = not_started(snapshot)
    served_ns = recovered_ns or (0 if idle else _released_ns(main))
    stops = (each.began_ns for each in main if each.step.kind.begins_outage and each.begun)
    return Measures(
        declared_ns=declared_ns,
        recovered_ns=recovered_ns,
        rto_seconds=_seconds(declared_ns, recovered_ns),
        outage_seconds=_seconds(min(stops, default=0), served_ns),
        rpo_seconds=worst.rpo_seconds if worst else None,
        rpo_known_by=worst.rpo_known_by if worst else "",
        points=points,
        fencing=fencing,
        unfenced=tuple(source for source, evidence in fencing.items() if evidence == "none"),
        left_fenced=left_fenced(snapshot),
        not_started=idle,
        bytes_shipped_back=sum(
            shipped.bytes_shipped for kind in (REVERSE, REVERSE_LAST) for _, shipped in _results(main, kind)
        ),
    )


def _recovered_ns(steps: Iterable[StepState]) -> int:
    needed = [each for each in steps if each.step.kind.ends_outage and each.step.critical]
    if not needed or any(each.status is not Status.DONE for each in needed):
        return 0
    return max(each.ended_ns for each in needed)


def _released_ns(steps: Iterable[StepState]) -> int:
    released = (each.ended_ns for each in steps if each.step.kind is RELEASE and each.status is Status.DONE)
    return max(released, default=0)


def _results(steps: Iterable[StepState], kind: StepKind[Any, R]) -> list[tuple[str, R]]:
    """What the steps of a kind gave, with their sources."""
    read = ((each.step.source, each.result(kind)) for each in steps)
    return [(source, result) for source, result in read if result is not None]


def _seconds(begin_ns: int, end_ns: int) -> float | None:
    return round((end_ns - begin_ns) / 1e9, 6) if 0 < begin_ns <= end_ns else None
