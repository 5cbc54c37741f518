"""A real orchestrator's daemon that a signal meets once at each of some places of a run.

`python -m tests.orchestrators.daemon FOLDER SIGNAL PLACES CONFIG`. PLACES are `STEP.MOMENT`, with commas between. STEP
may be `*`. MOMENT is `intent` (the step's intent is in the journal just now) or `result` (its work is done, and the
journal does not know). Whoever comes to a place first leaves a file in FOLDER and is met: killed, or stopped.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from drengine.cli.main import run
from drengine.failover.registry import Registry
from drengine.failover.run import Event, JournalEntry


def arrange(folder: Path, number: int, places: frozenset[str]) -> None:
    """Have this process meet the signal."""
    append = Registry.append

    def meet(entry: JournalEntry, moment: str) -> None:
        if places.isdisjoint({f"{entry.step}.{moment}", f"*.{moment}"}):
            return
        try:
            (folder / f"{entry.step}.{moment}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), number)

    def appended(self: Registry, run: str, token: int, entry: JournalEntry) -> int:
        if entry.event is Event.RESULT:
            meet(entry, "result")
        seq = append(self, run, token, entry)
        if entry.event is Event.INTENT:
            meet(entry, "intent")
        return seq

    Registry.append = appended  # type: ignore[method-assign]


if __name__ == "__main__":
    arrange(Path(sys.argv[1]), signal.Signals[sys.argv[2]], frozenset(sys.argv[3].split(",")))
    sys.argv = ["drengine", "orchestrator", "run", "--config", sys.argv[4]]
    run()
