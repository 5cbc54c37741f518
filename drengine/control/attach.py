"""What ATTACH carries to a recovery host: which disks, and what to make of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from drengine.model.hardware import Card, Server

AUTO, ISCSI = "auto", "iscsi"
ATTACH_WAYS = (AUTO, "kernel", "fuse", "copy", ISCSI)
HYDRATED = "hydrate"
"""Asked of a helper of EC2: its disks are attached in no way, they are written to volumes."""
NONE, HOST, BUBBLE = "none", "host", "bubble"
"""Networks of a drill: only loopback, this host's own, or one that the servers of the run share on this host."""
_ASKING = frozenset(
    {"systemctl", "systemd-run", "service", "invoke-rc.d", "rc-service", "initctl", "machinectl", "busctl", "dbus-send"}
    | {"docker", "nerdctl", "virsh", "lxc", "incus", "at", "batch"}
)
"""Programs that ask a process outside to start something: it starts in that one's network, not in theirs."""
_WRAPPING = frozenset(
    {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox", "env", "sudo", "doas", "su", "runuser"}
    | {"nice", "ionice", "timeout", "setsid", "nohup", "chroot"}
)
_SYSTEM = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")
_WORD = re.compile(r"[^\s;&|()`'\"$]+")


class StandbyMount(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file system of a disk, or of one of its partitions, and where it is mounted."""

    volume: str
    at: str
    partition: int = 0
    options: list[str] = []


class StandbySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Settings of the launch driver `standby` in a runbook. Defaults are not sent: hosts of older versions have theirs.

    Attributes:
        attach: one of ATTACH_WAYS; `auto` is the best that the host has.
        mounts: in this order; undone in reverse.
        start, stop: commands that return (systemctl start ...).
        health: exit status 0 when it works; asked until it does.
        user: as whom the commands run; default: root.
        network: in a drill: `none` runs the commands in a network with only loopback, `bubble` in one that the run's
            servers share and that leads nowhere else, `host` in this host's own.
        interface: of this host, which takes over the workload's addresses in a failover; empty: none does.
        details: told to later steps as ${SOURCE.KEY}.
    """

    attach: str = AUTO
    mounts: list[StandbyMount] = []
    start: list[str] = []
    stop: list[str] = []
    health: list[str] = []
    user: str = ""
    network: str = NONE
    interface: str = ""
    details: dict[str, str] = {}


class Lun(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that is served over iSCSI too.

    Attributes:
        portal: ADDRESS:PORT, an IPv6 address in brackets.
        target: the target's name.
        identifier: the disk's own, an NAA identifier: 32 hexadecimal digits.
    """

    portal: str
    target: str
    identifier: str


class AttachOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of ATTACH.

    Attributes:
        disks: NBD URIs by volume.
        luns: by volume, where the orchestrator serves them over iSCSI.
        run, cards, servers: those of the launch.
    """

    instance: str
    source: str
    disks: dict[str, str]
    luns: dict[str, Lun] = {}
    settings: StandbySettings
    isolated: bool
    hydrate: bool = False
    timeout_seconds: float = 300.0
    run: str = ""
    cards: tuple[Card, ...] = ()
    servers: dict[str, Server] = {}


class HydrateDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk and the volume of this host that is to be made equal to it, or it to that.

    Attributes:
        uri: NBD URI of the branch.
        serial: what the volume's disk tells as its serial number: that of an EBS volume is its id without the dash.
        size_bytes: of the disk; the volume may be larger.
    """

    uri: str
    serial: str
    size_bytes: int


class HydrateOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of HYDRATE.

    Attributes:
        instance: whose disks they are.
        direction: `fill` writes the volumes, `return` writes the branches.
        disks: by volume.
    """

    instance: str
    direction: str
    disks: dict[str, HydrateDisk]


class HostQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """The argument `examine` of STATUS: could this host carry out such an order?

    Attributes:
        order: as ATTACH would carry it, but for LUNs, which are not served yet; nothing of it is done.
        size_bytes: of each disk.
        luns: whether there would be some.
    """

    order: AttachOrder
    size_bytes: dict[str, int] = {}
    luns: bool = False


class HostFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a host looked at.

    Attributes:
        check: a check's name, see `drengine.failover.preflight`.
        seen: what was looked at and found.
        fault: why it would not do; empty: it would.
        warns: it would do all the same, if that can't be helped.
    """

    check: str
    seen: str
    fault: str = ""
    warns: bool = False


class HostAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a host found.

    Attributes:
        findings: one by one.
        now_ns: its clock.
        attach: how it would attach the disks; empty: in no way, or it is of an older version.
    """

    findings: list[HostFinding]
    now_ns: int
    attach: str = ""


def breaks_isolation(order: AttachOrder) -> str:
    """Why commands of an order would not run in the network of their own that a drill promises; empty: they do."""
    if not order.isolated or order.settings.network == HOST:
        return ""
    for argv in (order.settings.start, order.settings.stop, order.settings.health):
        asking = _asks(argv)
        if asking:
            return (
                f"`{asking}` asks a process outside to act, which does it in the host's own network: an isolated drill "
                "can't use it. Start the program itself in `drill`, or accept the host's network with "
                "`drill: {network: host}`"
            )
    return ""


def _asks(argv: Sequence[str]) -> str:
    """The program that asks somebody else, called itself or by a shell or another wrapper."""
    program = _system_program(argv[0]) if argv else ""
    if program in _ASKING:
        return program
    if program not in _WRAPPING:
        return ""
    words = (_system_program(word) for text in argv[1:] for word in _WORD.findall(text))
    return next((word for word in words if word in _ASKING), "")


def _system_program(path: str) -> str:
    """The name of a program of the system; "" for one that lies elsewhere, whatever its name."""
    parent = str(PurePosixPath(path).parent)
    return PurePosixPath(path).name if parent in (".", *_SYSTEM) else ""
