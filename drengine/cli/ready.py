"""`drengine ready`: whether a runbook's run would go through, before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drengine.cli.carrying import ask, runbook_place
from drengine.cli.common import JsonOption
from drengine.cli.run_options import DiskOption, OntoOption, PlanOptions, PointOption, RunbookArgument
from drengine.failover.errors import NOT_READY
from drengine.failover.runbook.values import Mode
from drengine.terminal import emit_json, human_duration, note, show_table
from drengine.terminal.options import grouped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drengine.failover.readiness import Checked, Readiness

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def ready(
    runbook: RunbookArgument,
    mode: Annotated[
        Mode, typer.Option("--mode", help="drill, failover, migration, reprotect or failback.")
    ] = Mode.FAILOVER,
    point: PointOption = "",
    onto: OntoOption = None,
    disk: DiskOption = None,
    json: JsonOption = False,
    *,
    options: PlanOptions,
) -> None:
    """Look whether everything is there that a run would need: hosts, programs, disks, fences, points, people.

    Nothing is changed, and it takes 20 s at most. Each check has an id; one that blocks would stop a run before it
    does anything. Ends with 225 if one blocks.
    """
    place = runbook_place(runbook)
    given: dict[str, Any] = {"point": point, "onto": onto or [], "disks": disk or []}
    found = ask(options, lambda orders: orders.ready(mode, place, **given), here=isinstance(place, Path))
    if json:
        emit_json(found)
    else:
        show_readiness(found)
    if not found.ready:
        raise typer.Exit(NOT_READY.exit_code)


def show_readiness(found: Readiness) -> None:
    """All checks, and what to do about those that do not pass."""
    show_checks(found.checks, title=f"{found.mode.value} {found.runbook}")
    blocked = sum(each.blocks for each in found.checks)
    warned = sum(not each.ok for each in found.checks) - blocked
    word = "ready" if found.ready else "NOT READY"
    note(
        f"{found.runbook} is {word} for a {found.mode.value}: {len(found.checks)} checks in "
        f"{human_duration(found.seconds)}, {blocked} block, {warned} warn"
    )


def show_checks(checks: Sequence[Checked], *, title: str = "") -> None:
    """A table of checks, and the hints of those that do not pass."""
    show_table(("check", "", "found"), [(each.id, each.word, each.message) for each in checks], title=title)
    for each in checks:
        if each.hint:
            note(f"{each.id}: {each.hint}")
