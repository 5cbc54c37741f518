"""The source server as a machine: what runs on it, its power switch, and its disks.

    python -m demo.machine on FOLDER         boot: the agent, then the shop as soon as its disk is served
    python -m demo.machine shop FOLDER       start the shop alone
    python -m demo.machine off FOLDER        pull the plug: SIGKILL to everything, at once; 0 only when all is gone

It is what a fence command talks to in real life: a power distribution unit, a hypervisor, a switch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from drengine.process import end_marked, start_marked

MARK = "DRENGINE_DEMO_MACHINE"
TAP_SOCKET = "tap.sock"


def start_agent(folder: Path) -> None:
    """The agent, with its output in agent.log."""
    _start(folder, "agent", "drengine_agent", "run", "--config", "agent.toml")


def start_shop(folder: Path) -> None:
    """The web service on the disk that the agent serves."""
    port = json.loads((folder / "ports.json").read_text())["home"]
    _start(folder, "shop", "demo.service", f"nbd+unix:///orders?socket={folder / TAP_SOCKET}", str(port))


def start_writer(folder: Path) -> None:
    """The program that stamps every write, on the other two disks."""
    _start(folder, "writer", "demo.writer", "plan.json")


def pull_the_plug(folder: Path) -> None:
    """Everything on the machine ends at once; nothing is asked to."""
    end_marked(MARK, str(folder), grace_seconds=0.0)


def _start(folder: Path, name: str, module: str, *arguments: str) -> None:
    start_marked(
        [sys.executable, "-m", module, *arguments],
        MARK,
        str(folder),
        output=folder / f"{name}.log",
        directory=folder,
    )


def main() -> int:
    """See the module."""
    order, folder = sys.argv[1], Path(sys.argv[2])
    match order:
        case "on":
            start_agent(folder)
            start_shop(folder)
        case "shop":
            start_shop(folder)
        case "off":
            pull_the_plug(folder)
        case _:
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
