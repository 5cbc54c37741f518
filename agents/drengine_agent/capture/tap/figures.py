"""What the tap tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from drengine_agent.capture.figures import Figures, gauge


@dataclass(frozen=True, kw_only=True)
class TapFigures(Figures):
    """What the tap tells.

    Attributes:
        journaling: writes are kept in order (False: as dirty blocks).
        captured_bytes: written by clients since the start.
        nbd: where the volumes are served; empty while they are not.
        nbd_protocol: see SyncGate.state.
    """

    journal_used_bytes: int = gauge("agent_journal_used_bytes", "Bytes of the capture journal in use.")
    journal_capacity_bytes: int = gauge("agent_journal_capacity_bytes", "Bytes the capture journal can hold.")
    journaling: bool
    captured_bytes: int
    nbd: str
    nbd_protocol: str
