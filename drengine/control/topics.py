"""Topics: ``drengine/SITE/KIND/NAME/LEAF``, four slashes of the seven that AWS IoT Core allows.

Names come from configuration, certificates and the network. Each is checked before it becomes a level of a topic, so
that none can hold a wildcard, a separator or a control character (fault 52).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from drengine.control.messages import PartyKind
from drengine.model.errors import BAD_NAME, DrengineError
from drengine.model.names import check_name

ROOT = "drengine"
RESERVED_NAMES = frozenset({"orchestrator"})
"""The identity that may command; a party of this name would share its rights at a broker that goes by names."""


class Leaf(enum.StrEnum):
    """What a topic carries."""

    PRESENCE = "presence"
    REPORT = "report"
    COMMAND = "command"
    ANSWER = "answer"


HEARD_BY_ORCHESTRATORS = (Leaf.PRESENCE, Leaf.REPORT, Leaf.ANSWER)


def check_party_name(name: str) -> str:
    """Return `name` if a party may bear it.

    Raises:
        DrengineError: BAD_NAME.
    """
    if name in RESERVED_NAMES:
        raise DrengineError(BAD_NAME, f"the name {name!r} is reserved")
    return check_name(name, what="party")


@dataclass(frozen=True, slots=True)
class Topic:
    """One party's topic of one kind."""

    site: str
    kind: PartyKind
    name: str
    leaf: Leaf

    def __post_init__(self) -> None:
        check_name(self.site, what="site")
        check_name(self.name, what="party")
        if self.kind is not PartyKind.ORCHESTRATOR:
            check_party_name(self.name)

    def __str__(self) -> str:
        return f"{ROOT}/{self.site}/{self.kind}/{self.name}/{self.leaf}"


def parse_topic(text: str) -> Topic | None:
    """The topic, or None when it is none of ours."""
    levels = text.split("/")
    if len(levels) != 5 or levels[0] != ROOT:
        return None
    try:
        return Topic(levels[1], PartyKind(levels[2]), levels[3], Leaf(levels[4]))
    except (ValueError, DrengineError):
        return None


def everyone(site: str, leaf: Leaf) -> str:
    """The filter for one kind of topic of all parties of a site."""
    return f"{ROOT}/{check_name(site, what='site')}/+/+/{leaf}"
