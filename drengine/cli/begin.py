"""`drengine drill`, `failover`, `migrate`, `failback` and `reprotect`: a run of a runbook, in one of its modes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from drengine.cli.carrying import carry_out, runbook_place
from drengine.cli.run_options import (
    DespiteOption,
    DiskOption,
    ForceOption,
    OntoOption,
    PointOption,
    RunbookArgument,
    RunOptions,
)
from drengine.failover.errors import FAILED_OVER_ALREADY
from drengine.failover.runbook.values import Mode
from drengine.model.errors import DrengineError
from drengine.terminal import is_agreed
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)
STOPS = "Stop what runs, and start it again from a point?"

DiscardOption = Annotated[
    bool, typer.Option("--discard-divergent", help="Do not keep what a source wrote on its own: it is overwritten.")
]


@app.command()
@grouped
def drill(
    runbook: RunbookArgument,
    point: PointOption = "",
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep what was launched until somebody approves its end.")
    ] = False,
    despite: DespiteOption = None,
    *,
    options: RunOptions,
) -> None:
    """Rehearse a recovery: launch in isolation from a branch of a point, check, measure, clean up.

    Production, replication and the points stay as they are, however the drill ends."""
    _begin(Mode.DRILL, runbook, options, point=point, hold=hold, despite=despite or [])


@app.command()
@grouped
def failover(
    runbook: RunbookArgument,
    point: PointOption = "",
    force: ForceOption = False,
    again: Annotated[
        bool, typer.Option("--again", help="Although the sources run here already: stop what runs, start it again.")
    ] = False,
    despite: DespiteOption = None,
    *,
    options: RunOptions,
) -> None:
    """Bring the runbook's sources back here: fence them, promote a point under a new generation, launch, check.

    Afterwards `drengine commit RUN`, or `drengine rollback RUN` while nothing that matters was written."""
    given: dict[str, Any] = {"point": point, "force": force, "despite": despite or []}
    try:
        _begin(Mode.FAILOVER, runbook, options, **given, again=again)
    except DrengineError as error:
        if error.kind is not FAILED_OVER_ALREADY or options.json or not is_agreed(f"{error.message}. {STOPS}"):
            raise
        _begin(Mode.FAILOVER, runbook, options, **given, again=True)


@app.command()
@grouped
def migrate(
    runbook: RunbookArgument,
    force: ForceOption = False,
    despite: DespiteOption = None,
    onto: OntoOption = None,
    disk: DiskOption = None,
    *,
    options: RunOptions,
) -> None:
    """Move the runbook's sources here without losing anything: stop them, take their last point, promote it.

    With --onto they move to other hosts instead, whose disks are filled while they serve."""
    given = {"force": force, "despite": despite or [], "onto": onto or [], "disks": disk or []}
    _begin(Mode.MIGRATION, runbook, options, **given)


@app.command()
@grouped
def failback(
    runbook: RunbookArgument,
    discard_divergent: DiscardOption = False,
    despite: DespiteOption = None,
    onto: OntoOption = None,
    disk: DiskOption = None,
    *,
    options: RunOptions,
) -> None:
    """Bring the sources home: ship what differs to their disks while the recovered side serves, then switch over.

    What a source wrote on its own is kept as a branch first. No full copy is made, unless --onto gives the source a new
    home: its disks are filled while the recovered side serves, and the old host is refused for good."""
    given = {"discard_divergent": discard_divergent, "despite": despite or [], "onto": onto or [], "disks": disk or []}
    _begin(Mode.FAILBACK, runbook, options, **given)


@app.command()
@grouped
def reprotect(
    runbook: RunbookArgument,
    discard_divergent: DiscardOption = False,
    despite: DespiteOption = None,
    onto: OntoOption = None,
    disk: DiskOption = None,
    *,
    options: RunOptions,
) -> None:
    """Ship what differs back to the sources' disks, without switching over: they are ready for a failback.

    What a source wrote on its own is kept as a branch first."""
    given = {"discard_divergent": discard_divergent, "despite": despite or [], "onto": onto or [], "disks": disk or []}
    _begin(Mode.REPROTECT, runbook, options, **given)


def _begin(mode: Mode, runbook: str, options: RunOptions, **given: Any) -> None:
    place = runbook_place(runbook)
    carry_out(options, lambda orders: orders.begin(mode, place, **given), wait=options.wait)
