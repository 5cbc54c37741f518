"""What people are told."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Topic(enum.StrEnum):
    """What a notice is about; people choose by it."""

    WAITING = "waiting"
    """A run waits for an approval."""
    BLOCKED = "blocked"
    """A run has stopped because a source could not be fenced."""
    FAILED = "failed"
    """A run has stopped or ended because something failed."""
    ENDED = "ended"
    """A run has ended, as it should or because somebody wanted it."""
    READINESS = "readiness"
    """What could be recovered a moment ago can't be any more, or can be again."""
    UPGRADE = "upgrade"
    """An upgrade of agents has stopped at one that is sick, or is through."""
    TEST = "test"
    """Somebody tries whether notices arrive; sent whatever was chosen."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell.

    Attributes:
        title, text: a line, and more of it.
        about, state: names a thing and how it stands; told only where that is not what people were told last, by
            whichever orchestrator. Empty: told in any case.
    """

    topic: Topic
    title: str
    text: str = ""
    about: str = ""
    state: str = ""
