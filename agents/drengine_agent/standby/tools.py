"""Running the system's tools on a recovery host."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.process import run_command
from drengine_agent.standby.errors import STANDBY_FAILED

MARK = "DRENGINE_ATTACHMENT"
"""What a process bears that a disk is attached by; tools bear none."""
TOOL_SECONDS = 30.0


def run_tool(*argv: str | Path, seconds: float = TOOL_SECONDS, meant: str = "", fine: Collection[int] = ()) -> str:
    """Run a system tool and return what it said.

    Args:
        argv: the tool and its arguments.
        seconds: how long it may take.
        meant: what a person calls its last argument.
        fine: exit statuses that are as good as 0.

    Raises:
        DrengineError: STANDBY_FAILED with its words.
    """
    finished = run_command([str(each) for each in argv], timeout_seconds=seconds, environment={"LC_ALL": "C", MARK: ""})
    if not finished.ok and finished.code not in fine:
        what = meant or argv[-1]
        raise DrengineError(STANDBY_FAILED, f"{argv[0]} {what}: {finished.output or f'status {finished.code}'}")
    return finished.output
