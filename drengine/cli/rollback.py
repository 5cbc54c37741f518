"""`drengine rollback`: undo what a run did."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

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
from drengine.terminal import human_time, note

if TYPE_CHECKING:
    from drengine.failover.preview import Loss

app = typer.Typer(add_completion=False)


@app.command()
def rollback(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Go on although the recovered side's writes are lost.")] = False,
    by: ByOption = None,
    comment: Annotated[str, typer.Option("--note", help="Kept with the request.")] = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    json: JsonOption = False,
) -> None:
    """Undo a failover, or a failback before its switch: stop what was launched and put the sources in charge again.

    What would be lost is said before, and needs --yes: what was written on the recovered side stays behind on its
    branch until the branch's retention ends.
    """
    from drengine.failover.errors import WOULD_LOSE  # noqa: PLC0415
    from drengine.failover.preview import losses  # noqa: PLC0415
    from drengine.failover.requests import ask_rollback, check_rollback  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415
    from drengine.model.errors import DrengineError  # noqa: PLC0415

    async def work(session: Session) -> None:
        record = await asyncio.to_thread(session.registry.run, run)
        await asyncio.to_thread(lambda: check_rollback(session, record, session.snapshot(run)))
        lost = await asyncio.to_thread(losses, session, record)
        if lost and not yes:
            raise DrengineError(WOULD_LOSE, "; ".join(map(_told, lost)))
        for each in lost:
            note(f"giving up: {_told(each)}")
        who = session.config.operator_name(by)
        record = await asyncio.to_thread(lambda: ask_rollback(session, run, who, comment))
        ended = await watched_here(
            session, record, json=json, elsewhere="whoever executes the run will roll it back now"
        )
        if ended is not None:
            tell_end(session, ended, json=json, fine=("rolled-back",))

    in_session(load_config(config, store, state, export), work)


def _told(loss: Loss) -> str:
    until = f", until {human_time(loss.newest_ns)}" if loss.newest_ns else ""
    return f"{loss.source}: {loss.records} changes on the recovered side{until} (they stay on branch {loss.branch})"
