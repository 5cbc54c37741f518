"""Running the programs that runbooks name, and what their end means for a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import msgspec

from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import StepResult
from drengine.failover.steps.texts import without_secrets
from drengine.process import Finished, run_command


class Ended(msgspec.Struct, frozen=True):
    """The exit status of a program."""

    exit: int = 0


def result_of(program: str, finished: Finished, timeout_seconds: float) -> StepResult[Ended]:
    """What a program's end means for its step."""
    output = without_secrets(finished.output)
    if finished.ok:
        return StepResult(True, f"{program} ended well", data=Ended(0), output=output)
    why = f"took longer than {timeout_seconds:g} s" if finished.timed_out else f"ended with {finished.code}"
    return StepResult(False, f"{program} {why}", COMMAND_FAILED.id, data=Ended(finished.code), output=output)


async def run_cancellable(
    argv: Sequence[str], timeout_seconds: float, environment: Mapping[str, str], given: bytes = b""
) -> Finished:
    """Run a program in a thread; when the step is cancelled the program is ended too, and waited for."""
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
