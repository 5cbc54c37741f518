"""A helper makes a real volume equal to a branch, and a branch equal to a volume: loop devices, NBD, kills."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from drengine.config import Address
from drengine.control.attach import HydrateDisk, HydrateOrder
from drengine.control.config import BrokerOptions
from drengine.control.messages import Command, Verb
from drengine.model.errors import DrengineError
from drengine_agent.standby.config import StandbyConfig
from drengine_agent.standby.errors import STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.filling import PIECE_BYTES, carry_out, equalise, find_volume
from drengine_agent.standby.host import StandbyHost
from tests.agent.standby.test_standby import serving
from tests.linux.loops import loop_device

SERIAL = "vol0123456789abcdef0"
SIZE = 5 * PIECE_BYTES + 4096
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make loop devices")


def content(seed: int, size: int = SIZE) -> bytes:
    """With a piece of zeros in it."""
    made = bytearray(random.Random(seed).randbytes(size))
    made[PIECE_BYTES : 2 * PIECE_BYTES] = bytes(PIECE_BYTES)
    return bytes(made)


def blocks(folder: Path, device: Path, serial: str = SERIAL) -> Path:
    """The kernel's list of disks, where a loop device tells the serial number of an EBS volume."""
    place = folder / "block" / device.name / "device"
    place.mkdir(parents=True, exist_ok=True)
    (place / "serial").write_text(f"{serial} \n")
    return folder / "block"


class Memory:
    """A disk that counts, and can be made to fail or to forget."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.size_bytes = len(data)
        self.written: list[int] = []
        self.forgets: set[int] = set()
        self.fails_at = -1
        self.flushed = False

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    read_back = read

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if len(self.written) == self.fails_at:
            raise OSError("the disk fails")
        self.written.append(offset)
        self.flushed = False
        if offset in self.forgets:
            self.forgets.discard(offset)
            return
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushed = True

    def close(self) -> None:
        pass


def quiet(_: str) -> None:
    pass


def test_only_what_differs_is_written_and_it_is_durable() -> None:
    origin, copy = Memory(content(1)), Memory(content(1)[:-4096] + bytes(4096))
    assert equalise(origin, copy, SIZE, threading.Event(), quiet) == 4096
    assert copy.data == origin.data
    assert copy.written == [5 * PIECE_BYTES]
    assert copy.flushed


def test_zeros_are_not_written_onto_what_is_blank_and_what_is_not_is_found() -> None:
    origin, copy = Memory(content(1)), Memory(bytes(SIZE))
    equalise(origin, copy, SIZE, threading.Event(), quiet, blank=True)
    assert sorted(copy.written) == [piece * PIECE_BYTES for piece in (0, 2, 3, 4, 5)]
    lying = Memory(b"\1" * SIZE)
    equalise(origin, lying, SIZE, threading.Event(), quiet, blank=True)
    assert lying.data == origin.data, "what was believed to be blank was not looked at"


def test_a_write_that_was_lost_is_found_when_it_is_read_back() -> None:
    origin, copy = Memory(content(1)), Memory(bytes(SIZE))
    copy.forgets = {3 * PIECE_BYTES}
    equalise(origin, copy, SIZE, threading.Event(), quiet)
    assert copy.data == origin.data


def test_a_disk_that_keeps_nothing_is_refused() -> None:
    class Sieve(Memory):
        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            self.written.append(offset)

    with pytest.raises(DrengineError) as caught:
        equalise(Memory(content(1)), Sieve(bytes(SIZE)), SIZE, threading.Event(), quiet)
    assert caught.value.kind is STANDBY_FAILED
    assert "is not what is read there" in caught.value.message


@pytest.mark.parametrize("at", range(5))
def test_interrupted_anywhere_it_is_equal_when_asked_again(at: int) -> None:
    origin, copy = Memory(content(1)), Memory(bytes(SIZE))
    copy.fails_at = at
    with pytest.raises(OSError, match="the disk fails"):
        equalise(origin, copy, SIZE, threading.Event(), quiet, blank=True)
    copy.fails_at = -1
    before = list(copy.written)
    equalise(origin, copy, SIZE, threading.Event(), quiet)
    assert copy.data == origin.data
    assert not set(before) & set(copy.written[len(before) :]), "it was written twice"


def test_it_stops_when_told_to() -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(DrengineError, match="it was stopped"):
        equalise(Memory(content(1)), Memory(bytes(SIZE)), SIZE, stopping, quiet)


def test_progress_goes_up_to_the_end_twice() -> None:
    said: list[str] = []
    equalise(Memory(content(1)), Memory(bytes(SIZE)), SIZE, threading.Event(), said.append)
    assert said[-1] == "100% of 5.0 MiB read back"
    assert "100% of 5.0 MiB copied" in said


@pytest.mark.parametrize("serial", ["", "vol", "vol0123456789abcdef0/..", "nvme0n1", "vol-0123456789abcdef0"])
def test_what_is_no_serial_number_of_a_volume_is_refused(tmp_path: Path, serial: str) -> None:
    with pytest.raises(DrengineError) as caught:
        find_volume(serial, tmp_path)
    assert caught.value.kind is STANDBY_SETTINGS


def test_a_volume_that_is_not_there_or_there_twice_is_refused(tmp_path: Path) -> None:
    place = blocks(tmp_path, Path("nvme0n1"), "vol0fedcba9876543210")
    with pytest.raises(DrengineError, match="there is none"):
        find_volume(SERIAL, place)
    blocks(tmp_path, Path("nvme1n1"))
    assert find_volume(SERIAL, place) == Path("/dev/nvme1n1")
    blocks(tmp_path, Path("nvme2n1"))
    with pytest.raises(DrengineError, match="there is nvme1n1, nvme2n1"):
        find_volume(SERIAL, place)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A volume a little larger than the disk, as EBS's are."""
    with loop_device(tmp_path / "volume.img", SIZE + 2 * PIECE_BYTES) as device:
        yield device


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[str]:
    """The URI of a branch with something on it."""
    image = tmp_path / "branch.img"
    image.write_bytes(content(7))
    with serving(tmp_path, root=image) as uris:
        yield uris["root"]


def order(uri: str, direction: str = "fill", size: int = SIZE) -> HydrateOrder:
    disk = HydrateDisk(uri=uri, serial=SERIAL, size_bytes=size)
    return HydrateOrder(instance="shop-1", direction=direction, disks={"root": disk})


def carried_out(wanted: HydrateOrder, folder: Path, device: Path) -> dict[str, str]:
    return carry_out(wanted, folder / "notes", str, threading.Event(), quiet, blocks(folder, device))


@needs_root
def test_a_real_volume_is_filled_and_what_is_written_to_it_comes_back(
    branch: str, device: Path, tmp_path: Path
) -> None:
    assert carried_out(order(branch), tmp_path, device) == {"root": SERIAL}
    assert device.read_bytes()[:SIZE] == content(7)
    with device.open("r+b") as disk:
        disk.seek(PIECE_BYTES)
        disk.write(b"written by the instance")
        os.fsync(disk.fileno())
    wanted = bytearray(content(7))
    wanted[PIECE_BYTES : PIECE_BYTES + 23] = b"written by the instance"
    carried_out(order(branch, "return"), tmp_path, device)
    assert (tmp_path / "branch.img").read_bytes() == wanted
    carried_out(order(branch), tmp_path, device)
    assert device.read_bytes()[:SIZE] == wanted


@needs_root
def test_a_volume_that_holds_what_this_host_did_not_put_there_is_refused(
    branch: str, device: Path, tmp_path: Path
) -> None:
    with device.open("r+b") as disk:
        disk.write(b"somebody's")
    with pytest.raises(DrengineError, match="is not blank"):
        carried_out(order(branch), tmp_path, device)
    assert device.read_bytes()[:10] == b"somebody's"


@needs_root
def test_what_it_began_to_fill_it_goes_on_with(branch: str, device: Path, tmp_path: Path) -> None:
    """As after a kill: the note is there, and half of it is written."""
    carried_out(order(branch), tmp_path, device)
    with device.open("r+b") as disk:
        disk.seek(3 * PIECE_BYTES)
        disk.write(bytes(PIECE_BYTES))
        disk.seek(PIECE_BYTES)
        disk.write(b"\1" * 100)
        os.fsync(disk.fileno())
    carried_out(order(branch), tmp_path, device)
    assert device.read_bytes()[:SIZE] == content(7)


@needs_root
def test_a_volume_that_is_a_byte_too_small_is_refused(branch: str, device: Path, tmp_path: Path) -> None:
    too_large = SIZE + 2 * PIECE_BYTES + 1
    with pytest.raises(DrengineError, match=f"{device} is 1 bytes smaller than the disk"):
        carried_out(order(branch, size=too_large), tmp_path, device)
    assert not any(device.read_bytes())


@needs_root
@pytest.mark.machine
def test_a_volume_that_is_mounted_is_refused(branch: str, device: Path, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    (tmp_path / "at").mkdir()
    subprocess.run(["mount", device, tmp_path / "at"], check=True)
    try:
        with pytest.raises(DrengineError, match="is mounted here"):
            carried_out(order(branch), tmp_path, device)
    finally:
        subprocess.run(["umount", tmp_path / "at"], check=True)


@needs_root
async def test_a_recovery_host_carries_the_order_out(branch: str, device: Path, tmp_path: Path) -> None:
    config = StandbyConfig(
        name="helper-1",
        state_directory=tmp_path / "state",
        control=BrokerOptions(address=Address("127.0.0.1", 1)),  # type: ignore[arg-type]
    )
    host = StandbyHost(config, blocks=blocks(tmp_path, device))
    command = Command(
        id="1",
        verb=Verb.HYDRATE,
        arguments=msgspec.to_builtins(order(branch)),
        generation=0,
        expires_ns=1 << 62,
    )
    told: list[str] = []
    answer = await host.hydrate(command, lambda each: told.append(str(each["message"])))
    assert answer == {"done": {"root": SERIAL}}
    assert (await asyncio.to_thread(device.read_bytes))[:SIZE] == content(7)
    assert told[-1] == "root: 100% of 5.0 MiB read back"
