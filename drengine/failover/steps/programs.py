"""Running the programs that runbooks name, and what their end means for a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import environment_of
from drengine.process import end_marked, run_cancellable
from drengine.process.command import TERMINATE_SECONDS
from drengine.process.threads import in_thread
from drengine.redaction import without_secrets

STEP_MARK = "DRENGINE_STEP_OF_RUN"
"""In the environment of a step's program: whose it is. The executor that started it may die before it ends."""


class Ended(msgspec.Struct, frozen=True):
    """The exit status of a program."""

    exit: int = 0


async def run_program(
    argv: Sequence[str], step: PlannedStep[Any], context: StepContext, *, seconds: float = 0.0, given: bytes = b""
) -> StepResult[Ended]:
    """Run a program of the runbook and give what its end means for the step.

    Args:
        argv: the program and its arguments.
        step, context: on whose behalf, which the program's environment tells.
        seconds: how long it may take; 0: as long as the step.
        given: its standard input.

    What an executor that died has left running of this step, on this host, is ended before: the two never act together.
    """
    seconds, mark = seconds or step.timeout_seconds, f"{context.run}/{step.id}"
    if context.again:
        await in_thread(lambda: end_marked(STEP_MARK, mark, grace_seconds=TERMINATE_SECONDS))
    environment = {**environment_of(step, context), STEP_MARK: mark}
    finished = await run_cancellable(argv, timeout_seconds=seconds, environment=environment, given=given)
    output = without_secrets(finished.output)
    if finished.ok:
        return StepResult(True, f"{argv[0]} ended well", data=Ended(0), output=output)
    why = f"took longer than {seconds:g} s" if finished.timed_out else f"ended with {finished.code}"
    return StepResult(False, f"{argv[0]} {why}", COMMAND_FAILED.id, data=Ended(finished.code), output=output)
