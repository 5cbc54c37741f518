"""Putting a source in charge again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from drengine.control.errors import BROKER_UNREACHABLE, NO_ANSWER
from drengine.control.messages import Verb
from drengine.failover.steps.command import run_cancellable
from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.telling import refused, tell
from drengine.failover.steps.texts import environment_of, without_secrets
from drengine.failover.steps.threads import in_thread
from drengine.model.errors import DrengineError

ANSWER_SECONDS = 60.0


class ReleaseStep:
    """Lets the source's agent serve and ship again under its generation, then starts its workload."""

    kind: ClassVar[StepKind] = StepKind.RELEASE

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Releasing what is released does nothing; the start command is the runbook's, and it bears repetition."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        handed = context.results.get(step.settings["handed"])
        if handed is None:
            handed = await in_thread(lambda: self._unchanged(step, context))
        told = f"{step.source} ships generation {handed['generation']} on branch {handed['branch']}"
        if handed["changed"] or self._agent_was_told(step, context):
            given = {"generation": handed["generation"], "branch": handed["branch"]}
            try:
                answer = await tell(
                    step, context, Verb.RELEASE, given, generation=given["generation"], timeout_seconds=ANSWER_SECONDS
                )
            except DrengineError as error:
                if error.kind not in (BROKER_UNREACHABLE, NO_ANSWER):
                    raise
                return StepResult(False, f"{error.message}; {_by_hand(step, context, given)}", error.kind.id)
            if not answer.ok:
                return refused(answer)
        else:
            told = f"the agent of {step.source} was never fenced; switch it on again"
        argv = step.settings["start"]
        output = ""
        if argv:
            finished = await run_cancellable(argv, step.timeout_seconds, environment_of(step, context))
            output = without_secrets(finished.output)
            if not finished.ok:
                return StepResult(False, f"{argv[0]} ended with {finished.code}", COMMAND_FAILED.id, output=output)
        data = {"generation": handed["generation"], "branch": handed["branch"]}
        return StepResult(True, told, data=data, output=output)

    def _unchanged(self, step: PlannedStep, context: StepContext) -> dict[str, Any]:
        """The run never changed who writes the source: what holds is in the store."""
        info = context.site.store.source(step.source)
        return {"generation": info.generation, "branch": info.active_branch, "changed": False}

    def _agent_was_told(self, step: PlannedStep, context: StepContext) -> bool:
        """Whether an agent may have stopped serving because of this run: it answered, or is there to be asked."""
        evidence = context.results.get(f"fence:{step.source}", {}).get("evidence")
        return evidence == "agent" or context.site.agents.is_online(step.source)


def _by_hand(step: PlannedStep, context: StepContext, given: Mapping[str, Any]) -> str:
    """What a person can do who reaches the source."""
    return (
        f"on {step.source}: drengine-agent release --generation {given['generation']} --branch {given['branch']}; "
        f"then: drengine run resume {context.run} --done {step.id}"
    )
