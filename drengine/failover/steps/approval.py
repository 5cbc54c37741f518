"""Waiting for a person."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult
from drengine.people.roles import Role


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Wait until a person says yes (`drengine approve`)."""

    prompt: str
    """What is asked."""
    by: list[str] = []
    """Accounts that may approve, and with `role:` before it a role; empty: whoever has the role `approver`."""
    self_approval: bool = False
    """Whoever began the run may approve, too."""

    def allows(self, person: str, roles: Collection[str], started_by: str) -> bool:
        """Whether this person may approve; nobody may not, nor may who began the run."""
        named = not self.by or person in self.by or any(f"role:{each}" in self.by for each in roles)
        another = person.casefold() != started_by.casefold()  # one person has accounts here, there and at a provider
        return bool(person) and named and (self.self_approval or another)


class Approved(msgspec.Struct, frozen=True):
    """Who approved.

    Attributes:
        by, proof: who, and how that was proved.
        digest: of what was approved.
    """

    by: str = ""
    proof: str = ""
    digest: str = ""


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
                hint = "Write a name, or remove `by`: then anybody may who has the role approver."
                sense.error("bad-value", "nobody can't approve", hint, "by", number)
            kind, _, role = name.rpartition(":")
            if kind and (kind != "role" or role not in set(Role)):
                hint = f"Write an account's name, or {', '.join(f'role:{each.value}' for each in Role)}."
                sense.error("bad-value", f"{name!r} is neither an account nor a role", hint, "by", number)

    async def check(self, step: PlannedStep[Approval], context: StepContext) -> StepResult[Approved] | None:
        given = context.approvals.get(step.id)
        if given is None:
            return None
        return StepResult(True, f"approved by {given.by}", data=Approved(given.by, given.proof, given.digest))

    async def act(self, step: PlannedStep[Approval], context: StepContext) -> StepResult[Approved]:
        """Ask, and be asked again."""
        allowed = f" (by {' or '.join(step.settings.by)})" if step.settings.by else ""
        return StepResult(False, f"waits for approval{allowed}: {step.settings.prompt}", waiting=True)


APPROVAL = ApprovalStep()
