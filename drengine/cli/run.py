"""`drengine run`: one run: how it is, and going on with it."""

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
    WaitOption,
    describe,
    in_session,
    load_config,
    tell_end,
    told,
    watched,
)
from drengine.terminal import emit_json, human_duration, show_table

app = typer.Typer(add_completion=False)


@app.command()
def show(
    run: RunArgument,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Show a run: its end or what it waits for, what was measured, and each step with its result."""
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        record = await asyncio.to_thread(session.registry.run, run)
        snapshot = await asyncio.to_thread(session.snapshot, run)
        if json:
            emit_json(describe(record, snapshot))
            return
        print("\n".join(told(record, snapshot)))
        rows = []
        for each in snapshot.steps:
            took = human_duration((each.ended_ns - each.began_ns) / 1e9) if each.ended_ns > each.began_ns else ""
            rows.append((each.step.id, each.status.value, str(each.attempt or ""), took, each.message))
        show_table(("step", "status", "try", "took", "result"), rows)

    in_session(load_config(config, store, state), work)


@app.command()
def resume(
    run: RunArgument,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although a source can't be fenced; the report says so first.")
    ] = False,
    done: Annotated[
        str, typer.Option("--done", help="A failed step that you did by hand: release, stop-workload, command, dns.")
    ] = "",
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Go on with a run that was interrupted, or try again what failed in one that stopped."""
    from drengine.failover.requests import ask_resume  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        who = session.config.operator_name(by)
        record = await asyncio.to_thread(lambda: ask_resume(session, run, who, force=force, done=done))
        record = await watched(session, record, wait=wait, json=json, patient=True)
        tell_end(session, record, json=json)

    in_session(load_config(config, store, state, export), work)
