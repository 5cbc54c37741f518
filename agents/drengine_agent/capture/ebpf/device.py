"""Block devices as the tracker sees them: number, whole disk, offset on it, how its writes complete, what it is.

Everything is read from sysfs by device number, never by name: names are re-used, and links may lie.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf.errors import EBPF_REFUSED

SYSFS: Final = Path("/sys/dev/block")
SECTOR_BYTES: Final = 512
_MINOR_BITS: Final = 20
_BIO_KINDS: Final = ("dm", "zram")
_IDENTITY_FILES: Final = (
    "wwid",
    "device/wwid",
    "uuid",
    "device/serial",
    "serial",
    "dm/uuid",
    "md/uuid",
    "loop/backing_file",
)


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A disk or partition on this host, as it is attached now.

    Attributes:
        name: the kernel's name (`sda1`).
        number: its device number, major << 20 | minor as the kernel has it inside.
        disk_number: the whole disk's; the same for a whole disk.
        start_sector: where it begins on the disk, in sectors of 512 bytes.
        sectors: its length, in sectors of 512 bytes.
        bio: its writes complete as bios (device mapper), not as requests.
        diskseq: the kernel's running number of this attachment; differs once another disk has the same name.
            Zero before kernel 5.15.
        identity: serial, WWID or the like; empty if it has none.
        refusal: why it can't be tracked; empty if it can.
    """

    name: str
    number: int
    disk_number: int
    start_sector: int
    sectors: int
    bio: bool
    diskseq: int
    identity: str
    refusal: str = ""

    @property
    def end_sector(self) -> int:
        """The disk's first sector behind it."""
        return self.start_sector + self.sectors

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self.sectors * SECTOR_BYTES

    @staticmethod
    def of_path(path: str | os.PathLike[str]) -> BlockDevice:
        """The device behind a path.

        Raises:
            DrengineError: EBPF_REFUSED, there is no block device at the path.
        """
        try:
            status = os.stat(path)  # noqa: PTH116 - takes what Path(path).stat() takes, and plain strings
        except OSError as error:
            raise DrengineError(EBPF_REFUSED, f"{os.fspath(path)}: {error.strerror}") from error
        if not stat.S_ISBLK(status.st_mode):
            raise DrengineError(EBPF_REFUSED, f"{os.fspath(path)} is no block device; only those complete requests")
        return BlockDevice.of_number(os.major(status.st_rdev), os.minor(status.st_rdev))

    @staticmethod
    def of_number(major: int, minor: int, *, sysfs: Path = SYSFS) -> BlockDevice:
        """The device with this number.

        Raises:
            DrengineError: EBPF_REFUSED, no such device is attached.
        """
        try:
            here = (sysfs / f"{major}:{minor}").resolve(strict=True)
            partition = (here / "partition").exists()
            disk = here.parent if partition else here
            disk_major, _, disk_minor = (disk / "dev").read_text().strip().partition(":")
            bio = not (disk / "mq").is_dir()
            return BlockDevice(
                here.name,
                device_number(major, minor),
                device_number(int(disk_major), int(disk_minor)),
                int((here / "start").read_text()) if partition else 0,
                int((here / "size").read_text()),
                bio,
                int(_text(disk / "diskseq") or 0),
                next((text for name in _IDENTITY_FILES if (text := _text(disk / name))), ""),
                _refusal(disk, bio=bio),
            )
        except (OSError, ValueError) as error:
            raise DrengineError(EBPF_REFUSED, f"no block device {major}:{minor} is attached") from error


def device_number(major: int, minor: int) -> int:
    """The kernel's own number of a device (user space packs it otherwise)."""
    return major << _MINOR_BITS | minor


def major_minor(number: int) -> tuple[int, int]:
    """The two parts of a kernel's device number."""
    return number >> _MINOR_BITS, number & (1 << _MINOR_BITS) - 1


def in_flight(device: BlockDevice) -> bool:
    """The device's disk has operations that are not completed."""
    major, minor = major_minor(device.disk_number)
    return _text(SYSFS / f"{major}:{minor}" / "inflight").split() not in ([], ["0", "0"])


def refresh(device: BlockDevice) -> BlockDevice | None:
    """The same number looked up again; None if nothing has it now."""
    try:
        return BlockDevice.of_number(*major_minor(device.number))
    except DrengineError:
        return None


def _refusal(disk: Path, *, bio: bool) -> str:
    """Why writes to this disk could pass unseen; empty if they can't."""
    if _text(disk / "queue/dax") == "1":
        return "memory that is written without block operations (DAX)"
    if not bio:
        return ""
    if (disk / "multipath").exists() or "nvme-subsystem" in str(disk):
        return "an NVMe multipath device; its paths complete requests under hidden numbers"
    if _text(disk / "queue/zoned") not in ("", "none"):
        return "a zoned device that completes bios; an append's place is not known when it is queued"
    kind = disk.name.rstrip("0123456789-_p")
    if kind == "md":
        return "an md array; some kinds complete their writes under their members' names, unseen: track the members"
    if kind not in _BIO_KINDS:
        return f"a {kind} device completes bios in ways that were never tried; track the disks below it"
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[:200]
    except OSError:
        return ""
