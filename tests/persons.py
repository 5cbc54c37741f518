"""People of the tests: bob begins runs, ann approves them, eve may do all of it but is not asked, vic only looks."""

from __future__ import annotations

from drengine.people.roles import Person, Role


def person(name: str, *roles: Role) -> Person:
    """Somebody, as if by a token."""
    return Person(name, f"login:{name}", frozenset(roles))


BOB = person("bob", Role.OPERATOR, Role.ADMIN)
ANN = person("ann", Role.APPROVER, Role.OPERATOR)
EVE = person("eve", Role.APPROVER, Role.OPERATOR)
VIC = person("vic", Role.VIEWER)
EVERYBODY = (BOB, ANN, EVE, VIC)
