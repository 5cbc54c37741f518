"""`drengine drill`, `failover`, `migrate`, `failback` and `reprotect`: a run of a runbook, in one of its modes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ByOption,
    ConfigOption,
    EngineStoreOption,
    ExportOption,
    ForceOption,
    RunbookArgument,
    StateOption,
    WaitOption,
    carry_out,
    load_config,
    runbook_place,
)
from drengine.failover.runbook.values import Mode

app = typer.Typer(add_completion=False)

PointOption = Annotated[
    str, typer.Option("--point", help="`latest`, a time, a point's id or its label; default: the runbook's.")
]
DiscardOption = Annotated[
    bool, typer.Option("--discard-divergent", help="Do not keep what a source wrote on its own: it is overwritten.")
]


@app.command()
def drill(
    runbook: RunbookArgument,
    point: PointOption = "",
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep what was launched until somebody approves its end.")
    ] = False,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Rehearse a recovery: launch in isolation from a branch of a point, check, measure, clean up.

    Production, replication and the points stay as they are, however the drill ends."""
    _begin(Mode.DRILL, runbook, (config, store, state, export), by, wait=wait, json=json, point=point, hold=hold)


@app.command()
def failover(
    runbook: RunbookArgument,
    point: PointOption = "",
    force: ForceOption = False,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Bring the runbook's sources back here: fence them, promote a point under a new generation, launch, check.

    Afterwards `drengine commit RUN`, or `drengine rollback RUN` while nothing that matters was written."""
    _begin(Mode.FAILOVER, runbook, (config, store, state, export), by, wait=wait, json=json, point=point, force=force)


@app.command()
def migrate(
    runbook: RunbookArgument,
    force: ForceOption = False,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Move the runbook's sources here without losing anything: stop them, take their last point, promote it."""
    _begin(Mode.MIGRATION, runbook, (config, store, state, export), by, wait=wait, json=json, force=force)


@app.command()
def failback(
    runbook: RunbookArgument,
    discard_divergent: DiscardOption = False,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Bring the sources home: ship what differs to their disks while the recovered side serves, then switch over.

    What a source wrote on its own is kept as a branch first. No full copy is made."""
    place = (config, store, state, export)
    _begin(Mode.FAILBACK, runbook, place, by, wait=wait, json=json, discard_divergent=discard_divergent)


@app.command()
def reprotect(
    runbook: RunbookArgument,
    discard_divergent: DiscardOption = False,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Ship what differs back to the sources' disks, without switching over: they are ready for a failback.

    What a source wrote on its own is kept as a branch first."""
    place = (config, store, state, export)
    _begin(Mode.REPROTECT, runbook, place, by, wait=wait, json=json, discard_divergent=discard_divergent)


def _begin(
    mode: Mode,
    runbook: str,
    place: tuple[Path | None, Path | None, Path | None, str | None],
    by: str | None,
    *,
    wait: bool,
    json: bool,
    **given: Any,
) -> None:
    loaded = load_config(*place)
    who = loaded.operator_name(by)
    carry_out(loaded, lambda orders: orders.begin(mode, runbook_place(runbook), who, **given), json=json, wait=wait)
