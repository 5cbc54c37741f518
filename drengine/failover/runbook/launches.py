"""First launch settings of a source, by driver, from what is known of its server. A new driver is a line in LAUNCHES.

What a source tells of itself is not trusted: its texts become quoted strings or comments, and no path leaves its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from drengine.model.inventory import FileSystem, Inventory, Listener, SourceDisk

STANDBY, EC2 = "standby", "ec2"
NEED_HOST = frozenset({STANDBY, EC2})
"""Drivers whose launches name a recovery host."""
MOUNTED = ("ext", "xfs", "btrfs")
"""What a recovery host can mount as it is; the kinds of ext begin so."""
_TABLES = ("gpt", "mbr")
_NO_WORKLOAD = frozenset(
    {"22/tcp", "53/udp", "67/udp", "68/udp", "111/tcp", "111/udp", "123/udp", "323/udp", "546/udp"}
)
"""Ports on which any server listens."""
_OURS = re.compile(r"(drengine|systemd|ssh|chrony|ntp|rpcbind|avahi|dbus|cups|exim4|user@)", re.ASCII)
"""Units that come with the system, or are ours."""
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]*\.service", re.ASCII)
_NO_STRINGS = frozenset({"true", "false", "null", "yes", "no", "on", "off"})
_MEMORY_STEP_MIB = 256
"""A kernel reports less memory than its machine has."""
_COPY_BYTES_A_MINUTE = 60 * 100 * 10**6
"""What a volume of gp2 takes at least."""
_HEALTH: Mapping[str, Sequence[str]] = {
    "postgres": ("pg_isready", "--host", "127.0.0.1", "--port", "{port}"),
    "mysqld": ("mysqladmin", "--host", "127.0.0.1", "--port", "{port}", "ping"),
    "mariadbd": ("mysqladmin", "--host", "127.0.0.1", "--port", "{port}", "ping"),
    "redis-server": ("redis-cli", "-p", "{port}", "ping"),
}
"""What asks a program whether it works."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system that a recovery host can mount; `on_source` is where the source has it, empty: not known."""

    volume: str
    partition: int
    at: str
    on_source: str = ""


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A source as the store knows it.

    Attributes:
        volumes: their sizes by name.
        contents: what their first bytes are, by name: `ext`, `xfs`, `gpt`, ...; empty where that is not known.
        inventory: what its agent told of the server; None: nothing.
        home: the host where it lives; empty: the one that has its name.
    """

    name: str
    volumes: Mapping[str, int]
    contents: Mapping[str, str] = field(default_factory=dict)
    inventory: Inventory | None = None
    home: str = ""

    @property
    def mounts(self) -> list[Mount]:
        """What a recovery host mounts: what the source has mounted, else the file system with which a volume begins."""
        told = [each for each in self._told_mounts() if each.volume in self.volumes]
        told.sort(key=lambda each: (each.on_source != "/", each.on_source.count("/"), each.on_source))
        found = {each.at: each for each in reversed(told)}
        for volume in self.volumes:
            if self.contents.get(volume) in MOUNTED and volume not in {each.volume for each in told}:
                at = self._place(volume)
                at = f"{at}-volume" if at in found else at
                found[at] = Mount(volume, 0, at)
        return [each for each in told if found[each.at] is each] + [
            each for each in found.values() if not each.on_source
        ]

    @property
    def services(self) -> list[Listener]:
        """Who listens there and is no part of the system: one of each port."""
        listeners = self.inventory.listeners if self.inventory else ()
        found: dict[str, Listener] = {}
        for each in listeners:
            port = f"{each.port}/{each.protocol}"
            if port not in _NO_WORKLOAD and not _OURS.match(each.unit or each.program):
                found.setdefault(port, each)
        return list(found.values())

    @property
    def units(self) -> list[str]:
        """Their systemd units."""
        return list(dict.fromkeys(each.unit for each in self.services if _UNIT.fullmatch(each.unit)))

    def _told_mounts(self) -> Iterator[Mount]:
        inventory = self.inventory
        if inventory is None:
            return
        systems = {each.device: each for each in inventory.file_systems if _can_mount(each)}
        for disk in inventory.disks:
            if not disk.volume:
                continue
            for device, partition in ((disk.device, 0), *((each.device, each.number) for each in disk.partitions)):
                if system := systems.pop(device, None):
                    yield Mount(disk.volume, partition, self._place(system.mounted_at), system.mounted_at)

    def _place(self, of: str) -> str:
        """Where a mount of the source, or a volume, is mounted: never outside of the source's own place."""
        parts = [part for part in of.split("/") if part not in ("", ".")]
        if ".." in parts:
            parts = ["unknown"]
        return str(PurePosixPath("/srv", self.name, *(parts or ["rootfs"])))


def _can_mount(system: FileSystem) -> bool:
    """Of what boots a server a recovery host has its own."""
    return system.kind.startswith(MOUNTED) and system.mounted_at.startswith("/") and system.mounted_at != "/boot"


def command_settings(source: KnownSource) -> Iterator[str]:
    """For driver `command`."""
    yield "# A program on this host that reads the disk over NBD; DRENGINE_DISK_<VOLUME> holds its address."
    yield f"run: [/usr/local/bin/start-{source.name}]"
    yield f"health: [/usr/local/bin/check-{source.name}]"


def qemu_settings(source: KnownSource) -> Iterator[str]:
    """For driver `qemu`: a machine as the source is."""
    told = source.inventory
    yield "# The disks are booted as a virtual machine; in a drill without any network."
    memory_mib = told.memory_bytes >> 20 if told else 0
    if told and memory_mib:
        yield f"memory_mib: {-(-memory_mib // _MEMORY_STEP_MIB) * _MEMORY_STEP_MIB}   # as the source has"
    else:
        yield "memory_mib: 2048"
    yield f"cpus: {told.cpus or 2 if told else 2}"
    if told and told.boot_mode:
        yield f"firmware: {told.boot_mode}"
    if told and (root := _root_disk(told, source)):
        yield f"boot: {root}   # the root file system lies on it"
    yield 'ready: "login:"'
    yield from _what_listened(source)


def standby_settings(source: KnownSource) -> Iterator[str]:
    """For driver `standby`: it attaches and mounts; what starts there is for who knows the workload."""
    mounts = source.mounts
    yield "mounts:" if mounts else "mounts: []   # no file system was found that a recovery host could mount"
    for each in mounts:
        partition = f"partition: {each.partition}, " if each.partition else ""
        origin = f"   # the source's {each.on_source}" if each.on_source else ""
        yield f"  - {{volume: {yaml_word(each.volume)}, {partition}at: {yaml_path(each.at)}}}{origin}"
    yield from _not_mounted(source, {each.volume for each in mounts})
    yield from _what_listened(source)
    units = source.units or [source.name]
    yield f"# start: {_command('systemctl', 'start', *units)}"
    yield "#   # in `drill` a program of its own: systemd starts outside its network"
    yield f"# stop: {_command('systemctl', 'stop', *reversed(units))}"
    yield f"# health: {_health(source.services, units)}"


def ec2_settings(source: KnownSource) -> Iterator[str]:
    """For driver `ec2`: the ids are examples; which types are as large as the source is asked at the launch."""
    told = source.inventory
    yield "region: eu-central-1"
    yield "outpost: arn:aws:outposts:eu-central-1:123456789012:outpost/op-0123456789abcdef0   # or leave it out"
    yield "subnets: [subnet-0123456789abcdef0]   # where the recovery host is"
    yield "drill_subnets: [subnet-0fedcba9876543210]   # without a route out"
    yield "security_groups: [sg-0123456789abcdef0]"
    mode = told.boot_mode if told and told.boot_mode in ("bios", "uefi") else "bios or uefi"
    yield f"image: ami-0123456789abcdef0   # a small one that boots by {mode}, as the source; its disk is replaced"
    size = f"{told.cpus} CPUs and {told.memory_bytes >> 20} MiB" if told and told.cpus else ""
    if size:
        yield f"# instance_types: [m5.xlarge]   # in this order; without it those offered there with {size}"
    else:
        yield "instance_types: [m5.xlarge, m5.2xlarge]   # tried in this order"
    if told and (root := _root_disk(told, source)):
        yield f"boot: {root}   # the root file system lies on it"
    tcp = next((each.port for each in source.services if each.protocol == "tcp"), 443)
    yield f"# health_port: {tcp}   # asked from the orchestrator's host, which a drill lets in by `drill_from`"
    yield from _what_listened(source)


def ec2_minutes(source: KnownSource) -> int:
    """Until it has to be healthy: the disks are copied and read back before it starts."""
    return 15 + 2 * sum(source.volumes.values()) // _COPY_BYTES_A_MINUTE


LAUNCHES: Mapping[str, Callable[[KnownSource], Iterator[str]]] = {
    "command": command_settings,
    EC2: ec2_settings,
    "qemu": qemu_settings,
    STANDBY: standby_settings,
}
"""By driver, the lines of its settings."""
TOLD = frozenset({EC2, "qemu", STANDBY})
"""Drivers whose settings follow from what an agent tells."""


def launch_settings(driver: str, source: KnownSource) -> Iterator[str]:
    """The lines of a launch's settings."""
    if driver in LAUNCHES:
        return LAUNCHES[driver](source)
    return iter(("{}   # see the driver's documentation",))


def checks_inside(source: KnownSource) -> Iterator[str]:
    """Suggested checks of what listened, asked on the recovery host in the network of the workload."""
    for each in source.services:
        if each.protocol == "tcp":
            yield f"#   - tcp: {{host: 127.0.0.1, port: {each.port}}}   # {each.program or 'something'} listened there"
            yield f"#     inside: {yaml_word(source.name)}"


def own_services(source: KnownSource) -> Iterator[str]:
    """Suggested `services` of the source itself."""
    for unit in source.units or [source.name]:
        name = re.sub(r"[^a-z0-9._-]", "-", unit.removesuffix(".service").lower())
        stop, start = (_command("systemctl", verb, unit) for verb in ("stop", "start"))
        yield f"#   - {{name: {yaml_word(name)}, stop: {stop}, start: {start}}}"


def yaml_word(name: str) -> str:
    """A checked name as YAML: quoted where it would mean something else."""
    return f'"{name}"' if name[0].isdigit() or name in _NO_STRINGS else name


def yaml_path(path: str) -> str:
    """A path as YAML."""
    return path if re.fullmatch(r"[A-Za-z0-9@._/-]+", path, re.ASCII) else json.dumps(path)


def _root_disk(inventory: Inventory, source: KnownSource) -> str:
    """The volume from which the machine boots, where there are others beside it."""
    found = next((disk.volume for disk in inventory.disks if disk.is_root and disk.volume in source.volumes), "")
    return yaml_word(found) if found and len(source.volumes) > 1 else ""


def _not_mounted(source: KnownSource, mounted: set[str]) -> Iterator[str]:
    """What of the source a recovery host does not mount, and why."""
    inventory = source.inventory
    disks: tuple[SourceDisk, ...] = inventory.disks if inventory else ()
    for system in inventory.file_systems if inventory else ():
        if _can_mount(system) and system.device not in _plain_devices(disks):
            why = f"lies on {', '.join(system.unreplicated)}, which is not replicated" if system.unreplicated else ""
            why = why or f"lies on {system.device} (LVM, md or encryption), which a recovery host does not put together"
            yield f"# {system.mounted_at} {why}"
    known = {disk.volume for disk in disks}
    for volume in source.volumes:
        if volume not in mounted | known and source.contents.get(volume) in _TABLES:
            at = f"/srv/{source.name}/{volume}"
            yield f"# - {{volume: {yaml_word(volume)}, partition: 1, at: {at}}}   # it has partitions"


def _plain_devices(disks: Sequence[SourceDisk]) -> set[str]:
    """Volumes, and partitions of volumes."""
    replicated = [disk for disk in disks if disk.volume]
    return {disk.device for disk in replicated} | {part.device for disk in replicated for part in disk.partitions}


def _what_listened(source: KnownSource) -> Iterator[str]:
    for each in source.services:
        whose = " ".join(filter(None, (each.program, f"({each.unit})" if each.unit else "")))
        yield f"# The source listened on {each.port}/{each.protocol}{f': {whose}' if whose else ''}"


def _health(services: Sequence[Listener], units: Sequence[str]) -> str:
    for each in services:
        if each.protocol == "tcp" and (words := _HEALTH.get(each.program)):
            return _command(*(word.format(port=each.port) for word in words))
    return _command("systemctl", "is-active", *units)


def _command(*words: str) -> str:
    return f"[{', '.join(_word(word) for word in words)}]"


def _word(word: str) -> str:
    return word if re.fullmatch(r"[A-Za-z/-][A-Za-z0-9@._/-]*", word, re.ASCII) else json.dumps(word)
