"""Waiting: for a person, or for time to pass."""

from __future__ import annotations

from typing import ClassVar

from drengine.config import parse_duration
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult


class ApprovalStep:
    """Passes when somebody who may has approved it (`drengine approve`)."""

    kind: ClassVar[StepKind] = StepKind.APPROVAL

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        who = context.approvals.get(step.id, "")
        return StepResult(True, f"approved by {who}", data={"by": who}) if who else None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """Ask, and be asked again."""
        allowed = step.settings["approval"].get("by") or []
        who = f" (by {' or '.join(allowed)})" if allowed else ""
        return StepResult(False, f"waits for approval{who}: {step.settings['approval']['prompt']}", waiting=True)


class WaitStep:
    """Lets some time pass; after an interruption it waits for what was left at most once more."""

    kind: ClassVar[StepKind] = StepKind.WAIT

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        seconds = parse_duration(step.settings["wait"])
        await context.site.clock.sleep(seconds)
        return StepResult(True, f"waited {seconds:g} s")
