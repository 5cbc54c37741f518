"""The `qemu` driver: boots a source's promoted disks as a virtual machine on this host, straight over NBD.

The machine's process carries the instance's mark (see drengine.process.marked); the end of what its console says stands
in a file, and a QMP socket in the instance's directory takes orders. In a drill only `drill_network` counts, which is
none by default: a copy of production never meets production.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.durable import replace_durably
from drengine.failover.drivers import move
from drengine.failover.drivers.driver import (
    Instance,
    KnowsMachine,
    KnowsNeeds,
    LaunchDriver,
    LaunchRequest,
    SeesAddresses,
)
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.hydrated import end_hydrated, hydrated, hydration_details, hydration_place
from drengine.failover.drivers.move import MARK as MOVER_MARK
from drengine.failover.drivers.move import MovePlan
from drengine.failover.drivers.qemu.accelerator import choose_accelerator
from drengine.failover.drivers.qemu.agent import AgentError, GuestAgent
from drengine.failover.drivers.qemu.cards import card_arguments, cards_of
from drengine.failover.drivers.qemu.console import CONSOLE, console_arguments, console_kept, end_console, has_said
from drengine.failover.drivers.qemu.disks import moving_disks
from drengine.failover.drivers.qemu.firmware import firmware_arguments, firmware_needs, firmware_of
from drengine.failover.drivers.qemu.machine import (
    AGENT,
    AGENT_DEVICE,
    MOVER_QMP,
    QMP,
    check_memory,
    machine_arguments,
    size_of,
)
from drengine.failover.drivers.qemu.networks import bubble_of, network_needs, plugged
from drengine.failover.drivers.qemu.seen import seen_addresses
from drengine.failover.drivers.qemu.settings import BIOS, BUBBLE, NAME, UEFI, QemuSettings, qemu_settings
from drengine.failover.drivers.qmp import Qmp, QmpError
from drengine.failover.needs import Memory, Need, ReadableFile, programs
from drengine.model.errors import DrengineError
from drengine.model.hardware import Machine
from drengine.model.inventory import Inventory
from drengine.ownership import make_directory
from drengine.process import end_marked, find_marked, run_command, start_marked

MARK = "DRENGINE_INSTANCE"
LOOK_SECONDS = 0.1
CONSOLE_BYTES_MAX = 4 << 10
QMP_SECONDS = 5.0
KILL_SECONDS = 5.0
AGENT_GRACE = 0.5
"""What a guest that was asked by its agent has of the grace before its power button is pressed."""
TLS_FILES = ("ca-cert", "client-cert", "client-key")
_NOTES, _MADE = "qemu.log", "machine.json"
_PLAN, _MOVER_NOTES = "move-plan.json", "move.log"


class Made(msgspec.Struct, frozen=True):
    """What the machine was made as, for reports.

    Attributes:
        accelerator, accelerator_reason: what runs it, and why that is not kvm.
        firmware, memory_mib, cpus: of the machine.
        macs: its cards' addresses.
    """

    accelerator: str
    accelerator_reason: str
    firmware: str
    memory_mib: int
    cpus: int
    macs: tuple[str, ...]

    def __str__(self) -> str:
        """In words, for people."""
        why = f" ({self.accelerator_reason})" if self.accelerator_reason else ""
        cards = f"cards {', '.join(self.macs)}" if self.macs else "no card"
        size = f"{self.memory_mib} MiB, {self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"on {self.accelerator}{why}: {size}, {self.firmware}, {cards}"


class QemuDriver(LaunchDriver, KnowsNeeds, KnowsMachine, SeesAddresses):
    """See the module and LaunchDriver."""

    name = NAME

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        qemu_settings(settings)

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> tuple[Need, ...]:
        read = qemu_settings(settings)
        tls = Path(read.tls_directory)
        files = [read.kernel, read.initrd]
        files += [str(tls / f"{name}.pem") for name in TLS_FILES] if read.tls_directory else []
        return (
            *programs([read.program], read.health),
            *(ReadableFile(file) for file in files if file),
            *firmware_needs(firmware_of(read, inventory)),
            Memory(size_of(read, inventory).memory_mib << 20),
            *network_needs(read, isolated=isolated),
        )

    def machine(self, settings: Mapping[str, Any], inventory: Inventory | None) -> Machine:
        read = qemu_settings(settings)
        firmware = firmware_of(read, inventory)
        card = read.networks[0].model if read.networks else "virtio"
        return Machine(disk_bus=read.disk_bus, card=card, firmware=UEFI if firmware == UEFI else BIOS)

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        settings = qemu_settings(request.settings)
        deadline = time.monotonic() + request.timeout_seconds
        if not find_marked(MARK, request.instance, request.directory):
            made = self._start(request, settings)
            progress(f"virtual machine started {made}")
        if request.hydrate and not find_marked(MOVER_MARK, request.instance, request.directory):
            self._start_mover(request)
        waits_for = f"console line {settings.ready!r}" if settings.ready else "health"
        while time.monotonic() < deadline:
            if not find_marked(MARK, request.instance, request.directory):
                end_console(request.instance, request.directory)
                raise DrengineError(LAUNCH_FAILED, f"the virtual machine ended: {self._last_words(request)}")
            if self._is_healthy(request, settings, deadline - time.monotonic()):
                return self._found(request, settings, healthy=True)
            time.sleep(LOOK_SECONDS)
        raise DrengineError(
            LAUNCH_FAILED,
            f"no {waits_for} within {request.timeout_seconds:g} s: {self._last_words(request)}",
        )

    def inspect(self, request: LaunchRequest) -> Instance:
        settings = qemu_settings(request.settings)
        running = bool(find_marked(MARK, request.instance, request.directory))
        return self._found(request, settings, healthy=running and self._is_healthy(request, settings, QMP_SECONDS))

    def addresses(self, request: LaunchRequest) -> list[str] | None:
        settings = qemu_settings(request.settings)
        interfaces = self._interfaces(request, settings)
        told = None if interfaces is None else _addresses(interfaces)
        return seen_addresses(request, cards_of(request, settings), told)

    def quiesce(self, request: LaunchRequest) -> None:
        """Have the guest shut down: by its agent, else by the power button.

        One that does not obey in time is killed: its disks are as after a power cut.
        """
        settings = qemu_settings(request.settings)
        grace = parse_duration(settings.grace)
        deadline = time.monotonic() + grace
        if settings.guest_agent and self._is_agent_there(request):
            with contextlib.suppress(AgentError), GuestAgent(request.directory / AGENT) as agent:
                agent.shut_down()
                self._wait_for_end(request, deadline - grace * (1 - AGENT_GRACE))
        with contextlib.suppress(OSError, ValueError, QmpError):
            with Qmp(request.directory / QMP) as qmp:
                qmp.execute("system_powerdown")
            self._wait_for_end(request, deadline)
        self._end(request)

    def stop(self, request: LaunchRequest) -> None:
        self._end(request)
        shutil.rmtree(request.directory, ignore_errors=True)

    def _start(self, request: LaunchRequest, settings: QemuSettings) -> Made:
        """Begin with what may be refused; the machine itself is the last.

        Raises:
            DrengineError: LAUNCH_FAILED, LAUNCH_SETTINGS, HYDRATION_FAILED, NBD_CLIENT.
        """
        directory, firmware = request.directory, firmware_of(settings, request.inventory)
        size, cards = size_of(settings, request.inventory), cards_of(request, settings)
        check_memory(size)
        make_directory(directory)
        accelerator = choose_accelerator(settings, directory)
        macs = tuple(card.mac for card in cards)
        made = Made(accelerator.name, accelerator.reason, firmware, size.memory_mib, size.cpus, macs)
        replace_durably(directory / _MADE, msgspec.json.encode(made))
        image = firmware_arguments(firmware, directory)
        end_hydrated(request)  # of a machine that has ended: their copies may not be what the branch is
        served = hydrated(request)
        if request.hydrate:
            replace_durably(directory / _PLAN, msgspec.json.encode(self._plan(request, settings)))
        with plugged(request, cards) as (backends, descriptors), self._kept_console(request, settings) as console:
            arguments = machine_arguments(
                served,
                settings,
                size=size,
                accelerator=accelerator,
                console=console_arguments(console),
                firmware=image,
                cards=card_arguments(cards, backends),
            )
            self._run(request, arguments, [*descriptors, console])
        return made

    @contextlib.contextmanager
    def _kept_console(self, request: LaunchRequest, settings: QemuSettings) -> Iterator[int]:
        with contextlib.ExitStack() as kept:
            try:
                console = kept.enter_context(console_kept(request.instance, request.directory, settings.ready))
            except (OSError, ValueError) as error:
                raise DrengineError(LAUNCH_FAILED, f"the console's reader can't be started: {error}") from error
            yield console

    def _run(self, request: LaunchRequest, arguments: list[str], descriptors: list[int]) -> None:
        try:
            start_marked(
                arguments,
                MARK,
                request.instance,
                output=request.directory / _NOTES,
                directory=request.directory,
                descriptors=descriptors,
            )
        except (OSError, ValueError) as error:
            raise DrengineError(LAUNCH_FAILED, f"{arguments[0]} can't be started: {error}") from error

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
        return MovePlan(
            instance=request.instance,
            launched_ns=time.time_ns(),
            qmp=str(request.directory.absolute() / MOVER_QMP),
            hydration=str(hydration_place(request.directory).absolute()),
            disks=moving_disks(request, settings),
        )

    def _wait_for_end(self, request: LaunchRequest, deadline: float) -> None:
        while find_marked(MARK, request.instance, request.directory) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _end(self, request: LaunchRequest) -> None:
        """QEMU writes what it holds and closes its disks on SIGTERM. The last machine of a drill ends its bubble."""
        end_marked(MOVER_MARK, request.instance, request.directory, grace_seconds=KILL_SECONDS)
        end_marked(MARK, request.instance, request.directory, grace_seconds=KILL_SECONDS)
        end_console(request.instance, request.directory)
        end_hydrated(request)
        if request.isolated and request.settings.get("drill_network") == BUBBLE:
            bubble_of(request).leave(request.instance)

    def _is_healthy(self, request: LaunchRequest, settings: QemuSettings, seconds: float) -> bool:
        if settings.ready and not has_said(request.directory, settings.ready):
            return False
        if settings.guest_agent is True and not self._agent_answers(request):
            return False
        if not settings.health:
            return True
        environment = {**{f"DRENGINE_{key.upper()}": value for key, value in settings.details.items()}, MARK: ""}
        return run_command(settings.health, timeout_seconds=max(0.1, seconds), environment=environment).ok

    def _is_agent_there(self, request: LaunchRequest) -> bool:
        """Whether a program of the guest has opened the agent's port, as QEMU says without asking the guest."""
        try:
            with Qmp(request.directory / QMP) as qmp:
                ports = qmp.execute("query-chardev")
        except (OSError, ValueError, QmpError):
            return False
        return any(port["label"] == AGENT_DEVICE and port["frontend-open"] for port in ports)

    def _agent_answers(self, request: LaunchRequest) -> bool:
        try:
            if self._is_agent_there(request):
                with GuestAgent(request.directory / AGENT) as agent:
                    agent.ping()
                    return True
        except AgentError:
            pass
        return False

    def _interfaces(self, request: LaunchRequest, settings: QemuSettings) -> list[dict[str, Any]] | None:
        """The guest's networks by its own words; None: it has no agent that tells."""
        if settings.guest_agent and self._is_agent_there(request):
            with contextlib.suppress(AgentError), GuestAgent(request.directory / AGENT) as agent:
                return [msgspec.to_builtins(each) for each in agent.interfaces()]
        return None

    def _found(self, request: LaunchRequest, settings: QemuSettings, *, healthy: bool) -> Instance:
        processes = find_marked(MARK, request.instance, request.directory)
        details: dict[str, Any] = {**settings.details, "pids": processes}
        details["console"] = self._console(request)
        if made := self._made(request):
            details["machine"] = msgspec.to_builtins(made)
            details["output"] = f"virtual machine {made}\n{details['console']}"
        if processes and (interfaces := self._interfaces(request, settings)) is not None:
            details["interfaces"] = interfaces
            details["addresses"] = _addresses(interfaces)
        details |= hydration_details(request)
        return Instance(request.instance, bool(processes), bool(processes) and healthy, details)

    def _console(self, request: LaunchRequest) -> str:
        """The end of what it said."""
        return _tail(request.directory / CONSOLE)

    def _last_words(self, request: LaunchRequest) -> str:
        made = self._made(request)
        ran = f"\nIt ran {made}" if made else ""
        return f"{_tail(request.directory / _NOTES)}\n{self._console(request)}".strip() + ran

    def _made(self, request: LaunchRequest) -> Made | None:
        """None: it was not started, or by an older version."""
        try:
            return msgspec.json.decode((request.directory / _MADE).read_bytes(), type=Made)
        except (OSError, msgspec.DecodeError):
            return None


def _addresses(interfaces: list[dict[str, Any]]) -> list[str]:
    return sorted(each for interface in interfaces for each in interface["addresses"])


def _tail(path: Path) -> str:
    """The last of a file that may be of any size; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - CONSOLE_BYTES_MAX))
            return file.read(CONSOLE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""
