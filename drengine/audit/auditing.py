"""The audit log of a daemon: what it records, whom it refuses, and anchors of all that is in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drengine.audit.anchors import Anchoring
from drengine.audit.config import AuditOptions
from drengine.audit.folding import Refusals
from drengine.audit.log import OURSELVES, AuditLog
from drengine.audit.sinks import sinks_of
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError

_log = logging.getLogger(__name__)


class Auditing:
    """See the module. Opening it may fail, which keeps the daemon from starting.

    Attributes:
        log: for what has to be recorded before it is done.
        refusals: for what is refused at a door.
    """

    def __init__(self, directory: Path, options: AuditOptions, clock: Clock) -> None:
        """Raises DrengineError: AUDIT_UNUSABLE."""
        self.log = AuditLog.open(directory, keep=options.kept(), clock=clock)
        self.refusals = Refusals(self.log, clock=clock)
        self._anchoring = Anchoring(
            directory, sinks_of(options), seconds=options.anchor_interval, entries=options.anchor_entries, clock=clock
        )

    def did(self, did: str, on: str = "", details: Mapping[str, Any] | None = None) -> None:
        """Record what the daemon itself does, as well as can be: it goes on all the same."""
        try:
            self.log.record(who=OURSELVES, did=did, on=on, details=details)
        except DrengineError as error:
            _log.error("not in the audit log: %s: %s", did, error)

    def unsent(self) -> dict[str, int]:
        """For each sink: how many entries it does not vouch for yet."""
        return {sender.sink.name: sender.unsent for sender in self._anchoring.senders}

    def close(self) -> None:
        """Write what is left of refusals, and send the last anchor; may take some seconds."""
        self.refusals.close()
        self._anchoring.close()
