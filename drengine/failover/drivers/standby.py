"""The `standby` driver: a recovery host's agent attaches, mounts and starts the workload, as told over the broker.

The host keeps what it did under the instance's name, so an order that is repeated does nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drengine.control.attach import (
    ATTACH_WAYS,
    BUBBLE,
    HOST,
    NONE,
    AttachOrder,
    HostAnswer,
    HostQuestion,
    StandbySettings,
    breaks_isolation,
)
from drengine.control.messages import Answer, Verb
from drengine.failover.drivers.driver import AsksHost, Instance, LaunchDriver, LaunchRequest, SeesAddresses
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.settings import read_settings
from drengine.model.errors import DrengineError

ASK_SECONDS = 30.0
"""For what is quick."""


class StandbyDriver(LaunchDriver, AsksHost, SeesAddresses):
    """See the module and LaunchDriver."""

    name = "standby"
    needs_host = True

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read = read_settings(StandbySettings, settings, self.name)
        if read.attach not in ATTACH_WAYS:
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver standby: attach {read.attach!r} is unknown")
        if read.network not in (NONE, BUBBLE, HOST):
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver standby: network {read.network!r} is unknown")
        if read.start and not read.stop:
            raise DrengineError(LAUNCH_SETTINGS, "settings of driver standby: `start` needs `stop`, or it never ends")

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        answer = self._order(request, Verb.ATTACH, _order_of(request), request.timeout_seconds, progress)
        return Instance(request.instance, True, True, answer.result.get("details", {}))

    def inspect(self, request: LaunchRequest) -> Instance:
        found = self._order(request, Verb.STATUS, {"instance": request.instance}, ASK_SECONDS).result
        return Instance(request.instance, found["running"], found["healthy"], found["details"])

    def addresses(self, request: LaunchRequest) -> list[str] | None:
        found = self.inspect(request).details.get("addresses")
        return [str(each) for each in found] if isinstance(found, list) else None

    def ask_host(self, request: LaunchRequest) -> HostAnswer:
        order = msgspec.convert(_order_of(request), AttachOrder)
        question = HostQuestion(order=order, size_bytes={disk.volume: disk.size_bytes for disk in request.disks})
        arguments = {"examine": msgspec.to_builtins(question)}
        answer = self._order(request, Verb.STATUS, arguments, request.timeout_seconds)
        return msgspec.convert(answer.result, HostAnswer)

    def quiesce(self, request: LaunchRequest) -> None:
        self._order(request, Verb.QUIESCE, {"instance": request.instance}, request.timeout_seconds)

    def stop(self, request: LaunchRequest) -> None:
        self._order(request, Verb.DETACH, {"instance": request.instance}, request.timeout_seconds)

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


def _order_of(request: LaunchRequest) -> dict[str, Any]:
    """
    Raises:
        DrengineError: LAUNCH_SETTINGS.
    """
    settings = read_settings(StandbySettings, request.settings, StandbyDriver.name)
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
    arguments: dict[str, Any] = msgspec.to_builtins(order)
    return arguments
