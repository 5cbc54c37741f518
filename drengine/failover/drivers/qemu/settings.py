"""Settings of the `qemu` driver in a runbook."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from drengine.config import parse_duration
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.settings import read_settings
from drengine.model.errors import DrengineError

NAME = "qemu"
BIOS, UEFI = "bios", "uefi"
NONE, USER, BUBBLE, BRIDGE = "none", "user", "bubble", "bridge:"
_NETWORK = re.compile(r"none|user|bridge:[A-Za-z0-9._-]{1,15}", re.ASCII)
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)


class CardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A network card of the machine.

    Attributes:
        network: as the setting `network`.
        mac: its address; empty: by the site's rules, else one that the source's name gives, always the same.
        model: what the guest sees.
    """

    network: str = NONE
    mac: str = ""
    model: Literal["virtio", "e1000"] = "virtio"


class QemuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of this driver in a runbook.

    Attributes:
        memory_mib, cpus: of the virtual machine; 0: as the source had, as far as its agent told.
        machine, cpu, program: QEMU's type of machine and of processor, and QEMU itself.
        accelerator: `kvm`, `tcg`, or `auto`: kvm where it really runs guests.
        boot: volume whose disk comes first; default: the first declared.
        kernel, initrd, append: boot this kernel instead of what is on the disk.
        firmware: `bios`, `uefi`, or an image's path; default: as the source booted.
        disk_bus: what its disks hang on.
        network: `none`, `user` (out by NAT of this host) or `bridge:NAME`.
        drill_network: the same, in a drill, for every card; or `bubble`: the network that the run's servers share.
        mac: address of its card.
        networks: several cards, in their order; instead of `network` and `mac`.
        guest_agent: the guest runs QEMU's guest agent: `true` waits for it, `auto` uses it where it answers.
        ready: a line of the console that contains this says: healthy.
        health: a command whose exit status 0 says so, asked after `ready`.
        tls_directory: credentials (ca-cert.pem, client-cert.pem, client-key.pem) for exports beyond this host.
        details: told to later steps as ${SOURCE.KEY}.
        arguments: more arguments for the program.
        grace: how long a clean shutdown may take before it is killed.
    """

    memory_mib: int = 0
    cpus: int = 0
    machine: str = "q35"
    cpu: str = "max"
    program: str = "qemu-system-x86_64"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    boot: str = ""
    kernel: str = ""
    initrd: str = ""
    append: str = ""
    firmware: str = ""
    disk_bus: Literal["virtio", "nvme", "sata", "scsi"] = "virtio"
    network: str = NONE
    drill_network: str = NONE
    mac: str = ""
    networks: list[CardSettings] = []
    guest_agent: bool | Literal["auto"] = "auto"
    ready: str = ""
    health: list[str] = []
    tls_directory: str = ""
    details: dict[str, str] = {}
    arguments: list[str] = []
    grace: str = "60s"


def qemu_settings(settings: Mapping[str, Any]) -> QemuSettings:
    """A runbook's settings, read and looked at.

    Raises:
        DrengineError: LAUNCH_SETTINGS, naming the key.
    """
    read = read_settings(QemuSettings, settings, NAME)
    if fault := _fault(read):
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver {NAME}: {fault}")
    return read


def _fault(read: QemuSettings) -> str:
    try:
        parse_duration(read.grace)
    except ValueError as error:
        return str(error)
    if read.memory_mib < 0 or read.cpus < 0:
        return "memory_mib and cpus can't be negative"
    if read.firmware not in {"", BIOS, UEFI} and "/" not in read.firmware:
        return f"firmware {read.firmware!r} is none of {BIOS}, {UEFI}, and no path"
    if read.networks and (read.network != NONE or read.mac):
        return "`networks` stands for several cards, so `network` and `mac` can't be there as well"
    macs = [each for each in (read.mac, *(card.mac for card in read.networks)) if each]
    for network in (read.network, *(card.network for card in read.networks)):
        if not _NETWORK.fullmatch(network):
            return f"network {network!r} is none of none, user, bridge:NAME"
    if read.drill_network != BUBBLE and not _NETWORK.fullmatch(read.drill_network):
        return f"drill_network {read.drill_network!r} is none of none, bubble, user, bridge:NAME"
    for mac in macs:
        if not _MAC.fullmatch(mac):
            return f"mac {mac!r} is no address of one network card, as 52:54:00:12:34:56 is"
    if len({mac.lower() for mac in macs}) < len(macs):
        return "two of its cards have the same mac"
    return ""
