"""Handing a source back to itself at the store."""

from __future__ import annotations

from typing import Literal

import msgspec

from drengine.failover.labels import Purpose, RunLabel
from drengine.failover.steps.branches import STORE_TRIES, Branched, found, made, newest_point
from drengine.failover.steps.declare import declared, home_of
from drengine.failover.steps.points import point_with_id
from drengine.failover.steps.reverse_last import REVERSE_LAST
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.errors import DrengineError
from drengine.process.threads import in_thread
from drengine.store.errors import FENCED, UNKNOWN_POINT


class HandBackSettings(msgspec.Struct, frozen=True):
    """Where the source goes on.

    Attributes:
        to: on what the recovered side wrote last, or, when a run is rolled back, on what the source itself had shipped.
        host: the agent to which it moves; empty: where it lives.
    """

    to: Literal["recovered", "source"]
    host: str = ""


class HandBackStep(StepKind[HandBackSettings, Branched]):
    """Puts the source in charge at the store, under the next generation."""

    name = "hand-back"
    retries = STORE_TRIES
    estimate_seconds = 0.1
    hands_back = True
    later_settings = frozenset({"host"})

    def title(self, source: str, settings: HandBackSettings) -> str:
        if settings.host:
            return f"move {source} to {settings.host}, under the next generation"
        if settings.to == "recovered":
            return f"hand {source} the next generation"
        return f"give {source} the branch that it wrote, under the next generation"

    async def check(self, step: PlannedStep[HandBackSettings], context: StepContext) -> StepResult[Branched] | None:
        label = _label(step, context)
        return await in_thread(lambda: found(context, step.source, label, "promoted"))

    async def act(self, step: PlannedStep[HandBackSettings], context: StepContext) -> StepResult[Branched]:
        return await in_thread(lambda: self._hand_back(step, context))

    def _hand_back(self, step: PlannedStep[HandBackSettings], context: StepContext) -> StepResult[Branched]:
        store, source, before = context.site.store, step.source, declared(step, context)
        if step.settings.to == "recovered":
            id = context.result_of(REVERSE_LAST, source).point
            point, expected = point_with_id(store, source, id), before.generation
            if point is None:
                raise DrengineError(UNKNOWN_POINT, f"the last point {id} of {source!r} is gone")
        else:
            promoted = RunLabel(context.run).branch(store, source)
            if promoted is None:
                unchanged = Branched(branch=before.branch, generation=before.generation, changed=False)
                return StepResult(True, f"{source} was not promoted: nothing to give back", data=unchanged)
            if not promoted.active:
                raise DrengineError(FENCED, f"somebody else promoted {source!r} after this run did")
            point, expected = newest_point(store, source, before.origin), promoted.generation
        label = str(_label(step, context))
        return made(store.promote(point, expected_generation=expected, label=label, permit=context.permit))


HAND_BACK = HandBackStep()


def _label(step: PlannedStep[HandBackSettings], context: StepContext) -> RunLabel:
    """Of the branch, with the agent that may write it: so it is decided in the promotion's own transaction."""
    home = step.settings.host or home_of(step, context)
    return RunLabel(context.run, Purpose.RETURN, "" if home == step.source else home)
