"""The `drengine-agent` program: which commands there are.

A new command is a module with a typer `app`, and a line here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from drengine.terminal import Command, Group, lazy_app, main

COMMANDS: Mapping[str, Command | Group] = {
    "doctor": Command(
        "drengine_agent.cli.doctor",
        "Say whether this host can be protected, which tracker each volume would get, and why.",
    ),
    "install": Command(
        "drengine_agent.cli.install",
        "Install the agent as a service of this server, after the doctor has spoken; or change what was installed.",
    ),
    "upgrade": Command(
        "drengine_agent.cli.upgrade",
        "Replace the installed agent by this one and restart it. Tracking goes on in the kernel meanwhile.",
    ),
    "uninstall": Command(
        "drengine_agent.cli.uninstall",
        "Stop the agent and remove it: service, program, tracking in the kernel, state and configuration.",
    ),
    "track": Command(
        "drengine_agent.cli.track",
        "Begin tracking in the kernel without shipping, for instance early at boot; the agent takes it up later.",
    ),
    "untrack": Command(
        "drengine_agent.cli.untrack",
        "Stop tracking in the kernel and give its memory back. The next run of the agent compares everything.",
    ),
    "run": Command("drengine_agent.cli.run", "Run the agent in the foreground, until SIGTERM."),
    "status": Command(
        "drengine_agent.cli.status", "Show how the running agent stands; without one, what the kernel tracks meanwhile."
    ),
    "pause": Command(
        "drengine_agent.cli.shipping", "Stop shipping until `resume`, also over restarts. Changes are still captured."
    ),
    "resume": Command("drengine_agent.cli.shipping", "Ship again after `pause`."),
    "sync": Command(
        "drengine_agent.cli.shipping",
        "Compare everything with the target now; with tracker `scan`, begin the next scan now.",
    ),
    "cut": Command("drengine_agent.cli.cut", "Cut a recovery point now, and wait until it is durable at the target."),
    "fence": Command(
        "drengine_agent.cli.fence",
        "Stop serving and shipping at once and until `release`, also over restarts; to be used when nobody else can.",
    ),
    "adopt": Command(
        "drengine_agent.cli.adopt",
        "Say that the disk under a volume's path replaces the one that was there. The agent must be stopped.",
    ),
    "restore": Command(
        "drengine_agent.cli.restore",
        "Write a recovery point onto this host's disks, boot loader and all, from a live image or a rescue system.",
    ),
    "release": Command(
        "drengine_agent.cli.release",
        "Serve and ship again. A failback does this by itself; by hand, make sure first that nobody else is in charge.",
    ),
    "protect": Command(
        "drengine_agent.cli.protect",
        "Write a configuration file; `run` then protects these volumes. Nothing is served or changed yet.",
    ),
    "enrol": Command(
        "drengine_agent.cli.enrol",
        "Get a certificate for this source or recovery host by a token; the key is made here and stays here.",
    ),
    "standby": Group(
        "This machine as a recovery host: attach, mount and start workloads when told to.",
        {
            "install": Command(
                "drengine_agent.cli.standby.install",
                "Install this host as a recovery host: a service that takes orders over the broker. Or change what was "
                "installed.",
            ),
            "uninstall": Command(
                "drengine_agent.cli.standby.install",
                "Stop the recovery host's service and remove it: configuration, state, and the program if no agent "
                "runs it.",
            ),
            "run": Command(
                "drengine_agent.cli.standby.run",
                "Be a recovery host, in the foreground, until SIGTERM: attach, mount and start workloads when told to.",
            ),
            "check-config": Command(
                "drengine_agent.cli.standby.config",
                "Read the configuration and its certificates and say whether they are right. Nothing is opened or "
                "changed.",
            ),
            "example-config": Command(
                "drengine_agent.cli.standby.config",
                "Print a configuration file with every option, its meaning and its default.",
            ),
        },
    ),
    "check-config": Command(
        "drengine_agent.cli.check_config",
        "Read the configuration and its certificates and say whether they are right. Nothing is opened or changed.",
    ),
    "example-config": Command(
        "drengine_agent.cli.example_config",
        "Print a configuration file with every option, its meaning and its default.",
    ),
}

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
