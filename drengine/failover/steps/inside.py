"""Checks that are made where a workload runs: by its recovery host, inside the network that the launch made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drengine.control.messages import Answer, Verb
from drengine.failover.errors import RUN_STATE
from drengine.failover.steps.step import PlannedStep, StepContext
from drengine.failover.steps.workloads import instance_name
from drengine.model.errors import DrengineError

ANSWER_SECONDS = 10.0
"""Beyond the check's own time."""


async def check_inside(
    step: PlannedStep[Any], context: StepContext, asked: Mapping[str, Any], seconds: float, *, part: str
) -> Answer:
    """Have the host of the step's workload ask it.

    Args:
        step, context: on whose behalf.
        asked: the way of asking, as in `ProbeOrder`.
        seconds: how long it may take.
        part: tells several orders of one try apart.

    Raises:
        DrengineError: BROKER_UNREACHABLE, NO_ANSWER; RUN_STATE, it has no host.
    """
    launch, earlier = context.runbook.sources[step.inside].launch, context.options.launches.get(step.inside)
    host, instance = launch.host, instance_name(context.run, step.inside)
    if earlier is not None and context.mode.is_way_home:
        host, instance = earlier.host, earlier.instance
    if not host:
        raise DrengineError(RUN_STATE, f"{step.inside!r} is not launched on a recovery host: there is no inside")
    return await context.site.agents.command(
        host,
        Verb.CHECK,
        {"instance": instance, "seconds": seconds, **asked},
        generation=0,
        id=f"{context.run}.{step.id}.{context.attempt}{part}",
        timeout_seconds=seconds + ANSWER_SECONDS,
        run=context.run,
    )
