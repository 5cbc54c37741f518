"""A server as an agent may tell of it."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from drengine.model.inventory import (
    FileSystem,
    FstabLine,
    Interface,
    Inventory,
    Listener,
    Partition,
    Route,
    SourceDisk,
)

GIB = 1 << 30

SERVER = Inventory(
    taken_ns=1_700_000_000_000_000_000,
    hostname="web1",
    os_id="debian",
    os_version="12",
    os_name="Debian GNU/Linux 12 (bookworm)",
    kernel="6.1.0-18-amd64",
    architecture="x86_64",
    boot_mode="uefi",
    cpus=4,
    memory_bytes=16 * GIB,
    virtualization="none",
    machine="Dell Inc. PowerEdge R640",
    root="dm-0",
    root_chain=("dm-0", "sda2", "sda"),
    disks=(
        SourceDisk(
            device="sda",
            size_bytes=480 * GIB,
            volume="system",
            table="gpt",
            transport="sata",
            model="INTEL SSDSC2KB48",
            is_root=True,
            partitions=(
                Partition(
                    number=1,
                    device="sda1",
                    offset_bytes=1 << 20,
                    size_bytes=GIB // 2,
                    type="c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
                ),
                Partition(number=2, device="sda2", offset_bytes=GIB // 2 + (1 << 20), size_bytes=479 * GIB),
            ),
        ),
        SourceDisk(device="sdb", size_bytes=2048 * GIB, volume="data", transport="sas"),
    ),
    file_systems=(
        FileSystem(
            device="sda1",
            kind="vfat",
            uuid="AB12-34CD",
            mounted_at="/boot/efi",
            size_bytes=GIB // 2,
            disks=("sda",),
        ),
        FileSystem(device="sda2", kind="LVM2_member", uuid="x1Y2z3-abcd", disks=("sda",)),
        FileSystem(
            device="dm-0",
            kind="ext4",
            uuid="0a1b2c3d-0000-4000-8000-000000000001",
            mounted_at="/",
            size_bytes=100 * GIB,
            free_bytes=60 * GIB,
            disks=("sda",),
        ),
        FileSystem(
            device="sdb",
            kind="xfs",
            uuid="0a1b2c3d-0000-4000-8000-000000000002",
            mounted_at="/var/lib/postgresql",
            size_bytes=2047 * GIB,
            free_bytes=1024 * GIB,
            disks=("sdb",),
        ),
    ),
    fstab=(
        FstabLine(device="/dev/mapper/vg-root", at="/", kind="ext4", options="errors=remount-ro"),
        FstabLine(device="UUID=AB12-34CD", at="/boot/efi", kind="vfat", options="umask=0077"),
        FstabLine(device="UUID=0a1b2c3d-0000-4000-8000-000000000002", at="/var/lib/postgresql", kind="xfs"),
    ),
    interfaces=(Interface(name="eno1", mac="3c:ec:ef:00:00:01", addresses=("10.0.0.5/24",), driver="ixgbe"),),
    routes=(Route(to="default", via="10.0.0.1", interface="eno1"),),
    name_servers=("10.0.0.53",),
    search=("example.org",),
    listeners=(
        Listener(protocol="tcp", address="0.0.0.0", port=22, program="sshd", unit="ssh.service"),
        Listener(protocol="tcp", address="0.0.0.0", port=5432, program="postgres", unit="postgresql@15-main.service"),
    ),
)


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Servers of any kind: each list is cut somewhere, and texts are any that are allowed."""
    lists = ("disks", "file_systems", "fstab", "interfaces", "routes", "listeners", "name_servers", "search")
    cut = {name: getattr(SERVER, name)[: draw(st.integers(0, 3))] for name in lists}
    texts = st.text(st.characters(exclude_categories=("C", "Z")), max_size=40)
    words = {name: draw(texts) for name in ("hostname", "os_id", "os_name", "kernel", "machine")}
    numbers = {name: draw(st.integers(0, 2**63 - 1)) for name in ("taken_ns", "memory_bytes", "cpus")}
    return msgspec.structs.replace(SERVER, **cut, **words, **numbers)
