"""The ways in which a host may attach a disk, best first, and what this host lacks for each.

| way | what it is | writes reach the branch |
|---|---|---|
| `kernel` | nbd-client and the kernel's NBD driver | at once |
| `fuse` | nbdfuse and a loop device | at once |
| `copy` | the whole disk as a local file, and a loop device | when the workload is quiesced |
| `iscsi` | a LUN that the orchestrator serves, and open-iscsi | at once |

`iscsi` comes last, as it takes a target of its own on the orchestrator's host; only where the runbook names one it is
a way at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.control.attach import AUTO, ISCSI
from drengine.nbd.fuse import fuse_fault
from drengine.process.programs import program_fault
from drengine_agent.standby.initiator import initiator_fault

KERNEL, FUSE, COPY = "kernel", "fuse", "copy"
TOOLS = {
    KERNEL: ("nbd-client",),
    FUSE: ("nbdfuse", "fusermount3", "losetup"),
    COPY: ("losetup",),
    ISCSI: ("iscsiadm",),
}
"""Programs of each way, in the order in which `auto` tries them."""
MOUNT_TOOLS = ("mount", "umount")


@dataclass(frozen=True, slots=True)
class Choice:
    """How disks are attached.

    Attributes:
        way: `kernel`, `fuse`, `copy` or `iscsi`.
        why: what is missing for better ones; empty: it is the best, or was asked for.
        fault: what this way itself lacks; empty: nothing.
    """

    way: str
    why: str = ""
    fault: str = ""


def choose(attach: str, *, luns: bool = False) -> Choice:
    """The way that is asked for; with `auto` the best that this host has. Nothing is made.

    Args:
        attach: of the order.
        luns: the disks are served over iSCSI too, or would be.
    """
    if attach != AUTO:
        return Choice(attach, fault=_fault_of(attach))
    missing: list[str] = []
    for way in TOOLS:
        if way == ISCSI and not luns:
            continue
        fault = _fault_of(way)
        if not fault:
            return Choice(way, "; ".join(missing))
        missing.append(f"{way}: {fault}")
    return Choice(COPY, fault="; ".join(missing))


def _fault_of(way: str) -> str:
    faults = [program_fault(tool) for tool in TOOLS[way]]
    if way == KERNEL and not any(Path("/sys/block").glob("nbd*")):  # systemd loads it for the service
        faults.append("the kernel has no NBD driver loaded")
    if way == FUSE:
        faults.append(fuse_fault())
    if way == ISCSI:
        faults.append(initiator_fault())
    if way in (FUSE, COPY) and not Path("/dev/loop-control").exists() and not any(Path("/sys/block").glob("loop*")):
        faults.append("there are no loop devices")
    return ", ".join(filter(None, faults))
