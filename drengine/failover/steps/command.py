"""Commands of a runbook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from drengine.failover.needs import Program, programs
from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.inside import check_inside
from drengine.failover.steps.programs import Ended, run_program
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import filled, launched_details
from drengine.redaction import without_secrets


class CommandStep(ActionKind[list[str], Ended]):
    """Runs an argument list; exit status 0 is success.

    Nobody knows whether an interrupted command got through, so it is run again: it must bear that.
    """

    name = "command"
    help = "Program and arguments; no shell. Exit status 0 passes."
    estimate_seconds = 2.0
    ends_outage = True
    by_hand = True
    checks = True
    goes_inside = True
    schema: ClassVar[Mapping[str, Any]] = {"minItems": 1}

    def title(self, source: str, settings: list[str]) -> str:
        return f"run {settings[0]}"

    def examine(self, settings: list[str], sense: Sense) -> None:
        sense.argv(settings)
        sense.references(settings)

    def needs(self, settings: list[str]) -> tuple[Program, ...]:
        return programs(settings)

    async def act(self, step: PlannedStep[list[str]], context: StepContext) -> StepResult[Ended]:
        details = launched_details(context)
        argv = [filled(each, details) for each in step.settings]
        if step.inside:
            return await self._run_inside(argv, step, context)
        return await run_program(argv, step, context)

    async def _run_inside(
        self, argv: list[str], step: PlannedStep[list[str]], context: StepContext
    ) -> StepResult[Ended]:
        answer = await check_inside(step, context, {self.name: argv}, step.timeout_seconds, part="")
        if not answer.ok:
            message = without_secrets(answer.message or answer.code)
            return StepResult(False, message, COMMAND_FAILED.id, data=Ended(1), output=message)
        output = without_secrets(str(answer.result.get("output", "")))
        return StepResult(True, f"{argv[0]} ended well inside {step.inside}", data=Ended(0), output=output)


COMMAND = CommandStep()
