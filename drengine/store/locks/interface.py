"""Locks between processes: one writer a branch, one maintainer a store, and leases of points being read.

Files of one host (flock.py). Where several hosts share a store, the catalogue's database keeps them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from drengine.store.catalogue.interface import Fence


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a source's history that somebody may look at."""

    source: str
    branch: int
    sequence: int


class Holder(NamedTuple):
    """Who holds a lock: the target's name, and where agents and readers reach it.

    Both are empty for a process of this host, which a lock between the processes of one host does not name.
    """

    name: str = ""
    addresses: tuple[str, ...] = ()


NOBODY = Holder()


class Lock(ABC):
    """A lock that is held until `release`, or to the end of a `with`.

    Attributes:
        fence: what each transaction that relies on the lock names; None where the kernel keeps it.
    """

    fence: Fence | None = None

    @abstractmethod
    def require(self) -> None:
        """Return while it is held; cheap, and asks nobody.

        Raises:
            DrengineError: LOCK_LOST, retryable: another process may hold it by now.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go; harmless when done twice."""

    @abstractmethod
    def remove(self) -> None:
        """Let go, and forget that there was such a lock: what it stood for is gone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Locks(Protocol):
    """The locks of one store."""

    def branch(self, source: str, branch: int) -> Lock:
        """Become the only writer of a branch.

        Raises:
            DrengineError: BRANCH_BUSY.
        """
        ...

    def branch_holder(self, source: str, branch: int) -> Holder | None:
        """Who writes a branch now; None: nobody. It gets in nobody's way."""
        ...

    def branch_holders(self) -> dict[tuple[str, int], Holder]:
        """Who writes each branch that has a writer now, by source and branch; as one question for all."""
        ...

    def maintenance(self) -> Lock:
        """Become the only process that removes data from the store.

        Raises:
            DrengineError: MAINTENANCE_BUSY.
        """
        ...

    def manifests(self) -> Lock:
        """Become the only writer of manifests; waits for the one before."""
        ...

    def keys(self) -> Lock:
        """Become the only one who changes keyrings; waits for the one before."""
        ...

    def lease(self, position: Position) -> Lock:
        """Keep what is visible at `position` from being removed while it is read."""
        ...

    def leased_positions(self) -> set[Position]:
        """Positions under a living lease, in any process."""
        ...

    def close(self) -> None:
        """Let go of what serves them all; harmless when done twice."""
        ...
