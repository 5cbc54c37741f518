"""A recovery host's process: takes orders over the broker and carries them out on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from drengine.bubble import sweep_bubbles
from drengine.config import ADDRESS
from drengine.control.attach import AttachOrder, HostQuestion, HydrateOrder
from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.gate import Policy
from drengine.control.messages import AgentReport, Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.control.probes import OUTPUT_CHARACTERS_MAX, ProbeOrder
from drengine.enrolment.keeper import keeping
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.nbd.client import NbdAddress, with_certificates
from drengine.process.signals import ask_on_signals
from drengine.telemetry.notify import notify
from drengine.transport.networks import DataNetworks
from drengine_agent.standby.certificates import name_for_nbd
from drengine_agent.standby.config import StandbyConfig
from drengine_agent.standby.errors import STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.examine import examine
from drengine_agent.standby.filling import BLOCKS, carry_out
from drengine_agent.standby.probe import probe
from drengine_agent.standby.workload import Workload

log = logging.getLogger("drengine.standby")

HEALTH_SECONDS = 10.0


class StandbyHost:
    """The workloads of this host, by instance; one thing at a time is done to each."""

    def __init__(self, config: StandbyConfig, *, clock: Clock | None = None, blocks: Path = BLOCKS) -> None:
        """`blocks`: the kernel's list of disks.

        Raises:
            DrengineError: STANDBY_FAILED, the state directory can't be used; BAD_TLS_FILES.
        """
        self._config = config
        self._instances = config.state_directory / "instances"
        self._volumes = config.state_directory / "volumes"
        self._blocks = blocks
        self._networks = DataNetworks.parse(config.data_networks)
        self._locks: dict[str, asyncio.Lock] = {}
        self._files = config.tls.files()
        self._named = config.state_directory.absolute() / "tls"
        try:
            self._instances.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._files is not None:
                name_for_nbd(self._files, self._named)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"{self._instances}: {error.strerror}") from error
        self.party = Party(
            config.control,
            PartyKind.HOST,
            config.name,
            actions={
                verb: Action(act, Generations.ANY, remembered=remembered)
                for verb, act, remembered in (
                    (Verb.ATTACH, self.attach, True),
                    (Verb.QUIESCE, self.quiesce, True),
                    (Verb.DETACH, self.detach, True),
                    (Verb.HYDRATE, self.hydrate, True),
                    (Verb.CHECK, self.check, True),
                    (Verb.STATUS, self.status, False),
                )
            },
            report=self._report,
            log=config.state_directory / "commands",
            clock=clock or SystemClock(),
            random=Random(secrets.randbits(64)),
            policy=Policy(config.allow.verbs),
        )

    async def attach(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """ATTACH: bring a workload up; asked again it goes on where it was."""
        order = msgspec.convert(command.arguments, AttachOrder)
        self._config.allow.require(order)
        disks = {name: await asyncio.to_thread(self._attached_as, uri) for name, uri in order.disks.items()}
        order = msgspec.structs.replace(order, disks=disks)
        for lun in order.luns.values():
            await asyncio.to_thread(self._check_route, _portal(lun.portal))
        folder = self._instances / check_name(order.instance, what="instance")
        workload = Workload(order, folder, allow=self._config.allow)
        loop = asyncio.get_running_loop()

        def say(text: str) -> None:
            loop.call_soon_threadsafe(tell, {"message": text})

        async with self._lock(order.instance):
            details = await asyncio.to_thread(workload.start, say)
        log.info("workload is up", extra={"instance": order.instance, "run": command.run})
        return {"details": details}

    async def quiesce(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """QUIESCE: stop it cleanly; its disks are flushed and let go of."""
        return await self._with(command, Workload.quiesce)

    async def detach(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """DETACH: stop it and leave nothing behind."""
        return await self._with(command, Workload.stop)

    async def hydrate(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """HYDRATE: make volumes of this host equal to branches, or those to them."""
        order = msgspec.convert(command.arguments, HydrateOrder)
        loop, stopping = asyncio.get_running_loop(), threading.Event()

        def say(text: str) -> None:
            loop.call_soon_threadsafe(tell, {"message": text})

        async with self._lock(check_name(order.instance, what="instance")):
            try:
                done = await asyncio.to_thread(
                    carry_out, order, self._volumes, self._attached_as, stopping, say, self._blocks
                )
            finally:
                stopping.set()
        log.info("volumes are equal", extra={"instance": order.instance, "run": command.run})
        return {"done": done}

    async def check(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """CHECK: ask a workload from inside its network, once."""
        order = msgspec.convert(command.arguments, ProbeOrder)
        workload = self._find(command)
        if workload is None:
            raise DrengineError(STANDBY_FAILED, f"there is no instance {order.instance!r} here")
        if order.command:
            self._config.allow.require_command(order.command, workload.user)
        seen = await asyncio.to_thread(probe, order, workload)
        return {"seen": seen.text, "output": seen.output[-OUTPUT_CHARACTERS_MAX:]}

    async def status(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """STATUS: how an instance is; with `examine`, whether a launch could be carried out here."""
        if "examine" in command.arguments:
            question = msgspec.convert(command.arguments["examine"], HostQuestion)
            answer = await asyncio.to_thread(examine, question, self._config, self._attached_as)
            told: Mapping[str, Any] = msgspec.to_builtins(answer)
            return told
        workload = self._find(command)
        if workload is None:
            return {"running": False, "healthy": False, "details": {}}
        healthy = await asyncio.to_thread(workload.healthy, HEALTH_SECONDS)
        running, details = await asyncio.to_thread(lambda: (workload.running(), workload.details()))
        return {"running": running, "healthy": healthy, "details": details}

    async def _with(self, command: Command, act: Callable[[Workload], None]) -> Mapping[str, Any]:
        workload = self._find(command)
        if workload is None:
            return {"found": False}
        async with self._lock(command.arguments["instance"]):
            await asyncio.to_thread(act, workload)
        return {"found": True}

    def _find(self, command: Command) -> Workload | None:
        return Workload.load(self._instances / check_name(str(command.arguments.get("instance", "")), what="instance"))

    def _lock(self, instance: str) -> asyncio.Lock:
        return self._locks.setdefault(instance, asyncio.Lock())

    def _attached_as(self, uri: str) -> str:
        """A disk from inside the data networks; over TLS with this host's certificates, where it has any and the disk
        comes over a network.

        Raises:
            DrengineError: OUTSIDE_DATA_NETWORK, NBD_CLIENT, STANDBY_SETTINGS.
        """
        place = NbdAddress.parse(uri).place
        if not isinstance(place, str):
            self._check_route(place)
        return uri if self._files is None else with_certificates(uri, self._named)

    def _check_route(self, place: tuple[str, int]) -> None:
        """Block data comes from inside the data networks only (rule 7).

        Raises:
            DrengineError: OUTSIDE_DATA_NETWORK, STANDBY_SETTINGS.
        """
        try:
            found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
        except OSError as error:
            raise DrengineError(STANDBY_SETTINGS, f"{place[0]} has no address: {error}") from error
        for each in found:
            self._networks.label(str(each[4][0]))

    def _report(self) -> AgentReport:
        instances = sorted(entry.name for entry in self._instances.iterdir())
        return AgentReport(
            name=self._config.name,
            kind=PartyKind.HOST,
            state="READY",
            reason="none",
            generation=0,
            fenced=False,
            serving=bool(instances),
            lag_seconds=0.0,
            backlog_bytes=0,
            at_ns=0,
            sequence=0,
            details={"instances": instances},
        )


def _portal(text: str) -> tuple[str, int]:
    """
    Raises:
        DrengineError: STANDBY_SETTINGS, it is no portal.
    """
    try:
        address = ADDRESS.parse(text)
    except ValueError as error:
        raise DrengineError(STANDBY_SETTINGS, f"portal: {error}") from error
    return address.host, address.port


async def serve_standby(config: StandbyConfig, *, blocks: Path = BLOCKS) -> None:
    """Take orders until SIGTERM or SIGINT. Workloads stay up: only an order ends them. SIGHUP rereads certificates.

    `blocks`: the kernel's list of disks.

    Raises:
        DrengineError: it can't start.
    """
    host = StandbyHost(config, blocks=blocks)
    await asyncio.to_thread(_sweep)
    running = asyncio.create_task(host.party.run())
    ask_on_signals(running.cancel, reload=host.party.link.reload)
    async with keeping([config.tls.files(), config.control.tls_files()], SystemClock(), host.party.link.reload):
        notify("READY=1")
        log.info("recovery host %s is ready", config.name)
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _sweep() -> None:
    """Networks of drills that nobody is in any more; a host that can't make them has none."""
    try:
        sweep_bubbles()
    except DrengineError as error:
        log.info("bubbles of drills are not looked at: %s", error.message)
