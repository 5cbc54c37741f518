"""A source's own services: stopped and started on its host by its agent, in the runbook's order, from its own list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from drengine.control.messages import Verb
from drengine.failover.runbook.values import Service
from drengine.failover.steps.agents import order_agent
from drengine.failover.steps.step import PlannedStep, StepContext, StepResult
from drengine.redaction import without_secrets

ANSWER_SECONDS = 15.0
"""Beyond a command's own time."""


class ServiceCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What is run for one service."""

    name: str
    command: list[str]
    seconds: float


def stops(services: Sequence[Service], seconds: Sequence[float]) -> list[ServiceCommand]:
    """The stop commands, those that were started last first."""
    made = [
        ServiceCommand(name=each.name, command=each.stop, seconds=limit)
        for each, limit in zip(services, seconds, strict=True)
        if each.stop
    ]
    return made[::-1]


def starts(services: Sequence[Service], seconds: Sequence[float]) -> list[ServiceCommand]:
    """The start commands, in order."""
    return [
        ServiceCommand(name=each.name, command=each.start, seconds=limit)
        for each, limit in zip(services, seconds, strict=True)
        if each.start
    ]


async def run_at_source(
    commands: Sequence[ServiceCommand], step: PlannedStep[Any], context: StepContext, *, generation: int, host: str = ""
) -> StepResult[Any]:
    """Have the source's agent run them, one after the other; the first that fails ends it, and its words are told.

    `host` is the agent, by default that of the host where the source lives.

    Raises:
        DrengineError: BROKER_UNREACHABLE, NO_ANSWER.
    """
    said: list[str] = []
    for number, each in enumerate(commands, start=1):
        context.say(f"{each.name}: {' '.join(each.command)}")
        answer = await order_agent(
            step,
            context,
            Verb.RUN,
            {"command": each.command, "seconds": each.seconds},
            generation=generation,
            timeout_seconds=each.seconds + ANSWER_SECONDS,
            part=f".{number}",
            host=host,
        )
        if not answer.ok:
            message = without_secrets(f"{each.name} on {step.source}: {answer.message or answer.code}")
            return StepResult(False, message, answer.code, output="\n".join(said))
        said.append(without_secrets(f"{each.name}: {answer.result.get('output') or 'done'}"))
    return StepResult(True, ", ".join(each.name for each in commands), output="\n".join(said))
