"""What a source server is made of, as its agent found it: enough to build another one that its disks can run on."""

from __future__ import annotations

import msgspec


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """A file system, swap space, LVM member or the like on a device.

    Attributes:
        device: the name that the kernel has for it: `sda2`, `dm-0`.
        kind: `ext4`, `xfs`, `btrfs`, `vfat`, `swap`, `LVM2_member`, `crypto_LUKS`; empty: nothing known.
        uuid, label: its own.
        mounted_at: where; empty: nowhere.
        size_bytes, free_bytes: of the file system; 0 where it is not mounted.
    """

    device: str
    kind: str = ""
    uuid: str = ""
    label: str = ""
    mounted_at: str = ""
    size_bytes: int = 0
    free_bytes: int = 0


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a disk. `number` counts from 1; `type` is its GUID (GPT) or its two hexadecimal digits (MBR)."""

    number: int
    device: str
    offset_bytes: int
    size_bytes: int
    type: str = ""
    uuid: str = ""


class SourceDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of the server.

    Attributes:
        device: `sda`, `nvme0n1`, `vda`.
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
