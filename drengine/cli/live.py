"""A run before somebody's eyes: a tree of waves and steps that ticks at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from drengine.failover.run import Status
from drengine.terminal import Branch, human_duration, human_time, is_terminal, live_tree
from drengine.terminal.streams import printable

if TYPE_CHECKING:
    from drengine.failover.decide import Decision
    from drengine.failover.executor import Watcher
    from drengine.failover.run import RunRecord
    from drengine.failover.snapshot import Snapshot, StepState

MARKS = {
    Status.PENDING: ("·", "dim"),
    Status.RUNNING: ("▶", "bold cyan"),
    Status.INTERRUPTED: ("▶", "cyan"),
    Status.WAITING: ("?", "bold yellow"),
    Status.RETRY: ("↻", "yellow"),
    Status.DONE: ("✓", "green"),
    Status.FAILED: ("✗", "bold red"),
    Status.SKIPPED: ("-", "dim"),
}
SHOWN = (Status.WAITING, Status.RETRY, Status.DONE, Status.FAILED)


@contextmanager
def view(run: RunRecord, *, quiet: bool) -> Iterator[Watcher]:
    """What the executor is to call whenever something changes."""
    if quiet:
        yield lambda run, snapshot, decision: None
        return
    print(f"{run.mode.value} {run.runbook}: run {run.id}", flush=True)
    if is_terminal():
        drawn = _Tree(run)
        with live_tree(drawn.draw):
            yield drawn.watch
    else:
        yield _Lines()


class _Lines:
    """One line for each change that matters."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[Status, int]] = {}

    def __call__(self, run: RunRecord, snapshot: Snapshot, decision: Decision) -> None:
        for each in snapshot.steps:
            now = (each.status, each.attempt)
            if each.status in SHOWN and self._shown.get(each.step.id) != now:
                self._shown[each.step.id] = now
                print(_line(each), flush=True)
                if each.status is Status.WAITING:
                    print(f"  {_approval(run, snapshot, each)}", flush=True)


def _approval(run: RunRecord, snapshot: Snapshot, each: StepState) -> str:
    """What somebody else types so that the run goes on."""
    return f"drengine approve {run.id} {each.step.id} --digest {snapshot.digest}"


def _line(each: StepState) -> str:
    took = f" in {human_duration((each.ended_ns - each.began_ns) / 1e9)}" if each.status is Status.DONE else ""
    return printable(f"{human_time(each.ended_ns)[11:]}  {each.step.id}: {each.status.value}{took}: {each.message}")


class _Tree:
    """The newest snapshot as a tree; drawn again and again, so that times tick."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run
        self._snapshot: Snapshot | None = None

    def watch(self, run: RunRecord, snapshot: Snapshot, decision: Decision) -> None:
        self._run, self._snapshot = run, snapshot

    def draw(self) -> Branch:
        run = self._run
        top = [Branch([(f"to leave it: Ctrl-C; then: drengine run resume {run.id}", "dim")])]
        waves: dict[str, list[Branch]] = {}
        for each in self._snapshot.steps if self._snapshot else ():
            name = each.step.wave
            if name and name not in waves:
                waves[name] = []
                top.append(Branch([(name, "bold")], waves[name]))
            asks = f"drengine approve {run.id} {each.step.id}"
            below = [Branch([(asks, "bold yellow")])] if each.status is Status.WAITING else []
            (waves[name] if name else top).append(Branch(_parts(each), below))
        title = f"{run.mode.value} {run.runbook}  {run.state.value} {run.outcome.value}"
        return Branch([(title.rstrip(), "bold")], top)


def _parts(each: StepState) -> list[tuple[str, str]]:
    """A step's line, as texts with their styles."""
    mark, style = MARKS[each.status]
    parts = [(f"{mark} {printable(each.step.title)}", style)]
    if each.began_ns:
        until = time.time_ns() if each.status in (Status.RUNNING, Status.WAITING) else each.ended_ns
        parts.append((f"  {human_duration(max(0.0, (until - each.began_ns) / 1e9))}", "cyan"))
    if each.message and each.status is not Status.PENDING:
        parts.append((f"  {printable(each.message)}", "red" if each.status is Status.FAILED else "dim"))
    return parts
