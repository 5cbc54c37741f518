"""The way home for data, last part: ship what was written until the recovered side stopped."""

from __future__ import annotations

import msgspec

from drengine.control.messages import Verb
from drengine.failover.steps.agents import order_agent, refused
from drengine.failover.steps.declare import declared
from drengine.failover.steps.grants import way_home
from drengine.failover.steps.quiesce_recovered import QUIESCE_RECOVERED
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE
from drengine.failover.steps.reversal import Reversed, ReverseSettings
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.grants import Access


class ReverseLastStep(StepKind[ReverseSettings, Reversed]):
    """Ships what was written until the recovered side stopped: then both sides are equal, hash by hash."""

    name = "reverse-last"
    timeout_seconds = 3600.0
    retries = 3
    estimate_seconds = 5.0

    def title(self, source: str, settings: ReverseSettings) -> str:
        return f"ship the last difference to {source}{f' on {settings.host}' if settings.host else ''}"

    async def act(self, step: PlannedStep[ReverseSettings], context: StepContext) -> StepResult[Reversed]:
        moved = context.found(QUIESCE_SOURCE, step.source)
        id = moved.point if moved else context.result_of(QUIESCE_RECOVERED, step.source).point
        number, host = declared(step, context).branch, step.settings.host
        async with way_home(step, context, Access.REVERSE, number, host):
            answer = await order_agent(step, context, Verb.REVERSE, {"branch": number, "point": id}, host=host)
        if not answer.ok:
            return refused(answer)
        shipped = msgspec.convert({**answer.result, "point": id}, Reversed, strict=False)
        return StepResult(True, shipped.shown(step), data=shipped)


REVERSE_LAST = ReverseLastStep()
