"""Roles, and what each may do: one table, asked at one door (`permit`) for commands and REST alike."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.people.errors import NOT_PERMITTED, NOT_SIGNED_IN


class Role(enum.StrEnum):
    """What somebody is trusted with. A person may have several."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


class Action(enum.StrEnum):
    """What somebody may want to do."""

    LOOK = "look"
    """At runs, runbooks, reports, parties, points."""
    DRILL = "drill"
    """Begin a drill; abort or resume one."""
    RECOVER = "recover"
    """Begin a failover, migration or way home; abort, resume, roll back or commit it."""
    FORCE = "force"
    """Go on without fencing, or overwrite what a source wrote on its own."""
    APPROVE = "approve"
    """Approve a step of somebody else's run."""
    WRITE_RUNBOOKS = "write runbooks"
    """A runbook says what commands are run, and who approves."""
    GOVERN = "govern the fleet"
    """Set its policy, upgrade its agents, retire a source."""


TABLE: dict[Action, frozenset[Role]] = {
    Action.LOOK: frozenset(Role),
    Action.DRILL: frozenset({Role.OPERATOR, Role.ADMIN}),
    Action.RECOVER: frozenset({Role.OPERATOR, Role.ADMIN}),
    Action.FORCE: frozenset({Role.OPERATOR, Role.ADMIN}),
    Action.APPROVE: frozenset({Role.APPROVER, Role.ADMIN}),
    Action.WRITE_RUNBOOKS: frozenset({Role.ADMIN}),
    Action.GOVERN: frozenset({Role.ADMIN}),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, as proved.

    Attributes:
        name: of the account, or of the user of this host; empty: nobody.
        proof: ``unix:UID``, ``login:ID``, ``program:ID``, ``oidc:ISSUER``; for reports and the audit log.
        roles: what he is trusted with.
    """

    name: str
    proof: str = ""
    roles: frozenset[Role] = field(default=frozenset())

    def __str__(self) -> str:
        return f"{self.name} ({self.proof})"


NOBODY = Person("")


def permit(person: Person, action: Action) -> None:
    """Let somebody do something.

    Raises:
        DrengineError: NOT_SIGNED_IN, NOT_PERMITTED.
    """
    if not person.name:
        raise DrengineError(NOT_SIGNED_IN, f"{action.value}: nobody is signed in")
    if not person.roles & TABLE[action]:
        has = ", ".join(sorted(person.roles)) or "none"
        needs = " or ".join(role.value for role in Role if role in TABLE[action])
        message = f"{person} may not {action.value}: that needs {needs}; roles of {person.name}: {has}"
        raise DrengineError(NOT_PERMITTED, message)
