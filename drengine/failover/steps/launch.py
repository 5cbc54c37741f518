"""Launching a source's workload from its recovered disks."""

from __future__ import annotations

import asyncio
from typing import Any

from drengine.failover.addresses import WRONG_ADDRESSES, missing_addresses, require_addresses
from drengine.failover.drivers.driver import Instance, LaunchDriver, LaunchRequest, SeesAddresses
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.steps.grants import let_use_disks
from drengine.failover.steps.launched import Launched
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.workloads import (
    WorkloadSettings,
    branch_of,
    driver_of,
    instance_of,
    inventory_of,
    launch_request,
    mode_of,
)
from drengine.model.grants import without_secret
from drengine.process.threads import in_thread

ADDRESS_SECONDS, ADDRESS_LOOK_SECONDS = 60.0, 1.0
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
        if not (found.running and found.healthy):
            return None
        if await in_thread(lambda: _missing(driver, request)):
            return None
        return _launched(found, request)

    async def act(self, step: PlannedStep[WorkloadSettings], context: StepContext) -> StepResult[Launched]:
        loop = asyncio.get_running_loop()

        def launch() -> tuple[LaunchRequest, Instance]:
            if not {ADDRESSES_CHECK, f"{ADDRESSES_CHECK}:{step.source}"} & {*context.options.despite, *context.despite}:
                inventory = inventory_of(context.site.store, step.source)
                require_addresses(context.runbook, step.source, inventory, mode_of(step.settings))
            context.permit()
            let_use_disks(
                context, instance_of(step, context), step.source, branch_of(step, context), step.settings.host
            )
            request = launch_request(step, context, loop)
            return request, driver_of(step, context).launch(request, context.say)

        request, found = await in_thread(launch)
        if not (found.running and found.healthy):
            return StepResult(False, f"{request.instance} is not healthy", LAUNCH_FAILED.id)
        if missing := await _wait_for_addresses(driver_of(step, context), request, context):
            return StepResult(False, f"{request.instance} runs without {', '.join(missing)}", WRONG_ADDRESSES.id)
        return _launched(found, request)


LAUNCH = LaunchStep()


async def _wait_for_addresses(driver: LaunchDriver, request: LaunchRequest, context: StepContext) -> list[str]:
    """What a server lacks that is healthy; its network service may be slower than what says so."""
    clock = context.site.clock
    until = clock.monotonic() + min(ADDRESS_SECONDS, request.timeout_seconds)
    while True:
        missing = await in_thread(lambda: _missing(driver, request))
        if not missing or clock.monotonic() >= until:
            return missing
        context.say(f"{request.instance} has not yet {', '.join(missing)}")
        await clock.sleep(ADDRESS_LOOK_SECONDS)


def _missing(driver: LaunchDriver, request: LaunchRequest) -> list[str]:
    """Addresses that the server was to get and has not, where its driver can see that."""
    seen = driver.addresses(request) if isinstance(driver, SeesAddresses) and request.cards else None
    return [] if seen is None else missing_addresses(request.cards, seen)


def _launched(found: Instance, request: LaunchRequest) -> StepResult[Launched]:
    details: dict[str, Any] = dict(found.details)
    said = (str(details.pop("output", "")), str(details.pop("health", "")))
    output = "\n".join(f"{what}{text}" for what, text in zip(("", "health: "), said, strict=True) if text)
    addresses = [each for card in request.cards for each in card.addresses]
    if addresses:
        details.setdefault("address", addresses[0].partition("/")[0])
    disks = {disk.volume: without_secret(disk.uri) for disk in request.disks}
    launched = Launched(instance=request.instance, details=details, disks=disks)
    return StepResult(True, f"{request.instance} is healthy", data=launched, output=output)
