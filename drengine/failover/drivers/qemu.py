"""The `qemu` driver: boots a source's promoted disks as a virtual machine on this host, straight over NBD.

The machine's process carries the instance's mark (see drengine.process.marked); its console goes to a file, and a QMP
socket in the instance's directory takes orders. In a drill only `drill_network` counts, which is none by default: a
copy of production never meets production.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.durable import replace_durably
from drengine.failover.drivers import move
from drengine.failover.drivers.driver import Disk, Instance, KnowsNeeds, LaunchDriver, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.hydrated import end_hydrated, hydrated, hydration_details, hydration_place
from drengine.failover.drivers.move import MARK as MOVER_MARK
from drengine.failover.drivers.move import MovePlan, MovingDisk
from drengine.failover.drivers.qmp import Qmp, QmpError
from drengine.failover.drivers.settings import read_settings
from drengine.failover.needs import Memory, Need, ReadableFile, programs
from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.client import NbdAddress
from drengine.ownership import make_directory
from drengine.process import end_marked, find_marked, run_command, start_marked

MARK = "DRENGINE_INSTANCE"
LOOK_SECONDS = 0.1
CONSOLE_BYTES_MAX = 4 << 10
QMP_SECONDS = 5.0
KILL_SECONDS = 5.0
TLS_FILES = ("ca-cert", "client-cert", "client-key")
_CONSOLE, _QMP, _NOTES = "console.log", "qmp.sock", "qemu.log"
_MOVER_QMP, _PLAN, _MOVER_NOTES = "move.sock", "move-plan.json", "move.log"
_BRIDGE = re.compile(r"bridge:([A-Za-z0-9._-]{1,15})", re.ASCII)


class QemuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of this driver in a runbook.

    Attributes:
        memory_mib, cpus, machine, program: of the virtual machine.
        accelerator: `kvm`, `tcg`, or `auto`: kvm where this host has it.
        boot: volume whose disk comes first; default: the first declared.
        kernel, initrd, append: boot this kernel instead of what is on the disk.
        firmware: a UEFI image; default: BIOS.
        network: `none`, `user` (out by NAT of this host) or `bridge:NAME`.
        drill_network: the same, in a drill.
        mac: address of its card, as licences and DHCP may know it.
        ready: a line of the console that contains this says: healthy.
        health: a command whose exit status 0 says so, asked after `ready`.
        tls_directory: credentials (ca-cert.pem, client-cert.pem, client-key.pem) for exports beyond this host.
        details: told to later steps as ${SOURCE.KEY}.
        arguments: more arguments for the program.
        grace: how long a clean shutdown may take before it is killed.
    """

    memory_mib: int = 1024
    cpus: int = 1
    machine: str = "q35"
    program: str = "qemu-system-x86_64"
    accelerator: str = "auto"
    boot: str = ""
    kernel: str = ""
    initrd: str = ""
    append: str = ""
    firmware: str = ""
    network: str = "none"
    drill_network: str = "none"
    mac: str = ""
    ready: str = ""
    health: list[str] = []
    tls_directory: str = ""
    details: dict[str, str] = {}
    arguments: list[str] = []
    grace: str = "60s"


class QemuDriver(LaunchDriver, KnowsNeeds):
    """See the module and LaunchDriver."""

    name = "qemu"

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read = read_settings(QemuSettings, settings, self.name)
        try:
            parse_duration(read.grace)
            for network in (read.network, read.drill_network):
                _network_arguments(network, "")
        except ValueError as error:
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver qemu: {error}") from error
        if read.accelerator not in {"auto", "kvm", "tcg"}:
            raise DrengineError(
                LAUNCH_SETTINGS, f"settings of driver qemu: accelerator {read.accelerator!r} is unknown"
            )

    def needs(self, settings: Mapping[str, Any]) -> tuple[Need, ...]:
        read = read_settings(QemuSettings, settings, self.name)
        tls = Path(read.tls_directory)
        files = [read.kernel, read.initrd, read.firmware]
        files += [str(tls / f"{name}.pem") for name in TLS_FILES] if read.tls_directory else []
        return (
            *programs([read.program], read.health),
            *(ReadableFile(file) for file in files if file),
            Memory(read.memory_mib << 20),
        )

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        settings = read_settings(QemuSettings, request.settings, self.name)
        deadline = time.monotonic() + request.timeout_seconds
        if not find_marked(MARK, request.instance, request.directory):
            self._start(request, settings)
            progress("virtual machine started")
        if request.hydrate and not find_marked(MOVER_MARK, request.instance, request.directory):
            self._start_mover(request)
        waits_for = f"console line {settings.ready!r}" if settings.ready else "health"
        while time.monotonic() < deadline:
            if not find_marked(MARK, request.instance, request.directory):
                raise DrengineError(LAUNCH_FAILED, f"the virtual machine ended: {self._last_words(request)}")
            if self._is_healthy(request, settings, deadline - time.monotonic()):
                return self._found(request, settings, healthy=True)
            time.sleep(LOOK_SECONDS)
        raise DrengineError(
            LAUNCH_FAILED,
            f"no {waits_for} within {request.timeout_seconds:g} s: {self._last_words(request)}",
        )

    def inspect(self, request: LaunchRequest) -> Instance:
        settings = read_settings(QemuSettings, request.settings, self.name)
        running = bool(find_marked(MARK, request.instance, request.directory))
        return self._found(request, settings, healthy=running and self._is_healthy(request, settings, QMP_SECONDS))

    def quiesce(self, request: LaunchRequest) -> None:
        """Press the power button; a guest that does not obey in time is killed: its disks are as after a power cut."""
        settings = read_settings(QemuSettings, request.settings, self.name)
        with contextlib.suppress(OSError, ValueError, QmpError):
            with Qmp(request.directory / _QMP) as qmp:
                qmp.execute("system_powerdown")
            deadline = time.monotonic() + parse_duration(settings.grace)
            while find_marked(MARK, request.instance, request.directory) and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
        self._end(request)

    def stop(self, request: LaunchRequest) -> None:
        self._end(request)
        shutil.rmtree(request.directory, ignore_errors=True)

    def _start(self, request: LaunchRequest, settings: QemuSettings) -> None:
        directory = request.directory
        make_directory(directory)
        (directory / _CONSOLE).unlink(missing_ok=True)
        end_hydrated(request)  # of a machine that has ended: their copies may not be what the branch is
        served = hydrated(request)
        if request.hydrate:
            replace_durably(directory / _PLAN, msgspec.json.encode(self._plan(request, settings)))
        try:
            start_marked(
                machine_arguments(served, settings),
                MARK,
                request.instance,
                output=directory / _NOTES,
                directory=directory,
            )
        except (OSError, ValueError) as error:
            raise DrengineError(LAUNCH_FAILED, f"{settings.program} can't be started: {error}") from error

    def _start_mover(self, request: LaunchRequest) -> None:
        """What moves the machine onto its disks' copies (see move.py); it ends with the machine.

        Raises:
            DrengineError: LAUNCH_FAILED.
        """
        try:
            start_marked(
                [sys.executable, "-m", move.__name__, _PLAN, move.MOVES],
                MOVER_MARK,
                request.instance,
                output=request.directory / _MOVER_NOTES,
                directory=request.directory,
                environment={"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        except OSError as error:
            raise DrengineError(LAUNCH_FAILED, f"the disks' move can't be started: {error}") from error

    def _plan(self, request: LaunchRequest, settings: QemuSettings) -> MovePlan:
        disks = [
            MovingDisk(volume=disk.volume, device=_device(number), node=_node(number), uri=disk.uri)
            for number, disk in enumerate(_in_order(request, settings))
        ]
        return MovePlan(
            instance=request.instance,
            launched_ns=time.time_ns(),
            qmp=str(request.directory.absolute() / _MOVER_QMP),
            hydration=str(hydration_place(request).absolute()),
            disks=disks,
        )

    def _end(self, request: LaunchRequest) -> None:
        """QEMU writes what it holds and closes its disks on SIGTERM."""
        end_marked(MOVER_MARK, request.instance, request.directory, grace_seconds=KILL_SECONDS)
        end_marked(MARK, request.instance, request.directory, grace_seconds=KILL_SECONDS)
        end_hydrated(request)

    def _is_healthy(self, request: LaunchRequest, settings: QemuSettings, seconds: float) -> bool:
        if settings.ready and settings.ready not in self._console(request):
            return False
        if not settings.health:
            return True
        environment = {**{f"DRENGINE_{key.upper()}": value for key, value in settings.details.items()}, MARK: ""}
        return run_command(settings.health, timeout_seconds=max(0.1, seconds), environment=environment).ok

    def _found(self, request: LaunchRequest, settings: QemuSettings, *, healthy: bool) -> Instance:
        processes = find_marked(MARK, request.instance, request.directory)
        details: dict[str, Any] = {**settings.details, "pids": processes}
        details["console"] = self._console(request)[-CONSOLE_BYTES_MAX:]
        details |= hydration_details(request)
        return Instance(request.instance, bool(processes), bool(processes) and healthy, details)

    def _console(self, request: LaunchRequest) -> str:
        try:
            return (request.directory / _CONSOLE).read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def _last_words(self, request: LaunchRequest) -> str:
        notes = ""
        with contextlib.suppress(OSError):
            notes = (request.directory / _NOTES).read_text(errors="replace")[-CONSOLE_BYTES_MAX:]
        return f"{notes}\n{self._console(request)[-CONSOLE_BYTES_MAX:]}".strip()


def machine_arguments(request: LaunchRequest, settings: QemuSettings) -> list[str]:
    """QEMU's command line. Every value is an argument or a JSON value of its own: nothing can add options."""
    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"
    arguments = [settings.program, "-name", f"drengine-{request.instance}", "-nodefaults", "-no-user-config"]
    arguments += ["-machine", settings.machine, "-accel", accelerator, "-display", "none", "-no-reboot"]
    arguments += ["-m", str(settings.memory_mib), "-smp", str(settings.cpus)]
    arguments += ["-serial", f"file:{_CONSOLE}", "-qmp", f"unix:{_QMP},server=on,wait=off"]
    if settings.firmware:
        arguments += ["-bios", settings.firmware]
    if settings.kernel:
        arguments += ["-kernel", settings.kernel, "-append", settings.append]
        arguments += ["-initrd", settings.initrd] if settings.initrd else []
    if settings.tls_directory:
        credentials = {"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "client", "dir": settings.tls_directory}
        arguments += ["-object", json.dumps(credentials)]
    arguments += _network_arguments(settings.drill_network if request.isolated else settings.network, settings.mac)
    if request.hydrate:
        arguments += ["-qmp", f"unix:{_MOVER_QMP},server=on,wait=off"]
    for number, disk in enumerate(_in_order(request, settings)):
        node = {**nbd_node(disk.uri), "node-name": _node(number), "discard": "unmap", "detect-zeroes": "unmap"}
        if settings.tls_directory:
            node["tls-creds"] = "tls"
        device: dict[str, Any] = {"driver": "virtio-blk-pci", "id": _device(number), "drive": _node(number)}
        device["serial"] = disk.volume[:20]
        if request.hydrate:
            node["reconnect-delay"] = 0  # the machine is paused instead, and goes on when there is a hydrator again
            device |= {"werror": "stop", "rerror": "stop"}
        if disk.sector_bytes != SECTOR_BYTES:
            device |= {"logical_block_size": disk.sector_bytes, "physical_block_size": disk.sector_bytes}
        arguments += ["-blockdev", json.dumps(node), "-device", json.dumps({**device, "bootindex": number + 1})]
    return arguments + settings.arguments


def _in_order(request: LaunchRequest, settings: QemuSettings) -> list[Disk]:
    first = settings.boot or (request.disks[0].volume if request.disks else "")
    return sorted(request.disks, key=lambda disk: disk.volume != first)


def _node(number: int) -> str:
    return f"disk{number}"


def _device(number: int) -> str:
    return f"device{number}"


def nbd_node(uri: str) -> dict[str, Any]:
    """An NBD URI as a block node of QEMU; a server that is restarted is waited for.

    Raises:
        DrengineError: NBD_CLIENT, it is none.
    """
    address = NbdAddress.parse(uri)
    if isinstance(address.place, str):
        server = {"type": "unix", "path": address.place}
    else:
        server = {"type": "inet", "host": address.place[0], "port": str(address.place[1])}
    return {"driver": "nbd", "server": server, "export": address.export, "reconnect-delay": 30}


def _network_arguments(network: str, mac: str) -> list[str]:
    """The machine's card.

    Raises:
        ValueError: the network is unknown.
    """
    if network == "none":
        return ["-nic", "none"]
    if network == "user":
        back = {"type": "user", "id": "net"}
    elif match := _BRIDGE.fullmatch(network):
        back = {"type": "bridge", "id": "net", "br": match[1]}
    else:
        raise ValueError(f"network {network!r} is none of none, user, bridge:NAME")
    card = {"driver": "virtio-net-pci", "netdev": "net", **({"mac": mac} if mac else {})}
    return ["-netdev", json.dumps(back), "-device", json.dumps(card)]
