"""Waiting for a person."""

from __future__ import annotations

import msgspec

from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Wait until a person says yes (`drengine approve`)."""

    prompt: str
    """What is asked."""
    by: list[str] = []
    """Names that may approve; empty: anybody who gives a name."""

    def allows(self, person: str) -> bool:
        """Whether this person may approve; a person without a name may not."""
        return bool(person.strip()) and (not self.by or person in self.by)


class Approved(msgspec.Struct, frozen=True):
    """Who approved."""

    by: str = ""


class ApprovalStep(ActionKind[Approval, Approved]):
    """Passes when somebody who may has approved it (`drengine approve`)."""

    name = "approval"
    acts = False
    help = "Ask a person."
    estimate_seconds = 0.0
    asks_people = True

    def title(self, source: str, settings: Approval) -> str:
        return f"approval: {settings.prompt}"

    def examine(self, settings: Approval, sense: Sense) -> None:
        sense.filled(settings.prompt, "prompt")
        for number, name in enumerate(settings.by):
            if not name.strip() or name != name.strip():
                hint = "Write a name, or remove `by`: then anybody may who gives a name."
                sense.error("bad-value", "nobody can't approve", hint, "by", number)

    async def check(self, step: PlannedStep[Approval], context: StepContext) -> StepResult[Approved] | None:
        by = context.approvals.get(step.id, "")
        return StepResult(True, f"approved by {by}", data=Approved(by)) if by else None

    async def act(self, step: PlannedStep[Approval], context: StepContext) -> StepResult[Approved]:
        """Ask, and be asked again."""
        allowed = f" (by {' or '.join(step.settings.by)})" if step.settings.by else ""
        return StepResult(False, f"waits for approval{allowed}: {step.settings.prompt}", waiting=True)


APPROVAL = ApprovalStep()
