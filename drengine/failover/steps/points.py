"""Choosing the recovery point, and how much that loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from drengine.failover.errors import RUN_STATE
from drengine.failover.points import select_point
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult, point_named
from drengine.failover.steps.threads import in_thread
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.terminal import human_duration, human_time

SIGN_SECONDS = 1.0
"""A living source that writes is heard of at least so often: its points come many times a second."""


class ChoosePointStep:
    """Picks the point. It is noted, so that a run that is resumed goes on with the same."""

    kind: ClassVar[StepKind] = StepKind.CHOOSE_POINT

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Nothing was done that could be found."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        point, newest = await in_thread(lambda: _point(step, context))
        declared = context.results["declare"]
        facts = declared["sources"][step.source]
        # The agent says until when the newest point showed all of a source that wrote nothing since.
        represented_ns = min(facts.get("represented_ns", 0), declared["declared_ns"])
        shown_ns = max(point.time_ns, represented_ns) if newest else point.time_ns
        data = describe_point(point) | loss(
            shown_ns,
            declared["declared_ns"],
            facts["sign_ns"],
            evidence=context.results.get(f"fence:{step.source}", {}).get("evidence", ""),
            quiesced="from" in step.settings,
        )
        told = f"point {point.id} of {human_time(point.time_ns)} ({point.kind.value})"
        return StepResult(True, f"{told}, {human_duration(data['rpo_seconds'])} lost", data=data)


def describe_point(point: RecoveryPoint) -> dict[str, Any]:
    """A point as steps and reports tell of it."""
    return {
        "point": point.id,
        "time_ns": point.time_ns,
        "kind": point.kind.value,
        "label": point.label,
        "verified_ns": point.verified_ns,
        "size_bytes": point.size_bytes,
        "volumes": {volume.name: volume.size_bytes for volume in point.geometry},
    }


def loss(shown_ns: int, declared_ns: int, sign_ns: int, *, evidence: str, quiesced: bool) -> dict[str, Any]:
    """How much was written after the moment that the point shows, at most, in seconds, and how that is known.

    A source that still answered when it was fenced may have written until then; one that was dead by then wrote
    nothing after the next sign of life would have been due; one that was stopped before its last point was cut has
    lost nothing.
    """
    since_declared = max(0.0, (declared_ns - shown_ns) / 1e9)
    if quiesced:
        seconds, known = 0.0, "the source was stopped before its last point was cut"
    elif evidence == "agent" or not 0 < sign_ns < declared_ns:
        seconds, known = since_declared, "from the point to the declaration"
    else:
        seconds = min(since_declared, max(0.0, (sign_ns - shown_ns) / 1e9) + SIGN_SECONDS)
        known = f"from the point to {SIGN_SECONDS:g} s after the source's last sign of life"
    return {
        "rpo_seconds": round(seconds, 6),
        "rpo_known_by": known,
        "rpo_declared_seconds": round(since_declared, 6),
    }


def _point(step: PlannedStep, context: StepContext) -> tuple[RecoveryPoint, bool]:
    """The point, and whether it is the source's newest."""
    store = context.site.store
    origin = step.settings.get("from")
    if origin is None:
        chosen = select_point(store, step.source, step.settings["point"])
        return chosen, chosen == select_point(store, step.source, "latest")
    quiesced: Mapping[str, Any] = context.results[origin]
    point = point_named(store, step.source, quiesced["point"])
    if point is None:
        raise DrengineError(RUN_STATE, f"the last point {quiesced['point']} of {step.source!r} is not in the store")
    return point, False
