"""What the audit log says of runs: who asked for what, what was done, how it ended.

The registry tells, inside the transaction that notes the same: what can't be recorded is not asked of a run either.
What an executor did and how a run ended is recorded as well as can be, because a recovery under way goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drengine.audit import AuditLog, Refusals
from drengine.audit import Outcome as Recorded
from drengine.failover.run import Outcome, Request, RunRecord, RunState
from drengine.model.errors import DrengineError
from drengine.people.roles import Person

ENGINE = "drengine"
_log = logging.getLogger(__name__)


class Witness:
    """Records in one log; in none where nothing is asked or done, as for commands that only look."""

    def __init__(self, log: AuditLog | None = None) -> None:
        self._log = log
        self._refusals = None if log is None else Refusals(log)

    def close(self) -> None:
        """Write what is left of refusals."""
        if self._refusals is not None:
            self._refusals.close()

    def begun(self, run: RunRecord) -> None:
        """Somebody begins a run.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        facts = {"mode": run.mode.value, "runbook": run.runbook, "version": run.version, "sources": run.sources}
        chosen = {name: value for name, value in run.options.items() if value and name != "launches"}
        who = f"person:{run.started_by}"
        self._record(who, "run.begin", run.id, proved=run.started_proof, details={**facts, **chosen})

    def asked(self, request: Request) -> None:
        """Somebody asks something of a run.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        details = {"step": request.step, "note": request.note, "digest": request.digest}
        who, did = f"person:{request.by}", f"run.{request.kind.value}"
        self._record(who, did, request.run, proved=request.proof, details=details)

    def keeping(self, person: Person, runbook: str, text: str) -> None:
        """Somebody keeps a runbook.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        details = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
        self._record(f"person:{person.name}", "runbook.keep", runbook, proved=person.proof, details=details)

    def governed(self, person: Person, did: str, on: str, details: Mapping[str, Any]) -> None:
        """Somebody decides something about sources.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        self._record(f"person:{person.name}", did, on, proved=person.proof, details=details)

    def refused(self, person: Person, did: str, on: str, error: DrengineError) -> None:
        """Somebody was refused an order."""
        if self._refusals is not None:
            told = {"message": error.message}
            who = f"person:{person.name}" if person.name else "nobody"
            self._refusals.note(who=who, proved=person.proof, did=did, on=on, error=error.kind.id, details=told)

    def acted(self, run: str, step: str, kind: str, code: str, details: Mapping[str, Any]) -> None:
        """A step that changes something was tried; `code` says why in vain, empty when it was done."""
        outcome = Recorded.FAILED if code else Recorded.DONE
        self._try(ENGINE, f"step.{kind}", run, outcome, code, {"step": step, **details})

    def reported(self, run: str, page: Path) -> None:
        """The report of a run was kept: the hashes of its files tell whether they were changed since."""
        hashes = {each.name: _sha256(each) for each in sorted(page.parent.glob(f"{page.stem}.*"))}
        self._try(ENGINE, "report.keep", run, Recorded.DONE, "", {"sha256": hashes})

    def left(self, run: str, state: RunState, outcome: Outcome, reason: str) -> None:
        """A run was ended, or stopped."""
        recorded = Recorded.DONE if outcome in (Outcome.COMPLETED, Outcome.HANDED_BACK) else Recorded.FAILED
        did = "run.end" if state is RunState.FINISHED else "run.stop"
        self._try(ENGINE, did, run, recorded, "", {"outcome": outcome.value, "reason": reason})

    def _try(self, who: str, did: str, on: str, outcome: Recorded, error: str, details: Mapping[str, Any]) -> None:
        try:
            self._record(who, did, on, outcome=outcome, error=error, details=details)
        except DrengineError as failure:
            _log.error("not in the audit log: %s of %s: %s", did, on, failure)

    def _record(
        self,
        who: str,
        did: str,
        on: str,
        *,
        outcome: Recorded = Recorded.DONE,
        proved: str = "",
        error: str = "",
        details: Mapping[str, Any],
    ) -> None:
        if self._log is not None:
            self._log.record(who=who, did=did, on=on, outcome=outcome, proved=proved, error=error, details=details)


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
