"""Whether the disks of the sources could be made fit for the machines that their launch drivers have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from drengine.conversion.judge import differences, refusals, speaks_of
from drengine.conversion.kernel import find_kernel
from drengine.failover.addresses import cards
from drengine.failover.drivers.driver import KnowsMachine
from drengine.failover.preflight.check import Check, Look, Scene, apart
from drengine.failover.readiness import Checked
from drengine.failover.runbook.values import Convert
from drengine.failover.steps.convert import CONVERT, ConvertSettings
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.workloads import inventory_of, looked_at, mode_of
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory

CONVERSION = Check(
    "conversion",
    "where disks have to be made fit for another machine: nothing that is known of the source stands against it, and "
    "this host has what the helper machine is made of",
    "docs/conversion.md says what is converted; `launch: {convert: never}` launches the disks as they are.",
)
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = ("qemu-system-x86_64", "busybox", "blkid")


async def look_at_conversions(scene: Scene) -> list[Checked]:
    """Every source whose disks may be converted."""
    steps = [step for step in scene.steps if step.kind is CONVERT]
    return await apart(lambda: [_looked(scene, step) for step in steps])


def _looked(scene: Scene, step: PlannedStep[ConvertSettings]) -> Checked:
    source, settings = step.source, step.settings
    driver = scene.site.drivers.get(settings.workload.driver)
    if not isinstance(driver, KnowsMachine):
        return CONVERSION.found(source, seen="its driver boots no machine of its own making")
    store, told = scene.site.store, inventory_of(scene.site.store, source)
    inventory = told if speaks_of(told, _volumes(scene, source)) else None
    looked = looked_at(store, source) if inventory is None else None
    if inventory is None and settings.convert is Convert.AUTO:
        if store.inventory(source) is not None:
            return CONVERSION.found(source, seen="its agent tells of another machine: its disks stay as they are")
        if looked is None:
            return CONVERSION.found(source, seen="no agent told what it is made of, and none of its disks boots")
    try:
        machine = driver.machine(settings.workload.settings, inventory or looked)
    except DrengineError:
        return CONVERSION.found(source, seen="its settings are a check of their own")
    if inventory is None:
        refused = next(refusals(looked, machine), None) if looked else None
        return _found(source, refused, list(_faults_here(None, settings)), "its disks will be looked into")
    made = cards(scene.case.runbook, source, told, mode_of(settings.workload))
    differ = differences(inventory, machine, made)
    if not differ and settings.convert is Convert.AUTO:
        return CONVERSION.found(source, seen="the machine is such as the source was")
    refused = next(refusals(inventory, machine), None)
    return _found(source, refused, list(_faults_here(inventory, settings)), "; ".join(differ) or "it is looked at")


def _found(source: str, refused: DrengineError | None, here: list[str], seen: str) -> Checked:
    if refused is not None:
        return CONVERSION.found(source, fault=refused.message, hint=refused.hint)
    return CONVERSION.found(source, seen=seen, fault="; ".join(here))


def _faults_here(inventory: Inventory | None, settings: ConvertSettings) -> Iterator[str]:
    """What the helper machine needs and this host does not have."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if inventory and any(each.kind == "LVM2_member" for each in inventory.file_systems):
        missing += [] if shutil.which("lvm", path=_PATH) else ["lvm (package lvm2)"]
    if missing:
        yield f"this host has no {', '.join(missing)}"
    try:
        find_kernel(Path(settings.conversion.kernel) if settings.conversion.kernel else None)
    except DrengineError as error:
        yield error.message


def _volumes(scene: Scene, source: str) -> set[str]:
    try:
        with scene.site.store.head_view(source) as head:
            return {each.name for each in head.geometry.values()}
    except DrengineError:
        return set()  # that it has none is a check of its own


LOOKS: tuple[Look, ...] = (Look((CONVERSION,), look_at_conversions),)
