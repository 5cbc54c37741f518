"""`drengine migrate`: a planned failover without loss."""

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
def migrate(
    runbook: RunbookArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although a source can't be fenced; the report says so first.")
    ] = False,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Move the runbook's sources here without losing anything: stop them, take their last point, promote it."""
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        run = await begin(session, "migration", runbook, by, wait=wait, json=json, force=force)
        tell_end(session, run, json=json)

    in_session(load_config(config, store, state, export), work)
