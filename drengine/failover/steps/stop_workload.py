"""Stopping a workload that was launched."""

from __future__ import annotations

import asyncio

from drengine.failover.steps.convert import end_conversion
from drengine.failover.steps.grants import take_disks
from drengine.failover.steps.step import NoResult, PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.workloads import WorkloadSettings, driver_of, launch_request
from drengine.process.threads import in_thread


class StopWorkloadStep(StepKind[WorkloadSettings, NoResult]):
    """Ends a workload and removes whatever its launch made. Stopping what is stopped does nothing."""

    name = "stop-workload"
    retries = 3
    estimate_seconds = 5.0
    by_hand = True

    def title(self, source: str, settings: WorkloadSettings) -> str:
        return f"stop the {'drilled' if settings.isolated else 'recovered'} {source}"

    async def act(self, step: PlannedStep[WorkloadSettings], context: StepContext) -> StepResult[NoResult]:
        loop = asyncio.get_running_loop()

        def stop() -> str:
            request = launch_request(step, context, loop)
            end_conversion(context.site.directory, request.instance)
            driver_of(step, context).stop(request)
            take_disks(context, request.instance)
            return request.instance

        return StepResult(True, f"{await in_thread(stop)} is stopped and removed")


STOP_WORKLOAD = StopWorkloadStep()
