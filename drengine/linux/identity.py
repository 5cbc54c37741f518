"""What a file or a disk is, whatever it is called now and whatever order disks were found in at boot.

Device numbers, loop numbers and the file-system ids that are made of them hold for one boot only. So a thing is known
by *evidence* of several kinds, as much as there is, and two descriptions are compared by the kinds that both have:

====================================================  =================================================================
kind                                                  of
====================================================  =================================================================
`inode`                                               a file: inode number and generation
`uuid`, `fsid`                                        its file system: UUID; the kernel's id, unless made of a number
`partuuid`, `dm`, `md`, `wwid`, `serial`, `loop`      a device: what names it for good
`partition`                                           which one of its disk
`content`                                             what is written on it: of its partition table, else file system
`number`, `attachment`                                the device's number; and as nothing else is named in this boot
`sector`                                              its logical sector size: told, never compared
====================================================  =================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from drengine.linux.devices import Number, attachment, attribute, disk_attribute
from drengine.model.sectors import with_sectors, without_sectors

IDENTITY_CHARACTERS_MAX: Final = 255
LASTING: Final = ("partuuid", "dm", "md", "wwid", "serial", "loop")
"""Of devices, in the order in which they give a device its name. None of it changes with what is written."""

_FS_IOC_GETVERSION: Final = 0x80087601
_FS_IOC_GETFSUUID: Final = 0x80111500
_CONTENT_BYTES: Final = 68 << 10
"""Up to the end of btrfs' first superblock."""

Evidence = Mapping[str, str]


def evidence_of(descriptor: int) -> dict[str, str]:
    """Of an open file or block device.

    Raises:
        OSError: it can't be looked at.
    """
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode):
        return _device_evidence(descriptor, (os.major(status.st_rdev), os.minor(status.st_rdev)))
    generation = 0  # some file systems have none; inode numbers are used again, so take it where there is one
    with contextlib.suppress(OSError):
        generation = struct.unpack("<I", fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, bytes(8))[:4])[0]
    found = {"inode": f"{status.st_ino}:{generation:x}"}
    if named := _file_system_uuid(descriptor, status.st_dev):
        found["uuid"] = named
    fsid = os.fstatvfs(descriptor).f_fsid
    if fsid != _as_fsid(status.st_dev):
        found["fsid"] = f"{fsid:x}"
    return found


def identity_of(evidence: Evidence) -> str:
    """A printable name of what the evidence is of: the same at any boot where there is anything that lasts."""
    if "inode" in evidence:
        where = evidence.get("fsid") or (f"uuid={evidence['uuid']}" if "uuid" in evidence else "0")
        return f"file:{where}:{evidence['inode']}"
    kind = next((kind for kind in LASTING if kind in evidence), "")
    value = f"{kind}={evidence[kind]}" if kind else evidence.get("content") or f"number={evidence['number']}"
    of_disk = kind not in ("", "partuuid") and "partition" in evidence
    text = f"block:{value}" + (f":partition={evidence['partition']}" if of_disk else "")
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return with_sectors(printable, int(evidence.get("sector", 0)), IDENTITY_CHARACTERS_MAX)


def evidence_in(identity: str) -> dict[str, str]:
    """What an identity says by itself; also one that was written by versions that knew no more than its text."""
    kind, _, rest = without_sectors(identity).partition(":")
    if kind == "file":
        where, _, inode = rest.partition(":")
        name, equals, value = where.partition("=")
        return {"inode": inode, name: value} if equals else {"inode": inode, "fsid": where}
    if kind != "block":
        return {}
    value, _, partition = rest.partition(":partition=")
    name, _, text = value.partition("=")
    found = {name: text} if name in (*LASTING, "number") else {"content": value}
    return {**found, "partition": partition} if partition else found


def is_same(known: Evidence, found: Evidence) -> bool:
    """Whether what was found is what was known. In doubt it is not."""
    return _is_same_file(known, found) if "inode" in known or "inode" in found else _is_same_device(known, found)


def is_weak(evidence: Evidence) -> bool:
    """Whether nothing that lasts tells this device from another one like it."""
    return "inode" not in evidence and not {*LASTING, "content"} & evidence.keys()


def joined(known: Evidence, found: Evidence) -> dict[str, str]:
    """What is to be remembered of a thing that was found again: all that lasts, and the rest as it is now."""
    return {**{kind: known[kind] for kind in (*LASTING, "uuid") if kind in known}, **found}


def _is_same_file(known: Evidence, found: Evidence) -> bool:
    if known.get("inode") != found.get("inode"):
        return False
    shared = {"uuid", "fsid"} & known.keys() & found.keys()
    if shared:
        return all(known[kind] == found[kind] for kind in shared)
    # Nothing of its file system can be compared: an older version knew it by a device's number, which is no evidence.
    # A generation is drawn at random with each inode.
    return not found["inode"].endswith(":0")


def _is_same_device(known: Evidence, found: Evidence) -> bool:
    shared = [kind for kind in LASTING if kind in known and kind in found]
    if any(known[kind] != found[kind] for kind in shared):
        return False
    if "partuuid" not in shared and known.get("partition") != found.get("partition"):
        return False
    if shared or _same(known, found, "attachment"):
        return True
    if "content" in known:
        return _same(known, found, "content")
    return not any(kind in known for kind in LASTING) and _same(known, found, "number")


def _same(known: Evidence, found: Evidence, kind: str) -> bool:
    return kind in known and known[kind] == found.get(kind)


def _device_evidence(descriptor: int, number: Number) -> dict[str, str]:
    properties = dict(line.partition("=")[::2] for line in attribute(number, "uevent").splitlines())
    kinds: dict[str, Callable[[], str]] = {
        "partuuid": lambda: properties.get("PARTUUID", ""),
        "partition": lambda: attribute(number, "partition"),
        "dm": lambda: attribute(number, "dm/uuid"),
        "md": lambda: attribute(number, "md/uuid"),
        "wwid": lambda: disk_attribute(number, "wwid") or disk_attribute(number, "device/wwid"),
        "serial": lambda: disk_attribute(number, "serial") or disk_attribute(number, "device/serial"),
        "loop": lambda: disk_attribute(number, "loop/backing_file"),
        "content": lambda: content_name(_head(descriptor)),
        "sector": lambda: disk_attribute(number, "queue/logical_block_size"),
        "number": lambda: "{}:{}".format(*number),
        "attachment": lambda: attachment(number) if disk_attribute(number, "diskseq") else "",
    }
    return {kind: value for kind, ask in kinds.items() if (value := ask().strip())}


def _head(descriptor: int) -> bytes:
    with contextlib.suppress(OSError):
        return os.pread(descriptor, _CONTENT_BYTES, 0)
    return b""


def content_name(head: bytes) -> str:
    """What a disk's first bytes call it: the UUID of its partition table, else of its file system; empty if nothing."""
    for sector in (512, 4096):
        if head[sector : sector + 8] == b"EFI PART":
            return f"gpt={uuid.UUID(bytes_le=head[sector + 56 : sector + 72])}"
    for name, magic, magic_at, uuid_at in (
        ("ext", b"\x53\xef", 0x438, 0x468),
        ("xfs", b"XFSB", 0, 32),
        ("btrfs", b"_BHRfS_M", 0x10040, 0x10020),
        ("swap", b"SWAPSPACE2", 4086, 0x40C),
    ):
        if head[magic_at : magic_at + len(magic)] == magic:
            return f"{name}={uuid.UUID(bytes=head[uuid_at : uuid_at + 16])}"
    for name, magic, magic_at, text_at, length in (
        ("lvm", b"LVM2 001", 512 + 24, 512 + 32, 32),
        ("luks", b"LUKS\xba\xbe", 0, 168, 40),
    ):
        if head[magic_at : magic_at + len(magic)] == magic:
            return f"{name}={head[text_at : text_at + length].rstrip(bytes(1)).decode('ascii', 'replace')}"
    signature = head[440:444]
    return f"mbr={signature[::-1].hex()}" if head[510:512] == b"\x55\xaa" and any(signature) else ""


def _file_system_uuid(descriptor: int, device: int) -> str:
    """By the file system itself (Linux 6.9 and later), else as udev has it."""
    with contextlib.suppress(OSError, ValueError):
        answer = fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, bytes(17))
        named = uuid.UUID(bytes=answer[1 : 1 + answer[0]])
        return str(named) if named.int else ""
    with contextlib.suppress(OSError):
        for link in Path("/dev/disk/by-uuid").iterdir():
            if link.stat().st_rdev == device:
                return link.name.lower()
    return ""


def _as_fsid(device: int) -> int:
    """The id that a file system without one of its own makes of its device's number, as the kernel writes it."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
