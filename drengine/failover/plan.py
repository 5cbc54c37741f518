"""From a runbook to the steps of a run, purely: the same runbook, mode and options always give the same plan.

The shapes (``s`` is each source; docs/failover.md draws them):

drill      declare, preflight, gate, choose-point:s, branch:s, convert:s, waves(launch:s),
           then always stop-workload:s, drop-branch:s
failover   declare, preflight, gate, fence:s, [all fenced] choose-point:s, promote:s, [all promoted] convert:s,
           waves(launch:s); convert:s only where the launch driver boots machines of its own making
           where s runs here already, after an earlier failover, that is stopped instead of fencing the source
migration  the same with quiesce-source:s before fence:s; where the sources go to new homes nothing is launched here:
           settle:s, reverse:s, gate, quiesce-source:s, fence:s, [all] reverse-last:s, hand-back:s, waves(release:s)
           with the steps that the runbook has for a failback
reprotect  declare, preflight, fence:s, stop-services:s, preserve:s, reverse:s
failback   as reprotect, gate, quiesce-recovered:s (last wave first), reverse-last:s, [all] hand-back:s,
           waves(release:s), stop-workload:s
           where s goes to a new home: settle:s instead of stop-services:s and preserve:s

The gate is what the runbook puts before its first waves: an approval there comes before anything is fenced. It may
take hours, so behind one the preflight is done once more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drengine.config import parse_duration
from drengine.failover.approvals import FORCE_STEP, force_step
from drengine.failover.drivers.available import knows_machine
from drengine.failover.options import RunOptions, read_options
from drengine.failover.runbook.values import Convert, HostFence, Mode, OnFailure, Runbook, Source, Step, Wave
from drengine.failover.steps.approval import APPROVAL, Approval
from drengine.failover.steps.branch import BRANCH
from drengine.failover.steps.choose_point import CHOOSE_POINT, ChoosePointSettings
from drengine.failover.steps.convert import CONVERT, ConvertSettings
from drengine.failover.steps.declare import DECLARE, DeclareSettings
from drengine.failover.steps.drop_branch import DROP_BRANCH
from drengine.failover.steps.fence import FENCE, FenceSettings
from drengine.failover.steps.hand_back import HAND_BACK, HandBackSettings
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.preflight import PREFLIGHT
from drengine.failover.steps.preserve import PRESERVE, PreserveSettings
from drengine.failover.steps.promote import PROMOTE
from drengine.failover.steps.quiesce_recovered import QUIESCE_RECOVERED
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE, QuiesceSourceSettings
from drengine.failover.steps.release import RELEASE, ReleaseSettings
from drengine.failover.steps.reversal import ReverseSettings
from drengine.failover.steps.reverse import REVERSE
from drengine.failover.steps.reverse_last import REVERSE_LAST
from drengine.failover.steps.services import starts, stops
from drengine.failover.steps.settle import SETTLE, SettleSettings
from drengine.failover.steps.step import ActionKind, NoSettings, PlannedStep, S, StepKind
from drengine.failover.steps.stop_services import STOP_SERVICES, StopServicesSettings
from drengine.failover.steps.stop_workload import STOP_WORKLOAD
from drengine.failover.steps.wait import WAIT
from drengine.failover.steps.workloads import WorkloadSettings

WAIT_MARGIN_SECONDS = 60.0
PREFLIGHT_AGAIN = "preflight.again"
UNDO = "undo."
"""Begins the ids of a rollback's steps."""

Server = Callable[[str, tuple[str, ...]], str | None]
"""Plans what is done with a source after the steps with the given ids; the id of the last, or None for nothing."""


def plan(mode: Mode, runbook: Runbook, options: Mapping[str, Any]) -> tuple[PlannedStep[Any], ...]:
    """The steps of a run, each after those it needs.

    Args:
        mode: what the run is for.
        runbook: a checked runbook.
        options: the run's, as the registry keeps them.
    """
    planner = _Planner(mode, runbook, read_options(options))
    match mode:
        case Mode.DRILL:
            planner.drill()
        case Mode.MIGRATION if planner.moves:
            planner.move()
        case Mode.FAILOVER | Mode.MIGRATION:
            planner.failover(planned=mode is Mode.MIGRATION)
        case Mode.REPROTECT:
            planner.reverse()
        case Mode.FAILBACK:
            planner.failback()
    return tuple(planner.steps)


def plan_rollback(
    mode: Mode,
    runbook: Runbook,
    options: Mapping[str, Any],
    begun: Sequence[str],
    stopped: Collection[str] = (),
) -> tuple[PlannedStep[Any], ...]:
    """The steps that undo a run of which the steps `begun` were begun (done or not), in reverse order.

    A handler finds out itself whether there is something to undo: a step that was begun may not have got through.
    `stopped`: sources whose agents the run has told to stop, or may have.
    """
    planner = _Planner(mode, runbook, read_options(options), prefix=UNDO, stopped=frozenset(stopped))
    if mode in (Mode.FAILOVER, Mode.MIGRATION):
        planner.undo_failover(frozenset(begun))
    elif mode is Mode.FAILBACK:
        planner.undo_failback(frozenset(begun))
    return tuple(planner.steps)


def can_roll_back(mode: Mode, options: RunOptions) -> bool:
    """Not a failover of what was failed over already: what it would have to put in charge again is no source."""
    return mode.is_way_home or not options.launches


def sources_of(runbook: Runbook) -> tuple[str, ...]:
    """The sources that a run of this runbook holds, by wave."""
    return tuple(dict.fromkeys(source for wave in runbook.waves for source in wave.sources))


def predicted_seconds(steps: Iterable[PlannedStep[Any]], seconds: Mapping[str, float]) -> float:
    """When the last step that is no cleanup would be through, given how long each takes: the critical path."""
    through: dict[str, float] = {}
    for step in steps:
        if not step.cleanup:
            begin = max((through.get(each, 0.0) for each in step.needs), default=0.0)
            through[step.id] = begin + seconds.get(step.id, 0.0)
    return max(through.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class _Waves:
    """How the steps of a runbook's waves are taken into a plan.

    Attributes:
        mode: steps of other modes are left out; their numbers stay.
        prefix: begins the steps' ids.
        takes: which kinds of steps are taken.
        rolls_back: whether the run can be rolled back when one of them fails.
    """

    mode: Mode
    prefix: str = ""
    takes: Callable[[ActionKind[Any, Any]], bool] = lambda kind: True
    rolls_back: bool = True

    def chain(
        self, wave: Wave, place: str, steps: Iterable[Step], needs: tuple[str, ...]
    ) -> tuple[list[PlannedStep[Any]], tuple[str, ...]]:
        """A wave's own steps, one after the other, and what the next has to wait for."""
        chain: list[PlannedStep[Any]] = []
        for number, step in enumerate(steps, start=1):
            ((name, action),) = step.actions.items()
            kind = step_kinds().actions[name]
            if self.mode in step.modes and self.takes(kind):
                id = f"{self.prefix}{wave.name}.{place}.{number}"
                chain.append(self._planned(id, step, kind, action, wave.name, needs))
                needs = (id,)
        return chain, needs

    def _planned(
        self, id: str, step: Step, kind: ActionKind[Any, Any], action: Any, wave: str, needs: tuple[str, ...]
    ) -> PlannedStep[Any]:
        on_failure = step.on_failure if step.critical else OnFailure.CONTINUE
        if on_failure is OnFailure.ROLLBACK and not self.rolls_back:
            on_failure = OnFailure.STOP
        # Waiting is what this kind is for: its time limit is its own length.
        seconds = parse_duration(action) + WAIT_MARGIN_SECONDS if kind is WAIT else parse_duration(step.timeout)
        return PlannedStep(
            id=id,
            kind=kind,
            title=step.name or kind.title("", action),
            settings=action,
            needs=needs,
            wave=wave,
            timeout_seconds=seconds,
            retries=step.retries,
            every_seconds=parse_duration(step.every),
            critical=step.critical,
            on_failure=on_failure,
            inside=step.inside,
        )


def _limits(source: Source) -> list[float]:
    """How long each service's commands may take."""
    return [parse_duration(each.timeout) for each in source.services]


class _Planner:
    """Collects steps; one method for each shape."""

    def __init__(
        self,
        mode: Mode,
        runbook: Runbook,
        options: RunOptions,
        prefix: str = "",
        stopped: frozenset[str] = frozenset(),
    ) -> None:
        self.steps: list[PlannedStep[Any]] = []
        self._mode = mode
        self._runbook = runbook
        self._options = options
        self._prefix = prefix
        self._stopped = stopped
        self._sources = sources_of(runbook)
        self._earlier = options.launches
        self.moves = bool(options.onto)
        """Whether sources go to new homes."""
        self._steps_of = Mode.FAILBACK if self.moves and mode is Mode.MIGRATION else mode
        self._roots = tuple(wave.name for wave in runbook.waves if not self._before(wave))

    def drill(self) -> None:
        gate = self._gate([self._declare()])
        branches = {
            source: self._convert(source, (self._add(BRANCH, source, NoSettings(), (self._choose(source, gate),)),))
            for source in self._sources
        }
        ends = self._waves(lambda source, needs: self._launch(source, (*branches[source], *needs)))
        if self._options.hold:
            self._add(APPROVAL, "", Approval(prompt="end the drill", self_approval=True), ends, title="end the drill")
        for source in self._sources:
            first = CONVERT if self._converts(source) else LAUNCH
            stopped = self._stop_workload(source, (), cleans=first.step_id(source), cleanup=True)
            cleans = BRANCH.step_id(source)
            self._add(DROP_BRANCH, source, NoSettings(), (stopped,), cleans=cleans, cleanup=True)

    def failover(self, *, planned: bool) -> None:
        gate = self._gate([self._declare()])
        if planned:
            # A server that others depend on is stopped last.
            gate = self._in_waves_reversed(gate, self._quiesce_source)
        fenced = tuple(
            self._stop_workload(source, gate) if source in self._earlier else self._fence(source, gate)
            for source in self._sources
        )
        promoted = tuple(
            self._add(PROMOTE, source, NoSettings(), (self._choose(source, fenced),)) for source in self._sources
        )
        fit = {source: self._convert(source, promoted) for source in self._sources}
        self._waves(lambda source, needs: self._launch(source, (*fit[source], *needs)), first=promoted)

    def move(self) -> None:
        """From host to host: the new ones are filled while the sources serve, then the sources are stopped."""
        declared = self._declare()
        gate = self._gate([self._fill(source, (declared,)) for source in self._sources])
        quiesced = self._in_waves_reversed(gate, self._quiesce_source)
        self._switch(tuple(self._fence(source, quiesced) for source in self._sources))

    def reverse(self) -> tuple[str, ...]:
        """See the module; gives the ids of the last steps."""
        declared, discard = self._declare(), self._options.discard_divergent
        ends = []
        for source in self._sources:
            if source in self._options.onto:
                gone = self._add(FENCE, source, FenceSettings(agent_only=True, if_there=True), (declared,))
                ends.append(self._fill(source, (gone,)))
                continue
            fenced = self._fence(source, (declared,), agent_only=True)
            idle = self._stop_services(source, fenced)
            kept = self._add(PRESERVE, source, PreserveSettings(discard), (idle,))
            ends.append(self._add(REVERSE, source, ReverseSettings(), (kept,)))
        return tuple(ends)

    def failback(self) -> None:
        gate = self._gate(self.reverse())
        quiesced = self._in_waves_reversed(gate, self._quiesce_recovered)
        ends = self._switch(quiesced)
        for source in self._sources:
            self._stop_workload(source, ends, critical=False)

    def _fill(self, source: str, needs: tuple[str, ...]) -> str:
        """Give a source its new home, and fill that; gives the id of the last step."""
        new = self._options.onto[source]
        settled = self._add(SETTLE, source, SettleSettings(host=new.host, disks=new.disks), needs)
        return self._add(REVERSE, source, ReverseSettings(new.host), (settled,))

    def _switch(self, quiesced: tuple[str, ...]) -> tuple[str, ...]:
        """Once nobody writes: the last difference, the next generation, and the sources serve where they live then."""
        host = {source: new.host for source, new in self._options.onto.items()}
        last = tuple(
            self._add(REVERSE_LAST, source, ReverseSettings(host.get(source, "")), quiesced) for source in self._sources
        )
        handed = tuple(
            self._add(HAND_BACK, source, HandBackSettings("recovered", host.get(source, "")), last)
            for source in self._sources
        )

        def release(source: str, needs: tuple[str, ...]) -> str:
            return self._release(source, (*handed, *needs), host.get(source, ""))

        return self._waves(release, first=handed)

    def undo_failover(self, begun: frozenset[str]) -> None:
        """Stop what was launched, give the sources their branch again, and send them on."""

        def launching(source: str) -> bool:
            return bool({CONVERT.step_id(source), LAUNCH.step_id(source)} & begun)

        stopped = self._in_waves_reversed(
            (),
            lambda source, needs: self._stop_workload(source, needs) if launching(source) else None,
        )
        handed = [
            self._add(HAND_BACK, source, HandBackSettings("source"), stopped)
            for source in self._sources
            if PROMOTE.step_id(source) in begun
        ]
        needs = (*stopped, *handed)

        def release(source: str, more: tuple[str, ...]) -> str | None:
            touched = {FENCE.step_id(source), QUIESCE_SOURCE.step_id(source)} & begun
            return self._release(source, (*needs, *more)) if touched else None

        # Nobody is asked before sources serve again that served before the run.
        taken = self._taken(Mode.FAILBACK, lambda kind: not kind.asks_people)
        self._waves(release, first=needs, taken=taken)

    def undo_failback(self, begun: frozenset[str]) -> None:
        """Start the recovered side again; only possible before anything was handed back."""

        def relaunch(source: str, needs: tuple[str, ...]) -> str | None:
            return self._launch(source, needs) if QUIESCE_RECOVERED.step_id(source) in begun else None

        self._waves(relaunch, taken=self._taken(Mode.FAILOVER, lambda kind: False))

    def _declare(self) -> str:
        """The step that everything waits for: the declaration; where a run is forced, an approval of that."""
        title, options = f"declare the {self._mode.value}", self._options
        declared = self._add(DECLARE, "", DeclareSettings(list(self._sources)), (), title=title)
        declared = self._add(PREFLIGHT, "", NoSettings(), (declared,))
        if not options.force_by or not (options.force or options.discard_divergent):
            return declared
        self.steps.append(force_step(options.force_by, (declared,)))
        return FORCE_STEP

    def _choose(self, source: str, needs: tuple[str, ...]) -> str:
        settings = ChoosePointSettings(point=self._options.point or self._runbook.sources[source].point)
        if self._mode is Mode.MIGRATION:
            settings = ChoosePointSettings(after=QUIESCE_SOURCE.step_id(source))
        return self._add(CHOOSE_POINT, source, settings, needs)

    def _fence(self, source: str, needs: tuple[str, ...], *, agent_only: bool = False) -> str:
        settings, fence = FenceSettings(agent_only=agent_only), self._runbook.sources[source].fence
        if fence and not agent_only:
            hosts, home = fence.by_host(source), self._options.homes.get(source, source)
            found = hosts.get(home, HostFence(command=[]))
            settings = FenceSettings(
                command=found.command,
                dry=found.dry,
                home="" if home == source else home,
                others=[] if found.command else list(hosts),
                command_seconds=parse_duration(fence.timeout),
                command_tries=fence.retries + 1,
            )
        return self._add(FENCE, source, settings, needs, timeout_seconds=settings.seconds_max)

    def _stop_services(self, source: str, need: str) -> str:
        """What uses the source's disks; gives the id of the last step."""
        found = self._runbook.sources[source]
        commands = stops(found.services, _limits(found))
        return self._add(STOP_SERVICES, source, StopServicesSettings(commands), (need,)) if commands else need

    def _quiesce_source(self, source: str, needs: tuple[str, ...]) -> str:
        found = self._runbook.sources[source]
        settings = QuiesceSourceSettings(found.stop, stops(found.services, _limits(found)))
        return self._add(QUIESCE_SOURCE, source, settings, needs)

    def _launch(self, source: str, needs: tuple[str, ...]) -> str:
        launch = self._runbook.sources[source].launch
        settings = self._workload(source, earlier=self._mode.is_way_home, hydrate=launch.hydrate)
        seconds = parse_duration(launch.timeout)
        return self._add(LAUNCH, source, settings, needs, timeout_seconds=seconds, retries=launch.retries)

    def _converts(self, source: str) -> bool:
        launch = self._runbook.sources[source].launch
        return launch.convert is not Convert.NEVER and knows_machine(launch.driver)

    def _convert(self, source: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        """What a launch waits for: the branch, made fit for the driver's machine where it may have to be."""
        if not self._converts(source):
            return needs
        launch = self._runbook.sources[source].launch
        workload = self._workload(source, earlier=False)
        settings = ConvertSettings(workload=workload, convert=launch.convert, conversion=launch.conversion)
        seconds = parse_duration(launch.conversion.timeout)
        return (self._add(CONVERT, source, settings, needs, timeout_seconds=seconds),)

    def _quiesce_recovered(self, source: str, needs: tuple[str, ...]) -> str:
        return self._add(QUIESCE_RECOVERED, source, self._workload(source), needs)

    def _release(self, source: str, needs: tuple[str, ...], host: str = "") -> str:
        handed = HAND_BACK.step_id(source, self._prefix)
        found = self._runbook.sources[source]
        settings = ReleaseSettings(
            services=starts(found.services, _limits(found)),
            start=found.start,
            handed=handed,
            stopped=source in self._stopped,
            host=host,
        )
        return self._add(RELEASE, source, settings, needs)

    def _stop_workload(self, source: str, needs: tuple[str, ...], **more: Any) -> str:
        seconds = max(STOP_WORKLOAD.timeout_seconds, parse_duration(self._runbook.sources[source].launch.timeout))
        return self._add(STOP_WORKLOAD, source, self._workload(source), needs, timeout_seconds=seconds, **more)

    def _workload(self, source: str, *, earlier: bool = True, hydrate: bool = False) -> WorkloadSettings:
        """What the runbook says of a source's launch; where an earlier run launched it, that run's launch."""
        launch, isolated = self._runbook.sources[source].launch, self._mode is Mode.DRILL
        hydrate = hydrate and not isolated
        found = self._earlier.get(source) if earlier else None
        if found:
            return WorkloadSettings(
                driver=found.driver,
                host=found.host,
                settings=found.settings,
                hydrate=hydrate,
                run=found.run,
                instance=found.instance,
                branch=found.branch,
            )
        settings = launch.settings_in(self._mode)
        return WorkloadSettings(
            driver=launch.driver, host=launch.host, settings=settings, hydrate=hydrate, isolated=isolated
        )

    def _gate(self, needs: Iterable[str]) -> tuple[str, ...]:
        """The steps before the waves that wait for no other."""
        start, taken = tuple(needs), self._taken(self._steps_of)
        ends: list[str] = []
        for wave in self._runbook.waves:
            if wave.name in self._roots:
                ends += self._chain(taken, wave, "before", start)
        needs = tuple(dict.fromkeys(ends)) or start
        if not any(step.kind.asks_people for step in self.steps):
            return needs
        title = PREFLIGHT.title("", NoSettings())
        seconds = PREFLIGHT.timeout_seconds
        self.steps.append(PlannedStep(PREFLIGHT_AGAIN, PREFLIGHT, title, NoSettings(), needs, timeout_seconds=seconds))
        return (PREFLIGHT_AGAIN,)

    def _waves(self, server: Server, *, first: tuple[str, ...] = (), taken: _Waves | None = None) -> tuple[str, ...]:
        """Each wave's servers between its steps, waves after those they wait for; gives the ends of all waves."""
        ends: dict[str, tuple[str, ...]] = {}
        taken = taken or self._taken(self._steps_of)
        for wave in self._ordered():
            needs = tuple(dict.fromkeys(each for name in self._before(wave) for each in ends[name])) or first
            if wave.name not in self._roots:
                needs = self._chain(taken, wave, "before", needs)
            served = tuple(id for id in (server(source, needs) for source in wave.sources) if id) or needs
            ends[wave.name] = self._chain(taken, wave, "then", served)
        return tuple(dict.fromkeys(each for wave in ends.values() for each in wave))

    def _in_waves_reversed(self, first: tuple[str, ...], server: Server) -> tuple[str, ...]:
        """Each wave's servers after those of the waves that wait for it."""
        ends: dict[str, tuple[str, ...]] = {}
        for wave in reversed(self._ordered()):
            later = [other.name for other in self._runbook.waves if wave.name in self._before(other)]
            needs = tuple(dict.fromkeys(each for name in later for each in ends[name])) or first
            ends[wave.name] = tuple(id for id in (server(source, needs) for source in wave.sources) if id) or needs
        return tuple(dict.fromkeys(each for wave in ends.values() for each in wave))

    def _taken(self, mode: Mode, takes: Callable[[ActionKind[Any, Any]], bool] = lambda kind: True) -> _Waves:
        return _Waves(mode, self._prefix, takes, can_roll_back(self._mode, self._options))

    def _chain(self, taken: _Waves, wave: Wave, place: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        chain, needs = taken.chain(wave, place, wave.before_steps if place == "before" else wave.after_steps, needs)
        self.steps += chain
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

    def _add(
        self, kind: StepKind[S, Any], source: str, settings: S, needs: tuple[str, ...], title: str = "", **more: Any
    ) -> str:
        """A step of the engine's own; `more` differs from what the kind says."""
        id = kind.step_id(source, self._prefix)
        wave = next((wave.name for wave in self._runbook.waves if source in wave.sources), "")
        values: dict[str, Any] = {"timeout_seconds": kind.timeout_seconds, "retries": kind.retries, **more}
        step = PlannedStep(
            id=id,
            kind=kind,
            title=title or kind.title(source, settings),
            settings=settings,
            needs=needs,
            source=source,
            wave=wave,
            **values,
        )
        self.steps.append(step)
        return id
