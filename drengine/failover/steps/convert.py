"""Making a source's disks fit for the machine that its launch driver offers: on its branch, never on the point."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec

from drengine.conversion.convert import convert
from drengine.conversion.errors import REFUSALS
from drengine.conversion.helper import HelperDisk, HelperOptions, end_helper
from drengine.conversion.judge import differences, speaks_of
from drengine.conversion.values import Converted, Wish
from drengine.failover.drivers.driver import KnowsMachine, LaunchRequest
from drengine.failover.drivers.qemu.accelerator import choose_accelerator
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.failover.needs import Memory, Need, Program, ReadableFile
from drengine.failover.runbook.values import Conversion, Convert
from drengine.failover.steps.grants import let_use_disks
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.workloads import (
    WorkloadSettings,
    branch_of,
    driver_of,
    inventory_of,
    launch_request,
)
from drengine.model.errors import DrengineError
from drengine.model.hardware import Machine
from drengine.model.inventory import Inventory
from drengine.ownership import make_directory
from drengine.process.threads import in_cancellable_thread

END_SECONDS = 30.0
"""Of the step's time, for ending the helper machine."""
_turns = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
"""A helper machine uses a processor whole."""


class ConvertSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A workload, and how its disks are converted: the runbook's `convert` and `conversion`."""

    workload: WorkloadSettings
    convert: Convert = Convert.AUTO
    conversion: Conversion = Conversion()


class ConvertedDisks(Converted, frozen=True, kw_only=True):
    """What was changed. `skipped` says why nothing was looked at; empty: it was."""

    skipped: str = ""


class ConvertStep(StepKind[ConvertSettings, ConvertedDisks]):
    """Converts the disks of a branch. Interrupted, it is done again: done twice, the second time changes nothing.

    A helper machine that ends is begun again once; a guest that can't be converted is not.
    """

    name = "convert"
    estimate_seconds = 60.0
    retries = 1

    def title(self, source: str, settings: ConvertSettings) -> str:
        return f"make the disks of {source} fit for {settings.workload.driver}"

    def needs(self, settings: ConvertSettings) -> Iterable[Need]:
        if settings.convert is Convert.ALWAYS:
            yield from (Program("qemu-system-x86_64"), Program("busybox"), Memory(settings.conversion.memory_mib << 20))
        if settings.conversion.kernel:
            yield ReadableFile(settings.conversion.kernel)

    async def act(self, step: PlannedStep[ConvertSettings], context: StepContext) -> StepResult[ConvertedDisks]:
        loop = asyncio.get_running_loop()
        return _result(await in_cancellable_thread(lambda cancelled: _convert(step, context, loop, cancelled)))


CONVERT = ConvertStep()


def end_conversion(directory: Path, instance: str) -> None:
    """End a helper machine that an executor left behind; no error if there is none."""
    end_helper(_place(directory, instance), instance)


def _place(directory: Path, instance: str) -> Path:
    return directory / f"{instance}.conversion"


def _convert(
    step: PlannedStep[ConvertSettings],
    context: StepContext,
    loop: asyncio.AbstractEventLoop,
    cancelled: threading.Event,
) -> ConvertedDisks:
    workload, asked = step.settings.workload, step.settings.conversion
    launch: PlannedStep[WorkloadSettings] = replace(cast("PlannedStep[Any]", step), settings=workload)
    driver, request = driver_of(launch, context), launch_request(launch, context, loop)
    end_conversion(context.site.directory, request.instance)
    if not isinstance(driver, KnowsMachine):
        return ConvertedDisks(skipped=f"driver {workload.driver} boots no machine of its own making")
    told = inventory_of(context.site.store, step.source)
    own = told if speaks_of(told, {disk.volume for disk in request.disks}) else None
    machine = driver.machine(workload.settings, own or request.inventory)
    if step.settings.convert is Convert.AUTO and (why := _why_not(context, step.source, request, own, machine)):
        return ConvertedDisks(skipped=why)
    context.permit()
    let_use_disks(context, request.instance, step.source, branch_of(launch, context), "")
    disks = launch_request(launch, context, loop).disks  # their addresses hold the right to write them
    again = context.again or context.attempt > 1
    try:
        with _turns:
            made = convert(
                _place(context.site.directory, request.instance),
                request.instance,
                [HelperDisk(disk.volume, disk.uri, disk.sector_bytes) for disk in disks],
                Wish(machine=machine, inventory=own, cards=request.cards, first_boot=asked.first_boot),
                _options(context.site.directory, workload, asked),
                timeout_seconds=max(END_SECONDS, step.timeout_seconds - END_SECONDS),
                again=again,
                progress=context.say,
                cancelled=cancelled,
            )
    except DrengineError as error:
        untouched = error.kind in REFUSALS and not again
        if own is None and step.settings.convert is Convert.AUTO and untouched:
            return ConvertedDisks(skipped=f"no agent told what the source is made of, and {error.message}")
        raise
    return ConvertedDisks(**{name: getattr(made, name) for name in Converted.__struct_fields__})


def _why_not(context: StepContext, source: str, request: LaunchRequest, own: Inventory | None, machine: Machine) -> str:
    """Why disks are left as they are, as far as that is known before they are looked into; empty: they are not."""
    if own is not None:
        return "" if differences(own, machine, request.cards) else "the machine is such as the source was"
    if context.site.store.inventory(source) is not None:
        return "what the agent told is not of the server whose disks these are (`convert: always` looks)"
    return "" if request.inventory else "no agent told what the source is made of, and none of its disks boots"


def _options(directory: Path, workload: WorkloadSettings, asked: Conversion) -> HelperOptions:
    make_directory(directory)
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory) as probing:
        accelerator = choose_accelerator(QemuSettings(accelerator=asked.accelerator), Path(probing)).name
    return HelperOptions(
        memory_mib=asked.memory_mib,
        accelerator=accelerator,
        kernel=Path(asked.kernel) if asked.kernel else None,
        tls_directory=str(workload.settings.get("tls_directory") or ""),
    )


def _result(made: ConvertedDisks) -> StepResult[ConvertedDisks]:
    if made.skipped:
        return StepResult(True, f"not converted: {made.skipped}", data=made)
    lines = [f"{each.what}: {each.path}" for each in made.changes]
    output = "\n".join((*lines, *(f"note: {each}" for each in made.notes)))
    message = f"{made.system}: {len(made.changes)} changes" if made.changes else f"{made.system}: nothing to change"
    return StepResult(True, message, data=made, output=output)
