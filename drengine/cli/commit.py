"""`drengine commit`: accept a failover."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ByOption,
    ConfigOption,
    EngineStoreOption,
    RunArgument,
    StateOption,
    describe,
    in_session,
    load_config,
)
from drengine.terminal import emit_json

app = typer.Typer(add_completion=False)


@app.command()
def commit(
    run: RunArgument,
    by: ByOption = None,
    comment: Annotated[str, typer.Option("--note", help="Kept with the request.")] = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Accept a completed failover: it can't be rolled back any more; the way home is a failback."""
    from drengine.failover.requests import commit as commit_run  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        who = session.config.operator_name(by)
        record = await asyncio.to_thread(lambda: commit_run(session, run, who, comment))
        if json:
            emit_json(describe(record, await asyncio.to_thread(session.snapshot, run)))
        else:
            print(f"{run} is committed by {who}")

    in_session(load_config(config, store, state), work)
