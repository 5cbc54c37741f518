"""Whether the addresses that recovered servers would get are known and fit together."""

from __future__ import annotations

from drengine.failover.addresses import Fault, address_faults
from drengine.failover.preflight.check import Check, Look, Scene, apart
from drengine.failover.readiness import Checked, Severity
from drengine.failover.steps.launch import ADDRESSES_CHECK, LAUNCH
from drengine.failover.steps.workloads import inventories_of

ADDRESSES = Check(
    ADDRESSES_CHECK,
    "each server's addresses follow from the runbook's rules, no two are the same, and gateways are on their networks",
    "The run's plan shows old and new ones; mend the runbook's `addresses`, or `interfaces` of that source's launch.",
)
ADDRESSES_COVERED = Check(
    "addresses-covered",
    "where the runbook has rules of addresses, they cover each address of each server",
    "Add a rule for its network, or let it stay as it is.",
    Severity.WARNS,
)


async def look_at_addresses(scene: Scene) -> list[Checked]:
    """All sources together: two servers may not get one address."""
    if not any(step.kind is LAUNCH for step in scene.steps):
        return []
    book = scene.case.runbook

    def look() -> list[Fault]:
        return address_faults(book, inventories_of(scene.site.store, book), scene.case.mode)

    faults, found = await apart(look), []
    for source in scene.sources:
        for check, uncovered in ((ADDRESSES, False), (ADDRESSES_COVERED, True)):
            told = [each.message for each in faults if each.source == source and each.uncovered is uncovered]
            found.append(check.found(source, seen="they fit together", fault="; ".join(told)))
    return found


LOOKS = (Look((ADDRESSES, ADDRESSES_COVERED), look_at_addresses),)
