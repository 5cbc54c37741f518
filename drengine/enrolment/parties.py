"""Who there is, by what the CA remembers."""

from __future__ import annotations

from drengine.enrolment.messages import EnrolledParty
from drengine.identity.index import Index
from drengine.identity.names import Identity


def living_parties(index: Index, now: float) -> list[EnrolledParty]:
    """Who has a certificate that is valid, each once, by role and name."""
    living = {Identity.parse(each.identity) for each in index.entries if each.state(now) == "valid"}
    return [EnrolledParty(each.role, each.name) for each in sorted(living, key=str)]
