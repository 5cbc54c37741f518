"""A conversion on real disks in a real helper machine: whole, killed and done again, refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drengine.conversion import convert as conversion
from drengine.conversion.errors import NO_BOOT, NO_INITRAMFS_TOOL, NO_ROOM, UNKNOWN_GUEST, WRONG_FIRMWARE
from drengine.conversion.helper import MARK, Helper, HelperDisk, HelperOptions
from drengine.conversion.values import Converted, Wish
from drengine.model.errors import DrengineError, ErrorKind
from drengine.model.hardware import Machine
from drengine.process import find_marked
from tests.conversion.mini import CARD, CHANGED, DISK_BYTES, START, UUID, VERSION, content, make_mini, needs_helper
from tests.images.serving import served

pytestmark = pytest.mark.timeout(900)
SECONDS = 600.0
NAME = "convert-test"


def converted(directory: Path, disk: Path, *, machine: Machine = Machine(), dry: bool = False) -> Converted:  # noqa: B008
    with served(disk, directory / "disk.sock") as uri:
        return converted_at(directory, uri, Wish(machine=machine, cards=(CARD,), dry=dry))


def converted_at(directory: Path, uri: str, wish: Wish) -> Converted:
    disks, name = [HelperDisk("root", uri)], f"{NAME}-{directory.name}"
    return conversion.convert(directory / "helper", name, disks, wish, HelperOptions(), timeout_seconds=SECONDS)


def dies_at(directory: Path, uri: str, number: int) -> None:
    """Convert, and be killed while the order of that number is under way. In a process of its own."""
    real = Helper._exchange

    def exchange(self: Helper, line: bytes, deadline: float) -> bytes:
        if self._number == number:
            self._port.send(line)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, line, deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Helper, "_exchange", exchange)
        converted_at(directory, uri, Wish(machine=Machine(), cards=(CARD,)))


def killed_at(directory: Path, disk: Path, number: int) -> None:
    """The disk's server is not killed with it."""
    name = dies_at.__name__
    with served(disk, directory / "disk.sock") as uri:
        script = f"from pathlib import Path; from {__name__} import {name}; "
        script += f"{name}(Path({str(directory)!r}), {uri!r}, {number})"
        ended = subprocess.run([sys.executable, "-c", script], check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL


def state(disk: Path) -> dict[str, bytes]:
    return {path: content(disk, path) for path in CHANGED}


def test_what_a_conversion_writes(tmp_path: Path) -> None:
    needs_helper()
    disk = make_mini(tmp_path / "disk.raw")
    made = converted(tmp_path, disk)
    found = state(disk)
    assert {each.path for each in made.changes} == set(CHANGED)
    assert f"UUID={UUID} / ext4".encode() in found["/etc/fstab"]
    initramfs = found[f"/boot/initrd.img-{VERSION}"]
    assert b"virtio_blk.ko" in initramfs and b"ahci.ko" in initramfs
    assert b"console=ttyS0" in found["/boot/grub/grub.cfg"] and b"/dev/sda" not in found["/boot/grub/grub.cfg"]
    assert b"10.9.0.5/24" in found["/etc/network/interfaces"]
    assert b"192.168.50.10" in content(disk, "/var/lib/drengine/conversion/before/etc/network/interfaces")
    assert not find_marked(MARK, f"{NAME}-{tmp_path.name}") and not (tmp_path / "helper").exists()


@pytest.mark.fault(57)
@pytest.mark.campaign
def test_a_conversion_that_was_killed_is_done_again_and_a_third_time_nothing_changes(tmp_path: Path) -> None:
    needs_helper()
    disk = make_mini(tmp_path / "disk.raw")
    killed_at(tmp_path, disk, 14)  # in the middle of its changes
    made = converted(tmp_path, disk)
    found = state(disk)
    assert {each.path for each in made.changes} == set(CHANGED), "what was changed before it was killed is told as well"
    assert converted(tmp_path, disk).changes == ()
    assert state(disk) == found


@pytest.mark.campaign
def test_a_dry_conversion_tells_all_and_changes_nothing(tmp_path: Path) -> None:
    needs_helper()
    disk = make_mini(tmp_path / "disk.raw")
    told = converted(tmp_path, disk, dry=True)
    assert content(disk, "/etc/fstab").startswith(b"/dev/sda1")
    real = converted(tmp_path, disk)
    assert {(each.what, each.path) for each in told.changes} == {(each.what, each.path) for each in real.changes}


def full(tree: Path) -> None:
    (tree / "filler").write_bytes(os.urandom(DISK_BYTES - (14 << 20)))


def without(*names: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        for name in names:
            (tree / name).unlink() if (tree / name).is_file() else shutil.rmtree(tree / name)

    return change


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("change", "machine", "kind"),
    [
        (without("usr/sbin/update-initramfs"), Machine(), NO_INITRAMFS_TOOL),
        (without(f"boot/vmlinuz-{VERSION}"), Machine(), NO_BOOT),
        (without("etc/fstab"), Machine(), UNKNOWN_GUEST),
        (full, Machine(), NO_ROOM),
        (lambda tree: None, Machine(firmware="uefi"), WRONG_FIRMWARE),
        (lambda tree: None, Machine(disk_bus="scsi"), NO_BOOT),
    ],
    ids=["no tool", "no kernel", "no system", "full", "firmware", "no driver"],
)
def test_what_can_not_be_converted_is_refused_before_anything_is_changed(
    tmp_path: Path, change: Callable[[Path], None], machine: Machine, kind: ErrorKind
) -> None:
    needs_helper()
    disk = make_mini(tmp_path / "disk.raw", change)
    with pytest.raises(DrengineError) as raised:
        converted(tmp_path, disk, machine=machine)
    assert raised.value.kind is kind
    if kind is not UNKNOWN_GUEST:
        assert content(disk, "/etc/fstab").startswith(b"/dev/sda1")
    assert not find_marked(MARK, f"{NAME}-{tmp_path.name}") and not (tmp_path / "helper").exists()


@pytest.mark.campaign
def test_an_encrypted_disk_is_refused(tmp_path: Path) -> None:
    needs_helper()
    disk = make_mini(tmp_path / "disk.raw")
    with disk.open("r+b") as file:
        file.seek(START)
        file.write(b"LUKS\xba\xbe\x00\x01" + b"aes".ljust(32, b"\0") + b"xts-plain64".ljust(32, b"\0"))
        file.write(b"sha256".ljust(32, b"\0") + bytes(4096))
    with pytest.raises(DrengineError) as raised:
        converted(tmp_path, disk)
    assert raised.value.kind.id in {"conversion-encrypted-root", "conversion-unknown-system"}
