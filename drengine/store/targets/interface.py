"""What the targets of one store know of each other.

This is a directory, and decides nothing: who owns a source is said by the lock of its active branch alone
(`drengine.store.locks`). What stands here may be old by seconds, and then costs an agent one more question.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

LIVING_SECONDS = 10.0
"""A target that has not been heard of for so long is gone."""

SILENT_SECONDS = 3.0
"""One that comes back at other addresses is believed to be the same once nothing was heard of it for so long."""


class TargetState(enum.StrEnum):
    """What a target does with sources."""

    SERVING = "serving"
    DRAINING = "draining"
    """It takes none and gives its own away, until somebody undoes that; also over restarts."""
    STOPPED = "stopped"
    """It ended in order."""


class Introduction(NamedTuple):
    """What a target says of itself.

    Attributes:
        name: no other one has it.
        addresses: HOST:PORT, where agents reach it, best first.
        metrics: HOST:PORT of its metrics; empty for none.
        version: of its program.
    """

    name: str
    addresses: tuple[str, ...]
    metrics: str
    version: str


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """A target, as the others see it.

    Attributes:
        seen_seconds: since it was last heard of, by the clock that all share.
        sources: how many are placed at it.
    """

    name: str
    addresses: tuple[str, ...]
    metrics: str
    version: str
    state: TargetState
    seen_seconds: float
    sources: int

    @property
    def is_living(self) -> bool:
        """Whether it is there, as far as can be told from its silence."""
        return self.state is not TargetState.STOPPED and self.seen_seconds < LIVING_SECONDS

    @property
    def takes_sources(self) -> bool:
        """Whether sources may be sent to it."""
        return self.is_living and self.state is TargetState.SERVING


class Targets(Protocol):
    """The directory of targets. Its methods block, and threads may share it."""

    @property
    def is_shared(self) -> bool:
        """Whether several targets may use the store at all."""
        ...

    def report(self, me: Introduction) -> list[TargetInfo]:
        """Say that this target is there, and learn how all stand, by name.

        Raises:
            DrengineError: TARGET_NAME_TAKEN; the catalogue can't be reached.
        """
        ...

    def leave(self, name: str) -> None:
        """A target ends in order."""
        ...

    def all(self) -> list[TargetInfo]:
        """All of them, by name."""
        ...

    def drain(self, name: str, draining: bool) -> None:
        """Have a target give its sources away and take no more, or serve again.

        Raises:
            DrengineError: UNKNOWN_TARGET.
        """
        ...

    def forget(self, name: str) -> None:
        """A target will not come back.

        Raises:
            DrengineError: UNKNOWN_TARGET; TARGET_LIVING.
        """
        ...

    def placed(self) -> Mapping[str, str]:
        """At which target each source is, or was last."""
        ...

    def placed_at(self, source: str) -> str:
        """The same of one source; empty for one that never was at any."""
        ...

    def place(self, source: str, target: str) -> None:
        """A target has taken a source; with an empty name, there is no such source any more."""
        ...

    def close(self) -> None:
        """Let go of it; harmless when done twice."""
        ...
