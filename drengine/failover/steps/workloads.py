"""What the steps share that launch a workload, stop it, or quiesce it: which instance, which disks, which driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec

from drengine.conversion.looked import LookedDisk, inventory_of_disks
from drengine.failover.addresses import cards
from drengine.failover.drivers.driver import Disk, LaunchDriver, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.steps.agents import host_order
from drengine.failover.steps.branch import BRANCH
from drengine.failover.steps.grants import secret_of
from drengine.failover.steps.promote import PROMOTE
from drengine.failover.steps.step import PlannedStep, StepContext
from drengine.model.errors import DrengineError
from drengine.model.hardware import Server
from drengine.model.inventory import Inventory
from drengine.model.points import VolumeGeometry
from drengine.store.errors import UNKNOWN_SOURCE
from drengine.store.store import Store
from drengine.store.views.view import View
from drengine.wire.payload import digest

log = logging.getLogger("drengine.failover")


class WorkloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a workload is launched, and which one it is.

    Attributes:
        driver, host, settings: the runbook's.
        hydrate: make its disks local while it runs.
        isolated: a drill: it must not reach production's networks.
        run, instance, branch: of the earlier run that launched it; empty and 0: this run launches it.
    """

    driver: str = ""
    host: str = ""
    settings: dict[str, Any] = {}
    hydrate: bool = False
    isolated: bool = False
    run: str = ""
    instance: str = ""
    branch: int = 0


def instance_name(run: str, source: str) -> str:
    """The same whenever the same run launches the same source; short, and fit for names of files and networks."""
    return f"{source[:24]}-{digest(f'{run} {source}'.encode()).hex()[:10]}"


def launch_request(
    step: PlannedStep[WorkloadSettings], context: StepContext, loop: asyncio.AbstractEventLoop
) -> LaunchRequest:
    """What the driver is asked, the same for launching, inspecting, quiescing and stopping.

    `loop` is the executor's, for drivers that order a recovery host.
    """
    settings, source = step.settings, step.source
    branch, instance = branch_of(step, context), instance_of(step, context)
    disks: tuple[Disk, ...] = ()
    if branch:
        with context.site.store.head_view(source, branch) as head:
            volumes = sorted(head.geometry.values(), key=lambda volume: volume.volume)
            sectors = {each.volume: head.sector_bytes(each.volume) for each in volumes}
        uri, secret = context.site.exporting(), secret_of(context, instance)
        disks = tuple(
            Disk(each.name, each.size_bytes, uri(source, each.name, branch, secret), sectors[each.volume])
            for each in volumes
        )
    book, store, run = context.runbook, context.site.store, settings.run or context.run
    told = inventory_of(store, source)
    return LaunchRequest(
        instance=instance,
        run=run,
        source=source,
        disks=disks,
        isolated=settings.isolated,
        settings=settings.settings,
        directory=context.site.directory / instance,
        host=settings.host,
        order=host_order(step, context, settings.host, loop) if settings.host else None,
        hydrate=settings.hydrate,
        timeout_seconds=step.timeout_seconds,
        inventory=told or looked_at(store, source, branch or None),
        cards=cards(book, source, told, mode_of(settings), instance=instance_name(run, source)),
        servers=LateServers(lambda: servers_of(book, inventories_of(store, book), run, isolated=settings.isolated)),
        data_networks=context.site.data_networks,
    )


class LateServers(Mapping[str, Server]):
    """All that a run recovers, looked up when a driver wants to know: that takes a millisecond for each source, which
    each launch of many would add to the outage.
    """

    def __init__(self, find: Callable[[], Mapping[str, Server]]) -> None:
        self._find = find

    def __getitem__(self, source: str) -> Server:
        return self._found[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @cached_property
    def _found(self) -> Mapping[str, Server]:
        return self._find()


def mode_of(settings: WorkloadSettings) -> Mode:
    """Whose rules of addresses count, also for what an earlier run launched."""
    return Mode.DRILL if settings.isolated else Mode.FAILOVER


def inventory_of(store: Store, source: str) -> Inventory | None:
    """What a source is made of, as its agent told last; None where nobody knows."""
    try:
        told = store.inventory(source)
    except DrengineError as error:
        if error.kind is not UNKNOWN_SOURCE:  # no launch fails for the want of it
            log.warning("what %s is made of can't be read: %s", source, error)
        return None
    return told if told is not None and tells_of_source(told) else None


def looked_at(store: Store, source: str, branch: int | None = None) -> Inventory | None:
    """How a source boots as its disks show, where no agent told; None: they do not, or can't be read."""
    try:
        with store.head_view(source, branch) as head:
            return inventory_of_disks([_disk_of(head, volume) for volume in head.geometry.values()])
    except DrengineError as error:
        if error.kind is not UNKNOWN_SOURCE:
            log.warning("how %s boots can't be read: %s", source, error)
        return None


def _disk_of(head: View, volume: VolumeGeometry) -> LookedDisk:
    def read(offset: int, length: int) -> bytes:
        return head.read(volume.volume, offset, max(0, min(length, volume.size_bytes - offset)))

    return LookedDisk(volume.name, volume.size_bytes, head.sector_bytes(volume.volume), read)


def tells_of_source(told: Inventory) -> bool:
    """Whether an inventory is the source's own. An agent that replicates other machines' disks, image files with
    partitions, tells of the host on which it runs.
    """
    replicated = [disk for disk in told.disks if disk.volume]
    images = [disk for disk in replicated if disk.device == disk.volume and disk.partitions and not disk.transport]
    return not images or any(disk.is_root for disk in replicated)


def inventories_of(store: Store, runbook: Runbook) -> dict[str, Inventory | None]:
    """The same of all of a runbook's sources."""
    return {source: inventory_of(store, source) for source in runbook.sources}


def servers_of(
    runbook: Runbook, inventories: Mapping[str, Inventory | None], run: str, *, isolated: bool
) -> dict[str, Server]:
    """What a run launches of a runbook's sources, as the servers know each other; `isolated`: in a drill."""
    mode, servers = Mode.DRILL if isolated else Mode.FAILOVER, {}
    for source, inventory in inventories.items():
        host = inventory.hostname.partition(".")[0].lower() if inventory else ""
        names = tuple(dict.fromkeys(filter(None, (source, host))))
        made = cards(runbook, source, inventory, mode, instance=instance_name(run, source) if run else "")
        servers[source] = Server(names=names, cards=made)
    return servers


def driver_of(step: PlannedStep[WorkloadSettings], context: StepContext) -> LaunchDriver:
    """The step's driver.

    Raises:
        DrengineError: LAUNCH_SETTINGS.
    """
    name = step.settings.driver
    if name not in context.site.drivers:
        raise DrengineError(LAUNCH_SETTINGS, f"there is no launch driver {name!r} here")
    return context.site.drivers[name]


def instance_of(step: PlannedStep[WorkloadSettings], context: StepContext) -> str:
    """Name of the instance that the step is about."""
    return step.settings.instance or instance_name(context.run, step.source)


def branch_of(step: PlannedStep[WorkloadSettings], context: StepContext) -> int:
    """Its branch; 0 when a run is cleaned up that did not get as far."""
    if step.settings.branch:
        return step.settings.branch
    made = context.found(PROMOTE, step.source) or context.found(BRANCH, step.source)
    return made.branch if made else 0
