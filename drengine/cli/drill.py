"""`drengine drill`: a rehearsal that changes nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ByOption,
    ConfigOption,
    EngineStoreOption,
    ExportOption,
    RunbookArgument,
    StateOption,
    WaitOption,
    begin,
    in_session,
    load_config,
    tell_end,
)

app = typer.Typer(add_completion=False)


@app.command()
def drill(
    runbook: RunbookArgument,
    point: Annotated[
        str, typer.Option("--point", help="`latest`, a time, a point's id or its label; default: the runbook's.")
    ] = "",
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
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        run = await begin(session, "drill", runbook, by, wait=wait, json=json, point=point, hold=hold)
        tell_end(session, run, json=json)

    in_session(load_config(config, store, state, export), work)
