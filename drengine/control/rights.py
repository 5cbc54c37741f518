"""Who may say and hear what at the broker, by identity. Mosquitto's ACL says the same (enrolment/mosquitto.py).

| identity | publishes | hears |
|---|---|---|
| agent or host NAME | its own `presence`, `report`, `answer` | its own `presence`, `report`, `command` |
| orchestrator | `command` of agents and hosts; `presence` of orchestrators | everything of its site |
| any other role | nothing | nothing |
"""

from __future__ import annotations

from drengine.control.topics import ROOT, Leaf, parse_topic
from drengine.identity.names import Identity, Role

SAYS = frozenset({Leaf.PRESENCE, Leaf.REPORT, Leaf.ANSWER})
HEARS = frozenset({Leaf.PRESENCE, Leaf.REPORT, Leaf.COMMAND})
_PARTIES = (Role.AGENT, Role.HOST)


def may_publish(who: Identity, topic: str) -> bool:
    """Whether a message on a topic may come from this identity."""
    found = parse_topic(topic)
    if found is None or found.site != who.site:
        return False
    if who.role is Role.ORCHESTRATOR:
        return found.leaf is (Leaf.PRESENCE if found.kind.value == Role.ORCHESTRATOR.value else Leaf.COMMAND)
    return who.role in _PARTIES and (found.kind.value, found.name) == (who.role.value, who.name) and found.leaf in SAYS


def may_subscribe(who: Identity, filter: str) -> bool:
    """Whether this identity may hear all that a filter lets through."""
    if who.role is Role.ORCHESTRATOR:
        return filter.startswith(f"{ROOT}/{who.site}/")
    found = parse_topic(filter)
    return (
        found is not None
        and who.role in _PARTIES
        and (found.site, found.kind.value, found.name) == (who.site, who.role.value, who.name)
        and found.leaf in HEARS
    )


def matches(filter: str, topic: str) -> bool:
    """Whether a filter lets a topic through."""
    levels, wanted = topic.split("/"), filter.split("/")
    for at, each in enumerate(wanted):
        if each == "#":
            return True
        if at >= len(levels) or each not in ("+", levels[at]):
            return False
    return len(levels) == len(wanted)
