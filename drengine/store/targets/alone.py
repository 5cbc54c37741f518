"""The directory of a store that only one target can use: there is nobody to be told of."""

from __future__ import annotations

from collections.abc import Mapping

from drengine.model.errors import DrengineError
from drengine.store.errors import UNKNOWN_TARGET
from drengine.store.targets.interface import Introduction, TargetInfo


class Alone:
    """See the module, and `Targets`."""

    is_shared = False

    def report(self, me: Introduction) -> list[TargetInfo]:
        """See `Targets.report`."""
        return []

    def leave(self, name: str) -> None:
        """See `Targets.leave`."""

    def all(self) -> list[TargetInfo]:
        """See `Targets.all`."""
        return []

    def drain(self, name: str, draining: bool) -> None:
        """See `Targets.drain`."""
        raise _nobody(name)

    def forget(self, name: str) -> None:
        """See `Targets.forget`."""
        raise _nobody(name)

    def placed(self) -> Mapping[str, str]:
        """See `Targets.placed`."""
        return {}

    def placed_at(self, source: str) -> str:
        """See `Targets.placed_at`."""
        return ""

    def place(self, source: str, target: str) -> None:
        """See `Targets.place`."""

    def close(self) -> None:
        """See `Targets.close`."""


def _nobody(name: str) -> DrengineError:
    return DrengineError(UNKNOWN_TARGET, f"{name[:80]!r} is no target of this store: only one can use it")
