"""The way home for data, last part: ship what was written until the recovered side stopped."""

from __future__ import annotations

import msgspec

from drengine.control.messages import Verb
from drengine.failover.steps.agents import order_agent, refused
from drengine.failover.steps.declare import declared
from drengine.failover.steps.grants import way_home
from drengine.failover.steps.quiesce_recovered import QUIESCE_RECOVERED
from drengine.failover.steps.reversal import Reversed
from drengine.failover.steps.step import NoSettings, PlannedStep, StepContext, StepKind, StepResult
from drengine.model.grants import Access


class ReverseLastStep(StepKind[NoSettings, Reversed]):
    """Ships what was written until the recovered side stopped: then both sides are equal, hash by hash."""

    name = "reverse-last"
    timeout_seconds = 3600.0
    retries = 3
    estimate_seconds = 5.0

    def title(self, source: str, settings: NoSettings) -> str:
        return f"ship the last difference to {source}"

    async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Reversed]:
        id = context.result_of(QUIESCE_RECOVERED, step.source).point
        number = declared(step, context).branch
        async with way_home(step, context, Access.REVERSE, number):
            answer = await order_agent(step, context, Verb.REVERSE, {"branch": number, "point": id})
        if not answer.ok:
            return refused(answer)
        shipped = msgspec.convert({**answer.result, "point": id}, Reversed, strict=False)
        return StepResult(True, shipped.shown(step), data=shipped)


REVERSE_LAST = ReverseLastStep()
