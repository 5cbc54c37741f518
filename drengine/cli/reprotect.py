"""`drengine reprotect`: let the source's disks follow the recovered side."""

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
def reprotect(
    runbook: RunbookArgument,
    discard_divergent: Annotated[
        bool,
        typer.Option("--discard-divergent", help="Do not keep what a source wrote on its own: it is overwritten."),
    ] = False,
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
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        run = await begin(session, "reprotect", runbook, by, wait=wait, json=json, discard_divergent=discard_divergent)
        tell_end(session, run, json=json)

    in_session(load_config(config, store, state, export), work)
