"""Running the programs that runbooks name, and what their end means for a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import environment_of
from drengine.process import run_cancellable
from drengine.redaction import without_secrets


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
    """
    seconds = seconds or step.timeout_seconds
    finished = await run_cancellable(
        argv, timeout_seconds=seconds, environment=environment_of(step, context), given=given
    )
    output = without_secrets(finished.output)
    if finished.ok:
        return StepResult(True, f"{argv[0]} ended well", data=Ended(0), output=output)
    why = f"took longer than {seconds:g} s" if finished.timed_out else f"ended with {finished.code}"
    return StepResult(False, f"{argv[0]} {why}", COMMAND_FAILED.id, data=Ended(finished.code), output=output)
