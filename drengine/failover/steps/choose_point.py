"""Choosing the recovery point, and how much that loses."""

from __future__ import annotations

from typing import Any

import msgspec

from drengine.control.messages import AgentReport
from drengine.failover.errors import RUN_STATE
from drengine.failover.points import select_point
from drengine.failover.steps.declare import DECLARE, declared, last_sign
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.points import PointFacts, point_facts, point_with_id
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.process.threads import in_thread
from drengine.store.errors import UNKNOWN_POINT
from drengine.store.store import Store
from drengine.terminal import human_duration, human_time

SIGN_SECONDS = 1.0
"""A living source that writes is heard of at least so often: its points come many times a second."""


class ChoosePointSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which point.

    Attributes:
        point: as a person names it; empty where the source is stopped before.
        after: id of the step that stops the source and takes its last point.
    """

    point: str = ""
    after: str = msgspec.field(name="from", default="")


class ChosenPoint(PointFacts, frozen=True, kw_only=True):
    """The point that a run recovers a source to, and how much was written after the moment that it shows, at most.

    Attributes:
        rpo_seconds: that much.
        rpo_known_by: how that is known.
        rpo_declared_seconds: from that moment to the declaration.
    """

    rpo_seconds: float = 0.0
    rpo_known_by: str = ""
    rpo_declared_seconds: float = 0.0


class ChoosePointStep(StepKind[ChoosePointSettings, ChosenPoint]):
    """Picks the point. It is noted, so that a run that is resumed goes on with the same."""

    name = "choose-point"
    acts = False
    retries = 3
    estimate_seconds = 0.1

    def title(self, source: str, settings: ChoosePointSettings) -> str:
        if settings.after:
            return f"choose the last point of {source}"
        return f"choose the recovery point of {source} ({settings.point})"

    async def act(self, step: PlannedStep[ChoosePointSettings], context: StepContext) -> StepResult[ChosenPoint]:
        point, newest = await in_thread(lambda: _point(step, context))
        declared_ns, source = context.result_of(DECLARE).declared_ns, declared(step, context)
        # The agent says until when the newest point showed all of a source that wrote nothing since.
        represented_ns = min(source.represented_ns, declared_ns)
        shown_ns = max(point.shown_ns, represented_ns) if newest else point.shown_ns
        fenced = context.found(FENCE, step.source)
        data = chosen_point(
            point,
            shown_ns,
            declared_ns,
            source.sign_ns,
            evidence=fenced.evidence if fenced else "",
            quiesced=bool(step.settings.after),
        )
        message = f"point {point.id} of {human_time(point.time_ns)} ({point.kind.value})"
        return StepResult(True, f"{message}, {human_duration(data.rpo_seconds)} lost", data=data)


CHOOSE_POINT = ChoosePointStep()


def chosen_point(
    point: RecoveryPoint, shown_ns: int, declared_ns: int, sign_ns: int, *, evidence: str, quiesced: bool
) -> ChosenPoint:
    """A point with what is lost when it is chosen.

    A source that still answered when it was fenced may have written until then; one that was dead by then wrote
    nothing after the next sign of life would have been due; one that was stopped before its last point was cut has
    lost nothing.

    Args:
        point: which.
        shown_ns: until when it shows everything.
        declared_ns: when the run was declared.
        sign_ns: the source's last sign of life; 0: none.
        evidence: how the source was fenced.
        quiesced: whether it was stopped before the point was cut.
    """
    since_declared = max(0.0, (declared_ns - shown_ns) / 1e9)
    if quiesced:
        seconds, known = 0.0, "the source was stopped before its last point was cut"
    elif evidence == "agent" or not 0 < sign_ns < declared_ns:
        seconds, known = since_declared, "from the point to the declaration"
    else:
        seconds = min(since_declared, max(0.0, (sign_ns - shown_ns) / 1e9) + SIGN_SECONDS)
        known = f"from the point to {SIGN_SECONDS:g} s after the source's last sign of life"
    return ChosenPoint(
        **msgspec.structs.asdict(point_facts(point)),
        rpo_seconds=round(seconds, 6),
        rpo_known_by=known,
        rpo_declared_seconds=round(since_declared, 6),
    )


def expected_point(store: Store, report: AgentReport | None, source: str, text: str, now_ns: int) -> ChosenPoint:
    """The point that a run declared now would choose, and what that would lose.

    Args:
        store, source: where, and whose.
        report: the newest of the source's agent.
        text: as a person names the point.
        now_ns: wall clock.

    Raises:
        DrengineError: as `select_point`.
    """
    point, points = select_point(store, source, text), store.points(source)
    sign = last_sign(points, report, now_ns)
    newest = point == select_point(store, source, "latest")
    shown_ns = max(point.shown_ns, min(sign.represented_ns, now_ns)) if newest else point.shown_ns
    return chosen_point(point, shown_ns, now_ns, sign.at_ns, evidence="", quiesced=False)


def chosen(step: PlannedStep[Any], context: StepContext) -> RecoveryPoint:
    """The point that this run chose for the step's source.

    Raises:
        DrengineError: RUN_STATE, UNKNOWN_POINT.
    """
    id = context.result_of(CHOOSE_POINT, step.source).point
    point = point_with_id(context.site.store, step.source, id)
    if point is None:
        raise DrengineError(UNKNOWN_POINT, f"the chosen point {id} of {step.source!r} is gone")
    return point


def _point(step: PlannedStep[ChoosePointSettings], context: StepContext) -> tuple[RecoveryPoint, bool]:
    """The point, and whether it is the source's newest."""
    store = context.site.store
    if not step.settings.after:
        found = select_point(store, step.source, step.settings.point)
        return found, found == select_point(store, step.source, "latest")
    id = context.result_of(QUIESCE_SOURCE, step.source).point
    point = point_with_id(store, step.source, id)
    if point is None:
        raise DrengineError(RUN_STATE, f"the last point {id} of {step.source!r} is not in the store")
    return point, False
