"""The helper machine: a small virtual machine that has the disks, no network, and nothing else of this host.

Orders go to it over a virtio port as shell scripts; status and bounded output come back. What runs in there is the
guest's own, so an answer is a stranger's word: it is bounded here, and only ever data.

Its process carries a mark, so that after a crash of the orchestrator the next one finds it and ends it. It also ends
by itself once nobody is connected to its port.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import selectors
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drengine.conversion.errors import CONVERSION_FAILED, CONVERSION_HELPER
from drengine.conversion.initramfs import build_initramfs
from drengine.conversion.kernel import find_kernel
from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.blockdev import nbd_node
from drengine.ownership import make_directory
from drengine.process import end_marked, find_marked, start_marked

MARK = "DRENGINE_CONVERSION"
ANSWER_BYTES_MAX = 2 << 20
START_SECONDS = 10.0
END_SECONDS = 20.0
ORDER_SECONDS = 120.0
_MARGIN_SECONDS = 10.0
_LOOK_SECONDS, _WAIT_SECONDS = 0.02, 0.2
_DISKS_A_SLOT = 8
_FIRST_SLOT = 8
_PORT, _CONSOLE, _INITRAMFS, _NOTES = "port.sock", "console.sock", "initramfs.cpio", "helper.log"
_ANSWER = re.compile(rb"(\d{1,9}) (\d{1,3}) ([A-Za-z0-9+/=]+) ([A-Za-z0-9+/=]+)\r?\n")


@dataclass(frozen=True, slots=True)
class HelperDisk:
    """A disk of the helper machine: `uri` is its NBD export, writable."""

    volume: str
    uri: str
    sector_bytes: int = SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class HelperOptions:
    """How the helper machine is made.

    Attributes:
        program, memory_mib, cpus: of QEMU.
        accelerator: `tcg` or `kvm`.
        kernel: an image whose modules are in /lib/modules; None: this host's newest.
        tls_directory: credentials for exports beyond this host; empty: none are needed.
    """

    program: str = "qemu-system-x86_64"
    memory_mib: int = 1024
    cpus: int = 1
    accelerator: str = "tcg"
    kernel: Path | None = None
    tls_directory: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an order ended: its exit status, and what it wrote."""

    status: int
    output: bytes
    errors: str

    @property
    def ok(self) -> bool:
        """Exit status 0."""
        return self.status == 0

    @property
    def text(self) -> str:
        """Its output as text; what is no UTF-8 is replaced."""
        return self.output.decode(errors="replace")


class Helper:
    """A running helper machine. As a context it is ended, whatever happens.

    Args:
        directory: a place of its own, removed at the end.
        name: the same after a restart of the orchestrator: an earlier machine of this name is ended first.
        deadline: of `time.monotonic`, for everything together.
        cancelled: when set by somebody else, orders fail at once.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        disks: Sequence[HelperDisk],
        options: HelperOptions,
        deadline: float,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.disks = tuple(disks)
        self._directory = directory
        self._name = name
        self._options = options
        self._deadline = deadline
        self._cancelled = cancelled or threading.Event()
        self._number = 0
        self._said: deque[bytes] = deque(maxlen=64)
        self._sockets = contextlib.ExitStack()

    def __enter__(self) -> Self:
        end_helper(self._directory, self._name)
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sockets.close()
        end_helper(self._directory, self._name)

    def order(self, script: str, seconds: float = ORDER_SECONDS) -> Answer:
        """Have a shell script run in the machine.

        Raises:
            DrengineError: CONVERSION_HELPER, it did not answer in time, or not as it should; CONVERSION_FAILED, the
                time for everything is up.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            hint = "Give it more: by `timeout` below conversion in the runbook's launch, or by the option of that name."
            raise DrengineError(CONVERSION_FAILED, "a conversion took longer than it may", hint=hint)
        self._number += 1
        seconds = max(1.0, min(seconds, left))
        line = f"{self._number} {seconds:.0f} {base64.b64encode(script.encode()).decode()}\n".encode()
        raw = self._exchange(line, time.monotonic() + seconds + _MARGIN_SECONDS)
        match = _ANSWER.fullmatch(raw)
        if match is None or int(match[1]) != self._number:
            raise self._failed("it answered something else than what was asked")
        try:
            output, errors = (b"" if part == b"=" else base64.b64decode(part) for part in match.groups()[2:])
        except binascii.Error as problem:
            raise self._failed("its answer can't be read") from problem
        return Answer(int(match[2]), output, errors.decode(errors="replace"))

    def _start(self) -> None:
        make_directory(self._directory)
        kernel = find_kernel(self._options.kernel)
        (self._directory / _INITRAMFS).write_bytes(build_initramfs(kernel))
        argv = helper_arguments(kernel.image, self.disks, self._options)
        try:
            start_marked(argv, MARK, self._name, output=self._directory / _NOTES, directory=self._directory)
        except (OSError, ValueError) as error:
            raise DrengineError(CONVERSION_HELPER, f"{argv[0]} can't be started: {error}") from error
        self._selector = self._sockets.enter_context(selectors.DefaultSelector())
        self._port, console = self._connected(_PORT), self._connected(_CONSOLE)
        for each in (self._port, console):
            each.setblocking(False)
            self._selector.register(each, selectors.EVENT_READ)

    def _connected(self, name: str) -> socket.socket:
        """A socket of QEMU, by a path that is short however deep the directory lies."""
        place = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + START_SECONDS
        try:
            while True:
                made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                try:
                    made.connect(f"/proc/self/fd/{place}/{name}")
                except OSError as error:
                    made.close()
                    alive = find_marked(MARK, self._name, self._directory)
                    if not alive or time.monotonic() > deadline:
                        raise self._failed("QEMU has ended" if not alive else f"no socket: {error}") from error
                    time.sleep(_LOOK_SECONDS)
                else:
                    return self._sockets.enter_context(made)
        finally:
            os.close(place)

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Send a line and wait for one; meanwhile the console is read, so that it never stands still."""
        unsent, heard = memoryview(line), bytearray()
        self._selector.modify(self._port, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while not heard.endswith(b"\n"):
            if time.monotonic() > deadline:
                raise self._failed("it did not answer in time")
            if self._cancelled.is_set():
                raise self._failed("it is ended before it was through")
            for key, events in self._selector.select(_WAIT_SECONDS):
                if events & selectors.EVENT_WRITE:
                    unsent = unsent[self._sent(unsent) :]
                    if not unsent:
                        self._selector.modify(self._port, selectors.EVENT_READ)
                if events & selectors.EVENT_READ:
                    self._heard(key, heard)
            if len(heard) > ANSWER_BYTES_MAX:
                raise self._failed("its answer is too long")
        return bytes(heard)

    def _sent(self, data: memoryview) -> int:
        try:
            return self._port.send(data)
        except OSError as error:
            raise self._failed("it ended before it was asked") from error

    def _heard(self, key: selectors.SelectorKey, heard: bytearray) -> None:
        assert isinstance(key.fileobj, socket.socket)
        try:
            data = key.fileobj.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(key.fileobj)
            if key.fileobj is self._port:
                raise self._failed("it ended before it answered")
        elif key.fileobj is self._port:
            heard += data
        else:
            self._said.append(data[-1024:])

    def _failed(self, why: str) -> DrengineError:
        notes = b""
        with contextlib.suppress(OSError):
            notes = (self._directory / _NOTES).read_bytes()[-2048:]
        words = (notes + b"".join(self._said)[-2048:]).decode(errors="replace").strip()
        return DrengineError(CONVERSION_HELPER, f"the helper machine: {why}" + (f"; it said: {words}" if words else ""))


def end_helper(directory: Path, name: str) -> None:
    """End a helper machine, whoever started it, and remove its directory; no error if there is none."""
    end_marked(MARK, name, directory if directory.is_dir() else None, grace_seconds=END_SECONDS)
    shutil.rmtree(directory, ignore_errors=True)


def helper_arguments(image: Path, disks: Sequence[HelperDisk], options: HelperOptions) -> list[str]:
    """QEMU's command line. Every value is an argument or a JSON value of its own: nothing can add options."""
    arguments = [options.program, "-name", "drengine-conversion", "-nodefaults", "-no-user-config", "-nic", "none"]
    arguments += ["-machine", "q35", "-accel", options.accelerator, "-display", "none", "-no-reboot"]
    arguments += ["-cpu", "host" if options.accelerator == "kvm" else "max"]
    arguments += ["-m", str(options.memory_mib), "-smp", str(options.cpus)]
    arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    arguments += ["-kernel", str(image), "-initrd", _INITRAMFS]
    arguments += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr nowatchdog"]
    arguments += ["-chardev", f"socket,id=console,path={_CONSOLE},server=on,wait=off", "-serial", "chardev:console"]
    arguments += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={_PORT},server=on,wait=off"]
    arguments += ["-device", "virtserialport,chardev=port,name=drengine"]
    if options.tls_directory:
        credentials = {"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "client", "dir": options.tls_directory}
        arguments += ["-object", json.dumps(credentials)]
    for number, disk in enumerate(disks):
        node = {**nbd_node(disk.uri), "node-name": f"disk{number}", "discard": "unmap", "detect-zeroes": "unmap"}
        if options.tls_directory:
            node["tls-creds"] = "tls"
        slot, function = divmod(number, _DISKS_A_SLOT)
        device: dict[str, Any] = {"driver": "virtio-blk-pci", "drive": f"disk{number}", "serial": f"disk{number}"}
        device |= {"addr": f"{_FIRST_SLOT + slot:x}.{function}", "multifunction": True}
        if disk.sector_bytes != SECTOR_BYTES:
            device |= {"logical_block_size": disk.sector_bytes, "physical_block_size": disk.sector_bytes}
        arguments += ["-blockdev", json.dumps(node), "-device", json.dumps(device)]
    return arguments
