"""A run before somebody's eyes: a tree of waves and steps that ticks at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drengine.terminal import human_duration, human_time, is_terminal
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
TELLING = ("waiting", "retry", "done", "failed")
TICKS_PER_SECOND = 8


@contextmanager
def view(run: RunRecord, *, quiet: bool) -> Iterator[Watcher]:
    """What the executor is to call whenever something changes."""
    if quiet:
        yield lambda run, snapshot, decision: None
    elif is_terminal():
        with _live(run) as watch:
            yield watch
    else:
        yield _Lines(run)


class _Lines:
    """One line for each change that matters."""

    def __init__(self, run: RunRecord) -> None:
        self._told: dict[str, tuple[str, int]] = {}
        print(f"{run.mode.value} {run.runbook}: run {run.id}", flush=True)

    def __call__(self, run: RunRecord, snapshot: Snapshot, decision: Decision) -> None:
        for each in snapshot.steps:
            now = (each.status.value, each.attempt)
            if each.status.value in TELLING and self._told.get(each.step.id) != now:
                self._told[each.step.id] = now
                print(_line(each), flush=True)


def _line(each: StepState) -> str:
    took = f" in {human_duration((each.ended_ns - each.began_ns) / 1e9)}" if each.status.value == "done" else ""
    return printable(f"{human_time(each.ended_ns)[11:]}  {each.step.id}: {each.status.value}{took}: {each.message}")


@contextmanager
def _live(run: RunRecord) -> Iterator[Watcher]:
    from rich.live import Live  # noqa: PLC0415 - only terminals pay for it

    tree = _Tree(run)
    with Live(get_renderable=tree.render, refresh_per_second=TICKS_PER_SECOND):
        yield tree.watch


class _Tree:
    """The newest snapshot as a tree; drawn again and again, so that times tick."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._snapshot: Snapshot | None = None

    def watch(self, run: RunRecord, snapshot: Snapshot, decision: Decision) -> None:
        self._run, self._snapshot = run, snapshot

    def render(self) -> Any:
        from rich.text import Text  # noqa: PLC0415
        from rich.tree import Tree  # noqa: PLC0415

        title = Text(f"{self._run.mode.value} {self._run.runbook} ", style="bold")
        title.append(self._run.id, style="dim")
        title.append(f"  {self._run.state.value} {self._run.outcome.value}", style="bold")
        tree, waves = Tree(title), dict[str, Any]()
        for each in self._snapshot.steps if self._snapshot else ():
            name = each.step.wave
            if name and name not in waves:
                waves[name] = tree.add(Text(name, style="bold"))
            (waves[name] if name else tree).add(_row(each))
        return tree


def _row(each: StepState) -> Any:
    from rich.text import Text  # noqa: PLC0415

    mark, style = MARKS[each.status.value]
    row = Text(f"{mark} ", style=style)
    row.append(printable(each.step.title))
    if each.began_ns:
        until = time.time_ns() if each.status.value in ("running", "waiting") else each.ended_ns
        row.append(f"  {human_duration(max(0.0, (until - each.began_ns) / 1e9))}", style="cyan")
    if each.message and each.status.value != "pending":
        row.append(f"  {printable(each.message)}", style="red" if each.status.value == "failed" else "dim")
    return row
