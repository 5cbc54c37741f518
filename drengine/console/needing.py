"""What a run leaves for people to do: a run that waits, a source that was not fenced. Read from runs and journals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from drengine.failover.measure import Measures, measure
from drengine.failover.run import Event, JournalEntry, Outcome, RunRecord, RunState
from drengine.failover.snapshot import observe
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.promote import PROMOTE


@dataclass(frozen=True, slots=True)
class Told:
    """What a run's journal says.

    Attributes:
        fenced: for each source whose fencing was tried: whether the newest try gave evidence.
        has_promoted: something of it is in charge, or was.
        newest_ns: when anything was noted last.
    """

    measures: Measures
    fenced: Mapping[str, bool] = field(default_factory=dict)
    has_promoted: bool = False
    newest_ns: int = 0


def told_by(entries: Sequence[JournalEntry]) -> Told:
    """Read a journal."""
    results = [each for each in entries if each.event is Event.RESULT]
    fence, promote = f"{FENCE.name}:", f"{PROMOTE.name}:"
    return Told(
        measures=measure(observe(entries, (), (), 0)),
        fenced={each.step.removeprefix(fence): _has_evidence(each) for each in results if each.step.startswith(fence)},
        has_promoted=any(each.step.startswith(promote) and each.payload.get("ok") for each in results),
        newest_ns=max((each.at_ns for each in entries), default=0),
    )


def _has_evidence(result: JournalEntry) -> bool:
    data = result.payload.get("data") or {}
    return bool(result.payload.get("ok")) and data.get("evidence") != "none"


def unfenced_sources(newest_first: Iterable[tuple[RunRecord, Told]]) -> dict[tuple[str, str], bool]:
    """By runbook and source, whether a source may still be writing beside what was recovered.

    It ends with evidence of a fence, also by a later run, and with the reason for it: the run was rolled back, or ended
    before anything was promoted.
    """
    found: dict[str, tuple[str, bool]] = {}
    for run, told in reversed(list(newest_first)):
        is_over = run.state is RunState.FINISHED and (run.outcome is Outcome.ROLLED_BACK or not told.has_promoted)
        for source, fenced in told.fenced.items():
            found[source] = run.runbook, not fenced and not is_over
    return {(runbook, source): unfenced for source, (runbook, unfenced) in found.items()}
