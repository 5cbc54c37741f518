"""Ending what a recovery host runs, whatever state a test has left it in."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drengine.control.attach import AttachOrder
from drengine.process import end_marked
from drengine_agent.standby.workload import MARK, Workload


def end_workloads(state_directory: Path) -> None:
    """End all that the host with this state directory has; its target still serves the disks.

    Nobody asks the services, which on a busy machine may take minutes to stop in order, or are not even up: their
    processes are ended, and the rest is undone.
    """
    for noted in (state_directory / "instances").glob("*/workload.json"):
        order = msgspec.json.decode(noted.read_bytes(), type=AttachOrder)
        at_once = msgspec.structs.replace(order, settings=msgspec.structs.replace(order.settings, stop=[]))
        end_marked(MARK, order.instance, noted.parent, grace_seconds=0.0)
        Workload(at_once, noted.parent).stop()
