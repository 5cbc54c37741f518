"""Putting a source in charge again."""

from __future__ import annotations

import msgspec

from drengine.control.errors import BROKER_UNREACHABLE, NO_ANSWER
from drengine.control.messages import Verb
from drengine.failover.steps.agents import order_agent, refused, while_there
from drengine.failover.steps.branches import Branched
from drengine.failover.steps.declare import home_of
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.programs import run_program
from drengine.failover.steps.services import ServiceCommand, run_at_source
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.errors import DrengineError
from drengine.process.threads import in_thread

ANSWER_SECONDS = 60.0


class ReleaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a source goes on.

    Attributes:
        services: what its agent runs there, in order, to start its workload.
        start: the command of the orchestrator's host that does; both empty: nothing is started.
        handed: id of the step that handed it back, if the run has one.
        stopped: its agent was told by the run to stop, or may have been.
        host: the agent, of the source's new home; empty: of where it lives.
    """

    services: list[ServiceCommand] = []
    start: list[str] = []
    handed: str = ""
    stopped: bool = False
    host: str = ""


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What the source writes now; `started`: something was run that starts its workload."""

    generation: int = 0
    branch: int = 0
    started: bool = True


class ReleaseStep(StepKind[ReleaseSettings, Released]):
    """Lets the source's agent serve and ship again under its generation, then starts its workload.

    Releasing what is released does nothing; the start command is the runbook's, and it bears repetition.
    """

    name = "release"
    timeout_seconds = 3600.0
    retries = 3
    estimate_seconds = 5.0
    by_hand = True
    later_settings = frozenset({"host"})

    def title(self, source: str, settings: ReleaseSettings) -> str:
        on = f" on {settings.host}" if settings.host else " again"
        return f"put {source} in charge{on}" + ("" if _starts(settings) else "; nothing starts its workload")

    async def act(self, step: PlannedStep[ReleaseSettings], context: StepContext) -> StepResult[Released]:
        handed = context.results.get(step.settings.handed)
        if not isinstance(handed, Branched):
            handed = await in_thread(lambda: self._unchanged(step, context))
        message = f"{step.source} ships generation {handed.generation} on branch {handed.branch}"
        if handed.changed or self._agent_was_fenced(step, context):
            failure = await self._release(step, context, handed)
            if failure is not None:
                return failure
        else:
            message = f"the agent of {step.source} was never fenced; switch it on again"
        output = ""
        if step.settings.services:
            generation = handed.generation
            host = step.settings.host
            started = await run_at_source(step.settings.services, step, context, generation=generation, host=host)
            if not started.ok:
                return started
            output, message = f"{started.output}\n", f"{message}; started there: {started.message}"
        if argv := step.settings.start:
            ended = await run_program(argv, step, context)
            if not ended.ok:
                return StepResult(False, ended.message, ended.code, output=output + ended.output)
            output += ended.output
        begun = _starts(step.settings)
        message += "" if begun else "; nothing was started there"
        released = Released(generation=handed.generation, branch=handed.branch, started=begun)
        return StepResult(True, message, data=released, output=output)

    async def _release(
        self, step: PlannedStep[ReleaseSettings], context: StepContext, handed: Branched
    ) -> StepResult[Released] | None:
        """Order the agent; why that failed, or None."""
        given = {"generation": handed.generation, "branch": handed.branch}
        agents, host = context.site.agents, step.settings.host or home_of(step, context)
        ordered = order_agent(
            step,
            context,
            Verb.RELEASE,
            given,
            generation=handed.generation,
            timeout_seconds=ANSWER_SECONDS,
            host=host,
        )
        try:
            answer = await while_there(ordered, host, agents, context.site.clock)
        except DrengineError as error:
            if error.kind not in (BROKER_UNREACHABLE, NO_ANSWER):
                raise
            message = f"{error.message}; {_by_hand(step, context, handed)}"
            lost = agents.is_away(host) and not self._heard(step, context)
            return StepResult(False, message, error.kind.id, retryable=not lost)
        return None if answer.ok else refused(answer)

    def _heard(self, step: PlannedStep[ReleaseSettings], context: StepContext) -> bool:
        """Whether the run has had a word of the agent: else its host is lost, and nobody comes back within minutes."""
        fenced = context.found(FENCE, step.source)
        return bool(step.settings.host) or (fenced is not None and fenced.agent == "fenced")

    def _unchanged(self, step: PlannedStep[ReleaseSettings], context: StepContext) -> Branched:
        """The run never changed who writes the source: what holds is in the store."""
        info = context.site.store.source(step.source)
        return Branched(generation=info.generation, branch=info.active_branch, changed=False)

    def _agent_was_fenced(self, step: PlannedStep[ReleaseSettings], context: StepContext) -> bool:
        """Whether an agent may have stopped serving because of this run: it was told so, or is there to be asked."""
        fenced = context.found(FENCE, step.source)
        told = step.settings.stopped or (fenced is not None and fenced.evidence == "agent")
        return told or context.site.agents.is_online(step.settings.host or home_of(step, context))


RELEASE = ReleaseStep()


def _starts(settings: ReleaseSettings) -> bool:
    return bool(settings.services or settings.start)


def _by_hand(step: PlannedStep[ReleaseSettings], context: StepContext, handed: Branched) -> str:
    """What a person can do who reaches the source."""
    host = step.settings.host or home_of(step, context)
    return (
        f"on {host}: drengine-agent release --generation {handed.generation} --branch {handed.branch}; "
        f"then: drengine run resume {context.run} --done {step.id}"
    )
