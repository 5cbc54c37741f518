"""How the registry refuses, as kinds with exit codes 98 to 102."""

from __future__ import annotations

from drengine.model.errors import error_kind

REGISTRY_UNAVAILABLE = error_kind(
    "registry-unavailable",
    98,
    "The registry can't be read or written, or belongs to another version.",
    "The message says why: a path, rights, a full disk, a server that does not answer, or a database of another use.",
    retryable=True,
)
LEASE_HELD = error_kind(
    "lease-held",
    99,
    "Another orchestrator is executing this run.",
    "Watch it with `drengine run show RUN`; if that orchestrator has died, its lease ends within seconds: try again.",
    retryable=True,
)
LEASE_LOST = error_kind(
    "lease-lost",
    100,
    "Another orchestrator has taken the run over, so this one may change nothing more.",
    "This process was paused or cut off for longer than the lease lasts. Watch the run with `drengine run show RUN`.",
)
RUN_ACTIVE = error_kind(
    "run-active",
    101,
    "An unfinished run holds one of the sources.",
    "`drengine run show RUN` says how far it is: let it finish, `drengine run resume RUN`, `drengine rollback RUN` or "
    "`drengine abort RUN`.",
)
UNKNOWN_RUN = error_kind(
    "unknown-run",
    102,
    "The registry knows no such run.",
    "`drengine runs` lists them.",
)
