"""How a runbook is refused, as kinds with exit codes 103 to 105."""

from __future__ import annotations

from drengine.model.errors import error_kind

BAD_RUNBOOK = error_kind(
    "bad-runbook",
    103,
    "A runbook has mistakes.",
    "Each names its file, line and column, and what to write instead; docs/runbooks.md explains every key.",
)
UNKNOWN_RUNBOOK = error_kind(
    "unknown-runbook",
    104,
    "There is no such runbook, neither as a file nor in the registry.",
    "`drengine runbook list` lists them; a file is named by a path with a slash or ending in .yaml.",
)
RUNBOOK_EXISTS = error_kind(
    "runbook-exists",
    105,
    "The file that would be written exists already.",
    "Name another file with --output, or remove this one.",
)
