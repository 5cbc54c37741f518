"""Where a run leaves its sources: fenced although they are in charge, or in charge with nothing started. Purely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from drengine.failover.run import Status
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.steps.declare import DECLARE
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.hand_back import HAND_BACK
from drengine.failover.steps.promote import PROMOTE
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE
from drengine.failover.steps.release import RELEASE


def stopped_agents(snapshot: Snapshot) -> frozenset[str]:
    """Sources whose agents serve and ship nothing, or may do so, because this run told them to."""
    quiesced = {each.step.source for each in snapshot.steps if each.step.kind is QUIESCE_SOURCE and each.begun}
    fences = (each for each in snapshot.steps if each.step.kind is FENCE and each.begun)
    return frozenset(quiesced | {each.step.source for each in fences if _may_hold(each)})


def left_fenced(snapshot: Snapshot) -> tuple[str, ...]:
    """Sources that are in charge by the store's word, and whose agents this run has stopped and not released."""
    by_source = _by_source(snapshot.steps)
    return tuple(source for source in sorted(stopped_agents(snapshot)) if _in_charge(by_source[source]))


def not_started(snapshot: Snapshot) -> tuple[str, ...]:
    """Sources that were put in charge again, and of which nothing shows that their workloads serve."""
    released = [each for each in snapshot.steps if each.step.kind is RELEASE and each.through and each.begun]
    silent = [each for each in released if not ((result := each.result(RELEASE)) and result.started)]
    return () if _is_proved(snapshot.steps) else tuple(sorted(each.step.source for each in silent))


def _may_hold(fence: StepState) -> bool:
    """Whether the agent was told; unknown where its answer, or the end of the step, was not noted."""
    if not fence.data:
        return True
    found = FENCE.read_result(fence.data)
    return found is None or bool(found.agent) or found.evidence == "agent"


def _in_charge(steps: Iterable[StepState]) -> bool:
    """Whether one source may write by the store's word, and its agent was not told so."""
    promoted = handed = False
    for each in steps:
        promoted |= each.step.kind is PROMOTE and each.begun
        handed |= each.step.kind is HAND_BACK and each.status is Status.DONE
        if each.step.kind is RELEASE and each.status in (Status.DONE, Status.SKIPPED):
            return False
    is_way_home = not any(each.step.kind in (PROMOTE, QUIESCE_SOURCE) for each in steps)
    return handed or not (promoted or is_way_home)


def _is_proved(steps: Iterable[StepState]) -> bool:
    """Whether a critical check or command behind a source's release has passed: somebody serves."""
    known = {each.step.id: each for each in steps}
    behind = {id for id, each in known.items() if each.step.kind is RELEASE}
    for id, each in known.items():  # a plan has each step after those it needs
        if behind.intersection(each.step.needs):
            behind.add(id)
    proofs = (known[id] for id in behind if known[id].step.kind.ends_outage)
    return any(each.step.critical and each.status is Status.DONE for each in proofs)


def _by_source(steps: Iterable[StepState]) -> Mapping[str, list[StepState]]:
    found: dict[str, list[StepState]] = {}
    for each in steps:
        if each.step.kind is not DECLARE:
            found.setdefault(each.step.source, []).append(each)
    return found
