"""What can go wrong with an audit log: kinds with exit codes 6 and 9."""

from __future__ import annotations

from drengine.model.errors import error_kind

AUDIT_UNUSABLE = error_kind(
    "audit-unusable",
    6,
    "The audit log can't be written or read, so what has to be recorded is not done.",
    "The message names the file; its disk may be full, or belong to another user. docs/security.md says where it lies.",
    retryable=True,
)
AUDIT_BROKEN = error_kind(
    "audit-broken",
    9,
    "The audit log was changed: entries were edited, removed, reordered or cut off.",
    "The message names the first entry that does not fit. Keep the directory as it is, and compare it with what the "
    "anchors received: docs/security.md tells how.",
)
