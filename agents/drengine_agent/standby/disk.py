"""One promoted disk as a block device of this host, in one of the ways of ways.py.

All are found again after a restart of the agent: by the mark of a process, by what a loop device lies on, by a note of
which /dev/nbdN it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from drengine.durable import replace_durably
from drengine.linux.devices import Number, boot_id, disk_attribute
from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.client import NbdAddress, NbdClient
from drengine.nbd.fuse import FuseFile
from drengine.process import run_command
from drengine_agent.standby.copied import CopiedDisk
from drengine_agent.standby.errors import STANDBY_FAILED
from drengine_agent.standby.ways import COPY, FUSE, KERNEL

MARK = "DRENGINE_ATTACHMENT"
TOOL_SECONDS = 30.0


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
        way: see ways.py.
        discarded: nobody wants what was written: the branch is a drill's.
    """

    instance: str
    volume: str
    uri: str
    directory: Path
    way: str
    discarded: bool = False

    @property
    def _fuse(self) -> FuseFile:
        return FuseFile(MARK, f"{self.instance}/{self.volume}", self.volume, self.directory)

    @property
    def _copy(self) -> CopiedDisk:
        return CopiedDisk(self.instance, self.volume, self.uri, self.directory)

    @property
    def _file(self) -> Path:
        """What its loop device lies on."""
        return self._copy.path if self.way == COPY else self._fuse.path

    def attach(self, deadline: float) -> Path:
        """The block device; if it is attached already, that one. Only a copy may take until the deadline.

        Raises:
            DrengineError: STANDBY_FAILED, HYDRATION_FAILED.
        """
        if self.way == KERNEL:
            return self._attach_kernel()
        if self.way == FUSE:
            self._show()
        elif not self._loop_devices():
            self._copy.fill(deadline)
        return self._attach_loop()

    def detach(self) -> None:
        """Let go of it, flushed; no error if it is not attached.

        Raises:
            DrengineError: STANDBY_FAILED, it is in use.
        """
        if self.way == KERNEL:
            for device in self._kernel_devices():
                run_tool("nbd-client", "-d", device)
            return
        for device in self._loop_devices():
            run_tool("losetup", "--detach", device)
        if self.way == COPY:
            self._copy.forget() if self.discarded else self._copy.bring_home()
            return
        try:
            self._fuse.remove()
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, str(error)) from error

    def device(self) -> Path | None:
        """The block device, if it is attached."""
        devices = self._kernel_devices() if self.way == KERNEL else self._loop_devices()
        return devices[0] if devices else None

    def _show(self) -> None:
        try:
            self._fuse.show(self.uri)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"nbdfuse: {error}") from error

    def _attach_loop(self) -> Path:
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
