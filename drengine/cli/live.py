"""A run before somebody's eyes: a tree of waves and steps that ticks at a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from drengine.terminal import human_duration, human_time, is_terminal
from drengine.terminal.output import printable

if TYPE_CHECKING:
    from drengine.failover.decide import Decision
    from drengine.failover.executor import Watcher
    from drengine.failover.run import RunRecord
    from drengine.failover.snapshot import Snapshot, StepState

TELLING = ("waiting", "retry", "done", "failed")


@contextmanager
def view(run: RunRecord, *, quiet: bool) -> Iterator[Watcher]:
    """What the executor is to call whenever something changes."""
    if quiet:
        yield lambda run, snapshot, decision: None
    elif is_terminal():
        from drengine.cli.live_tree import tree  # noqa: PLC0415 - rich is for terminals only

        with tree(run) as watch:
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
