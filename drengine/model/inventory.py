"""What a source server is made of, as its agent found it: enough to build another one that its disks can run on.

It comes from a server that may have been taken over, so `parse_inventory` judges every value: texts are short and
printable, addresses are addresses, names of devices are no paths, and there are not many of anything.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import msgspec

DOCUMENT_BYTES_MAX = 64 << 10
TEXT_BYTES_MAX = 1024
ENTRIES_MAX = 256
"""Of each list."""
_INTEGER_MAX = 2**63 - 1
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.!:+-]*", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


class BadInventory(ValueError):
    """A document that is no inventory, or has a value that is not possible."""


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """A file system, swap space, LVM member or the like on a device.

    Attributes:
        device: the name that the kernel has for it: `sda2`, `dm-0`.
        kind: `ext4`, `xfs`, `btrfs`, `vfat`, `swap`, `LVM2_member`, `crypto_LUKS`; empty: nothing known.
        uuid, label: its own.
        mounted_at: where; empty: nowhere.
        size_bytes, free_bytes: of the file system; 0 where it is not mounted.
        disks: on which it lies.
        unreplicated: those of them that no volume covers.
    """

    device: str
    kind: str = ""
    uuid: str = ""
    label: str = ""
    mounted_at: str = ""
    size_bytes: int = 0
    free_bytes: int = 0
    disks: tuple[str, ...] = ()
    unreplicated: tuple[str, ...] = ()


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a disk. `number` counts from 1; `type` is its GUID (GPT) or its two hexadecimal digits (MBR)."""

    number: int
    device: str
    offset_bytes: int
    size_bytes: int
    type: str = ""
    uuid: str = ""


class SourceDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of the server, or what else is replicated as a volume: a partition, a logical volume, a file.

    Attributes:
        device: `sda`, `nvme0n1`, `vda`, `dm-3`; of a file, the volume's name.
        volume: the name under which it is replicated; empty: it is not.
        table: `gpt`, `dos`, or empty: the disk is used whole.
        transport: `sata`, `nvme`, `virtio`, `sas`, `iscsi`, ...; empty: not known.
        is_root: the root file system lies on it.
    """

    device: str
    size_bytes: int
    volume: str = ""
    sector_bytes: int = 512
    table: str = ""
    transport: str = ""
    model: str = ""
    is_root: bool = False
    partitions: tuple[Partition, ...] = ()


class FstabLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of /etc/fstab. `device` is as written: `UUID=...`, `/dev/sda2`, `/dev/mapper/vg-root`."""

    device: str
    at: str
    kind: str
    options: str = "defaults"


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface.

    Attributes:
        name, mac, mtu: its own.
        kind: `physical`, `bond`, `bridge`, `vlan`, `virtual`.
        is_up: it is.
        addresses: with prefix lengths: `10.0.0.5/24`, `2001:db8::5/64`; link-local ones are left out.
        dhcp: its address was given by DHCP.
        driver: kernel's, `e1000e`.
    """

    name: str
    mac: str = ""
    mtu: int = 1500
    kind: str = "physical"
    is_up: bool = True
    addresses: tuple[str, ...] = ()
    dhcp: bool = False
    driver: str = ""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route of the main table. `to` is a network, `default` one of all; `via` is empty for a network on the link."""

    to: str
    via: str = ""
    interface: str = ""
    metric: int = 0


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A port on which a program listens. `protocol` is `tcp` or `udp`; `unit` the systemd unit, if it has one."""

    protocol: str
    address: str
    port: int
    program: str = ""
    unit: str = ""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """A server, as its agent found it.

    Attributes:
        taken_ns: when, by the source's clock.
        os_id, os_like, os_version, os_name: ID, ID_LIKE, VERSION_ID and PRETTY_NAME of os-release.
        kernel, architecture: as uname tells.
        boot_mode: `bios` or `uefi`; empty: not known (a container).
        secure_boot: UEFI checks signatures.
        cpus, memory_bytes: that it may use.
        virtualization: `none`, `kvm`, `vmware`, ... as systemd-detect-virt tells.
        root: the kernel's name of the device of the root file system; `root_chain` from it down to disks:
            `("dm-0", "sda2", "sda")`.
        encrypted_root: something in that chain is.
        name_servers, search: of its resolver.
    """

    taken_ns: int
    hostname: str = ""
    os_id: str = ""
    os_like: tuple[str, ...] = ()
    os_version: str = ""
    os_name: str = ""
    kernel: str = ""
    architecture: str = ""
    boot_mode: str = ""
    secure_boot: bool = False
    cpus: int = 0
    memory_bytes: int = 0
    virtualization: str = ""
    machine: str = ""
    root: str = ""
    root_chain: tuple[str, ...] = ()
    encrypted_root: bool = False
    disks: tuple[SourceDisk, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()
    fstab: tuple[FstabLine, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    name_servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] = ()

    @property
    def lasting(self) -> Inventory:
        """Without what changes all the time: equal for two looks at a server of which nothing was changed."""
        quiet = tuple(msgspec.structs.replace(each, free_bytes=0) for each in self.file_systems)
        return msgspec.structs.replace(self, taken_ns=0, file_systems=quiet)


def pack_inventory(inventory: Inventory) -> bytes:
    """As a JSON document, whose names are those of the attributes."""
    return msgspec.json.encode(inventory)


def parse_inventory(document: bytes) -> Inventory:
    """What a document says. Names that are not known here are passed over: a newer agent may tell more.

    Raises:
        BadInventory: saying which value is not possible.
    """
    if len(document) > DOCUMENT_BYTES_MAX:
        raise BadInventory(f"{len(document)} bytes are over {DOCUMENT_BYTES_MAX}")
    try:
        inventory = msgspec.json.decode(document, type=Inventory)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInventory(f"it does not decode: {error}") from error
    for fault in faults(inventory):
        raise BadInventory(fault)
    return inventory


def faults(value: Any, where: str = "inventory") -> Iterator[str]:
    """What of an inventory, or of a part of one, is not possible."""
    match value:
        case bool():
            return
        case int() if not 0 <= value <= _INTEGER_MAX:
            yield f"{where} is {value if abs(value) < 1 << 80 else 'a number'}, and not from 0 to 2^63-1"
        case str() if not value.isprintable():
            yield f"{where} has control characters"
        case str() if len(value.encode()) > TEXT_BYTES_MAX:
            yield f"{where} has more than {TEXT_BYTES_MAX} bytes"
        case tuple() if len(value) > ENTRIES_MAX:
            yield f"{where} has more than {ENTRIES_MAX} entries"
        case tuple():
            for each in value:
                yield from faults(each, where)
        case msgspec.Struct():
            for name in value.__struct_fields__:
                yield from faults(getattr(value, name), name)
            yield from _struct_faults(value)


def _struct_faults(value: msgspec.Struct) -> Iterator[str]:
    """What is not possible in one kind of value alone."""
    match value:
        case FileSystem(device=device, disks=disks, unreplicated=exposed):
            yield from (fault for each in (device, *disks, *exposed) for fault in _device_fault(each))
        case SourceDisk(device=device) | Partition(device=device):
            yield from _device_fault(device)
        case Interface(name=name, mac=mac, addresses=addresses):
            yield from _device_fault(name)
            if mac and not _MAC.fullmatch(mac):
                yield f"{mac[:40]!r} is no address of a network card"
            yield from (fault for each in addresses for fault in _address_fault(each, ipaddress.ip_interface))
        case Route(to=to, via=via):
            yield from _address_fault(to, ipaddress.ip_network) if to != "default" else ()
            yield from _address_fault(via, ipaddress.ip_address) if via else ()
        case Listener(protocol=protocol, address=address, port=port):
            yield from _address_fault(address, ipaddress.ip_address)
            if protocol not in ("tcp", "udp") or not 0 < port < 1 << 16:
                yield f"{protocol[:10]!r} port {port} is no port"
        case Inventory(boot_mode=mode, root=root, root_chain=chain, name_servers=servers):
            if mode not in ("", "bios", "uefi"):
                yield f"{mode[:40]!r} is no way to boot"
            yield from (fault for each in (root, *chain) if each for fault in _device_fault(each))
            yield from (fault for each in servers for fault in _address_fault(each, ipaddress.ip_address))


def _device_fault(name: str) -> Iterator[str]:
    if not _DEVICE.fullmatch(name):
        yield f"{name[:40]!r} is no name of a device"


def _address_fault(text: str, kind: Any) -> Iterator[str]:
    try:
        kind(text)
    except ValueError:
        yield f"{text[:60]!r} is no {kind.__name__.removeprefix('ip_')}"
