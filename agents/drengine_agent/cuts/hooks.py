"""Hooks of application cuts: argument lists with a time limit, ended with all that they started."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.process import run_command
from drengine_agent.cuts.errors import HOOK_FAILED

log = logging.getLogger("drengine.agent")

OUTPUT_SHOWN_MAX = 400
CHECKPOINT = (
    "CHECKPOINT; SELECT CASE WHEN pg_is_in_recovery() OR current_setting('wal_level') = 'minimal' THEN NULL ELSE "
    "pg_create_restore_point('drengine ' || clock_timestamp())::text || ' ' || txid_current() END"
)
"""The log names the point where it can; the transaction's number makes that durable before the freeze."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Programs around a freeze.

    Attributes:
        before, after: argument lists; empty: nothing is run.
        postgres: psql and its arguments; a checkpoint is made before the freeze.
    """

    before: Sequence[str] = ()
    after: Sequence[str] = ()
    postgres: Sequence[str] = ()
    timeout_seconds: float = 30.0

    def run_before(self, cancelled: threading.Event | None = None) -> None:
        """Quiesce the application.

        Raises:
            DrengineError: HOOK_FAILED.
        """
        if self.before:
            self._run(self.before, cancelled)
        if self.postgres:
            self._run([*self.postgres, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", CHECKPOINT], cancelled)

    def run_after(self) -> None:
        """Let it go on; a failure is logged, for the cut is made or not by now."""
        try:
            if self.after:
                self._run(self.after, None)
        except DrengineError as error:
            log.warning("%s", error)

    def _run(self, argv: Sequence[str], cancelled: threading.Event | None) -> None:
        finished = run_command(argv, timeout_seconds=self.timeout_seconds, cancelled=cancelled)
        if not finished.ok:
            why = f"took longer than {self.timeout_seconds:g} s" if finished.timed_out else f"status {finished.code}"
            raise DrengineError(HOOK_FAILED, f"hook {argv[0]}: {why}: {finished.output[-OUTPUT_SHOWN_MAX:]}")
