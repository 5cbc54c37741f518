"""`drengine abort`: end a run where it is."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ByOption,
    ConfigOption,
    EngineStoreOption,
    ExportOption,
    RunArgument,
    StateOption,
    in_session,
    load_config,
    tell_end,
    watched_here,
)

app = typer.Typer(add_completion=False)


@app.command()
def abort(
    run: RunArgument,
    by: ByOption = None,
    comment: Annotated[str, typer.Option("--note", help="Kept with the request.")] = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    json: JsonOption = False,
) -> None:
    """End a run where it is: nothing new begins, a drill is cleaned up. A failover is not undone (see rollback)."""
    from drengine.failover.requests import ask_abort  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        who = session.config.operator_name(by)
        record = await asyncio.to_thread(lambda: ask_abort(session, run, who, comment))
        ended = await watched_here(session, record, json=json, elsewhere="whoever executes the run will end it now")
        if ended is not None:
            tell_end(session, ended, json=json, fine=("aborted",))

    in_session(load_config(config, store, state, export), work)
