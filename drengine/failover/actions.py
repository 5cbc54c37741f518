"""The steps that a runbook itself names: which action each is, and how it stands in a plan."""

from __future__ import annotations

from typing import Any

import msgspec

from drengine.config import parse_duration
from drengine.failover.runbook.values import OnFailure, Step
from drengine.failover.steps.step import PlannedStep, StepKind

ACTIONS = (
    StepKind.APPROVAL,
    StepKind.WAIT,
    StepKind.COMMAND,
    StepKind.HTTP,
    StepKind.TCP,
    StepKind.SQL,
    StepKind.DNS,
    StepKind.NOTIFY,
)

WAIT_MARGIN_SECONDS = 60.0


def action_of(step: Step) -> tuple[StepKind, Any]:
    """Which kind of step a runbook's step is, and its action as it was written.

    Raises:
        ValueError: it has none (a checked runbook's steps have exactly one).
    """
    for kind in ACTIONS:
        action = getattr(step, kind.value)
        if action is not None:
            return kind, action
    raise ValueError("a step without an action")


def planned_action(id: str, step: Step, kind: StepKind, action: Any, wave: str, needs: tuple[str, ...]) -> PlannedStep:
    """A step of a runbook as a step of a plan."""
    return PlannedStep(
        id=id,
        kind=kind,
        title=step.name or _told(kind, action),
        needs=needs,
        wave=wave,
        settings={kind.value: msgspec.to_builtins(action)},
        # Waiting is what this kind is for: its time limit is its own length.
        timeout_seconds=parse_duration(action) + WAIT_MARGIN_SECONDS if step.wait else parse_duration(step.timeout),
        retries=step.retries,
        every_seconds=parse_duration(step.every),
        critical=step.critical,
        on_failure=OnFailure.CONTINUE if not step.critical else step.on_failure,
    )


def _told(kind: StepKind, action: Any) -> str:
    match kind:
        case StepKind.APPROVAL:
            return f"approval: {action.prompt}"
        case StepKind.WAIT:
            return f"wait {action}"
        case StepKind.COMMAND:
            return f"run {action[0]}"
        case StepKind.HTTP:
            return f"check {action.url}"
        case StepKind.TCP:
            return f"check {action.host}:{action.port}"
        case StepKind.SQL:
            return "check by SQL"
        case StepKind.DNS:
            return f"point {action.name} to {', '.join(action.values)}"
        case _:
            return "notify"
