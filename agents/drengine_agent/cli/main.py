"""The `drengine-agent` program: which commands there are."""

from __future__ import annotations

import sys

from drengine.terminal import lazy_app, main

COMMANDS = {
    name: f"drengine_agent.cli.{name.replace('-', '_')}"
    for name in (
        "doctor",
        "install",
        "upgrade",
        "uninstall",
        "track",
        "untrack",
        "run",
        "status",
        "pause",
        "resume",
        "sync",
        "cut",
        "fence",
        "release",
        "protect",
        "standby",
        "check-config",
        "example-config",
    )
}
"""Module of each command: a new command is one module with a typer `app`, and its name here."""

commands = lazy_app(
    "drengine-agent",
    "Protects this server's disks: captures their changes and ships them to a target.",
    COMMANDS,
)


def run() -> None:
    """The entry point `drengine-agent`."""
    sys.exit(main(commands, sys.argv[1:]))


if __name__ == "__main__":
    run()
