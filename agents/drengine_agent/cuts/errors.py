"""What can go wrong when a cut is forced."""

from __future__ import annotations

from drengine.model.errors import error_kind

FREEZE_REFUSED = error_kind(
    "freeze-refused",
    81,
    "A file system can't be frozen.",
    "Freezing needs root and a file system that supports it (ext4, xfs, btrfs); leave `frozen` out of `cuts.kinds`.",
    retryable=True,
)
FREEZE_TOO_LONG = error_kind(
    "freeze-too-long",
    88,
    "A freeze would have lasted longer than `cuts.longest_freeze`, so it was given up.",
    "The disks are busy: the cut is tried again; raise the limit if production bears it.",
    retryable=True,
)
HOOK_FAILED = error_kind(
    "hook-failed",
    89,
    "A hook of an application cut failed or took too long.",
    "Its last output is in the log; run it by hand as the agent's user.",
    retryable=True,
)
