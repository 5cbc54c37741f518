"""The `command` driver: workloads that are programs on this host, reading their disks over NBD.

Every process of an instance carries DRENGINE_INSTANCE in its environment, and is found again by that: nothing can be
started twice or forgotten, wherever the orchestrator was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.failover.drivers.driver import Instance, KnowsNeeds, LaunchDriver, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.hydrated import end_hydrated, hydrated, hydration_details
from drengine.failover.drivers.settings import read_settings
from drengine.failover.needs import Program, programs
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.ownership import make_directory
from drengine.process import Finished, end_marked, find_marked, marked, run_command, start_marked
from drengine.process.given import with_given

MARK = "DRENGINE_INSTANCE"
LOOK_SECONDS = 0.05
SETTLE_SECONDS = 0.5
SHOWN_BYTES_MAX = 4 << 10
_OUTPUT = "output.log"


class CommandSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of this driver in a runbook.

    Attributes:
        run: a program that stays, as long as the workload does.
        start, stop: for a service manager: commands that return; `stop` is also used with `run` if given.
        quiesce: makes the workload stop writing cleanly; default: it is stopped.
        health: exit status 0 when it works; asked until it does. Default: it is healthy when it still runs after
            SETTLE_SECONDS, since a program that can't work mostly ends at once.
        environment: added for all of these, with what ``${env:NAME}``, ``${file:/PATH}`` and ``${credential:NAME}``
            stand for; they inherit next to nothing (see drengine.process.environment).
        user: as whom all of these run; default: the orchestrator's own.
        details: told to later steps as ${SOURCE.KEY}.
        grace: how long it may take to end before it is killed.
    """

    run: list[str] = []
    start: list[str] = []
    stop: list[str] = []
    quiesce: list[str] = []
    health: list[str] = []
    environment: dict[str, str] = {}
    user: str = ""
    details: dict[str, str] = {}
    grace: str = "10s"


class CommandDriver(LaunchDriver, KnowsNeeds):
    """See the module and LaunchDriver."""

    name = "command"

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read = read_settings(CommandSettings, settings, self.name)
        if bool(read.run) == bool(read.start):
            raise DrengineError(
                LAUNCH_SETTINGS, "settings of driver command: exactly one of `run` and `start` is needed"
            )
        if read.start and not read.stop:
            raise DrengineError(LAUNCH_SETTINGS, "settings of driver command: `start` needs `stop`, or it never ends")
        try:
            parse_duration(read.grace)
        except ValueError as error:
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver command: grace: {error}") from error

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> tuple[Program, ...]:
        read = read_settings(CommandSettings, settings, self.name)
        return programs(read.run, read.start, read.stop, read.quiesce, read.health, user=read.user)

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        settings = read_settings(CommandSettings, request.settings, self.name)
        deadline = time.monotonic() + request.timeout_seconds
        if not self._is_running(request, settings):
            self._start(hydrated(request), settings)
            progress("started")
        settled = time.monotonic() + min(SETTLE_SECONDS, request.timeout_seconds / 2)
        finished = None
        while time.monotonic() < deadline:
            if settings.run and not find_marked(MARK, request.instance, request.directory):
                raise DrengineError(LAUNCH_FAILED, f"{settings.run[0]} ended: {self._last_words(request)}")
            finished = self._health(request, settings, deadline - time.monotonic())
            if finished.ok if finished else not settings.run or time.monotonic() >= settled:
                return self._found(request, settings, healthy=True, said=finished.output if finished else "")
            time.sleep(LOOK_SECONDS)
        said = finished.output if finished else ""
        raise DrengineError(
            LAUNCH_FAILED,
            f"not healthy within {request.timeout_seconds:g} s: {said or self._last_words(request)}",
        )

    def inspect(self, request: LaunchRequest) -> Instance:
        settings = read_settings(CommandSettings, request.settings, self.name)
        finished = self._health(request, settings, 5.0)
        return self._found(request, settings, healthy=finished is None or finished.ok)

    def quiesce(self, request: LaunchRequest) -> None:
        settings = read_settings(CommandSettings, request.settings, self.name)
        if settings.quiesce:
            self._must(request, settings, settings.quiesce)
        else:
            self._end(request, settings)

    def stop(self, request: LaunchRequest) -> None:
        self._end(request, read_settings(CommandSettings, request.settings, self.name))
        shutil.rmtree(request.directory, ignore_errors=True)

    def _start(self, request: LaunchRequest, settings: CommandSettings) -> None:
        make_directory(request.directory)
        if settings.start:
            self._must(request, settings, settings.start)
            (request.directory / "started").touch()
            return
        try:
            start_marked(
                settings.run,
                MARK,
                request.instance,
                output=request.directory / _OUTPUT,
                directory=request.directory,
                environment=self._environment(request, settings),
                user=settings.user,
            )
        except (OSError, ValueError) as error:
            raise DrengineError(LAUNCH_FAILED, f"{settings.run[0]} can't be started: {error}") from error

    def _end(self, request: LaunchRequest, settings: CommandSettings) -> None:
        if settings.stop:
            self._must(request, settings, settings.stop)
            (request.directory / "started").unlink(missing_ok=True)
        end_marked(MARK, request.instance, request.directory, grace_seconds=parse_duration(settings.grace))
        end_hydrated(request)

    def _is_running(self, request: LaunchRequest, settings: CommandSettings) -> bool:
        if settings.start:
            return (request.directory / "started").exists()
        return bool(find_marked(MARK, request.instance, request.directory))

    def _health(self, request: LaunchRequest, settings: CommandSettings, seconds: float) -> Finished | None:
        """None when there is no health command."""
        if not settings.health:
            return None
        return run_command(
            settings.health,
            timeout_seconds=max(0.1, seconds),
            environment={**self._environment(request, settings), MARK: ""},
            user=settings.user,
        )

    def _must(self, request: LaunchRequest, settings: CommandSettings, argv: list[str]) -> None:
        finished = run_command(
            argv,
            timeout_seconds=request.timeout_seconds,
            environment={
                **self._environment(request, settings),
                **(marked(MARK, request.instance, request.directory) if argv is settings.start else {MARK: ""}),
            },
            user=settings.user,
        )
        if not finished.ok:
            raise DrengineError(LAUNCH_FAILED, f"{argv[0]} ended with {finished.code}: {finished.output}")

    def _found(self, request: LaunchRequest, settings: CommandSettings, *, healthy: bool, said: str = "") -> Instance:
        processes = find_marked(MARK, request.instance, request.directory)
        running = self._is_running(request, settings)
        details: dict[str, Any] = {**settings.details, "pids": processes, "output": self._last_words(request)}
        details |= hydration_details(request)
        if said:
            details["health"] = said[-SHOWN_BYTES_MAX:]
        return Instance(request.instance, running, running and healthy, details)

    def _last_words(self, request: LaunchRequest) -> str:
        with contextlib.suppress(OSError), (request.directory / _OUTPUT).open("rb") as output:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - SHOWN_BYTES_MAX))
            return output.read().decode(errors="replace").strip()
        return ""

    def _environment(self, request: LaunchRequest, settings: CommandSettings) -> dict[str, str]:
        disks = {disk.volume: disk.uri for disk in request.disks}
        try:
            given = {name: with_given(value) for name, value in settings.environment.items()}
        except ValueError as error:
            raise DrengineError(LAUNCH_FAILED, f"settings of driver command: environment: {error}") from error
        return {
            **given,
            MARK: request.instance,
            "DRENGINE_RUN": request.run,
            "DRENGINE_SOURCE": request.source,
            "DRENGINE_ISOLATED": "1" if request.isolated else "",
            "DRENGINE_DISKS": json.dumps(disks),
            **{f"DRENGINE_DISK_{re.sub(r'[^A-Z0-9]', '_', name.upper())}": uri for name, uri in disks.items()},
        }
