"""The `standby` driver: a recovery host's agent attaches, mounts and starts the workload, as told over the broker.

The host keeps what it did under the instance's name, so an order that is repeated does nothing twice. Where the runbook
says how (`iscsi`), and the host attaches disks in no better way, this host serves them to it as LUNs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import msgspec

from drengine.control.attach import (
    ATTACH_WAYS,
    AUTO,
    BUBBLE,
    HOST,
    ISCSI,
    NONE,
    AttachOrder,
    HostAnswer,
    HostQuestion,
    Lun,
    StandbySettings,
    breaks_isolation,
)
from drengine.control.messages import Answer, Verb
from drengine.failover.drivers.driver import (
    AsksHost,
    Instance,
    KnowsNeeds,
    LaunchDriver,
    LaunchRequest,
    SeesAddresses,
)
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.luns import LunPlan, LunSettings, ServedLuns
from drengine.failover.drivers.settings import read_settings
from drengine.failover.needs import Need
from drengine.iscsi.names import disk_identifier
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.nbd.client import NbdAddress

ASK_SECONDS = 30.0
"""For what is quick."""


class StandbyLuns(LunSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How this host serves disks that are another host's to use.

    Attributes:
        socket: the target's `nbd_socket` here, whence root may take them; empty: whence the recovery host would.
    """

    socket: str = ""


class StandbyLaunch(StandbySettings, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """All that a runbook may set: what the host is told, and what is done here.

    Attributes:
        iscsi: how this host serves the disks to one that attaches them by `iscsi`; None: to none.
    """

    iscsi: StandbyLuns | None = None


class StandbyDriver(LaunchDriver, AsksHost, KnowsNeeds, SeesAddresses):
    """See the module and LaunchDriver."""

    name = "standby"
    needs_host = True

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read = read_settings(StandbyLaunch, settings, self.name)
        if read.attach not in ATTACH_WAYS:
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver standby: attach {read.attach!r} is unknown")
        if read.network not in (NONE, BUBBLE, HOST):
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver standby: network {read.network!r} is unknown")
        if read.start and not read.stop:
            raise DrengineError(LAUNCH_SETTINGS, "settings of driver standby: `start` needs `stop`, or it never ends")
        if read.attach == ISCSI and read.iscsi is None:
            raise DrengineError(
                LAUNCH_SETTINGS, "settings of driver standby: attach iscsi needs `iscsi`, with a portal"
            )
        if read.iscsi is not None:
            try:
                read.iscsi.check()
            except ValueError as error:
                raise DrengineError(LAUNCH_SETTINGS, f"settings of driver standby: iscsi: {error}") from error

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> tuple[Need, ...]:
        read = read_settings(StandbyLaunch, settings, self.name)
        return read.iscsi.needs() if read.iscsi and read.attach in (AUTO, ISCSI) else ()

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        order = _order_of(request)
        if (luns := _luns(request)) is not None and (luns.is_noted or self._needs_luns(request)):
            served = luns.start()
            progress(f"{served.target} is served at {served.portal}")
            order = msgspec.structs.replace(
                order,
                luns={
                    volume: Lun(
                        portal=served.portal,
                        target=served.target,
                        identifier=disk_identifier(request.instance, volume),
                    )
                    for volume in order.disks
                },
            )
        answer = self._order(request, Verb.ATTACH, msgspec.to_builtins(order), request.timeout_seconds, progress)
        return Instance(request.instance, True, True, answer.result.get("details", {}))

    def inspect(self, request: LaunchRequest) -> Instance:
        found = self._order(request, Verb.STATUS, {"instance": request.instance}, ASK_SECONDS).result
        luns = _luns(request)
        served = luns is None or not luns.is_noted or luns.served() is not None
        return Instance(request.instance, found["running"], found["healthy"] and served, found["details"])

    def addresses(self, request: LaunchRequest) -> list[str] | None:
        found = self.inspect(request).details.get("addresses")
        return [str(each) for each in found] if isinstance(found, list) else None

    def ask_host(self, request: LaunchRequest) -> HostAnswer:
        sizes = {disk.volume: disk.size_bytes for disk in request.disks}
        question = HostQuestion(order=_order_of(request), size_bytes=sizes, luns=_luns(request) is not None)
        arguments = {"examine": msgspec.to_builtins(question)}
        answer = self._order(request, Verb.STATUS, arguments, request.timeout_seconds)
        return msgspec.convert(answer.result, HostAnswer)

    def quiesce(self, request: LaunchRequest) -> None:
        self._end(request, Verb.QUIESCE)

    def stop(self, request: LaunchRequest) -> None:
        self._end(request, Verb.DETACH)
        if _luns(request) is not None:
            shutil.rmtree(request.directory, ignore_errors=True)

    def _end(self, request: LaunchRequest, verb: Verb) -> None:
        """The host logs out first: what it has written has to find its disk."""
        self._order(request, verb, {"instance": request.instance}, request.timeout_seconds)
        if (luns := _luns(request)) is not None:
            luns.stop()

    def _needs_luns(self, request: LaunchRequest) -> bool:
        """By the settings, or by what the host says of itself."""
        attach = read_settings(StandbyLaunch, request.settings, self.name).attach
        return attach == ISCSI or (attach == AUTO and self.ask_host(request).attach == ISCSI)

    def _order(
        self,
        request: LaunchRequest,
        verb: Verb,
        arguments: Mapping[str, Any],
        seconds: float,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        if request.order is None or not request.host:
            raise DrengineError(LAUNCH_SETTINGS, "driver standby needs `host`, a recovery host's name, and a broker")
        answer = request.order(verb, arguments, seconds, progress)
        if not answer.ok:
            raise DrengineError(LAUNCH_FAILED, f"{request.host}: {answer.message}")
        return answer


def _luns(request: LaunchRequest) -> ServedLuns | None:
    """The disks as LUNs, served or not; None: the runbook does not say how."""
    settings = read_settings(StandbyLaunch, request.settings, StandbyDriver.name).iscsi
    if settings is None:
        return None
    if settings.socket:
        disks = tuple(replace(disk, uri=_from_socket(settings.socket, disk.uri)) for disk in request.disks)
        request = replace(request, disks=disks)
    return ServedLuns(LunPlan.of(request, settings))


def _from_socket(socket: str, uri: str) -> str:
    return f"nbd+unix:///{quote(NbdAddress.parse(uri).export)}?socket={quote(socket)}"


def _order_of(request: LaunchRequest) -> AttachOrder:
    """
    Raises:
        DrengineError: LAUNCH_SETTINGS.
    """
    told = {name: value for name, value in request.settings.items() if name != "iscsi"}
    settings = read_settings(StandbySettings, told, StandbyDriver.name)
    shared = request.isolated and settings.network == BUBBLE
    order = AttachOrder(
        instance=request.instance,
        source=request.source,
        disks={disk.volume: disk.uri for disk in request.disks},
        settings=settings,
        isolated=request.isolated,
        hydrate=request.hydrate,
        timeout_seconds=request.timeout_seconds,
        run=request.run,
        cards=request.cards,
        servers=dict(request.servers) if shared else {},
    )
    if why := breaks_isolation(order):
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver standby: {why}")
    return order
