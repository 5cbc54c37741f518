"""From a runbook to the steps of a run, purely: the same runbook, mode and options always give the same plan.

The shapes (``s`` is each source; docs/failover.md draws them):

drill      declare, gate, choose-point:s, branch:s, waves(launch:s), then always stop-workload:s, drop-branch:s
failover   declare, gate, fence:s, [all fenced] choose-point:s, promote:s, [all promoted] waves(launch:s)
           where s runs here already, after an earlier failover, that is stopped instead of fencing the source
migration  the same with quiesce-source:s before fence:s
reprotect  declare, fence:s, preserve:s, reverse:s
failback   as reprotect, gate, quiesce-recovered:s (last wave first), reverse-last:s, [all] hand-back:s,
           waves(release:s), stop-workload:s

The gate is what the runbook puts before its first waves: an approval there comes before anything is fenced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from drengine.config import parse_duration
from drengine.failover.actions import ACTIONS, action_of, planned_action
from drengine.failover.runbook.values import Mode, OnFailure, Runbook, Step, Wave
from drengine.failover.steps.step import PlannedStep, StepKind

FENCE_ANSWER_SECONDS = 5.0
"""How long a source's agent may take to answer that it is fenced, before the runbook's command is tried."""

LEASE_SECONDS_MAX = 600.0
"""A source that fences itself only after a longer silence is not waited for."""

QUICK_SECONDS = 60.0
STORE_TRIES = 20
"""Steps at the store are tried again while another process is busy there."""

SHIPPING_SECONDS = 6 * 86400.0
"""A bound for steps that ship data: they take as long as the difference needs. Commands may hold for a week."""

SWITCH_SECONDS = 3600.0

HOME = (Mode.REPROTECT, Mode.FAILBACK)
UNDO = "undo."
"""Begins the ids of a rollback's steps."""


def plan(mode: Mode, runbook: Runbook, options: Mapping[str, Any]) -> tuple[PlannedStep, ...]:
    """The steps of a run, each after those it needs.

    Args:
        mode: what the run is for.
        runbook: a checked runbook.
        options: the run's: ``point``, ``force``, ``hold``, and for the way home ``launches`` (see `session`).
    """
    planner = _Planner(mode, runbook, options)
    match mode:
        case Mode.DRILL:
            planner.drill()
        case Mode.FAILOVER | Mode.MIGRATION:
            planner.failover(planned=mode is Mode.MIGRATION)
        case Mode.REPROTECT:
            planner.reverse()
        case Mode.FAILBACK:
            planner.failback()
    return tuple(planner.steps)


def plan_rollback(
    mode: Mode, runbook: Runbook, options: Mapping[str, Any], begun: Sequence[str]
) -> tuple[PlannedStep, ...]:
    """The steps that undo a run of which the steps `begun` were begun (done or not), in reverse order.

    A handler finds out itself whether there is something to undo: a step that was begun may not have got through.
    """
    planner = _Planner(mode, runbook, options, prefix=UNDO)
    if mode in (Mode.FAILOVER, Mode.MIGRATION):
        planner.undo_failover(frozenset(begun))
    elif mode is Mode.FAILBACK:
        planner.undo_failback(frozenset(begun))
    return tuple(planner.steps)


def can_roll_back(mode: Mode, options: Mapping[str, Any]) -> bool:
    """Not a failover of what was failed over already: what it would have to put in charge again is no source."""
    return mode in HOME or not options.get("launches")


def sources_of(runbook: Runbook) -> tuple[str, ...]:
    """The sources that a run of this runbook holds, by wave."""
    return tuple(dict.fromkeys(source for wave in runbook.waves for source in wave.sources))


def predicted_seconds(steps: Iterable[PlannedStep], seconds: Mapping[str, float]) -> float:
    """When the last step that is no cleanup would be through, given how long each takes: the critical path."""
    through: dict[str, float] = {}
    for step in steps:
        if not step.cleanup:
            begin = max((through.get(each, 0.0) for each in step.needs), default=0.0)
            through[step.id] = begin + seconds.get(step.id, 0.0)
    return max(through.values(), default=0.0)


class _Planner:
    """Collects steps; one method for each shape."""

    def __init__(self, mode: Mode, runbook: Runbook, options: Mapping[str, Any], prefix: str = "") -> None:
        self.steps: list[PlannedStep] = []
        self._mode = mode
        self._runbook = runbook
        self._options = options
        self._prefix = prefix
        self._sources = sources_of(runbook)
        self._roots = tuple(wave.name for wave in runbook.waves if not self._before(wave))

    def drill(self) -> None:
        """See the module."""
        gate = self._gate([self._declare()])
        branches = {}
        for source in self._sources:
            chosen = self._choose(source, gate)
            branches[source] = self._add(
                StepKind.BRANCH, source, f"make a branch of {source} for the drill", (chosen,), retries=STORE_TRIES
            )
        ends = self._waves(lambda source, needs: self._launch(source, (branches[source], *needs)))
        if self._options.get("hold"):
            self._add(StepKind.APPROVAL, "", "end the drill", ends, settings={"approval": {"prompt": "end the drill"}})
        for source in self._sources:
            stopped = self._stop_workload(source, (), cleans=f"launch:{source}", cleanup=True)
            self._add(
                StepKind.DROP_BRANCH,
                source,
                f"drop the drill's branch of {source}",
                (stopped,),
                settings={"cleans": f"branch:{source}"},
                retries=STORE_TRIES,
                cleanup=True,
            )

    def failover(self, *, planned: bool) -> None:
        """See the module."""
        gate = self._gate([self._declare()])
        if planned:
            # A server that others depend on is stopped last.
            gate = self._in_waves_reversed(gate, self._quiesce_source)
        earlier = self._options.get("launches", {})
        fenced = tuple(
            self._stop_workload(source, gate) if source in earlier else self._fence(source, gate)
            for source in self._sources
        )
        promoted = tuple(
            self._add(
                StepKind.PROMOTE,
                source,
                f"promote {source} under the next generation",
                (self._choose(source, fenced),),
                retries=STORE_TRIES,
            )
            for source in self._sources
        )
        self._waves(lambda source, needs: self._launch(source, (*promoted, *needs)), first=promoted)

    def reverse(self) -> tuple[str, ...]:
        """See the module; gives the ids of the last steps."""
        declared = self._declare()
        ends = []
        for source in self._sources:
            at = self._fence(source, (declared,), agent_only=True)
            at = self._add(
                StepKind.PRESERVE,
                source,
                f"keep what {source} wrote beyond the replica, on a branch of its own",
                (at,),
                settings={"discard": bool(self._options.get("discard_divergent"))},
                timeout_seconds=SHIPPING_SECONDS,
                retries=3,
            )
            ends.append(
                self._add(
                    StepKind.REVERSE,
                    source,
                    f"ship what differs back to the disks of {source}",
                    (at,),
                    timeout_seconds=SHIPPING_SECONDS,
                    retries=3,
                )
            )
        return tuple(ends)

    def failback(self) -> None:
        """See the module."""
        gate = self._gate(self.reverse())
        quiesced = self._in_waves_reversed(gate, self._quiesce_recovered)
        last = tuple(
            self._add(
                StepKind.REVERSE_LAST,
                source,
                f"ship the last difference to {source}",
                quiesced,
                timeout_seconds=SWITCH_SECONDS,
                retries=3,
            )
            for source in self._sources
        )
        handed = tuple(
            self._add(
                StepKind.HAND_BACK,
                source,
                f"hand {source} the next generation",
                last,
                settings={"to": "recovered"},
                retries=STORE_TRIES,
            )
            for source in self._sources
        )
        ends = self._waves(lambda source, needs: self._release(source, (*handed, *needs)), first=handed)
        for source in self._sources:
            self._stop_workload(source, ends, critical=False)

    def undo_failover(self, begun: frozenset[str]) -> None:
        """Stop what was launched, give the sources their branch again, and send them on."""
        stopped = self._in_waves_reversed(
            (),
            lambda source, needs: self._stop_workload(source, needs) if f"launch:{source}" in begun else None,
        )
        handed = []
        for source in self._sources:
            if f"promote:{source}" in begun:
                handed.append(
                    self._add(
                        StepKind.HAND_BACK,
                        source,
                        f"give {source} the branch that it wrote, under the next generation",
                        stopped,
                        settings={"to": "source"},
                        retries=STORE_TRIES,
                    )
                )
        needs = (*stopped, *handed)
        touched = {f"{kind}:{source}" for kind in ("fence", "quiesce-source") for source in self._sources} & begun
        self._waves(
            lambda source, more: (
                self._release(source, (*needs, *more))
                if touched & {f"fence:{source}", f"quiesce-source:{source}"}
                else None
            ),
            first=needs,
            mode=Mode.FAILBACK,
            without=(StepKind.APPROVAL,),
        )

    def undo_failback(self, begun: frozenset[str]) -> None:
        """Start the recovered side again; only possible before anything was handed back."""

        def relaunch(source: str, needs: tuple[str, ...]) -> str | None:
            return self._launch(source, needs) if f"quiesce-recovered:{source}" in begun else None

        self._waves(relaunch, mode=Mode.FAILOVER, without=ACTIONS)

    def _declare(self) -> str:
        settings = {"sources": list(self._sources)}
        return self._add(StepKind.DECLARE, "", f"declare the {self._mode.value}", (), settings=settings)

    def _choose(self, source: str, needs: tuple[str, ...]) -> str:
        text = str(self._options.get("point") or self._runbook.sources[source].point)
        settings: dict[str, Any] = {"point": text}
        title = f"choose the recovery point of {source} ({text})"
        if self._mode is Mode.MIGRATION:
            settings, title = {"from": f"quiesce-source:{source}"}, f"choose the last point of {source}"
        return self._add(StepKind.CHOOSE_POINT, source, title, needs, settings=settings, retries=3)

    def _fence(self, source: str, needs: tuple[str, ...], *, agent_only: bool = False) -> str:
        fence = self._runbook.sources[source].fence
        command = fence.command if fence and not agent_only else []
        settings: dict[str, Any] = {"command": command, "agent_only": agent_only}
        seconds = FENCE_ANSWER_SECONDS + 2 * LEASE_SECONDS_MAX
        if command and fence:
            settings |= {"command_seconds": parse_duration(fence.timeout), "command_tries": fence.retries + 1}
            seconds += parse_duration(fence.timeout) * (fence.retries + 1)
        return self._add(StepKind.FENCE, source, f"fence {source}", needs, settings=settings, timeout_seconds=seconds)

    def _quiesce_source(self, source: str, needs: tuple[str, ...]) -> str:
        return self._add(
            StepKind.QUIESCE_SOURCE,
            source,
            f"stop {source} and take its last point",
            needs,
            settings={"stop": self._runbook.sources[source].stop},
            timeout_seconds=SWITCH_SECONDS,
        )

    def _launch(self, source: str, needs: tuple[str, ...]) -> str:
        launch = self._runbook.sources[source].launch
        isolated = self._mode is Mode.DRILL
        settings: dict[str, Any] = {
            "driver": launch.driver,
            "host": launch.host,
            "settings": {**launch.settings, **(launch.drill if isolated else {})},
            "hydrate": launch.hydrate and not isolated,
            "isolated": isolated,
            **(self._earlier(source) if self._mode in HOME else {}),
        }
        return self._add(
            StepKind.LAUNCH,
            source,
            f"launch {source} with {launch.driver}",
            needs,
            settings=settings,
            timeout_seconds=parse_duration(launch.timeout),
            retries=launch.retries,
        )

    def _quiesce_recovered(self, source: str, needs: tuple[str, ...]) -> str:
        return self._add(
            StepKind.QUIESCE_RECOVERED,
            source,
            f"stop the recovered {source} and take its last point",
            needs,
            settings=self._earlier(source),
            timeout_seconds=SWITCH_SECONDS,
        )

    def _release(self, source: str, needs: tuple[str, ...]) -> str:
        return self._add(
            StepKind.RELEASE,
            source,
            f"put {source} in charge again",
            needs,
            settings={"start": self._runbook.sources[source].start, "handed": f"{self._prefix}hand-back:{source}"},
            timeout_seconds=SWITCH_SECONDS,
            retries=3,
        )

    def _stop_workload(
        self, source: str, needs: tuple[str, ...], *, cleans: str = "", cleanup: bool = False, critical: bool = True
    ) -> str:
        launch = self._runbook.sources[source].launch
        isolated = self._mode is Mode.DRILL
        settings: dict[str, Any] = {
            "driver": launch.driver,
            "host": launch.host,
            "settings": {**launch.settings, **(launch.drill if isolated else {})},
            "isolated": isolated,
            "cleans": cleans,
            **self._earlier(source),
        }
        return self._add(
            StepKind.STOP_WORKLOAD,
            source,
            f"stop the {'drilled' if isolated else 'recovered'} {source}",
            needs,
            settings=settings,
            timeout_seconds=max(QUICK_SECONDS, parse_duration(launch.timeout)),
            retries=3,
            critical=critical,
            cleanup=cleanup,
        )

    def _earlier(self, source: str) -> dict[str, Any]:
        """On the way home the workload is one that an earlier run launched, with that run's settings."""
        found = self._options.get("launches", {}).get(source)
        return dict(found) if found else {}

    def _gate(self, needs: Iterable[str]) -> tuple[str, ...]:
        """The steps before the waves that wait for no other."""
        start = tuple(needs)
        ends: list[str] = []
        for wave in self._runbook.waves:
            if wave.name in self._roots:
                ends += self._chain(wave, wave.before_steps, "before", start)
        return tuple(dict.fromkeys(ends)) or start

    def _waves(
        self,
        server: Any,
        *,
        first: tuple[str, ...] = (),
        mode: Mode | None = None,
        without: tuple[StepKind, ...] = (),
    ) -> tuple[str, ...]:
        """Each wave's servers between its steps, waves after those they wait for; gives the ends of all waves."""
        ends: dict[str, tuple[str, ...]] = {}
        for wave in self._ordered():
            needs = tuple(dict.fromkeys(each for name in self._before(wave) for each in ends[name])) or first
            if wave.name not in self._roots:
                needs = self._chain(wave, wave.before_steps, "before", needs, mode, without)
            served = tuple(id for id in (server(source, needs) for source in wave.sources) if id) or needs
            ends[wave.name] = self._chain(wave, wave.after_steps, "then", served, mode, without)
        return tuple(dict.fromkeys(each for wave in ends.values() for each in wave))

    def _in_waves_reversed(self, first: tuple[str, ...], server: Any) -> tuple[str, ...]:
        """Each wave's servers after those of the waves that wait for it."""
        ends: dict[str, tuple[str, ...]] = {}
        for wave in reversed(self._ordered()):
            later = [other.name for other in self._runbook.waves if wave.name in self._before(other)]
            needs = tuple(dict.fromkeys(each for name in later for each in ends[name])) or first
            ends[wave.name] = tuple(id for id in (server(source, needs) for source in wave.sources) if id) or needs
        return tuple(dict.fromkeys(each for wave in ends.values() for each in wave))

    def _chain(
        self,
        wave: Wave,
        chain: list[Step],
        place: str,
        needs: tuple[str, ...],
        mode: Mode | None = None,
        without: tuple[StepKind, ...] = (),
    ) -> tuple[str, ...]:
        """A wave's own steps, one after the other; those of other modes are left out, their numbers stay."""
        for number, step in enumerate(chain, start=1):
            kind, action = action_of(step)
            if (mode or self._mode) in step.modes and kind not in without:
                id = f"{self._prefix}{wave.name}.{place}.{number}"
                planned = planned_action(id, step, kind, action, wave.name, needs)
                if planned.on_failure is OnFailure.ROLLBACK and not can_roll_back(self._mode, self._options):
                    planned = replace(planned, on_failure=OnFailure.STOP)
                self.steps.append(planned)
                needs = (id,)
        return needs

    def _before(self, wave: Wave) -> tuple[str, ...]:
        """Names of the waves that a wave waits for."""
        if wave.after is not None:
            return tuple(wave.after)
        at = self._runbook.waves.index(wave)
        return (self._runbook.waves[at - 1].name,) if at else ()

    def _ordered(self) -> list[Wave]:
        """Waves after those they wait for, otherwise as written; a runbook that was checked has no cycle."""
        left, ordered, done = list(self._runbook.waves), [], set[str]()
        while left:
            wave = next(each for each in left if done.issuperset(self._before(each)))
            left.remove(wave)
            ordered.append(wave)
            done.add(wave.name)
        return ordered

    def _add(self, kind: StepKind, source: str, title: str, needs: tuple[str, ...], **more: Any) -> str:
        id = f"{self._prefix}{kind.value}:{source}" if source else f"{self._prefix}{kind.value}"
        wave = next((wave.name for wave in self._runbook.waves if source in wave.sources), "")
        values: dict[str, Any] = {"timeout_seconds": QUICK_SECONDS, "wave": wave, **more}
        self.steps.append(PlannedStep(id=id, kind=kind, title=title, needs=needs, source=source, **values))
        return id
