"""The machine that is made: what it consists of, and QEMU's command line for it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.qemu.accelerator import Accelerator
from drengine.failover.drivers.qemu.agent import PORT
from drengine.failover.drivers.qemu.disks import disk_arguments
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.linux.memory import available_memory
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.terminal import human_bytes

QMP, MOVER_QMP, AGENT = "qmp.sock", "move.sock", "agent.sock"
"""In the instance's directory, in which QEMU runs."""

AGENT_DEVICE = "agent"

MEMORY_MIB, CPUS = 1024, 1
"""Where neither the runbook nor the source's agent says more."""
_MODULE_MIB = 256
"""A kernel reports less memory than its machine has: what the source told is rounded up to a multiple of this."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large the machine is."""

    memory_mib: int
    cpus: int


def size_of(settings: QemuSettings, inventory: Inventory | None) -> Size:
    """As the runbook says, else as the source was; no more processors than this host has."""
    told_mib = inventory.memory_bytes >> 20 if inventory else 0
    memory_mib = settings.memory_mib or -(-told_mib // _MODULE_MIB) * _MODULE_MIB or MEMORY_MIB
    told_cpus = min(inventory.cpus, os.cpu_count() or 1) if inventory else 0
    return Size(memory_mib, settings.cpus or told_cpus or CPUS)


def check_memory(size: Size) -> None:
    """Whether the machine fits into what this host has left: else it would take the target's memory away.

    Raises:
        DrengineError: LAUNCH_FAILED.
    """
    needed, there = size.memory_mib << 20, available_memory()
    if needed > there:
        raise DrengineError(
            LAUNCH_FAILED,
            f"the virtual machine would take {human_bytes(needed)} of {human_bytes(there)} that are available here",
            hint="Give it less by `memory_mib`, end what else uses memory here, or launch it elsewhere.",
        )


def machine_arguments(
    request: LaunchRequest,
    settings: QemuSettings,
    *,
    size: Size,
    accelerator: Accelerator,
    console: list[str],
    firmware: list[str],
    cards: list[str],
) -> list[str]:
    """QEMU's command line. Every value is an argument or a JSON value of its own: nothing can add options.

    Raises:
        DrengineError: LAUNCH_SETTINGS, NBD_CLIENT.
    """
    arguments = [settings.program, "-name", f"drengine-{request.instance}", "-nodefaults", "-no-user-config"]
    arguments += ["-machine", settings.machine, "-accel", accelerator.name, "-cpu", settings.cpu]
    arguments += ["-display", "none", "-m", str(size.memory_mib), "-smp", str(size.cpus)]
    arguments += ["-qmp", f"unix:{QMP},server=on,wait=off", *console, *firmware]
    if settings.kernel:
        arguments += ["-kernel", settings.kernel, "-append", settings.append]
        arguments += ["-initrd", settings.initrd] if settings.initrd else []
    if settings.tls_directory:
        credentials = {"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "client", "dir": settings.tls_directory}
        arguments += ["-object", json.dumps(credentials)]
    if settings.guest_agent:
        arguments += ["-chardev", f"socket,id={AGENT_DEVICE},path={AGENT},server=on,wait=off"]
        arguments += ["-device", "virtio-serial-pci", "-device", f"virtserialport,chardev={AGENT_DEVICE},name={PORT}"]
    arguments += cards
    if request.hydrate:
        arguments += ["-qmp", f"unix:{MOVER_QMP},server=on,wait=off"]
    return [*arguments, *disk_arguments(request, settings), *settings.arguments]
