"""The `iscsi` driver: serves the promoted disks as iSCSI LUNs, for a machine that boots from a SAN.

Where that machine is and who switches it on is not known here: `start`, `stop` and `health` are commands that may do it
and ask it. Without `health` an instance is healthy when initiators can log in and find every disk.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.failover.drivers.driver import Instance, KnowsNeeds, LaunchDriver, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.hydrated import hydration_details
from drengine.failover.drivers.luns import LunPlan, LunSettings, ServedLuns
from drengine.failover.drivers.settings import read_settings
from drengine.failover.needs import Need, programs
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.process import Finished, run_command

LOOK_SECONDS = 0.1
ASK_SECONDS = 5.0
SHOWN_CHARACTERS_MAX = 4000
_STARTED = "started"


class IscsiSettings(LunSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of this driver in a runbook.

    Attributes:
        boot: volume that is LUN 1; default: the first declared.
        start, stop: commands that switch the machine on and off, and return; both bear being run twice.
        health: exit status 0 when it works; asked until it does.
        details: told to later steps as ${SOURCE.KEY}.
        grace: how long `stop` may take.
    """

    boot: str = ""
    start: list[str] = msgspec.field(default_factory=list)
    stop: list[str] = msgspec.field(default_factory=list)
    health: list[str] = msgspec.field(default_factory=list)
    details: dict[str, str] = msgspec.field(default_factory=dict)
    grace: str = "60s"


class IscsiDriver(LaunchDriver, KnowsNeeds):
    """See the module and LaunchDriver."""

    name = "iscsi"

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read = read_settings(IscsiSettings, settings, self.name)
        try:
            read.check()
            parse_duration(read.grace)
        except ValueError as error:
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver iscsi: {error}") from error

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> tuple[Need, ...]:
        read = read_settings(IscsiSettings, settings, self.name)
        return (*read.needs(), *programs(read.start, read.stop, read.health))

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        settings = read_settings(IscsiSettings, request.settings, self.name)
        deadline = time.monotonic() + request.timeout_seconds
        if not request.disks:
            raise DrengineError(LAUNCH_SETTINGS, "driver iscsi: there is no disk to serve")
        served = _luns(request, settings).start()
        progress(f"{served.target} is served at {served.portal}")
        if settings.start and not (request.directory / _STARTED).exists():
            self._must(request, settings, settings.start, deadline - time.monotonic())
            (request.directory / _STARTED).touch()
            progress("the machine is switched on")
        while not (finished := self._health(request, settings, deadline - time.monotonic())).ok:
            if time.monotonic() > deadline:
                raise DrengineError(
                    LAUNCH_FAILED, f"not healthy within {request.timeout_seconds:g} s: {finished.output}"
                )
            time.sleep(LOOK_SECONDS)
        return self._found(request, settings, healthy=True, said=finished.output)

    def inspect(self, request: LaunchRequest) -> Instance:
        settings = read_settings(IscsiSettings, request.settings, self.name)
        return self._found(request, settings, healthy=self._health(request, settings, ASK_SECONDS).ok)

    def quiesce(self, request: LaunchRequest) -> None:
        """Switch the machine off, then let nobody log in; a machine that runs on sees its disk vanish."""
        settings = read_settings(IscsiSettings, request.settings, self.name)
        if settings.stop and (request.directory / _STARTED).exists():
            self._must(request, settings, settings.stop, parse_duration(settings.grace))
        (request.directory / _STARTED).unlink(missing_ok=True)
        _luns(request, settings).stop()

    def stop(self, request: LaunchRequest) -> None:
        self.quiesce(request)
        shutil.rmtree(request.directory, ignore_errors=True)

    def _health(self, request: LaunchRequest, settings: IscsiSettings, seconds: float) -> Finished:
        if _luns(request, settings).served() is None:
            return Finished(1, "the disks are not all served")
        if not settings.health:
            return Finished(0, "")
        return self._run(request, settings, settings.health, seconds)

    def _must(self, request: LaunchRequest, settings: IscsiSettings, argv: list[str], seconds: float) -> None:
        finished = self._run(request, settings, argv, seconds)
        if not finished.ok:
            raise DrengineError(LAUNCH_FAILED, f"{argv[0]} ended with {finished.code}: {finished.output}")

    def _run(self, request: LaunchRequest, settings: IscsiSettings, argv: Sequence[str], seconds: float) -> Finished:
        told = _luns(request, settings).details()
        environment = {
            "DRENGINE_RUN": request.run,
            "DRENGINE_SOURCE": request.source,
            "DRENGINE_ISOLATED": "1" if request.isolated else "",
            **{f"DRENGINE_{key.upper()}": str(told.get(key, "")) for key in ("portal", "target", "root_path")},
        }
        return run_command(argv, timeout_seconds=max(0.1, seconds), environment=environment)

    def _found(self, request: LaunchRequest, settings: IscsiSettings, *, healthy: bool, said: str = "") -> Instance:
        details = {**settings.details, **_luns(request, settings).details(), **hydration_details(request)}
        if said:
            details["health"] = said[-SHOWN_CHARACTERS_MAX:]
        running = bool(details["pids"])
        return Instance(request.instance, running, running and healthy, details)


def _luns(request: LaunchRequest, settings: IscsiSettings) -> ServedLuns:
    return ServedLuns(LunPlan.of(request, settings, boot=settings.boot))
