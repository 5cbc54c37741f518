"""The helper machine's block devices, and which of them a name of the guest means.

The guest's fstab and boot loader may name devices as its old hardware did (`/dev/sda2`). What such a name means here is
known from the source's inventory; without one, from the root's line in fstab, or because there is one disk only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from drengine.model.inventory import FstabLine, Inventory

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX_KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
_KERNEL_NAME = re.compile(r"/dev/((?:sd|hd|vd|xvd)[a-z]{1,3})(\d{0,3})")
_NUMBERED_NAME = re.compile(r"/dev/((?:nvme\d+n\d+|mmcblk\d+|cciss/c\d+d\d+))(?:p(\d{1,3}))?")
_BY_HARDWARE = re.compile(r"/dev/disk/by-(?:id|path)/(.+?)(?:-part(\d{1,3}))?")
_ID = re.compile(r"[A-Za-z0-9._ +:@-]{1,128}")


@dataclass(frozen=True, slots=True)
class Device:
    """A block device in the helper machine.

    Attributes:
        path: there, `/dev/vda2` or `/dev/mapper/vg-root`.
        disk, number: which disk, and which partition of it; 0 for the whole. A logical volume has disk -1.
        kind, uuid, label: of its content.
        part_uuid, part_label, part_type: of the partition's entry.
        table: the kind of partition table on it: `gpt`, `dos`.
    """

    path: str
    disk: int = -1
    number: int = 0
    kind: str = ""
    uuid: str = ""
    label: str = ""
    part_uuid: str = ""
    part_label: str = ""
    part_type: str = ""
    table: str = ""


_IDS: Mapping[str, Callable[[Device], str]] = {
    "UUID": lambda device: device.uuid,
    "LABEL": lambda device: device.label,
    "PARTUUID": lambda device: device.part_uuid,
    "PARTLABEL": lambda device: device.part_label,
}
"""What fstab(5) knows a device by; udev has a folder of links for each."""


@dataclass(frozen=True)
class Devices:
    """All of them, and what the guest's names mean.

    Attributes:
        all: as found.
        stems: what the guest called disks: `sda`, or the name by hardware without its partition, to a disk's number.
    """

    all: tuple[Device, ...]
    stems: Mapping[str, int] = field(default_factory=dict)

    def named(self, name: str) -> Device | None:
        """The device that a name of the guest means: `UUID=...`, `/dev/sda2`, `/dev/vg/root`; None: not known here."""
        name = name.strip("\"'")
        tag, equals, value = name.partition("=")
        if equals and tag in _IDS:
            return self._by(tag, value.strip("\"'"))
        for tag in _IDS:
            if name.startswith(f"/dev/disk/by-{tag.lower()}/"):
                return self._by(tag, name.rpartition("/")[2])
        if found := hardware_name(name):
            stem, number = found
            if stem in self.stems:
                place = (self.stems[stem], number)
                return next((each for each in self.all if (each.disk, each.number) == place), None)
            return None
        return next((each for each in self.all if each.path in mapper_names(name)), None)

    def _by(self, tag: str, value: str) -> Device | None:
        def plain(text: str) -> str:
            return text.lower() if tag.endswith("UUID") else text

        return next((each for each in self.all if value and plain(_IDS[tag](each)) == plain(value)), None)


def stable_name(device: Device) -> str:
    """The name under which a device is found on any hardware; empty: it has none."""
    if device.uuid:
        return f"UUID={device.uuid}"
    return f"PARTUUID={device.part_uuid}" if device.part_uuid else ""


def hardware_name(name: str) -> tuple[str, int] | None:
    """What a name that depends on the hardware says: the disk, and the partition's number, 0 for the whole."""
    for pattern in (_KERNEL_NAME, _NUMBERED_NAME, _BY_HARDWARE):
        if match := pattern.fullmatch(name):
            return match[1], int(match[2] or 0)
    return None


def mapper_names(name: str) -> tuple[str, ...]:
    """Under which paths a name may be found: a logical volume has two."""
    parts = name.removeprefix("/dev/").split("/")
    if name.startswith("/dev/") and len(parts) == 2 and parts[0] != "mapper":
        group, volume = (part.replace("-", "--") for part in parts)
        return (name, f"/dev/mapper/{group}-{volume}")
    return (name,)


def stems_of(
    fstab: Iterable[FstabLine], root: Device, volumes: Sequence[str], inventory: Inventory | None
) -> dict[str, int]:
    """What the guest called which disk.

    Args:
        volumes: names of the helper's disks, by number.
    """
    known: dict[str, int] = {}
    for disk in inventory.disks if inventory else ():
        if disk.volume in volumes:
            known[disk.device] = volumes.index(disk.volume)
    names = [(line, found) for line in fstab if (found := hardware_name(line.device))]
    for line, (stem, number) in names:
        if line.at == "/" and root.disk >= 0 and number == root.number:
            known.setdefault(stem, root.disk)
    if len(volumes) == 1 and not inventory:
        for stem in {stem for _, (stem, _) in names} or {"sda"}:
            known.setdefault(stem, 0)
    return known


def read_devices(listing: str) -> tuple[Device, ...]:
    """From what the helper's listing says: a line `device PATH DISK NUMBER`, then blkid's lines NAME=VALUE."""
    found: list[Device] = []
    place: tuple[str, int, int] | None = None
    values: dict[str, str] = {}
    for line in (*listing.splitlines(), "device"):
        if line.split(" ")[0] != "device":
            name, _, value = line.partition("=")
            values[name] = value.replace("\\", "")
            continue
        if place:
            found.append(_device(*place, values))
        words, values = line.split(" "), {}
        place = None
        if len(words) == 4 and all(re.fullmatch(r"-?\d{1,4}", word) for word in words[2:]):
            place = (words[1], int(words[2]), int(words[3]))
    return tuple(found)


def _device(path: str, disk: int, number: int, values: Mapping[str, str]) -> Device:
    def value(name: str) -> str:
        found = values.get(name, "")
        return found if _ID.fullmatch(found) else ""

    return Device(
        path=path,
        disk=disk,
        number=number,
        kind=value("TYPE"),
        uuid=value("UUID"),
        label=value("LABEL"),
        part_uuid=value("PART_ENTRY_UUID"),
        part_label=value("PART_ENTRY_NAME"),
        part_type=value("PART_ENTRY_TYPE").lower(),
        table=value("PTTYPE"),
    )
