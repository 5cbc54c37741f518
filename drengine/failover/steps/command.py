"""Commands of a runbook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar

from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.texts import environment_of, filled, launched_details, without_secrets
from drengine.process import Finished, run_command


class CommandStep:
    """Runs an argument list; exit status 0 is success. It may be run again after an interruption: it must bear that."""

    kind: ClassVar[StepKind] = StepKind.COMMAND

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """Nobody knows whether an interrupted command got through."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        details = launched_details(context)
        argv = [filled(each, details) for each in step.settings["command"]]
        finished = await run_cancellable(argv, step.timeout_seconds, environment_of(step, context))
        return result_of(argv[0], finished, step.timeout_seconds)


def result_of(program: str, finished: Finished, timeout_seconds: float) -> StepResult:
    """What a command's end means for its step."""
    output = without_secrets(finished.output)
    if finished.ok:
        return StepResult(True, f"{program} ended well", data={"exit": 0}, output=output)
    why = f"took longer than {timeout_seconds:g} s" if finished.timed_out else f"ended with {finished.code}"
    return StepResult(False, f"{program} {why}", COMMAND_FAILED.id, data={"exit": finished.code}, output=output)


async def run_cancellable(
    argv: Sequence[str], timeout_seconds: float, environment: Mapping[str, str], given: bytes = b""
) -> Finished:
    """Run a command in a thread; when the step is cancelled the command is ended too, and waited for."""
    cancelled = threading.Event()
    running = asyncio.create_task(
        asyncio.to_thread(
            run_command,
            argv,
            timeout_seconds=timeout_seconds,
            environment=environment,
            given=given,
            cancelled=cancelled,
        )
    )
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait({running})
        raise
