"""A run as a tree of waves and steps that ticks at a terminal, by rich."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from drengine.terminal import human_duration
from drengine.terminal.output import printable

if TYPE_CHECKING:
    from drengine.failover.decide import Decision
    from drengine.failover.executor import Watcher
    from drengine.failover.run import RunRecord
    from drengine.failover.snapshot import Snapshot, StepState

MARKS = {
    "pending": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "interrupted": ("▶", "cyan"),
    "waiting": ("?", "bold yellow"),
    "retry": ("↻", "yellow"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "skipped": ("-", "dim"),
}
TICKS_PER_SECOND = 8


@contextmanager
def tree(run: RunRecord) -> Iterator[Watcher]:
    """Draw the run until left; gives what the executor is to call whenever something changes."""
    drawn = _Tree(run)
    with Live(get_renderable=drawn.render, refresh_per_second=TICKS_PER_SECOND):
        yield drawn.watch


class _Tree:
    """The newest snapshot as a tree; drawn again and again, so that times tick."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._snapshot: Snapshot | None = None

    def watch(self, run: RunRecord, snapshot: Snapshot, decision: Decision) -> None:
        self._run, self._snapshot = run, snapshot

    def render(self) -> Tree:
        title = Text(f"{self._run.mode.value} {self._run.runbook} ", style="bold")
        title.append(self._run.id, style="dim")
        title.append(f"  {self._run.state.value} {self._run.outcome.value}", style="bold")
        tree, waves = Tree(title), dict[str, Tree]()
        for each in self._snapshot.steps if self._snapshot else ():
            name = each.step.wave
            if name and name not in waves:
                waves[name] = tree.add(Text(name, style="bold"))
            (waves[name] if name else tree).add(_row(each))
        return tree


def _row(each: StepState) -> Text:
    mark, style = MARKS[each.status.value]
    row = Text(f"{mark} ", style=style)
    row.append(printable(each.step.title))
    if each.began_ns:
        until = time.time_ns() if each.status.value in ("running", "waiting") else each.ended_ns
        row.append(f"  {human_duration(max(0.0, (until - each.began_ns) / 1e9))}", style="cyan")
    if each.message and each.status.value != "pending":
        row.append(f"  {printable(each.message)}", style="red" if each.status.value == "failed" else "dim")
    return row
