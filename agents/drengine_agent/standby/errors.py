"""What can go wrong on a recovery host."""

from __future__ import annotations

from drengine.bubble import BUBBLE_FAILED
from drengine.model.errors import error_kind

STANDBY_FAILED = error_kind(
    "standby-failed",
    123,
    "A recovery host could not attach, mount or start a workload, or it was not healthy in time.",
    "The message holds the tool's own words; try the same by hand on that host, then resume the run.",
    retryable=True,
)
STANDBY_SETTINGS = error_kind(
    "standby-settings",
    124,
    "A recovery host can't work with what it was told.",
    "docs/drivers.md lists the settings of the driver `standby`.",
)
ADDRESS_TAKEN = error_kind(
    "address-taken",
    BUBBLE_FAILED,
    "Somebody else has an address that a recovery host shall take over.",
    "Look who that is: a source that was not fenced, or a mistake in the runbook's `addresses`; then resume the run.",
    retryable=True,
)
PLACE_TAKEN = error_kind(
    "place-taken",
    79,
    "Something else is mounted where a recovery host shall mount a disk.",
    "Unmount it on that host if it is not needed, or name another place for the disk in the runbook's `mounts`.",
    retryable=True,
)
