"""What both steps share that make a source's disks equal to the recovered side's."""

from __future__ import annotations

from typing import Any

import msgspec

from drengine.failover.steps.step import PlannedStep
from drengine.terminal import human_bytes


class ReverseSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose disks are written: of the source's new home; empty: of the host where it lives."""

    host: str = ""


class Reversed(msgspec.Struct, frozen=True, kw_only=True):
    """What was shipped to the source.

    Attributes:
        point: the one that the source's disks are equal to.
        rounds: how often the difference was shipped, while the recovered side went on writing.
        bytes_compared, bytes_written, bytes_total: of the source's volumes.
        bytes_shipped: payload bytes that went to the source.
        unmodified: its disks were equal already.
    """

    point: str = ""
    rounds: int = 1
    bytes_compared: int = 0
    bytes_written: int = 0
    bytes_shipped: int = 0
    bytes_total: int = 0
    unmodified: bool = False

    def and_then(self, later: Reversed) -> Reversed:
        """Both rounds as one, to the later one's point."""
        return msgspec.structs.replace(
            later,
            rounds=self.rounds + 1,
            bytes_compared=self.bytes_compared + later.bytes_compared,
            bytes_written=self.bytes_written + later.bytes_written,
            bytes_shipped=self.bytes_shipped + later.bytes_shipped,
            unmodified=self.unmodified and later.unmodified,
        )

    def shown(self, step: PlannedStep[Any]) -> str:
        """In one line, for people."""
        host = getattr(step.settings, "host", "")
        to = f"{step.source} on {host}" if host else step.source
        return f"{to} was not modified" if self.unmodified else f"{human_bytes(self.bytes_shipped)} shipped to {to}"
