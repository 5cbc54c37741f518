"""The `drengine` program: which commands there are."""

from __future__ import annotations

import sys

from drengine.terminal import lazy_app, main

COMMANDS = {
    name: f"drengine.cli.{name}"
    for name in (
        "status",
        "points",
        "export",
        "restore",
        "verify",
        "scrub",
        "rebuild",
        "pin",
        "unpin",
        "branches",
        "target",
        "hydrate",
        "runbook",
        "reports",
        "plan",
        "drill",
        "failover",
        "migrate",
        "failback",
        "reprotect",
        "runs",
        "run",
        "approve",
        "abort",
        "commit",
        "rollback",
        "orchestrator",
        "broker",
    )
}
"""Module of each command."""

app = lazy_app(
    "drengine",
    "Recover servers at the edge: points, exports, restores, and the target that keeps them.",
    COMMANDS,
)


def run() -> None:
    """Entry point of the `drengine` command."""
    sys.exit(main(app, sys.argv[1:]))


if __name__ == "__main__":
    run()
