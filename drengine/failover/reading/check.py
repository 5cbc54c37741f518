"""Does a runbook that has the right shape make sense? Names, durations, commands, references, waves, steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from croniter import croniter

from drengine.failover.drivers.driver import LaunchDriver
from drengine.failover.reading.addresses import check_addresses
from drengine.failover.runbook.document import Node
from drengine.failover.runbook.findings import Findings, did_you_mean, shown
from drengine.failover.runbook.sense import Sense
from drengine.failover.runbook.values import (
    RETRIES_MAX,
    Fence,
    HostFence,
    Launch,
    Mode,
    Runbook,
    Service,
    Source,
    Step,
    Wave,
)
from drengine.failover.steps.kinds import StepKinds, step_kinds
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.process.given import references
from drengine.redaction import is_secret_name

CYCLE_SHOWN_MAX = 8
DRILL_DAYS_MAX = 366
_CRON = re.compile(r"[0-9A-Za-z*/,-]{1,40}", re.ASCII)


def check(
    book: Runbook,
    root: Node,
    findings: Findings,
    *,
    drivers: Mapping[str, LaunchDriver] | None = None,
) -> None:
    """Note what makes no sense.

    Args:
        root: the tree that the runbook was made from, for the places.
        drivers: the launch drivers that are installed; None: neither they nor their settings are checked.
    """
    _Checker(book, Sense(findings, root, book.sources), drivers, step_kinds()).check()


class _Checker:
    def __init__(
        self,
        book: Runbook,
        sense: Sense,
        drivers: Mapping[str, LaunchDriver] | None,
        kinds: StepKinds,
    ) -> None:
        self._book = book
        self._sense = sense
        self._drivers = drivers
        self._kinds = kinds

    def check(self) -> None:
        book, sense = self._book, self._sense
        if book.version != 1:
            sense.error("bad-value", f"version {book.version} of the format is not known", "Write 1.", "version")
        sense.name(book.name, "runbook", "name")
        sense.seconds(book.objectives.rpo, "objectives", "rpo", positive=True)
        sense.seconds(book.objectives.rto, "objectives", "rto", positive=True)
        sense.seconds(book.objectives.drill, "objectives", "drill", positive=True, days_max=DRILL_DAYS_MAX)
        self._schedule()
        if not book.sources:
            sense.error("bad-value", "it has no sources", "Name at least one.", "sources")
        sense.most(book.sources, "sources")
        for name, source in book.sources.items():
            self._source(name, source, sense.inside("sources", name))
        self._waves()
        check_addresses(book, sense)
        self._warn()

    def _source(self, name: str, source: Source, sense: Sense) -> None:
        sense.name(name, "source", of_key=True)
        self._launch(source.launch, sense.inside("launch"))
        if source.fence is not None:
            self._fence(name, source.fence, sense.inside("fence"))
        for number, service in enumerate(source.services):
            self._service(service, sense.inside("services", number))
        for key, argv in (("stop", source.stop), ("start", source.start)):
            if argv:
                sense.argv(argv, key)
        try:
            PointSelector.parse(source.point)
        except DrengineError as error:
            hint = "Write latest, a time such as 2026-11-23T10:00:00Z, an id, or its label."
            sense.error(error.kind.id, error.message, hint, "point")

    def _fence(self, source: str, fence: Fence, sense: Sense) -> None:
        if fence.command or fence.dry or not fence.homes:
            _host_fence(fence, sense)
        sense.most(fence.homes, "homes")
        for host, found in fence.homes.items():
            there = sense.inside("homes", host)
            there.name(host, "host", of_key=True)
            if host == source:
                hint = "That host has the command of the fence itself: write it there."
                there.error("duplicate-name", f"{shown(host)} is the source's own name", hint)
            _host_fence(found, there)
        sense.seconds(fence.timeout, "timeout", positive=True)
        sense.count(fence.retries, RETRIES_MAX, "retries")

    def _service(self, service: Service, sense: Sense) -> None:
        sense.filled(service.name, "name")
        sense.seconds(service.timeout, "timeout", positive=True)
        for key, argv in (("stop", service.stop), ("start", service.start)):
            if argv:
                sense.argv(argv, key)
        if not (service.stop or service.start):
            sense.error("bad-command", "it has neither `stop` nor `start`", "Write [PROGRAM, ARGUMENT, ...].")

    def _launch(self, launch: Launch, sense: Sense) -> None:
        self._driver(launch, sense)
        if launch.host:
            sense.name(launch.host, "recovery host", "host")
        sense.seconds(launch.timeout, "timeout", positive=True)
        sense.count(launch.retries, RETRIES_MAX, "retries")
        _stay_inside(launch.settings, sense.inside("settings"))
        _stay_inside(launch.drill, sense.inside("drill"))

    def _driver(self, launch: Launch, sense: Sense) -> None:
        if self._drivers is None:
            return
        if launch.driver not in self._drivers:
            hint = did_you_mean(launch.driver, self._drivers)
            sense.error("unknown-driver", f"there is no launch driver {shown(launch.driver)}", hint, "driver")
            return
        if getattr(self._drivers[launch.driver], "needs_host", False) and not launch.host:
            hint = "Give the launch a host, by the name that its own file says."
            sense.error("no-host", f"driver {launch.driver} launches on a recovery host, and none is named", hint)
        for key, settings in (("settings", launch.settings), ("drill", {**launch.settings, **launch.drill})):
            try:
                self._drivers[launch.driver].check_settings(settings)
            except DrengineError as error:
                sense.error(error.kind.id, error.message, error.hint, key)
                return

    def _waves(self) -> None:
        waves, used, before = self._book.waves, dict[str, str](), set[str]()
        names = {wave.name for wave in waves}
        if not waves:
            self._sense.error("bad-value", "it has no waves", "Name at least one, with its sources.", "waves")
        self._sense.most(waves, "waves")
        for number, wave in enumerate(waves):
            sense = self._sense.inside("waves", number)
            sense.name(wave.name, "wave", "name")
            if wave.name in before:
                sense.error("duplicate-name", f"there is a wave {shown(wave.name)} before", "Rename it.", "name")
            before.add(wave.name)
            self._wave(wave, sense, used, names)
        for source in self._book.sources:
            if source not in used:
                hint = "Add it to a wave, or remove it: it would never be started."
                self._sense.error("unused-source", f"{shown(source)} is in no wave", hint, "sources", source)
        if len(names) == len(waves):
            self._cycles()

    def _wave(self, wave: Wave, sense: Sense, used: dict[str, str], names: set[str]) -> None:
        """`used`: the wave of each source that was named so far; grows."""
        for place, source in enumerate(wave.sources):
            if source not in self._book.sources:
                hint = did_you_mean(source, self._book.sources)
                sense.error("unknown-source", f"the runbook has no source {shown(source)}", hint, "sources", place)
            elif source in used:
                message = f"{shown(source)} is in wave {shown(used[source])} already"
                sense.error("duplicate-name", message, "A source starts once.", "sources", place)
            used.setdefault(source, wave.name)
        for place, other in enumerate(wave.after or []):
            if other not in names:
                hint = did_you_mean(other, names - {wave.name})
                sense.error("unknown-wave", f"there is no wave {shown(other)}", hint, "after", place)
        for key, steps in (("before", wave.before_steps), ("then", wave.after_steps)):
            sense.most(steps, key)
            for place, step in enumerate(steps):
                self._step(step, sense.inside(key, place))

    def _cycles(self) -> None:
        cycle = find_cycle(self._book.waves)
        if cycle:
            number = next(at for at, wave in enumerate(self._book.waves) if wave.name == cycle[0])
            row = [*cycle, cycle[0]]
            row = row if len(row) <= CYCLE_SHOWN_MAX else [*row[: CYCLE_SHOWN_MAX - 1], "...", row[-1]]
            hint = "None of them could ever begin: remove one `after`."
            message = f"waves wait for each other: {' after '.join(row)}"
            self._sense.error("wave-cycle", message, hint, "waves", number, "after")

    def _step(self, step: Step, sense: Sense) -> None:
        if len(step.actions) != 1:
            message = f"it has {' and '.join(step.actions)}" if step.actions else "it has no action"
            hint = "Give each step exactly one of " + ", ".join(self._kinds.actions) + "."
            sense.error("one-action", message, hint)
        sense.seconds(step.timeout, "timeout", positive=True)
        sense.seconds(step.every, "every", positive=True)
        sense.count(step.retries, RETRIES_MAX, "retries")
        if not step.modes:
            sense.error("bad-value", "it is run in no mode", "Remove `modes`, or name one.", "modes")
        if step.inside:
            self._inside(step, sense)
        for name, settings in step.actions.items():
            self._kinds.actions[name].examine(settings, sense.inside(name))

    def _inside(self, step: Step, sense: Sense) -> None:
        if step.inside not in self._book.sources:
            hint = did_you_mean(step.inside, self._book.sources)
            sense.error("unknown-source", f"the runbook has no source {shown(step.inside)}", hint, "inside")
        elif not self._book.sources[step.inside].launch.host:
            message = f"{shown(step.inside)} is not launched on a recovery host: it has no network of its own"
            sense.error(
                "no-inside", message, "Remove `inside`, or launch it with driver standby and a `host`.", "inside"
            )
        for name in step.actions:
            if not self._kinds.actions[name].goes_inside:
                able = ", ".join(each for each, kind in self._kinds.actions.items() if kind.goes_inside)
                sense.error("no-inside", f"{name} can't be done inside", f"These can: {able}.", "inside")

    def _schedule(self) -> None:
        text = self._book.schedule
        if not text:
            return
        fields = text.split()
        fits = len(fields) == 5 and all(_CRON.fullmatch(each) for each in fields)
        if not fits or not croniter.is_valid(" ".join(fields)):
            hint = "Five fields in UTC: minute hour day month weekday, for example '30 3 * * sun'."
            self._sense.error("bad-schedule", f"{shown(text)} is no schedule", hint, "schedule")

    def _warn(self) -> None:
        """What may be meant so, but is worth a thought."""
        for name, source in self._book.sources.items():
            if source.fence is None:
                self._sense.warning(
                    "no-fence",
                    f"{shown(name)} has no fence command: a failover is blocked if its agent does not answer, or only "
                    "watches its disks",
                    "Give one that switches it off: power, hypervisor or switch.",
                    "sources",
                    name,
                )
            self._warn_of_secrets(name, msgspec.to_builtins(source.launch.settings))
        steps = [step for wave in self._book.waves for step in (*wave.before_steps, *wave.after_steps)]
        checks = [step for step in steps if any(self._kinds.actions[name].checks for name in step.actions)]
        if not any(Mode.DRILL in step.modes for step in checks):
            able = [name for name, kind in self._kinds.actions.items() if kind.checks]
            self._sense.warning(
                "no-check",
                "nothing is checked in a drill: it would prove only that something was started",
                f"Add a step with {', '.join(able[:-1])} or {able[-1]} under `then`.",
                "waves",
            )

    def _warn_of_secrets(self, source: str, settings: Any) -> None:
        """Whoever reads the registry reads what stands here itself."""
        environment = settings.get("environment", {}) if isinstance(settings, dict) else {}
        for name, value in environment.items() if isinstance(environment, dict) else ():
            if isinstance(value, str) and value and is_secret_name(str(name)) and not next(references(value), None):
                self._sense.warning(
                    "clear-secret",
                    f"{shown(str(name))} is kept with the runbook, and with each run's plan, as it stands here",
                    "Refer to it: ${env:NAME}, ${file:/PATH} or ${credential:NAME} of whoever executes the run.",
                    *("sources", source, "launch", "settings", "environment", str(name)),
                )


def _host_fence(fence: HostFence, sense: Sense) -> None:
    sense.argv(fence.command, "command")
    if fence.dry:
        sense.argv(fence.dry, "dry")


def _stay_inside(value: Any, sense: Sense) -> None:
    """A driver's settings are its own; what leads out of its directory is refused all the same."""
    if isinstance(value, str):
        sense.no_way_up(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            _stay_inside(each, sense.inside(key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _stay_inside(each, sense.inside(number))


def find_cycle(waves: list[Wave]) -> list[str]:
    """Names of waves that wait for each other, in a row; empty when there are none."""
    before = [[], *([wave.name] for wave in waves[:-1])]
    names = {wave.name for wave in waves}
    needs = {
        wave.name: names.intersection(previous if wave.after is None else wave.after)
        for wave, previous in zip(waves, before, strict=False)
    }
    needed_by: dict[str, list[str]] = {name: [] for name in needs}
    for name, others in needs.items():
        for other in others:
            needed_by[other].append(name)
    ready = [name for name, others in needs.items() if not others]
    while ready:
        through = ready.pop()
        for name in needed_by[through]:
            needs[name].discard(through)
            if not needs[name]:
                ready.append(name)
    stuck = next((name for name, others in needs.items() if others), None)
    if stuck is None:
        return []
    way: dict[str, None] = {}
    while stuck not in way:
        way[stuck] = None
        stuck = min(needs[stuck])
    row = list(way)
    return row[row.index(stuck) :]
