"""`drengine runs` and `drengine run show`: the runs that there were, and one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.carrying import ask, run_lines
from drengine.cli.common import JsonOption
from drengine.cli.run_options import LookOptions, RunArgument
from drengine.terminal import emit_json, human_duration, human_time, note, show_table
from drengine.terminal.options import grouped

if TYPE_CHECKING:
    from drengine.failover.answers import Run

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def runs(
    runbook: Annotated[str | None, typer.Option("--runbook", help="Only runs of this runbook.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="How many at most, newest first.")] = 30,
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """List runs, newest first: what for, how far, how they ended, what was measured."""
    found = ask(options, lambda orders: orders.runs(runbook=runbook, limit=limit))
    if json:
        emit_json(found)
    elif not found:
        note("there was no run yet")
    else:
        heads = ("run", "mode", "begun", "by", "state", "outcome", "RTO", "RPO")
        show_table(heads, [_row(each) for each in found], title="Runs")


@app.command()
@grouped
def show(run: RunArgument, json: JsonOption = False, *, options: LookOptions) -> None:
    """Show a run: its end or what it waits for, what was measured, and each step with its result."""
    found = ask(options, lambda orders: orders.show(run))
    if json:
        emit_json(found)
        return
    print("\n".join(run_lines(found)))
    rows = [
        (each.id, each.status.value, str(each.attempt or ""), _seconds(each.seconds), each.message)
        for each in found.steps
    ]
    show_table(("step", "status", "try", "took", "result"), rows)


def _row(run: Run) -> tuple[str, ...]:
    return (
        run.run,
        run.mode.value,
        human_time(run.created_ns)[:19],
        run.started_by,
        run.state.value,
        run.outcome.value or run.reason,
        _seconds(run.rto_seconds),
        _seconds(run.rpo_seconds),
    )


def _seconds(seconds: float | None) -> str:
    return human_duration(seconds) if seconds is not None else ""
