"""One promoted disk as a block device of this host.

Two ways: `fuse` (nbdfuse and a loop device: any Linux with libnbd's tools) and `kernel` (nbd-client and the kernel's
NBD driver, where it has one). Both are found again after a restart of the agent: by the mark of a process, by what a
loop device lies on, by a note of which /dev/nbdN it is.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from drengine.durable import replace_durably
from drengine.linux.devices import Number, boot_id, disk_attribute
from drengine.linux.mounts import mount_at, read_mounts
from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.client import NbdAddress, NbdClient
from drengine.process import end_marked, find_marked, run_command, start_marked
from drengine_agent.standby.errors import STANDBY_FAILED

MARK = "DRENGINE_ATTACHMENT"
TOOL_SECONDS = 30.0
READY_SECONDS = 15.0
GRACE_SECONDS = 15.0
LOOK_SECONDS = 0.02


def run_tool(*argv: str | Path, seconds: float = TOOL_SECONDS, meant: str = "") -> str:
    """Run a system tool and return what it said.

    Args:
        argv: the tool and its arguments.
        seconds: how long it may take.
        meant: what a person calls its last argument.

    Raises:
        DrengineError: STANDBY_FAILED with its words.
    """
    finished = run_command([str(each) for each in argv], timeout_seconds=seconds, environment={"LC_ALL": "C", MARK: ""})
    if not finished.ok:
        what = meant or argv[-1]
        raise DrengineError(STANDBY_FAILED, f"{argv[0]} {what}: {finished.output or f'status {finished.code}'}")
    return finished.output


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk of an instance, attached or to be.

    Attributes:
        instance, volume: what it is.
        uri: where it is served.
        directory: the instance's own, without links.
        way: `fuse` or `kernel`.
    """

    instance: str
    volume: str
    uri: str
    directory: Path
    way: str

    @property
    def _mark(self) -> str:
        return f"{self.instance}/{self.volume}"

    @property
    def _file(self) -> Path:
        return self.directory / f"{self.volume}.disk"

    def attach(self) -> Path:
        """The block device; if it is attached already, that one.

        Raises:
            DrengineError: STANDBY_FAILED.
        """
        return self._attach_kernel() if self.way == "kernel" else self._attach_fuse()

    def detach(self) -> None:
        """Let go of it, flushed; no error if it is not attached.

        Raises:
            DrengineError: STANDBY_FAILED, it is in use.
        """
        if self.way == "kernel":
            for device in self._kernel_devices():
                run_tool("nbd-client", "-d", device)
            return
        for device in self._loop_devices():
            run_tool("losetup", "--detach", device)
        if self._is_fuse_mounted:
            run_tool("fusermount3", "-u", self._file)
        end_marked(MARK, self._mark, self.directory, grace_seconds=GRACE_SECONDS)
        self._file.unlink(missing_ok=True)

    def device(self) -> Path | None:
        """The block device, if it is attached."""
        devices = self._kernel_devices() if self.way == "kernel" else self._loop_devices()
        return devices[0] if devices else None

    @property
    def _is_fuse_mounted(self) -> bool:
        """By the kernel's list: a mount whose server is gone can't be asked."""
        found = mount_at(self._file, read_mounts())
        return found is not None and found.kind.startswith("fuse")

    def _attach_fuse(self) -> Path:
        if not self._is_fuse_mounted:
            end_marked(MARK, self._mark, self.directory, grace_seconds=GRACE_SECONDS)
            self._file.touch()
            self._start_fuse()
        found = self._loop_devices()
        if found:
            return found[0]
        sectors = ("--sector-size", str(max(SECTOR_BYTES, self._sector_bytes())))
        return Path(run_tool("losetup", "--find", "--show", "--partscan", *sectors, self._file))

    def _sector_bytes(self) -> int:
        """Of the disk's content, as whoever serves it tells."""
        try:
            with NbdClient.of(self.uri) as client:
                return client.block_bytes_min
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"{self.uri}: {error.strerror}") from error

    def _start_fuse(self) -> None:
        output = self.directory / f"{self.volume}.nbdfuse"
        try:
            start_marked(
                ["nbdfuse", str(self._file), self.uri], MARK, self._mark, output=output, directory=self.directory
            )
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"nbdfuse can't be started: {error}") from error
        deadline = time.monotonic() + READY_SECONDS
        while not (self._is_fuse_mounted and self._file.stat().st_size):
            if time.monotonic() > deadline or not find_marked(MARK, self._mark, self.directory):
                raise DrengineError(STANDBY_FAILED, f"{self.uri}: {output.read_text(errors='replace').strip()}")
            time.sleep(LOOK_SECONDS)

    def _loop_devices(self) -> list[Path]:
        listed = json.loads(
            run_tool("losetup", "--json", "--list", "--output", "NAME,BACK-FILE") or '{"loopdevices":[]}'
        )
        return [Path(each["name"]) for each in listed["loopdevices"] if each["back-file"] == str(self._file)]

    def _attach_kernel(self) -> Path:
        """Not run on the machine that this was written on, which has no NBD driver: see docs/drivers.md."""
        if found := self._kernel_devices():
            return found[0]
        free = [each for each in sorted(Path("/sys/block").glob("nbd*")) if not (each / "pid").exists()]
        if not free:
            raise DrengineError(STANDBY_FAILED, "there is no free /dev/nbdN; load the module nbd, or attach by fuse")
        device = Path("/dev") / free[0].name
        note = self.directory / f"{self.volume}.nbd"
        replace_durably(note, f"{device}\n{boot_id()}".encode())  # first: what is not noted is never let go of
        address = NbdAddress.parse(self.uri)
        where = (
            ["-unix", address.place] if isinstance(address.place, str) else [address.place[0], str(address.place[1])]
        )
        folder = Path(address.certificates)
        files = ("-cacertfile", "ca-cert.pem", "-certfile", "client-cert.pem", "-keyfile", "client-key.pem")
        tls = [each if each.startswith("-") else str(folder / each) for each in files] if address.tls else []
        try:
            run_tool("nbd-client", *where, device, "-name", address.export, "-persist", *tls)
        except DrengineError:
            note.unlink()
            raise
        return device

    def _kernel_devices(self) -> list[Path]:
        try:
            device, boot = (self.directory / f"{self.volume}.nbd").read_text().split("\n")
        except (OSError, ValueError):
            return []
        connected = boot == boot_id() and (Path("/sys/block") / Path(device).name / "pid").exists()
        return [Path(device)] if connected else []


def is_attached(number: Number, instances: Path) -> bool:
    """Whether a device, or the disk of a partition, is one that a recovery host attached.

    Args:
        number: of the device.
        instances: where the host has its instances' directories, without links.
    """
    if disk_attribute(number, "pid"):  # only network block devices have one
        return True
    backing = disk_attribute(number, "loop/backing_file")
    return bool(backing) and Path(backing).is_relative_to(instances)
