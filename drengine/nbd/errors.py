"""What can go wrong between an NBD client and us, as kinds (exit codes 25 to 28; 29 is the client's)."""

from __future__ import annotations

from drengine.model.errors import error_kind

NBD_PROTOCOL = error_kind(
    "nbd-protocol",
    25,
    "An NBD peer broke the protocol.",
    "Use a client that speaks fixed newstyle NBD (libnbd, QEMU, nbd-client 3.10 or later).",
)
NBD_LIMIT = error_kind(
    "nbd-limit",
    26,
    "An NBD client went past a limit of this server.",
    "Look at the client: it sends more, larger or slower requests than any well-behaved one.",
)
NBD_UNKNOWN_EXPORT = error_kind(
    "nbd-unknown-export",
    27,
    "There is no export of that name.",
    "List the exports with `nbdinfo --list`.",
)
NBD_LISTEN = error_kind(
    "nbd-listen",
    28,
    "The NBD server cannot listen at the address it was given.",
    "Free the address, or choose another one. A unix socket's folder is the server's user's: nobody else may take its "
    "place there.",
)

HYDRATION_FAILED = error_kind(
    "hydration-failed",
    122,
    "A remote disk could not be served from a local copy.",
    "Check the disk's NBD address, the space for the copy, and that nobody else uses its socket.",
    retryable=True,
)
LOCAL_USER_REFUSED = error_kind(
    "local-user-refused",
    171,
    "Another user of this machine may not use this socket.",
    "Connect as the service's own user or as root; a target's `local_users` names others, for capabilities.",
)
