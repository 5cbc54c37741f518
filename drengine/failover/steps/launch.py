"""Launching a source's workload from its recovered disks."""

from __future__ import annotations

import asyncio
from typing import Any

from drengine.failover.addresses import require_addresses
from drengine.failover.drivers.driver import Instance, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.grants import let_use_disks
from drengine.failover.steps.launched import Launched
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.threads import in_thread
from drengine.failover.steps.workloads import (
    WorkloadSettings,
    branch_of,
    driver_of,
    instance_of,
    inventories_of,
    launch_request,
)
from drengine.model.grants import without_secret

ADDRESSES_CHECK = "addresses"
"""The check before the run that looks at the same; who goes on despite it goes on here."""


class LaunchStep(StepKind[WorkloadSettings, Launched]):
    """Starts a workload and waits until it is healthy. One that is not is a failure, never a completion (fault 58)."""

    name = "launch"
    estimate_seconds = 30.0
    ends_outage = True

    def title(self, source: str, settings: WorkloadSettings) -> str:
        return f"launch {source} with {settings.driver}"

    async def check(self, step: PlannedStep[WorkloadSettings], context: StepContext) -> StepResult[Launched] | None:
        loop = asyncio.get_running_loop()
        request, driver = await in_thread(lambda: (launch_request(step, context, loop), driver_of(step, context)))
        found = await in_thread(lambda: driver.inspect(request))
        return _launched(found, request) if found.running and found.healthy else None

    async def act(self, step: PlannedStep[WorkloadSettings], context: StepContext) -> StepResult[Launched]:
        loop = asyncio.get_running_loop()

        def launch() -> StepResult[Launched]:
            context.permit()
            let_use_disks(
                context, instance_of(step, context), step.source, branch_of(step, context), step.settings.host
            )
            request = launch_request(step, context, loop)
            if not {ADDRESSES_CHECK, f"{ADDRESSES_CHECK}:{step.source}"} & {*context.options.despite, *context.despite}:
                mode = Mode.DRILL if request.isolated else Mode.FAILOVER
                inventories = inventories_of(context.site.store, context.runbook)
                require_addresses(context.runbook, step.source, inventories, mode)
            found = driver_of(step, context).launch(request, context.say)
            if not (found.running and found.healthy):
                return StepResult(False, f"{request.instance} is not healthy", LAUNCH_FAILED.id)
            return _launched(found, request)

        return await in_thread(launch)


LAUNCH = LaunchStep()


def _launched(found: Instance, request: LaunchRequest) -> StepResult[Launched]:
    details: dict[str, Any] = dict(found.details)
    said = (str(details.pop("output", "")), str(details.pop("health", "")))
    output = "\n".join(f"{what}{text}" for what, text in zip(("", "health: "), said, strict=True) if text)
    disks = {disk.volume: without_secret(disk.uri) for disk in request.disks}
    launched = Launched(instance=request.instance, details=details, disks=disks)
    return StepResult(True, f"{request.instance} is healthy", data=launched, output=output)
