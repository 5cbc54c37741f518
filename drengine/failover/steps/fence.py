"""Fencing: making sure, with evidence, that the source serves and ships no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from drengine.control.errors import BROKER_UNREACHABLE, NO_ANSWER
from drengine.control.messages import AgentReport, Verb
from drengine.failover.errors import UNFENCED
from drengine.failover.needs import Program, programs
from drengine.failover.steps.agents import order_agent
from drengine.failover.steps.declare import declared, home_of
from drengine.failover.steps.programs import run_program
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.errors import DrengineError

ANSWER_SECONDS = 5.0
ONLY_WAY_SECONDS = 20.0
"""An agent on a host that is busy gets so long, where its answer is the only evidence that there can be."""
"""How long a source's agent may take to answer that it is fenced, before the runbook's command is tried."""

LEASE_SECONDS_MAX = 600.0
"""A source that fences itself only after a longer silence is not waited for."""

CLOCK_DRIFT = 1.1
LEASE_MARGIN_SECONDS = 5.0
LOOK_SECONDS = 0.2


class FenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a source may be fenced.

    Attributes:
        command: program and arguments; empty: there is none.
        dry: the same without effect: whether the fence would answer; empty: there is none.
        home: the host that they are about; empty: the one that has the source's name. The source lived there when the
            run began.
        others: hosts for which the runbook has a command, where it has none for that one.
        agent_only: on the way home nobody uses the source, and its agent has to be there anyway.
        if_there: the source moves to another host: an agent that is away needs no fence, the store refuses it for good.
        command_seconds, command_tries: how long one try may take, and how many there are.
    """

    command: list[str] = []
    dry: list[str] = []
    home: str = ""
    others: list[str] = []
    agent_only: bool = False
    if_there: bool = False
    command_seconds: float = 0.0
    command_tries: int = 0

    @property
    def seconds_max(self) -> float:
        """How long it may take to try everything."""
        return ONLY_WAY_SECONDS + 2 * LEASE_SECONDS_MAX + self.command_seconds * self.command_tries

    def unfit(self, source: str, home: str) -> str:
        """Why the runbook's fence says nothing of the host where the source lives; empty: it is for that one.

        A command for another host may well end with 0, and the source goes on.
        """
        hosts = [self.home or source] if self.command else self.others
        if not hosts or hosts == [home]:
            return ""
        return f"{source} lives on {home}, and the runbook's fence is for {', '.join(hosts)}"


class Fenced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a source is known to serve no more.

    Attributes:
        evidence: ``agent``, ``command``, ``lease``; ``none`` where somebody forced it.
        answer: of the agent.
        agent: ``fenced``: it has stopped serving and shipping, evidence or not; ``unknown``: it was told, and did not
            answer; empty: it was not told.
        command: the program that said so.
        lease_seconds: after which silence it fences itself.
        forced_by, tried: who forced it, and what was tried before.
    """

    evidence: str = ""
    answer: dict[str, Any] = {}
    agent: str = ""
    command: str = ""
    lease_seconds: float = 0.0
    forced_by: str = ""
    tried: list[str] = []


@dataclass(slots=True)
class _Search:
    """For evidence: what was tried in vain, and how the agent stands since (see Fenced)."""

    tried: list[str] = field(default_factory=list)
    agent: str = ""


class FenceStep(StepKind[FenceSettings, Fenced]):
    """Evidence, in this order: `agent` (it answered), `command` (the runbook's ended with 0), `lease` (it has not been
    heard of for longer than after which it fences itself), `none` (only when forced).

    Fencing again is harmless, and its evidence is newer.
    """

    name = "fence"
    is_fence = True
    later_settings = frozenset({"if_there", "home", "others"})

    def title(self, source: str, settings: FenceSettings) -> str:
        return f"fence {source}"

    def needs(self, settings: FenceSettings) -> tuple[Program, ...]:
        return programs(settings.command, settings.dry)

    async def act(self, step: PlannedStep[FenceSettings], context: StepContext) -> StepResult[Fenced]:
        search = _Search()
        for attempt in (self._by_agent, self._by_command, self._by_lease):
            evidence = await attempt(step, context, search)
            if evidence is not None:
                return evidence
        found = "; ".join(search.tried)
        if step.settings.if_there and not context.site.agents.is_online(home_of(step, context)):
            gone = Fenced(tried=search.tried)
            return StepResult(True, f"the old host of {step.source} is not there: {found}", data=gone)
        by = context.forced_by
        if by and not step.settings.agent_only:
            message = f"NOT FENCED, forced by {by}: {step.source} may still be writing ({found})"
            forced = Fenced(evidence="none", forced_by=by, tried=search.tried, agent=search.agent)
            return StepResult(True, message, data=forced)
        message = f"{step.source} could not be fenced: {found}"
        return StepResult(
            False, message, UNFENCED.id, retryable=False, data=Fenced(tried=search.tried, agent=search.agent)
        )

    async def _by_agent(
        self, step: PlannedStep[FenceSettings], context: StepContext, search: _Search
    ) -> StepResult[Fenced] | None:
        agents, tried = context.site.agents, search.tried
        if not agents.is_online(home_of(step, context)):
            tried.append("its agent is not connected")
            return None
        generation = declared(step, context).generation
        search.agent = "unknown"
        try:
            answer = await order_agent(
                step,
                context,
                Verb.FENCE,
                {"generation": generation, "by": context.started_by},
                generation=generation,
                timeout_seconds=_patience_seconds(step, context),
            )
        except DrengineError as error:
            if error.kind not in (BROKER_UNREACHABLE, NO_ANSWER):
                raise
            tried.append(error.message)
            return None
        search.agent = "fenced" if answer.ok else ""
        if not answer.ok:
            tried.append(f"its agent refused: {answer.message or answer.code}")
            return None
        if not self._is_cut_off(step, context, answer.result):
            tried.append("its agent has stopped shipping, but does not serve the disks: whoever writes them writes on")
            return None
        fenced = Fenced(evidence="agent", answer=dict(answer.result), agent=search.agent)
        return StepResult(True, f"the agent of {step.source} has stopped serving and shipping", data=fenced)

    def _is_cut_off(self, step: PlannedStep[FenceSettings], context: StepContext, answer: Mapping[str, Any]) -> bool:
        """An agent that only watches disks can't keep anybody from them; on the way home nobody uses them (it takes
        them exclusively), and in a migration the runbook's own command may have stopped who did.
        """
        quiesced = context.found(QUIESCE_SOURCE, step.source)
        stopped = quiesced is not None and quiesced.stopped_by
        return bool(answer.get("cuts_clients", True) or stopped or step.settings.agent_only)

    async def _by_command(
        self, step: PlannedStep[FenceSettings], context: StepContext, search: _Search
    ) -> StepResult[Fenced] | None:
        argv = step.settings.command
        if unfit := step.settings.unfit(step.source, home_of(step, context)):
            search.tried.append(unfit)
            return None
        if not argv:
            search.tried.append("the runbook has no fence command")
            return None
        for _ in range(step.settings.command_tries):
            ended = await run_program(argv, step, context, seconds=step.settings.command_seconds)
            if ended.ok:
                fenced = Fenced(evidence="command", command=argv[0], agent=search.agent)
                return StepResult(True, f"{argv[0]} says that {step.source} is off", data=fenced, output=ended.output)
            context.say(ended.message)
        search.tried.append(f"{ended.message}: {ended.output[-200:]}".rstrip(": "))
        return None

    async def _by_lease(
        self, step: PlannedStep[FenceSettings], context: StepContext, search: _Search
    ) -> StepResult[Fenced] | None:
        """An agent with a lease serves nobody once the broker has carried no report of it for so long; that silence is
        only believed for as long as we saw the broker ourselves.
        """
        agents, clock = context.site.agents, context.site.clock
        home = home_of(step, context)
        seconds = lease_seconds(agents.reports().get(home))
        if not 0 < seconds <= LEASE_SECONDS_MAX:
            search.tried.append("it does not fence itself")
            return None
        until = clock.monotonic() + seconds * CLOCK_DRIFT + LEASE_MARGIN_SECONDS
        while clock.monotonic() < until:
            age = agents.report_age_seconds(home)
            if age is not None and age > seconds * CLOCK_DRIFT:
                message = f"{step.source} was silent for {age:.1f} s and fences itself after {seconds:g} s"
                fenced = Fenced(evidence="lease", lease_seconds=seconds, agent=search.agent)
                return StepResult(True, message, data=fenced)
            context.say(f"waiting until {step.source} must have fenced itself")
            await clock.sleep(LOOK_SECONDS)
        search.tried.append(f"a silence of {seconds:g} s, after which it fences itself, was not observed")
        return None


def lease_seconds(report: AgentReport | None) -> float:
    """After what silence a source fences itself, as its agent told; 0: it does not."""
    lease = report.details.get("lease_seconds") if report else None
    return float(lease) if isinstance(lease, (int, float)) else 0.0


def _patience_seconds(step: PlannedStep[FenceSettings], context: StepContext) -> float:
    """How long the agent may take to answer: without another way to go on, nothing is won by giving up early."""
    other_way = (
        step.settings.command
        or context.forced_by
        or lease_seconds(context.site.agents.reports().get(home_of(step, context))) > 0
    )
    return ANSWER_SECONDS if other_way else ONLY_WAY_SECONDS


FENCE = FenceStep()
