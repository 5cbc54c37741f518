"""Workloads: launching them from a branch's disks, and stopping them."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from drengine.failover.drivers.driver import Disk, Instance, LaunchDriver, LaunchRequest
from drengine.failover.steps.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.telling import host_order
from drengine.failover.steps.threads import in_thread
from drengine.model.errors import DrengineError
from drengine.wire.payload import digest


def instance_name(run: str, source: str) -> str:
    """The same whenever the same run launches the same source; short, and fit for names of files and networks."""
    return f"{source[:24]}-{digest(f'{run} {source}'.encode()).hex()[:10]}"


class LaunchStep:
    """Starts a workload and waits until it is healthy. One that is not is a failure, never a completion (fault 58)."""

    kind: ClassVar[StepKind] = StepKind.LAUNCH

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        loop = asyncio.get_running_loop()
        request, driver = await in_thread(lambda: (launch_request(step, context, loop), driver_of(step, context)))
        found = await in_thread(lambda: driver.inspect(request))
        return _launched(found, request) if found.running and found.healthy else None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        loop = asyncio.get_running_loop()

        def launch() -> StepResult:
            request = launch_request(step, context, loop)
            context.permit()
            found = driver_of(step, context).launch(request, context.say)
            if not (found.running and found.healthy):
                return StepResult(False, f"{request.instance} is not healthy", LAUNCH_FAILED.id)
            return _launched(found, request)

        return await in_thread(launch)


class StopWorkloadStep:
    """Ends a workload and removes whatever its launch made."""

    kind: ClassVar[StepKind] = StepKind.STOP_WORKLOAD

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Stopping what is stopped does nothing."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        loop = asyncio.get_running_loop()

        def stop() -> str:
            request = launch_request(step, context, loop)
            driver_of(step, context).stop(request)
            return request.instance

        return StepResult(True, f"{await in_thread(stop)} is stopped and removed")


def launch_request(step: PlannedStep, context: StepContext, loop: asyncio.AbstractEventLoop) -> LaunchRequest:
    """What the driver is asked, the same for launching, inspecting, quiescing and stopping.

    On the way home the step's settings name the instance and branch of the run that launched it. `loop` is the
    executor's, for drivers that tell a recovery host.
    """
    settings, source = step.settings, step.source
    branch = int(settings.get("branch") or _branch(source, context))
    instance = str(settings.get("instance") or instance_name(context.run, source))
    disks: tuple[Disk, ...] = ()
    if branch:
        with context.site.store.head_view(source, branch) as head:
            volumes = sorted(head.geometry.values(), key=lambda volume: volume.volume)
            sectors = {each.volume: head.sector_bytes(each.volume) for each in volumes}
        uri = context.site.export_uri
        disks = tuple(
            Disk(each.name, each.size_bytes, uri(source, each.name, branch), sectors[each.volume]) for each in volumes
        )
    return LaunchRequest(
        instance=instance,
        run=str(settings.get("run") or context.run),
        source=source,
        disks=disks,
        isolated=bool(settings.get("isolated")),
        settings=settings["settings"],
        directory=context.site.directory / instance,
        host=settings.get("host", ""),
        order=host_order(step, context, settings["host"], loop) if settings.get("host") else None,
        hydrate=bool(settings.get("hydrate")),
        timeout_seconds=step.timeout_seconds,
    )


def driver_of(step: PlannedStep, context: StepContext) -> LaunchDriver:
    """The step's driver.

    Raises:
        DrengineError: LAUNCH_SETTINGS.
    """
    name = step.settings["driver"]
    if name not in context.site.drivers:
        raise DrengineError(LAUNCH_SETTINGS, f"there is no launch driver {name!r} here")
    return context.site.drivers[name]


def _branch(source: str, context: StepContext) -> int:
    """The branch of this run; 0 when a run is cleaned up that did not get as far."""
    for kind in ("promote", "branch"):
        made = context.results.get(f"{kind}:{source}")
        if made is not None:
            return int(made["branch"])
    return 0


def _launched(found: Instance, request: LaunchRequest) -> StepResult:
    details: dict[str, Any] = dict(found.details)
    output = str(details.pop("output", ""))
    data = {
        "instance": request.instance,
        "details": details,
        "disks": {disk.volume: disk.uri for disk in request.disks},
    }
    return StepResult(True, f"{request.instance} is healthy", data=data, output=output)
