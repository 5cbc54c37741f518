"""What can go wrong at the target and in recovery by hand: kinds with exit codes 59 to 69, and 170 on."""

from __future__ import annotations

from drengine.model.errors import error_kind

STORE_BEHIND = error_kind(
    "store-behind",
    59,
    "The source comes with a newer generation than the store knows.",
    "The store is an older copy, or another one: use the right one. Its own agent ships to a new store by itself.",
    retryable=True,
)
SOURCE_BUSY = error_kind(
    "source-busy",
    60,
    "Another living agent ships this source already.",
    "Two hosts use one identity: stop the wrong agent, or give it a source name of its own.",
    retryable=True,
)
TARGET_BUSY = error_kind(
    "target-busy",
    61,
    "The target's memory budget does not allow another session.",
    "Raise `memory_budget` on the target, or use another target; the agent tries again by itself.",
    retryable=True,
)
SOURCE_NEEDED = error_kind(
    "source-needed",
    62,
    "The store holds several sources (or none), so one must be named.",
    "Name one with --source; `drengine status` lists them.",
)
DESTINATION_REFUSED = error_kind(
    "destination-refused",
    63,
    "The destination of a restore must not be written.",
    "Choose a file or device that nothing else uses and that is outside the store.",
)
DESTINATION_EXISTS = error_kind(
    "destination-exists",
    64,
    "The destination of a restore is there already.",
    "Remove it, choose another one, or let it be replaced with --overwrite.",
)
DESTINATION_SMALL = error_kind(
    "destination-too-small",
    65,
    "The destination is too small for the volume, or its file system for the data or for such a file.",
    "Free space or choose a larger one; a restore that ran out of space goes on where it stopped.",
    retryable=True,
)
RESTORE_FAILED = error_kind(
    "restore-failed",
    66,
    "The destination could not be written or did not keep what was written. It is NOT restored.",
    "Check the destination's disk and the kernel's log, then run the same command again, or use another disk.",
)
RESTORE_INTERRUPTED = error_kind(
    "restore-interrupted",
    67,
    "The restore was interrupted. The destination is NOT restored.",
    "Run the same command again: it goes on where it stopped.",
    retryable=True,
)
TARGET_FAILED = error_kind(
    "target-failed",
    68,
    "An unexpected failure inside the target ended a session; nothing that was acknowledged is affected.",
    "This is a defect: please report it with the target's log. The agent tries again by itself.",
    retryable=True,
)
BAD_DESTINATION = error_kind(
    "bad-destination",
    69,
    "The volumes and destinations of a restore do not fit together.",
    "Give --to DIRECTORY, or --to VOLUME=PATH once for each volume to restore.",
)
WRONG_STORE = error_kind(
    "wrong-store",
    56,
    "Another store than the expected one lies in the target's directory.",
    "Mount the right file system, or correct `store_id` in the target's configuration; `drengine status` shows the id.",
)
GRANT_MISSING = error_kind(
    "grant-missing",
    170,
    "The store has issued no grant for this, or has taken it back.",
    "Runs issue grants for what they launch and order; `drengine grant list` shows those that live.",
    retryable=True,
)
SOURCE_ELSEWHERE = error_kind(
    "source-elsewhere",
    193,
    "Another target of this store has the source, or shall have it.",
    "An agent that is told of all targets (`target = [...]` in its file) finds the right one by itself.",
    retryable=True,
)
NO_ADDRESS = error_kind(
    "target-without-address",
    194,
    "The store is shared by targets, and this one does not say where agents reach it.",
    "Name it in the target's file: `addresses`, as agents reach it.",
)
QUOTA_EXCEEDED = error_kind(
    "quota-exceeded",
    172,
    "The source wants more of the target than its quota.",
    "The message says which. Raise it on the target, in [quotas] or a [[quota]] of this source, if that is right; the "
    "agent tries again by itself.",
    retryable=True,
)
