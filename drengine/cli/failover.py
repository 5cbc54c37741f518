"""`drengine failover`: bring sources back here, now."""

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
def failover(
    runbook: RunbookArgument,
    point: Annotated[
        str, typer.Option("--point", help="`latest`, a time, a point's id or its label; default: the runbook's.")
    ] = "",
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
    """Bring the runbook's sources back here: fence them, promote a point under a new generation, launch, check.

    Afterwards `drengine commit RUN`, or `drengine rollback RUN` while nothing that matters was written."""
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        run = await begin(session, "failover", runbook, by, wait=wait, json=json, point=point, force=force)
        tell_end(session, run, json=json)

    in_session(load_config(config, store, state, export), work)
