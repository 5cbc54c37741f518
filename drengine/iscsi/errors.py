"""How serving over iSCSI fails: one family, exit code 177."""

from __future__ import annotations

from drengine.model.errors import error_kind

ISCSI_FAILED = error_kind(
    "iscsi-failed",
    177,
    "A disk could not be served over iSCSI.",
    "The message holds the words of tgtd or nbdfuse; both must be installed on this host (Debian: tgt, nbdfuse).",
    retryable=True,
)
ISCSI_SETTINGS = error_kind(
    "iscsi-settings",
    ISCSI_FAILED,
    "A disk can't be served over iSCSI as it is asked for.",
    "docs/drivers.md lists the settings for iSCSI, and says which option of the command means the same.",
)
ISCSI_PORTAL = error_kind(
    "iscsi-portal",
    ISCSI_FAILED,
    "The address at which disks were to be served over iSCSI can't be used.",
    "Name an address of this host that lies inside `data_networks`, and a port that is free there; without a port the "
    "first free one from 3260 is taken.",
)
