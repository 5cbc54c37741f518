"""A program that is killed at one of its durable steps.

    python -m tests.failover.engine.mortal TRACE POSITION MODULE ARGUMENT...

The program's steps are counted once the file TRACE.armed is there, and noted in TRACE: each sync to disk (of an agent),
each entry of a run's journal (of an orchestrator). Position 2n is right before the n-th, 2n+1 right after; -1 is never.
An agent that begins to serve its disks also notes whether somebody else writes them at that moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from drengine.cli import desk
from drengine.failover.registry import Registry
from drengine.process import find_marked
from drengine_agent.capture.tap.capture import TapCapture

NEVER = -1
SPLIT_BRAIN = "SPLIT BRAIN"


class Mortal:
    """One life, and the step at which it ends."""

    def __init__(self, trace: Path, position: int) -> None:
        self._trace, self._position = trace, position
        self._armed = armed(trace)
        self._lock = threading.Lock()
        self._at = 0

    def around(self, owner: Any, name: str, told: Callable[..., str]) -> None:
        """Have each call of a function be a step; `told` says which."""
        real = getattr(owner, name)

        def step(*given: Any, **more: Any) -> Any:
            if not self._armed.exists():
                return real(*given, **more)
            self._maybe_die(f"before {told(*given)}")
            result = real(*given, **more)
            self._maybe_die(f"after {told(*given)}")
            return result

        setattr(owner, name, step)

    def note(self, text: str) -> None:
        with self._trace.open("a") as trace:
            trace.write(f"{text}\n")

    def _maybe_die(self, text: str) -> None:
        with self._lock:
            self.note(f"{self._at} {text}")
            if self._at == self._position:
                os.kill(os.getpid(), signal.SIGKILL)
            self._at += 1


def armed(trace: Path) -> Path:
    """The file without which nothing is counted."""
    return trace.with_suffix(".armed")


def steps(trace: Path) -> list[str]:
    """What was noted of the steps."""
    return [line for line in trace.read_text().splitlines() if line[:1].isdigit()] if trace.exists() else []


def _file(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def main() -> None:
    """See the module."""
    trace, position, module, *arguments = sys.argv[1:]
    mortal = Mortal(Path(trace), int(position))
    if module.startswith("drengine_agent"):
        for name in ("fsync", "fdatasync"):
            mortal.around(os, name, _file)
    else:
        for name in ("append", "leave_run"):
            mortal.around(Registry, name, lambda *_, name=name: name)
        desk.running_door = lambda _: ""  # it carries runs out itself, beside a daemon
    serve = TapCapture.serve

    def watched(self: TapCapture, **how: Any) -> None:
        writers = find_marked("READY", os.environ.get("READY_PLACE", ""))
        mortal.note(f"{SPLIT_BRAIN}: {writers} write as well" if writers else "serves, and nobody else writes")
        serve(self, **how)

    TapCapture.serve = watched  # type: ignore[method-assign]
    sys.argv = [module, *arguments]
    import_module(module).run()


if __name__ == "__main__":
    main()
