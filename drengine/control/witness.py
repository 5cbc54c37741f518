"""What the audit log says of orders: which were given, what came of them, and which answers were not believed."""

from __future__ import annotations

import logging

from drengine.audit import AuditLog, Outcome, Refusals
from drengine.control.messages import Answer, Command, Verb
from drengine.identity.names import Identity
from drengine.model.errors import DrengineError

log = logging.getLogger("drengine.control")

PROVED = "signature"


class OrderWitness:
    """Records in one log; in none where there is none. Its methods block, except `disbelieved`."""

    def __init__(self, audit: AuditLog | None) -> None:
        self._audit = audit
        self._refusals = Refusals(audit) if audit else None

    def given(self, command: Command, by: Identity | None) -> None:
        """An order is about to be sent; those that only look are not recorded.

        Raises:
            DrengineError: AUDIT_UNUSABLE: then it is not sent.
        """
        if self._audit is None or command.verb is Verb.STATUS:
            return
        details = {"id": command.id, "run": command.run, "generation": command.generation, "approver": command.approver}
        who, proved = str(by or "orchestrator"), PROVED if by else ""
        self._audit.record(who=who, proved=proved, did=f"order.{command.verb}", on=command.to, details=details)

    def answered(self, command: Command, answer: Answer, *, is_signed: bool) -> None:
        """The party has answered, as well as can be recorded."""
        if self._audit is None or command.verb is Verb.STATUS:
            return
        outcome = Outcome.DONE if answer.ok else Outcome.REFUSED if answer.code.startswith("order-") else Outcome.FAILED
        try:
            self._audit.record(
                who=command.to,
                proved=PROVED if is_signed else "",
                did=f"answer.{command.verb}",
                on=command.id,
                outcome=outcome,
                error=answer.code,
            )
        except DrengineError as error:
            log.error("not in the audit log: the answer to %s: %s", command.id, error)  # noqa: TRY400 - it says all

    def disbelieved(self, topic: str, reason: str, why: str) -> None:
        """An answer came that is none of the party's."""
        if self._refusals is not None:
            self._refusals.note(who="anybody", did="answer", on=topic, error=reason, details={"why": why})

    def close(self) -> None:
        """Write what is left."""
        if self._refusals is not None:
            self._refusals.close()
