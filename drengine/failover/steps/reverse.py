"""The way home for data, second part: ship the difference while the recovered side serves."""

from __future__ import annotations

import msgspec

from drengine.control.messages import Verb
from drengine.failover.steps.agents import order_agent, refused
from drengine.failover.steps.branches import newest_point
from drengine.failover.steps.declare import declared
from drengine.failover.steps.grants import way_home
from drengine.failover.steps.preserve import SHIPPING_SECONDS
from drengine.failover.steps.reversal import Reversed, ReverseSettings
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.grants import Access
from drengine.process.threads import in_thread

ROUNDS_MAX = 5
SMALL_BYTES = 64 << 20
"""A round that shipped no more than this leaves little for the switch."""


class ReverseStep(StepKind[ReverseSettings, Reversed]):
    """Ships the difference while the recovered side goes on writing, until little is left.

    The agent knows how far it is: the same command gets the same answer.
    """

    name = "reverse"
    timeout_seconds = SHIPPING_SECONDS
    retries = 3
    estimate_seconds = 60.0
    overwrites_source = True

    def title(self, source: str, settings: ReverseSettings) -> str:
        if settings.host:
            return f"fill the disks of {settings.host}, the new home of {source}"
        return f"ship what differs back to the disks of {source}"

    async def act(self, step: PlannedStep[ReverseSettings], context: StepContext) -> StepResult[Reversed]:
        number, host, shipped = declared(step, context).branch, step.settings.host, None
        for round in range(1, ROUNDS_MAX + 1):
            point = await in_thread(lambda: newest_point(context.site.store, step.source, number))
            order = {"branch": point.branch, "point": point.id, "force": context.options.discard_divergent}
            async with way_home(step, context, Access.REVERSE, number, host):
                answer = await order_agent(step, context, Verb.REVERSE, order, part=f".{round}", host=host)
            if not answer.ok:
                return refused(answer)
            latest = msgspec.convert({**answer.result, "point": point.id}, Reversed, strict=False)
            shipped = shipped.and_then(latest) if shipped else latest
            if latest.bytes_shipped <= SMALL_BYTES:
                break
        assert shipped is not None
        return StepResult(True, shipped.shown(step), data=shipped)


REVERSE = ReverseStep()
