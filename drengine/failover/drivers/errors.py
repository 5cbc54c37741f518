"""How a launch fails, as kinds with exit codes 113 and 114."""

from __future__ import annotations

from drengine.model.errors import error_kind

LAUNCH_SETTINGS = error_kind(
    "launch-settings",
    113,
    "A launch driver can't work with the runbook's settings.",
    "The message names the key; docs/drivers.md lists each driver's settings.",
)
LAUNCH_FAILED = error_kind(
    "launch-failed",
    114,
    "A workload did not start, or was not healthy in time.",
    "Read its last words in the report; launch it by hand from the same branch, then resume or roll back the run.",
    retryable=True,
)
