"""Finding the guest's system on its disks: which file system is its root, and what else belongs to it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from drengine.conversion.devices import ESP, LINUX_KINDS, Device, Devices, read_devices, stems_of
from drengine.conversion.errors import CONVERSION_HELPER, ENCRYPTED_GUEST, NO_BOOT, UNKNOWN_GUEST, WINDOWS_GUEST
from drengine.conversion.fstab import read_fstab
from drengine.conversion.guest import Mount
from drengine.conversion.helper import Helper
from drengine.model.errors import DrengineError
from drengine.model.inventory import FstabLine, Inventory

MOUNTED = ("/usr", "/var", "/boot", "/boot/efi", "/efi")
"""File systems of the guest that a conversion needs beside its root, in this order."""
_LVM = "--config 'activation{udev_sync=0 udev_rules=0} devices{use_devicesfile=0} global{use_lvmpolld=0}'"
_LISTING = f"""
list() {{ echo "device $1 $2 $3"; blkid -p -o export "$1"; }}
for disk in $(ls -d /sys/block/vd* | sort); do
  name=${{disk##*/}}; number=$(cat $disk/serial); number=${{number#disk}}
  list /dev/$name "$number" 0
  for each in $disk/$name*; do
    [ -e "$each/partition" ] && list /dev/${{each##*/}} "$number" "$(cat $each/partition)"
  done
done
if [ -x /sbin/lvm ] && blkid | grep -q LVM2_member; then
  load lvm
  lvm vgchange -ay {_LVM} >/dev/null; lvm vgscan --mknodes {_LVM} >/dev/null
fi
for each in /dev/mapper/*; do [ -b "$each" ] && list "$each" -1 0; done; true
"""
_LOOK = """
mkdir -p /look
look() {
  mount -t "$2" -o ro"$3" "$1" /look || return
  [ "$2" = vfat ] && [ -e /look/EFI/Microsoft/Boot/bootmgfw.efi ] && echo "windows $1"
  for sub in "" @ @rootfs root; do
    at=/look/$sub
    if [ -f "$at/etc/fstab" ] && { [ -e "$at/etc/os-release" ] || [ -L "$at/etc/os-release" ]; }; then
      fstab=$(head -c 65536 "$at/etc/fstab" | base64 -w 0) release=$(head -c 4096 "$at/etc/os-release" | base64 -w 0)
      echo "root $1 =$sub $fstab =$release"
      break
    fi
  done
  umount /look
}
"""
_LINKS = "mkdir -p /dev/disk/by-uuid /dev/disk/by-label /dev/disk/by-partuuid\n"


@dataclass(frozen=True, slots=True)
class System:
    """The guest's system.

    Attributes:
        name: PRETTY_NAME of its os-release.
        root: its device; `subvolume` of a btrfs.
        mounts: the root first.
        esp: has an EFI system partition that it mounts, and where.
    """

    name: str
    root: Device
    subvolume: str
    devices: Devices
    mounts: tuple[Mount, ...]
    esp: str = ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    device: Device
    subvolume: str
    fstab: tuple[FstabLine, ...]
    name: str


def find_system(helper: Helper, inventory: Inventory | None) -> System:
    """The one system on the disks.

    Raises:
        DrengineError: WINDOWS_GUEST, ENCRYPTED_GUEST, UNKNOWN_GUEST, NO_BOOT, CONVERSION_HELPER.
    """
    found = read_devices(helper.order(_LISTING).text)
    helper.order(_LINKS + "\n".join(_link_lines(found)))
    lines = [f"load {kind}" for kind in sorted({each.kind for each in found} & {"xfs", "btrfs"})]
    lines += [
        f"look {each.path} {each.kind} {_options(each.kind)}" for each in found if each.kind in {*LINUX_KINDS, "vfat"}
    ]
    answer = helper.order("\n".join((_LOOK, *lines, "true")))
    candidates = list(_candidates(answer.text, found))
    if not candidates:
        raise _nothing(found, answer.text)
    chosen = _chosen(candidates, inventory)
    stems = stems_of(chosen.fstab, chosen.device, [disk.volume for disk in helper.disks], inventory)
    devices = Devices(found, stems)
    mounts = tuple(_mounts(chosen, devices))
    esp = next((each.at for each in mounts if each.kind == "vfat" and each.at in {"/boot", "/boot/efi", "/efi"}), "")
    return System(chosen.name, chosen.device, chosen.subvolume, devices, mounts, esp)


def has_esp(devices: Devices) -> bool:
    """Some disk has an EFI system partition: by its type on a GPT, or `ef` on an MBR."""
    return any(each.part_type in {ESP, "0xef"} for each in devices.all)


def _options(kind: str) -> str:
    return ",nouuid" if kind == "xfs" else ""


def _link_lines(devices: tuple[Device, ...]) -> Iterator[str]:
    """What programs of the guest look for under /dev/disk, which udev makes elsewhere."""
    for each in devices:
        for place, name in (("by-uuid", each.uuid), ("by-label", each.label), ("by-partuuid", each.part_uuid)):
            if name and "/" not in name and " " not in name:
                yield f"ln -sf {each.path} /dev/disk/{place}/{name}"


def _candidates(text: str, devices: tuple[Device, ...]) -> Iterator[_Candidate]:
    paths = {each.path: each for each in devices}
    for line in text.splitlines():
        words = line.split(" ")
        if words[0] == "root" and len(words) == 5 and words[1] in paths:
            fstab, release = _decoded(words[3]), _decoded(words[4][1:])
            names = [
                line.partition("=")[2].strip("\"'") for line in release.splitlines() if line.startswith("PRETTY_NAME=")
            ]
            yield _Candidate(paths[words[1]], words[2][1:], tuple(read_fstab(fstab)), (names or ["Linux"])[0][:100])


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode(errors="surrogateescape")
    except binascii.Error as error:
        raise DrengineError(CONVERSION_HELPER, "the helper machine answered something that can't be read") from error


def _nothing(devices: tuple[Device, ...], text: str) -> DrengineError:
    """Why there is no system."""
    kinds = {each.kind for each in devices}
    if "windows " in text or kinds & {"ntfs", "BitLocker"}:
        return DrengineError(
            WINDOWS_GUEST, "the disks hold Windows (NTFS, or its boot manager), which is not converted"
        )
    if "crypto_LUKS" in kinds:
        return DrengineError(
            ENCRYPTED_GUEST, "no root file system can be read, and there is one that is encrypted (LUKS)"
        )
    if "LVM2_member" in kinds and not any(each.disk < 0 for each in devices):
        hint = "Install lvm2 on the orchestrator's host: its lvm program is what the helper machine uses."
        return DrengineError(CONVERSION_HELPER, "the root lies on LVM, and this host has no program lvm", hint=hint)
    seen = ", ".join(sorted(filter(None, kinds))) or "nothing"
    return DrengineError(UNKNOWN_GUEST, f"no file system with /etc/fstab and /etc/os-release; found: {seen}")


def _chosen(candidates: list[_Candidate], inventory: Inventory | None) -> _Candidate:
    """The source's root by its UUID where the inventory tells; else the only one.

    Raises:
        DrengineError: UNKNOWN_GUEST, there are several.
    """
    if inventory:
        roots = {each.uuid for each in inventory.file_systems if each.device == inventory.root and each.uuid}
        told = [each for each in candidates if each.device.uuid in roots]
        if told:
            return told[0]
    if len(candidates) > 1:
        names = ", ".join(f"{each.name} on {each.device.path}" for each in candidates)
        raise DrengineError(
            UNKNOWN_GUEST, f"there are several systems, and no inventory tells which one the source runs: {names}"
        )
    return candidates[0]


def _mounts(chosen: _Candidate, devices: Devices) -> Iterator[Mount]:
    """The root and what else a conversion needs.

    Raises:
        DrengineError: NO_BOOT, its device is on no disk that is here.
    """
    root = chosen.device
    options = f"rw{_options(root.kind)}" + (f",subvol={chosen.subvolume}" if chosen.subvolume else "")
    yield Mount(root.path, "/", root.kind, options)
    lines = {line.at.rstrip("/"): line for line in chosen.fstab}
    for at in MOUNTED:
        if at not in lines:
            continue
        found, line = devices.named(lines[at].device), lines[at]
        if found is None and "noauto" in line.options.split(","):
            continue
        if found is None or not found.kind:
            raise DrengineError(
                NO_BOOT, f"{line.device}, which the guest mounts at {at}, is on no disk that is replicated"
            )
        subvolume = [each for each in line.options.split(",") if each.startswith("subvol")]
        yield Mount(found.path, at, found.kind, ",".join(("rw" + _options(found.kind), *subvolume)))
